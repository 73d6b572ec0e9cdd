"""Bringing the parameters to where the ledger is: certified aggregates replayed, from a certified state if need be.

One way serves the restarted, the frozen, the late and the newcomer. Nothing is taken on a peer's word: blocks carry q
Finals, bytes are addressed by the hashes in the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from btrain.kernels import dequantize_blockwise
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Apply, FetchBlob, LoadState
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Block, CertifiedState, LedgerState
from btrain.protocol.reduction import open_part
from btrain.protocol.roles import PartLayout


@dataclass
class Replay:
    """Replays blocks from `x_round` to the ledger's head, one at a time."""

    desk: Desk
    block_of: Callable[[int], Block]  # a block of the ledger
    custody_rounds: int
    x_round: int  # the parameters here are x[x_round]
    applying: int = field(default=0, init=False)  # steps asked for and not yet done
    _fetching: bool = field(default=False, init=False)
    _wanted: dict[bytes, set[int]] = field(default_factory=dict, init=False)  # hash -> parts with these bytes
    _parts: dict[int, bytes] = field(default_factory=dict, init=False)
    _state: CertifiedState | None = field(default=None, init=False)  # the state that is being fetched
    _sources: tuple[PeerId, ...] = field(default=(), init=False)

    def go(self, state: LedgerState, sources: tuple[PeerId, ...]) -> None:
        """Take the next step towards `state`, unless one is under way or nothing is left to do."""
        if self._fetching or self.applying or self.x_round >= state.round:
            return
        self._sources = sources
        certified = state.state
        far = state.round - self.x_round > self.custody_rounds
        if far and certified is not None and certified.round > self.x_round:
            self._fetch_state(certified)
            return
        block = self.block_of(self.x_round)
        self._fetching = True
        if block.void:
            self._apply(block, None)
            return
        self._wanted, self._parts = {}, {}
        for entry in block.results:
            self._wanted.setdefault(entry.hash, set()).add(entry.part)
        self.desk.emit(*(FetchBlob(entry.hash, (entry.aggregator, *sources)) for entry in block.results))

    def _fetch_state(self, certified: CertifiedState) -> None:
        self._fetching, self._state = True, certified
        self.desk.emit(FetchBlob(certified.digest, self._sources))

    def blob(self, hash: bytes, data: bytes | None, state: LedgerState) -> None:
        """Bytes for the block or the state that is being fetched; None when nobody has them."""
        if self._state is not None and hash == self._state.digest:
            self._on_state(self._state, data)
        elif hash in self._wanted and data is None:
            self._wanted, self._fetching = {}, False
            if state.state is not None and state.state.round > self.x_round:
                self._fetch_state(state.state)
            else:
                self.desk.event(
                    "stalled", round=self.x_round, reason="no connected peer keeps the results of this round"
                )
        elif hash in self._wanted and data is not None:
            self._parts |= dict.fromkeys(self._wanted.pop(hash), data)
            if not self._wanted:
                block = self.block_of(self.x_round)
                self._apply(block, _assemble(self._parts, state.genesis.numel, len(block.results)))

    def _on_state(self, certified: CertifiedState, data: bytes | None) -> None:
        self._fetching, self._state = False, None
        if data is None:
            self.desk.event("stalled", round=self.x_round, reason="no connected peer keeps the certified state")
            return
        self.applying += 1
        self.desk.emit(LoadState(certified.round, data))

    def _apply(self, block: Block, update: Tensor | None) -> None:
        self.step(Apply(block.round, update, block.step, False))

    def step(self, apply: Apply) -> None:
        """Ask for the step of a block."""
        self._fetching = False
        self.applying += 1
        self.desk.emit(apply)

    def applied(self, round: int) -> None:
        """x[round] is there."""
        self.x_round, self.applying = round, self.applying - 1


def _assemble(parts: dict[int, bytes], numel: int, count: int) -> Tensor:
    """The aggregate of a block from its parts' bytes, float32 [d]. A certified part was checked by a quorum."""
    layout = PartLayout(numel, count)
    out = torch.empty(numel)
    for part, data in parts.items():
        start, end = layout.bounds(part)
        opened = open_part(data, end - start)
        assert opened is not None, "a quorum certified these bytes"
        out[start:end] = dequantize_blockwise(opened)[: end - start]
    return out
