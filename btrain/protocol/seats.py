"""Requests for seats and farewells that one member has heard: what it lists of them in its Commits."""

from __future__ import annotations

from dataclasses import dataclass, field

from btrain.protocol.desk import Desk
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import InconsistentMessage, StaleMessage
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import LISTED_MAX, Admission, Join, Message
from btrain.protocol.packets import Refusal

ASKED_ROUNDS = 4  # how long a request for a seat, or to leave, is listed after it was heard
JOIN_ROUNDS = 64  # how far a newcomer may be behind or ahead when it asks
CANDIDATES_MAX = 4 * LISTED_MAX


@dataclass(frozen=True)
class Membership:
    """What a peer says of itself when it asks for a seat."""

    contract: bytes  # hash
    x0: bytes
    probe_norm: float
    chain_salt: bytes  # private, random, kept with the run: a chain is used in one run only
    addresses: tuple[str, ...] = ()
    probe_ms: int = 0

    def join(self, chain_end: bytes) -> Join:
        """The request for a seat with this hash chain."""
        return Join(self.contract, chain_end, self.x0, self.probe_norm, self.addresses, self.probe_ms)


@dataclass
class Seats:
    """Who asks to come and who to go."""

    desk: Desk
    membership: Membership
    addresses: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    _admissions: dict[PeerId, tuple[Admission, int]] = field(default_factory=dict)  # and the last round to list it
    _departures: dict[PeerId, int] = field(default_factory=dict)

    def candidates(self, round: int) -> frozenset[PeerId]:
        """Peers that have asked for a seat lately."""
        return frozenset(peer for peer, (_, until) in self._admissions.items() if until >= round)

    def admissions(self, round: int) -> tuple[Admission, ...]:
        """Requests to list in the Commit of `round`."""
        return tuple(a for a, until in self._admissions.values() if until >= round)[:LISTED_MAX]

    def departures(self, round: int) -> tuple[PeerId, ...]:
        """Farewells to list in the Commit of `round`."""
        return tuple(peer for peer, until in sorted(self._departures.items()) if until >= round)[:LISTED_MAX]

    def ask(self, state: LedgerState, chain_end: bytes) -> None:
        """Ask for a seat, or for the own back, when the ledger lets this peer have one."""
        me, seat = self.desk.me, state.roster.seat(self.desk.me)
        if me in state.roster.banned or (seat is not None and not (seat.absent and state.round + 1 >= seat.returns_at)):
            return
        body = self.membership.join(chain_end)
        self.desk.broadcast(self.desk.sign(self.desk.statement(body, prev=state.head, round=state.round)))
        self._admissions[me] = (Admission(me, chain_end), state.round + ASKED_ROUNDS)

    def asked(self, message: Message, body: Join, sender: PeerId, state: LedgerState) -> None:
        """A request for a seat has come.

        Raises:
            StaleMessage: an old one, sent again.
            InconsistentMessage: too many at a time.
        """
        peer, roster = message.sender, state.roster
        if abs(message.statement.round - state.round) > JOIN_ROUNDS:
            raise StaleMessage(f"join of round {message.statement.round} in round {state.round}")
        seat = roster.seat(peer)
        refusal = self._refusal(body, peer, state)
        if refusal is not None:
            self.desk.send(Refusal(refusal), sender)
            return
        if seat is not None and not seat.absent:
            return
        if len(self._admissions) >= CANDIDATES_MAX and peer not in self._admissions:
            raise InconsistentMessage("too many requests for seats at a time")
        self._admissions[peer] = (Admission(peer, body.chain_end), state.round + ASKED_ROUNDS)
        if body.addresses:
            self.addresses[peer] = body.addresses

    def _refusal(self, body: Join, peer: PeerId, state: LedgerState) -> str | None:
        if peer in state.roster.banned:
            return "this identity was banned from the run"
        if body.contract != self.membership.contract or body.x0 != self.membership.x0:
            return "another contract: compare run.yaml, data and versions"
        if state.roster.seat(peer) is None and not state.charter.admits(peer):
            return "the run admits only the peers on its list"
        return None

    def leaves(self, peer: PeerId, round: int) -> None:
        """A member says farewell."""
        self._departures[peer] = round + ASKED_ROUNDS

    def forget(self, state: LedgerState) -> None:
        """Drop what is over: requests that were granted or have grown old, addresses of nobody."""
        roster, round = state.roster, state.round
        seats = {peer: roster.seat(peer) for peer in self._admissions}
        self._admissions = {
            peer: (admission, until)
            for peer, (admission, until) in self._admissions.items()
            if until >= round and ((seat := seats[peer]) is None or seat.absent) and peer not in roster.banned
        }
        self._departures = {p: until for p, until in self._departures.items() if until >= round and roster.seat(p)}
        self.addresses = {
            p: known for p, known in self.addresses.items() if p in self._admissions or roster.seat(p) is not None
        }
