"""Many identities of one attacker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from btrain.adversary.adversary import Adversary
from btrain.identity import SigningKey
from btrain.protocol.encoding import ZERO, digest, encode
from btrain.protocol.messages import Join, Message, Statement, sign
from btrain.protocol.packets import Envelopes
from btrain.protocol.randomness import anchor_round
from btrain.protocol.seats import JOIN_ROUNDS
from btrain.protocol.statements import ENVELOPES_PER_PACKET

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round


@dataclass
class SybilJoin(Adversary):
    """Asks for seats under `keys` fresh identities in every round. None of them ever computes anything."""

    name = "sybil_join"
    keys: int = 100
    _signed: tuple[int, list[bytes]] = field(default=(-1, []), init=False, repr=False)
    _done: int = field(default=-1, init=False, repr=False)

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, and once in a round the requests."""
        desk.broadcast(message)
        if not self.attacks(round.round) or self._done == round.round:
            return
        self._done = round.round
        since, joins = self._signed
        if since < 0 or round.round - since > JOIN_ROUNDS // 2:
            joins = [self._join(number, round) for number in range(self.keys)]
            self._signed = round.round, joins
        for start in range(0, len(joins), ENVELOPES_PER_PACKET):
            desk.send(Envelopes(tuple(joins[start : start + ENVELOPES_PER_PACKET])))

    def _join(self, number: int, round: Round) -> bytes:
        state, genesis = round.state, round.state.genesis
        key = SigningKey.from_seed(hashlib.sha256(f"btrain/sybil/{self.seed}/{number}".encode()).digest())
        anchored = anchor_round(state.round) + 1
        body = Join(
            digest(genesis.contract), key.public_key, genesis.x0, genesis.probe_norm, (), anchored=anchored, ready=True
        )
        slot = (state.run, 0, state.head, state.round, 0)
        return sign(key, Statement(1, *slot, "join", 1, key.public_key, ZERO, encode(body))).data
