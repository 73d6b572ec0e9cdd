"""The ledger at one member: its head, decided blocks that still lack their q Finals, and catching up with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from btrain.protocol.allowance import Allowance
from btrain.protocol.desk import Desk
from btrain.protocol.effects import AppendBlock, RollBack, SetTimer
from btrain.protocol.encoding import PeerId, digest, encode
from btrain.protocol.errors import ForeignMessage, InconsistentMessage
from btrain.protocol.forks import FORK_ROUNDS_MAX, Forks, Height, History
from btrain.protocol.holdings import Holdings
from btrain.protocol.ledger import KEPT_PERIODS, Block, LedgerState, check_certificate, open_block
from btrain.protocol.packets import BLOCKS_MAX, PACKET_BYTES_MAX, Blocks, CertifiedBlock, Where
from btrain.protocol.pursuit import ROOM_BYTES, Pursuit, fills_packet, size_of
from btrain.protocol.round import Round

BLOCKS_KEPT = 64  # decoded blocks in memory
ANSWERS_MAX = 4  # for a member or trainee in Delta / 2; a stranger gets one
RETELLINGS_MAX = 2  # of the open rounds, for a member or trainee in Delta
FURTHER_ANSWERS_MAX = 16  # in Delta / 2, for all together that ask for more: a newcomer has the whole past to fetch
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
        self.pursuit = Pursuit()
        self._answers = Allowance(ANSWERS_MAX, max(1, state.charter.message_us // 2))
        self._further = Allowance(FURTHER_ANSWERS_MAX, max(1, state.charter.message_us // 2))
        self._searches = Allowance(1, max(1, state.charter.message_us // 2))
        self._steps = Allowance(BLOCKS_MAX, max(1, state.charter.message_us // 2))  # of a search, packet by packet
        self._retellings = Allowance(RETELLINGS_MAX, state.charter.message_us)
        self._summaries = 0  # made so far
        self.history = History(state, ledger.read)
        self.forks = Forks(desk.verifier, self.history.before)
        self.two_chains = False  # shown to one who was no member where they part, and cannot tell which is right
        self.rolled_back: int | None = None  # the first block that no longer stands, until the member has noticed
        self._fresh: list[Block] = []

    def append(self, block: Block, now: int) -> None:
        """A block is decided."""
        self.state = self.state.advance(block)
        self.history.note(self.state)
        self.forks.forget(block.round)
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
        period = self.state.charter.kept_rounds
        keep_from = max(min(number - period, self.state.trajectory.anchor), number - KEPT_PERIODS * period)
        self.desk.emit(AppendBlock(number, certified.block, certified.certificate, keep_from))

    # --- where everybody is ---

    def greet(self, peer: PeerId) -> None:
        """Say where we are to a peer that is connected again, and is told the open rounds anyway."""
        self.desk.send(self._where(None), peer)

    def tell(self, to: PeerId | None, opened: Round | None) -> None:
        """Say where we are: who is ahead answers with blocks, who is as far with what is lacking here."""
        rounds = (*self.uncertified.values(), *([opened] if opened else []))
        self.desk.send(self._where(Holdings.of(set().union(*(r.held for r in rounds)), self._summaries)), to)
        self._summaries += 1

    def _where(self, held: Holdings | None) -> Where:
        """The next block that this member lacks, certified."""
        lacking = self.uncertified.get(self._lacks)
        return Where(self._lacks, self.state.head if lacking is None else lacking.state.head, held)

    @property
    def _lacks(self) -> int:
        """The first round whose block is not here with its certificate."""
        return min(self.uncertified, default=self.state.round)

    def quiet(self, opened: Round | None, now: int) -> bool:
        """Whether nothing moved for a while; while members may compute, at lengthening intervals: nobody is late."""
        since, delta_us = now - self.decided_us, self.state.charter.message_us
        if self.pursuit.under_way:
            return True
        if self.uncertified:
            return len(self.uncertified) > 1 or since >= delta_us
        periods = since // (QUIET_DELTAS * delta_us)
        if opened is not None and opened.awaits_commits:
            return periods.bit_count() == 1  # 1, 2, 4, 8, ...
        return periods > 0

    def ask(self, peer: PeerId, opened: Round | None, now: int) -> None:
        """Ask a peer that seems to be ahead."""
        if now - self._asked_us >= self.state.charter.message_us:
            self._asked_us = now
            self.tell(peer, opened)

    def answer(self, sender: PeerId, where: Where, opened: Round | None, now: int) -> None:
        """Help a peer on from where it is."""
        if where.round > self.state.round:
            self.ask(sender, opened, now)
        elif self._may_ask(sender, where, now):
            known = self._head_before(where.round)
            apart = known != where.head  # another chain: show where they part
            blocks = self._from(max(0, where.round - BLOCKS_MAX) if apart else where.round)
            if blocks:
                self.desk.send(Blocks(tuple(blocks)), sender)
            elif where.round + 1 >= self._lacks and self.state.answers(sender):
                self._retell(sender, where.held, opened, now)

    def _retell(self, to: PeerId, held: Holdings | None, opened: Round | None, now: int) -> None:
        """Send what a peer lacks of the open rounds."""
        if held is not None and self._retellings.spend(to, 1, now):
            for target in (*self.uncertified.values(), *([opened] if opened else [])):
                target.resend(to, held, now)

    def _may_ask(self, sender: PeerId, where: Where, now: int) -> bool:
        if self._answers.spend(sender, 1 if self.state.answers(sender) else ANSWERS_MAX, now):
            return True
        follows = where.round > 0 and where.head == self._head_before(where.round)
        return follows and self._further.spend(self.desk.me, 1, now)

    def _head_before(self, round: int) -> bytes:
        """Hash of the block before block `round`."""
        return self.state.run if round == 0 else self.block(round - 1).hash

    def _from(self, first: int) -> list[CertifiedBlock]:
        blocks: list[CertifiedBlock] = []
        size = 0
        while len(blocks) < BLOCKS_MAX:
            certified = self.ledger.read(first + len(blocks))
            if certified is None:
                break
            size += size_of(certified)
            if blocks and size > PACKET_BYTES_MAX - ROOM_BYTES:
                break
            blocks.append(certified)
        return blocks

    def go_on(self, sender: PeerId, blocks: Sequence[CertifiedBlock], now: int) -> None:
        """Blocks have come. If some are new and there may be more, one peer is asked for these; else all hear where
        this member is now, so that they send it what is open."""
        fresh = bool(self._fresh)
        self.pursuit.came(sender, fresh)
        if not fresh:
            return
        source = self.pursuit.next() if fills_packet(blocks) else None
        self.tell(source, None)
        if source is not None:
            self.desk.emit(SetTimer("where", now + self.state.charter.message_us))

    def take(self, sender: PeerId, blocks: Sequence[CertifiedBlock], now: int) -> None:
        """Verify certified blocks of a peer that is ahead and append those that are new; `taken` gives these.

        One that contradicts a block here is a fork, if the block before is the same; else earlier ones are asked for.

        Raises:
            RemoteProtocolError: a block that is malformed, contradicts the ledger or is not certified.
        """
        for certified in blocks:
            block = open_block(certified.block)
            if block.round > self.state.round or block.run != self.state.run:
                self._refuse_foreign(block)
                continue
            if block.prev != self._head_before(block.round):
                self._search(sender, block.round, now)
                break
            if block.round in self.uncertified:
                self._certify_late(block, certified, now)
                self.certify()
            elif block.round < self.state.round:
                self._look_back(block, certified, now)
            elif block.round == self.state.round and not self.uncertified:
                check_certificate(block, certified.certificate, self.state, self.desk.verifier)
                self.append(block, now)
                self._write(block.round, certified)
                self._fresh.append(block)
                self._asked_us = -(10**12)  # it helped: who is still behind may ask again at once
        else:
            self._search_on(sender, blocks, now)

    def taken(self) -> list[Block]:
        """The blocks that `take` has appended since the last time."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _refuse_foreign(self, block: Block) -> None:
        if block.run != self.state.run:
            raise ForeignMessage(f"block {block.round} of run {block.run.hex()[:12]}")

    def _certify_late(self, block: Block, certified: CertifiedBlock, now: int) -> None:
        decided = self.uncertified[block.round]
        if decided.block is None or decided.certificate is not None:
            return
        if decided.block.hash != block.hash and block.round > min(self.uncertified):
            return  # the ledger lacks the block before as well: that comes first
        if decided.block.hash == block.hash:
            check_certificate(block, certified.certificate, decided.state, self.desk.verifier)
            decided.certificate = certified.certificate
        else:
            self._settle_fork(block, self.forks.compare(block, certified, None), now)

    # --- two chains ---

    def _search(self, sender: PeerId, round: int, now: int) -> None:
        """The block before is another one: ask from where the chains may still be one, a stretch further back."""
        if round < self.state.round - FORK_ROUNDS_MAX:
            raise InconsistentMessage(f"block {round}: of a chain that parts too many rounds ago")
        if min(self.forks.heights, default=round) < round:
            return  # where they part is known, and which one stands
        if self._searches.spend(sender, 1, now):
            first = max(0, round - BLOCKS_MAX)
            self.desk.send(Where(first, self._head_before(first)), sender)

    def _search_on(self, sender: PeerId, blocks: Sequence[CertifiedBlock], now: int) -> None:
        """A packet of blocks from before where the chains part, as far as it held: ask for those that follow."""
        if not blocks or self.pursuit.under_way or not fills_packet(blocks):
            return
        last = open_block(blocks[-1].block)
        following = last.round + 1
        shown = self.state.round - FORK_ROUNDS_MAX <= following < self.state.round
        if shown and self.block(last.round).hash == last.hash and self._steps.spend(sender, 1, now):
            self.desk.send(Where(following, last.hash), sender)

    def _look_back(self, block: Block, certified: CertifiedBlock, now: int) -> None:
        """A certified block of a round that is over here: the same, or that of another chain."""
        ours = self.ledger.read(block.round)
        own = self.block(block.round).hash
        if ours is None or digest(ours.block) != own or (own == block.hash and block.round not in self.forks.heights):
            return  # being written at the moment, or nothing new
        height = self.forks.compare(block, certified, ours)
        self._settle_fork(block, height, now)

    def _settle_fork(self, block: Block, height: Height | None, now: int) -> None:
        """Stay, or return to the common block and take the other one; show everybody what decides it."""
        if height is None:
            return
        before = self.history.before(block.round)
        assert before is not None, "the fork was compared with it"
        own, winner = self.block(block.round).hash, height.winner
        self.desk.event("fork", round=block.round, here=own.hex(), stands=winner.hex(),
                        guilty=[peer.hex() for peer in height.conflicts])  # fmt: skip
        if before.roster.seat(self.desk.me) is None and self.state.roster.seat(self.desk.me) is None:
            self.two_chains = True
            return
        for hash in height.blocks:
            self.desk.send(Blocks((height.certified(hash),)))
        if winner != own:
            self._roll_back(block.round)
            chosen = height.certified(winner)
            self.append(open_block(chosen.block), now)
            self._fresh.append(open_block(chosen.block))
            self._write(block.round, chosen)
            self.tell(None, None)

    def _roll_back(self, round: int) -> None:
        self.state = self.history.undo(round)
        self.forks.undo(round)
        self._blocks = {at: block for at, block in self._blocks.items() if at < round}
        self._fresh = [block for block in self._fresh if block.round < round]
        self.uncertified = {at: open for at, open in self.uncertified.items() if at < round}
        self.rolled_back = round if self.rolled_back is None else min(round, self.rolled_back)
        self.desk.emit(RollBack(round))
