"""Two certified blocks of one height: it takes more than b faulty members, or messages later than Delta.

Two quorums share a member, so somebody signed the Finals of both: that is equivocation, and the two Finals are its
evidence. Nobody else is guilty. The block with more signatures of members that signed only one wins, then the smaller
hash; whoever stands on another returns to the common block and follows. All Finals that are known of either count, and
are shown to everybody, so that members who saw different ones come to one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.errors import InconsistentMessage
from btrain.protocol.ledger import Block, LedgerState, check_certificate, open_block
from btrain.protocol.messages import Message, Verifier
from btrain.protocol.packets import CertifiedBlock

FORK_ROUNDS_MAX = 64  # a fork that lies further back is not healed: the run is for its people to mend
BRANCHES_MAX = 8  # different certified blocks of one height


@dataclass
class Height:
    """Certified blocks of one height, and who signed which."""

    blocks: dict[bytes, CertifiedBlock] = field(default_factory=dict)
    finals: dict[bytes, dict[PeerId, Message]] = field(default_factory=dict)

    def add(self, certified: CertifiedBlock, finals: Sequence[Message]) -> bool:
        """Take in a block with verified Finals; whether any of it was new."""
        hash = digest(certified.block)
        if hash not in self.blocks and len(self.blocks) >= BRANCHES_MAX:
            return False
        self.blocks.setdefault(hash, certified)
        known = self.finals.setdefault(hash, {})
        before = len(known)
        for final in finals:
            known.setdefault(final.sender, final)
        return len(known) > before

    @property
    def conflicts(self) -> dict[PeerId, tuple[Message, Message]]:
        """Who signed two of them, and the first two Finals of each."""
        signed: dict[PeerId, list[Message]] = {}
        for _, finals in sorted(self.finals.items()):
            for peer, final in finals.items():
                signed.setdefault(peer, []).append(final)
        return {peer: (found[0], found[1]) for peer, found in sorted(signed.items()) if len(found) > 1}

    @property
    def winner(self) -> bytes:
        """The hash of the block that stands."""
        guilty = self.conflicts.keys()
        return min(self.finals, key=lambda hash: (-len(self.finals[hash].keys() - guilty), hash))

    def certified(self, hash: bytes) -> CertifiedBlock:
        """A block with every Final that is known of it."""
        finals = tuple(final.data for _, final in sorted(self.finals[hash].items()))
        return CertifiedBlock(self.blocks[hash].block, finals)


@dataclass
class Forks:
    """The forks of the last rounds at one member. `before(t)` is the ledger's state before block t, if still known."""

    verifier: Verifier
    before: Callable[[int], LedgerState | None]
    heights: dict[int, Height] = field(default_factory=dict)
    conflicts: list[tuple[Message, Message]] = field(default_factory=list)  # found and not yet charged
    _charged: set[tuple[PeerId, int]] = field(default_factory=set)

    def compare(self, block: Block, theirs: CertifiedBlock, ours: CertifiedBlock | None) -> Height | None:
        """Judge a certified block of a height at which `ours` stands here; None if it says nothing new.

        `ours` is None if the own block is decided and not certified yet.

        Raises:
            RemoteProtocolError: it is not certified, does not follow from the block before, or lies too far back.
        """
        state = self.before(block.round)
        if state is None:
            raise InconsistentMessage(f"block {block.round}: another chain parts too many rounds ago")
        check_certificate(block, theirs.certificate, state, self.verifier)
        state.advance(block)
        height = self.heights.setdefault(block.round, Height())
        fresh = [height.add(known, self._opened(known, state)) for known in (ours, theirs) if known is not None]
        for peer, pair in height.conflicts.items():
            if (peer, block.round) not in self._charged:
                self._charged.add((peer, block.round))
                self.conflicts.append(pair)
        return height if any(fresh) else None

    def _opened(self, certified: CertifiedBlock, state: LedgerState) -> list[Message]:
        return [self.verifier.open(final, state.run) for final in certified.certificate]

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more: what follows them is no height of this chain."""
        self.heights = {at: height for at, height in self.heights.items() if at <= round}

    def forget(self, round: int) -> None:
        """Drop what lies too far back."""
        oldest = round - FORK_ROUNDS_MAX
        self.heights = {at: height for at, height in self.heights.items() if at >= oldest}
        self._charged = {(peer, at) for peer, at in self._charged if at >= oldest}


class History:
    """The ledger's states of the last rounds; rebuilt from the ledger once, after a restart."""

    def __init__(self, state: LedgerState, read: Callable[[int], CertifiedBlock | None]) -> None:
        self._start, self._read = LedgerState.start(state.genesis, state.charter), read
        self._states = {state.round: state}
        self._complete = False

    def note(self, state: LedgerState) -> None:
        """The state after another block; that of FORK_ROUNDS_MAX rounds before goes."""
        self._states[state.round] = state
        self._states.pop(state.round - FORK_ROUNDS_MAX - 1, None)

    def before(self, round: int) -> LedgerState | None:
        """The state before block `round`, unless it lies too far back."""
        head = max(self._states)
        if round not in self._states and not self._complete and head - FORK_ROUNDS_MAX <= round <= head:
            self._rebuild(head)
        return self._states.get(round)

    def _rebuild(self, head: int) -> None:
        self._complete = True
        state = self._start
        for number in range(head):
            if number >= head - FORK_ROUNDS_MAX:
                self._states.setdefault(number, state)
            stored = self._read(number)
            if stored is None:
                return
            state = state.advance(open_block(stored.block))

    def undo(self, round: int) -> LedgerState:
        """Return to the state before block `round`."""
        state = self._states[round]
        self._states = {at: known for at, known in self._states.items() if at <= round}
        self._complete = False  # those that lay too far back before the later blocks went
        return state
