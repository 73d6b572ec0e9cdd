"""The ledger at one member: its head, decided blocks that still lack their q Finals, and catching up with others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from btrain.protocol.allowance import Allowance
from btrain.protocol.desk import Desk
from btrain.protocol.effects import AppendBlock
from btrain.protocol.encoding import PeerId, encode
from btrain.protocol.ledger import Block, LedgerState, check_certificate, open_block
from btrain.protocol.packets import BLOCKS_MAX, PACKET_BYTES_MAX, Blocks, CertifiedBlock, Where
from btrain.protocol.round import Round

BLOCKS_KEPT = 64  # decoded blocks in memory
KEPT_PERIODS = 4  # of custody and certification: for so long newcomers can follow although no state is certified
ANSWERS_MAX = 4  # for a member or trainee in Delta / 2; a stranger gets one
QUIET_DELTAS = 4  # when nothing was decided for so long, something may have been lost: ask


class Ledger(Protocol):
    """The blocks on disk (or in the simulator's memory)."""

    def read(self, round: int) -> CertifiedBlock | None:
        """The certified block of a round, None beyond the end."""


class Chronicle:
    """What is decided. `state` follows from every decided block, certified or not."""

    def __init__(self, desk: Desk, state: LedgerState, ledger: Ledger) -> None:
        self.desk, self.state, self.ledger = desk, state, ledger
        self.uncertified: dict[int, Round] = {}  # decided rounds whose q Finals are not here yet
        self.decided_us = 0
        self._blocks: dict[int, Block] = {}  # the latest; older ones are read from the ledger
        self._asked_us = -(10**12)
        self._answers = Allowance(ANSWERS_MAX, max(1, state.charter.message_us // 2))

    def append(self, block: Block, now: int) -> None:
        """A block is decided."""
        self.state = self.state.advance(block)
        self._blocks[block.round] = block
        self._blocks.pop(block.round - BLOCKS_KEPT, None)
        self.decided_us = now

    def block(self, number: int) -> Block:
        """A decided block."""
        if number in self._blocks:
            return self._blocks[number]
        certified = self.ledger.read(number)
        assert certified is not None, "the ledger holds every block before its head"
        return open_block(certified.block)

    def certify(self) -> None:
        """Append decided blocks to the ledger, in order, once their q Finals are here; show them to whom they admit."""
        if not self.uncertified:
            return
        for number in sorted(self.uncertified):
            finished = self.uncertified[number]
            if finished.certificate is None:
                return
            assert finished.block is not None
            certified = CertifiedBlock(encode(finished.block), finished.certificate)
            self._write(number, certified)
            del self.uncertified[number]
            for admission in finished.block.admissions:
                if admission.peer != self.desk.me:
                    self.desk.send(Blocks((certified,)), admission.peer)

    def _write(self, number: int, certified: CertifiedBlock) -> None:
        """Into the ledger. What leads from the last certified state to here stays, but not for ever."""
        charter, state = self.state.charter, self.state.state
        period = charter.kept_rounds
        last = 0 if state is None else state.round
        keep_from = max(min(number - period, last), number - KEPT_PERIODS * period)
        self.desk.emit(AppendBlock(number, certified.block, certified.certificate, keep_from))

    # --- where everybody is ---

    @property
    def _next(self) -> Where:
        """The next block that this member lacks, certified."""
        number = min(self.uncertified, default=self.state.round)
        lacking = self.uncertified.get(number)
        return Where(number, self.state.head if lacking is None else lacking.state.head)

    def tell(self, to: PeerId | None) -> None:
        """Say where we are: who is ahead answers with blocks, who is as far with the open decisions."""
        self.desk.send(self._next, to)

    def quiet(self, now: int) -> bool:
        """Whether nothing moved for a while."""
        return now - self.decided_us >= QUIET_DELTAS * self.state.charter.message_us or bool(self.uncertified)

    def ask(self, peer: PeerId, now: int) -> None:
        """Ask a peer that seems to be ahead."""
        if now - self._asked_us >= self.state.charter.message_us:
            self._asked_us = now
            self.tell(peer)

    def answer(self, sender: PeerId, where: Where, opened: Round | None, now: int) -> None:
        """Help a peer on from where it is."""
        if where.round > self.state.round:
            self.ask(sender, now)
        elif self._answers.spend(sender, 1 if self.state.answers(sender) else ANSWERS_MAX, now):
            blocks = self._from(where.round)
            if blocks:
                self.desk.send(Blocks(tuple(blocks)), sender)
            elif where.round + 1 >= self.state.round and self.state.answers(sender):
                for target in (*self.uncertified.values(), *([opened] if opened else [])):
                    target.resend(sender, now)

    def _from(self, first: int) -> list[CertifiedBlock]:
        blocks: list[CertifiedBlock] = []
        size = 0
        while len(blocks) < BLOCKS_MAX:
            certified = self.ledger.read(first + len(blocks))
            if certified is None:
                break
            size += len(certified.block) + sum(len(final) + 8 for final in certified.certificate) + 64
            if blocks and size > PACKET_BYTES_MAX - 1024:
                break
            blocks.append(certified)
        return blocks

    def take(self, blocks: Iterable[CertifiedBlock], now: int) -> list[Block]:
        """Verify certified blocks of a peer that is ahead and append those that are new; returns these.

        Raises:
            RemoteProtocolError: a block that is malformed, contradicts the ledger or is not certified.
        """
        fresh = []
        for certified in blocks:
            block = open_block(certified.block)
            if block.round in self.uncertified:
                self._certify_late(block, certified)
                self.certify()
            elif block.round == self.state.round and not self.uncertified:
                check_certificate(block, certified.certificate, self.state, self.desk.verifier)
                self.append(block, now)
                self._write(block.round, certified)
                fresh.append(block)
                self._asked_us = -(10**12)  # it helped: who is still behind may ask again at once
        return fresh

    def _certify_late(self, block: Block, certified: CertifiedBlock) -> None:
        decided = self.uncertified[block.round]
        if decided.block is not None and decided.certificate is None:
            check_certificate(block, certified.certificate, decided.state, self.desk.verifier)
            if decided.block.hash == block.hash:
                decided.certificate = certified.certificate
            else:
                self.desk.event("fork", round=block.round, here=decided.block.hash.hex(), there=block.hash.hex())
