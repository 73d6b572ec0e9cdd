"""The bytes of a round at one member: its own parts, the parts it reduces, and everybody's reduced parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from btrain.aggregation import Rule
from btrain.kernels import QuantizedBlocks, dequantize_blockwise
from btrain.protocol.blobs import Blobs
from btrain.protocol.contribution import leaf_of
from btrain.protocol.desk import Desk
from btrain.protocol.effects import FetchBlob, PushBlob, PutBlob, Work
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.ledger import Contribution, ResultEntry
from btrain.protocol.messages import Commit, Message, Result
from btrain.protocol.reduction import ReducedPart, open_part, reduce_committed
from btrain.protocol.roles import Roles


def has_leaves(commit: Message) -> bool:
    """Whether a Commit carries a gradient."""
    return isinstance(commit.body, Commit) and bool(commit.body.leaves)


def with_leaves(commits: Mapping[PeerId, Message]) -> tuple[PeerId, ...]:
    """Members whose Commit carries a gradient, in member order."""
    return tuple(sorted(peer for peer, message in commits.items() if has_leaves(message)))


@dataclass
class Exchange:
    """Parts in, results out. Illegal bytes under a valid signature are left for the member to charge."""

    roles: Roles
    label: str  # the round's
    rule: Rule
    desk: Desk
    blobs: Blobs
    opened: dict[tuple[int, bytes], QuantizedBlocks] = field(default_factory=dict)  # checked results by part and hash
    illegal: list[tuple[str, Message, bytes]] = field(default_factory=list)  # (deed, statement, bytes)
    clipped_share: float = 0.0
    without: dict[tuple[bytes, int, int], tuple[PeerId, ...]] = field(default_factory=dict)  # (ctx, part, attempt)
    taus: dict[bytes, float] = field(default_factory=dict)  # clipping radius of own results, by hash
    _started: set[tuple[bytes, int, int]] = field(default_factory=set)
    _fetching: set[bytes] = field(default_factory=set)
    _fetched: set[bytes] = field(default_factory=set)
    _missed: set[bytes] = field(default_factory=set)  # nobody asked had them: not asked for again before `retry`
    _refused: set[bytes] = field(default_factory=set)
    _kept: set[bytes] = field(default_factory=set)

    # --- parts ---

    def keep(self, hash: bytes, data: bytes) -> None:
        """Take custody: in memory for the round, in the store for the custody period."""
        if hash not in self._kept:
            self._kept.add(hash)
            self.blobs.keep(hash, data)
            self.desk.emit(PutBlob(hash, data, self.roles.round))

    def scatter(self, commit: Message, route: Callable[[PeerId], PeerId]) -> None:
        """Send every part of the own gradient to its aggregator, on the way that `route` gives."""
        assert isinstance(commit.body, Commit)
        for part, leaf in enumerate(commit.body.leaves):
            aggregator = self.roles.aggregator(part, 0)
            if aggregator is not None and aggregator != self.desk.me:
                self.desk.emit(PushBlob(route(aggregator), leaf))

    def lacking(self, part: int, commits: Mapping[PeerId, Message], workers: Iterable[PeerId]) -> list[PeerId]:
        """Workers whose bytes of `part` are not here."""
        return [worker for worker in workers if self.blobs.get(leaf_of(commits[worker], part)) is None]

    def committed(self, part: int, commits: Mapping[PeerId, Message], workers: Iterable[PeerId]) -> dict[PeerId, bytes]:
        """The bytes of `part` that workers committed to, all of which are here."""
        found = {worker: self.blobs.get(leaf_of(commits[worker], part)) for worker in workers}
        return {worker: data for worker, data in found.items() if data is not None}

    def pull(
        self,
        part: int,
        commits: Mapping[PeerId, Message],
        workers: Iterable[PeerId],
        holders: Callable[[PeerId, PeerId], Iterable[PeerId]],
    ) -> None:
        """Ask the workers, the first owner of the part and the relays that hold it for what has not come."""
        owner = self.roles.owners[part]
        for worker in self.lacking(part, commits, workers):
            self.fetch(leaf_of(commits[worker], part), (worker, owner, *holders(worker, owner)))

    def fetch(self, hash: bytes, sources: Iterable[PeerId]) -> None:
        """Ask for a blob unless it is being asked for, or was in vain a moment ago."""
        if hash not in self._fetching and hash not in self._missed:
            self._fetching.add(hash)
            self._fetched.add(hash)
            self.desk.emit(FetchBlob(hash, tuple(dict.fromkeys(peer for peer in sources if peer != self.desk.me))))

    def awaits(self, hash: bytes) -> bool:
        """Whether a blob was asked for and has not come."""
        return hash in self._fetching

    def arrived(self, hash: bytes) -> None:
        """A blob came, or nobody asked had it."""
        self._fetching.discard(hash)
        if self.blobs.get(hash) is None:
            self._missed.add(hash)

    def retry(self) -> None:
        """Let what nobody had be asked for again; once in a while: else a withheld part is asked for without end."""
        self._missed.clear()

    # --- reduction ---

    def reduce(self, part: int, attempt: int, contribution: Contribution, without: tuple[PeerId, ...] = ()) -> None:
        """Reduce a part over the contributors, all of whose bytes are here but those of `without`."""
        key = (contribution.ctx, part, attempt)
        if key in self._started:
            return
        self._started.add(key)
        self.without[key] = without
        inputs: dict[PeerId, bytes] = {}
        numel, rule = self.roles.layout.part_numel(part), self.rule
        for worker in contribution.reduced(without):
            leaf = leaf_of(contribution.commits[worker], part)
            data = self.blobs.get(leaf)
            assert data is not None, "a reduction starts when every part is here"
            inputs[worker] = data
            self.keep(leaf, data)
            if open_part(data, numel) is None:
                self.illegal.append(("illegal_encoding", contribution.commits[worker], data))
        token = f"round:{self.label}:reduce:{part}:{attempt}:{contribution.ctx.hex()}"
        self.desk.emit(Work(token, partial(reduce_committed, tuple(inputs.items()), numel, rule)))

    def publish(self, reduced: ReducedPart, members: Iterable[PeerId]) -> bytes:
        """Keep a reduced part and send it to all members, absent ones too: they follow. Returns its hash."""
        hash = digest(reduced.data)
        self.clipped_share = reduced.clipped_share
        self.taus[hash] = reduced.tau
        self.keep(hash, reduced.data)
        for peer in members:
            if peer != self.desk.me:
                self.desk.emit(PushBlob(peer, hash))
        return hash

    # --- results ---

    def has_opened(self, message: Message) -> bool:
        """Whether the bytes of a Result are here and were found legal."""
        assert isinstance(message.body, Result)
        return (message.body.part, message.body.hash) in self.opened

    def open_result(self, message: Message) -> bool:
        """Whether the bytes of a Result are here and legal; illegal ones are set aside as evidence."""
        result = message.body
        assert isinstance(result, Result)
        key = (result.part, result.hash)
        if key in self.opened:
            return True
        data = self.blobs.get(result.hash)
        if data is None or message.hash in self._refused:
            return False
        opened = open_part(data, self.roles.layout.part_numel(result.part))
        if opened is None:
            self._refused.add(message.hash)
            self.illegal.append(("illegal_result", message, data))
            return False
        self.opened[key] = opened
        self.keep(result.hash, data)
        return True

    def update(self, results: Iterable[ResultEntry]) -> Tensor:
        """These of the decided parts put together, zero elsewhere, float32 [d]."""
        out = torch.zeros(self.roles.layout.numel)
        for entry in results:
            start, end = self.roles.layout.bounds(entry.part)
            out[start:end] = dequantize_blockwise(self.opened[entry.part, entry.hash])[: end - start]
        return out

    def release(self) -> None:
        """Forget the round's bytes in memory; the store keeps them for the custody period."""
        self.blobs.drop(self._kept | self._fetched)
        self.opened.clear()
