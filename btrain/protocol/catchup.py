"""Bringing the parameters to where the ledger is: certified aggregates replayed, from a certified state if need be.

One way serves the restarted, the frozen, the late, the drifted and the newcomer. Nothing is taken on a peer's word:
blocks carry q Finals, bytes are addressed by the hashes in the blocks. What a block took back is not replayed
(`trajectory.py`); whoever stands on it returns to a certified state from before and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from btrain.kernels import dequantize_blockwise
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Apply, FetchBlob, LoadState, StartOver
from btrain.protocol.encoding import ZERO, PeerId
from btrain.protocol.ledger import Block, CertifiedState, Charter, LedgerState
from btrain.protocol.pieces import StateFetch
from btrain.protocol.reduction import open_part
from btrain.protocol.roles import PartLayout
from btrain.protocol.trajectory import Trajectory


@dataclass
class Replay:
    """Replays blocks from `x_round` to the ledger's head, one at a time; or from a certified state that it fetches.

    A state is fetched beside everything else: who heals goes on with its drifted parameters until it is here.
    """

    desk: Desk
    block_of: Callable[[int], Block]  # a block of the ledger
    charter: Charter
    x_round: int  # the parameters here are x[x_round]; -1: of another run, the members give x[0]
    applying: int = field(default=0, init=False)  # steps and loads asked for and not yet done
    _replaying: bool = field(default=False, init=False)  # results are being fetched
    _wanted: dict[bytes, set[int]] = field(default_factory=dict, init=False)  # hash -> parts with these bytes
    _parts: dict[int, bytes] = field(default_factory=dict, init=False)
    _state: CertifiedState | None = field(default=None, init=False)  # to be taken over
    _fetch: StateFetch | None = field(default=None, init=False)
    _loading: CertifiedState | None = field(default=None, init=False)
    undone: bool = field(default=False, init=False)  # the parameters here are of a chain that was given up
    _load_undone: bool = field(default=False, init=False)  # and so is the state that is being taken over
    _stalled: tuple[int, str] | None = field(default=None, init=False)  # what was last said of that
    _heading: int = field(init=False)  # x_round once all that was asked for is done

    def __post_init__(self) -> None:
        self.undone, self._heading = self.x_round < 0, self.x_round

    @property
    def loads(self) -> bool:
        """Whether a certified state is here and waits to be taken over."""
        return self._fetch is not None and self._fetch.progress == "here"

    def go(self, state: LedgerState, sources: tuple[PeerId, ...]) -> None:
        """Take the next step towards `state`, unless one is under way or nothing is left to do."""
        self._give_up_undone(state.trajectory)
        if self.applying or self._replaying:
            return
        if self.loads:
            self._load(state)
            return
        if self._state is not None and self._fetch is not None and self._fetch.progress == "nowhere":
            self.take_over(self._beginning(state) or self._state, state.round, sources)
            self._fetch.go(sources)
        if self.undone or not state.trajectory.passes(self.x_round):
            self._return(state, sources)
        elif self.x_round < state.round:
            self._follow(state, sources)

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more: nothing of them may be built upon."""
        self._wanted, self._replaying = {}, False
        self.keep_own()
        self._load_undone = self._loading is not None
        self.undone = self.undone or self._load_undone or self._heading > round

    def _give_up_undone(self, trajectory: Trajectory) -> None:
        """A block has taken back what was to be replayed or taken over."""
        if self._replaying and not trajectory.steps(self.x_round):
            self._wanted, self._replaying = {}, False
        if self._state is not None and not trajectory.passes(self._state.round):
            self.keep_own()

    def _return(self, state: LedgerState, sources: tuple[PeerId, ...]) -> None:
        """To the newest certified state on the way to the parameters of now, else to the beginning."""
        certified = self._beginning(state)
        if certified is not None:
            self.take_over(certified, state.round, sources)
            if self.loads:
                self._load(state)
            return
        self._loading, self._heading = CertifiedState(0, ZERO), 0
        self.applying += 1
        self.desk.emit(StartOver(self._later_holds(state)))

    def _beginning(self, state: LedgerState) -> CertifiedState | None:
        """Where to go on from: the newest certified state, but first x[0], which the founders have signed."""
        return CertifiedState(0, state.genesis.state[0]) if self.x_round < 0 else state.state

    def _follow(self, state: LedgerState, sources: tuple[PeerId, ...]) -> None:
        certified = state.state
        far = state.round - self.x_round > self.charter.custody_rounds
        if far and certified is not None and certified.round > self.x_round:
            self.take_over(certified, state.round, sources)
            return
        resumed = state.trajectory.after_undone(self.x_round)
        block = self.block_of(self.x_round if resumed == self.x_round else resumed - 1)
        if block.void or resumed != self.x_round:
            self._apply(block, None)
            return
        self._replaying = True
        self._wanted, self._parts = {}, {}
        counted = [entry for entry in block.results if entry.part not in block.void_parts]
        for entry in counted:
            self._wanted.setdefault(entry.hash, set()).add(entry.part)
        self.desk.emit(*(FetchBlob(entry.hash, (entry.aggregator, *sources)) for entry in counted))
        if not counted:
            self._apply(block, torch.zeros(state.genesis.numel))

    def take_over(self, certified: CertifiedState, round: int, sources: tuple[PeerId, ...]) -> None:
        """Get a certified state and go on from it; `round` is the open one.

        One that is on its way is not given up for a newer one: a large state takes longer than the next takes to come.
        """
        if self._state is not None and self._fetch is not None:
            useful = self._state.round + self.charter.custody_rounds >= round
            if self._state == certified or (useful and self._fetch.progress in ("fetching", "here")):
                return
        self._state, self._fetch = certified, StateFetch(self.desk, certified.digest, round)
        self._fetch.go(sources)

    def keep_own(self) -> None:
        """The parameters here are the certified ones: a fetch that is under way is of no use."""
        self._state = self._fetch = None

    def _load(self, state: LedgerState) -> None:
        assert self._state is not None
        self._loading, self._state, self._fetch = self._state, None, None
        self._heading = self._loading.round
        self.applying += 1
        self.desk.emit(LoadState(self._loading.round, self._loading.digest, self._later_holds(state)))

    def _later_holds(self, state: LedgerState) -> bool:
        """Whether the copies of later x are right: a block took their rounds back, no other chain does."""
        return not self.undone and not state.trajectory.passes(self.x_round)

    def blob(self, hash: bytes, data: bytes | None, state: LedgerState, sources: tuple[PeerId, ...]) -> None:
        """Bytes for the block or the state that is being fetched; None when nobody has them."""
        if self._fetch is not None and self._fetch.blob(hash, data) and self._fetch.progress in ("nowhere", "refused"):
            self._stall(f"no connected peer gives the certified state: {self._fetch.refusal or 'pieces are missing'}")
        if hash not in self._wanted:
            return
        if data is None:
            self._wanted, self._replaying = {}, False
            if state.state is not None and state.state.round > self.x_round:
                self.take_over(state.state, state.round, sources)
            else:
                self._stall("no connected peer keeps the results of this round")
            return
        self._parts |= dict.fromkeys(self._wanted.pop(hash), data)
        if not self._wanted:
            block = self.block_of(self.x_round)
            self._apply(block, _assemble(self._parts, state.genesis.numel, len(block.results)))

    def _stall(self, reason: str) -> None:
        """Say once what is waited for: it is asked for again and again."""
        if self._stalled != (self.x_round, reason):
            self._stalled = self.x_round, reason
            self.desk.event("stalled", round=self.x_round, reason=reason)

    def _apply(self, block: Block, update: Tensor | None) -> None:
        self._replaying = False
        self.step(block, update)

    def step(self, block: Block, update: Tensor | None) -> None:
        """Ask for the step of a block; in a void round, and behind rounds that were undone, there is none."""
        due = self.charter.state_due(block.round + 1)
        self.applying, self._heading = self.applying + 1, block.round + 1
        self.desk.emit(Apply(block.round, update, block.step, due))

    def applied(self, round: int) -> None:
        """x[round] is there."""
        self.x_round, self.applying = round, self.applying - 1

    def loaded(self) -> CertifiedState:
        """The state that was asked for has been taken over."""
        loaded, self._loading = self._loading, None
        assert loaded is not None, "a state is loaded when it was asked for"
        self.undone, self._load_undone = self._load_undone, False
        self.applied(loaded.round)
        return loaded


def _assemble(parts: dict[int, bytes], numel: int, count: int) -> Tensor:
    """The aggregate of a block from the bytes of those of its `count` parts that count, zero elsewhere, float32 [d]."""
    layout = PartLayout(numel, count)
    out = torch.zeros(numel)
    for part, data in parts.items():
        start, end = layout.bounds(part)
        opened = open_part(data, end - start)
        assert opened is not None, "a quorum certified these bytes"
        out[start:end] = dequantize_blockwise(opened)[: end - start]
    return out
