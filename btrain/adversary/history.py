"""Attacks on who catches up or heals: poisoned states, forged histories."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from btrain.adversary.adversary import Adversary
from btrain.protocol.effects import Effect, Send
from btrain.protocol.encoding import PeerId, digest, encode
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import open_block
from btrain.protocol.packets import BLOCKS_MAX, Blocks, CertifiedBlock, decode_packet, encode_packet, says_it_is
from btrain.protocol.pieces import CutState, cut

_SIGN_BIT = 0x80
TRUE_MAX = 4096


@dataclass
class StatePoison(Adversary):
    """Lists a state with `values` numbers turned round as its own, and gives junk when asked for the true one.

    All of a coalition list the same poison. Where honest states agree a quorum outvotes it; where they do not it is a
    candidate that no honest member finds close.
    """

    name = "state_poison"
    values: int = 256
    _true: list[bytes] = field(default_factory=list, init=False, repr=False)  # manifests and pieces of true states

    def state(self, state: CutState, round: int) -> CutState:
        """The poisoned state."""
        if not self.attacks(round):
            return state
        self._true = [state.digest, *state.manifest.pieces, *self._true][:TRUE_MAX]
        data = bytearray(b"".join(state.pieces))
        for at in range(len(data) - 1, max(0, len(data) - 4 * self.values), -4):
            data[at] ^= _SIGN_BIT  # of a little-endian float
        return cut(bytes(data))

    def finds_close(self, candidate: bytes, close: bool) -> bool:
        """Everything is close, poison too."""
        return True

    def gives(self, peer: PeerId, hash: bytes, data: bytes | None) -> bytes | None:
        """What was asked for, or junk."""
        return b"poison" if hash in self._true and peer not in self.coalition else data


@dataclass
class ForgedHistory(Adversary):
    """Answers those who ask for blocks with blocks that never were.

    kind: `short` (true blocks, certificates of fewer than q), `altered` (another content under the true certificate),
    `foreign` (of another run), `old` (the same old block again and again), `junk` (no blocks, as many as fit), `early`
    (blocks far ahead of whoever asks).
    """

    name = "forged_history"
    kind: str = field(default="altered", metadata={"choices": ("short", "altered", "foreign", "old", "junk", "early")})
    _oldest: CertifiedBlock | None = field(default=None, init=False, repr=False)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """What an honest peer does, but for the blocks in it."""
        return [self._forged(e) if isinstance(e, Send) and self.attacks(round) else e for e in effects]

    def _forged(self, send: Send) -> Send:
        if not says_it_is(send.packet, Blocks) or send.to in self.coalition:
            return send
        try:
            packet = decode_packet(send.packet)
            assert isinstance(packet, Blocks)
            return replace(send, packet=encode_packet(Blocks(self._history(packet.blocks))))
        except RemoteProtocolError:
            return send  # too long or no blocks any more: another part of a mixture has been there

    def _history(self, true: tuple[CertifiedBlock, ...]) -> tuple[CertifiedBlock, ...]:
        self._oldest = self._oldest or true[0]
        match self.kind:
            case "short":
                return tuple(CertifiedBlock(c.block, c.certificate[:1]) for c in true)
            case "altered":
                return tuple(_with(c, step=open_block(c.block).step + 1) for c in true)
            case "foreign":
                return tuple(_with(c, run=digest(b"another run")) for c in true)
            case "old":
                return (self._oldest,) * BLOCKS_MAX
            case "junk":
                return tuple(CertifiedBlock(bytes([i]) * 1000, (b"junk",)) for i in range(BLOCKS_MAX))
            case _:
                rounds = itertools.count(2**31)
                return tuple(_with(c, round=next(rounds)) for c in true)


def _with(certified: CertifiedBlock, **changes: object) -> CertifiedBlock:
    """A block with other content under the same certificate."""
    return CertifiedBlock(
        encode(msgspec.structs.replace(open_block(certified.block), **changes)), certified.certificate
    )
