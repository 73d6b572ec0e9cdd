"""Requests for seats and farewells that one member has heard: what it lists of them in its Commits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from btrain.protocol.desk import Desk
from btrain.protocol.encoding import ZERO, PeerId
from btrain.protocol.errors import StaleMessage
from btrain.protocol.invitations import inviters
from btrain.protocol.ledger import LedgerState
from btrain.protocol.membership import admissible
from btrain.protocol.messages import LISTED_MAX, Admission, Join, Message
from btrain.protocol.packets import Refusal
from btrain.protocol.probation import lot
from btrain.protocol.randomness import HashChain

ASKED_ROUNDS = 4  # how long a request for a seat, or to leave, is listed after it was heard
JOIN_ROUNDS = 64  # how far a newcomer may be behind or ahead when it asks
REQUESTS_MAX = 4 * LISTED_MAX
NEWCOMERS_LISTED_MAX = 4  # of an open run: those that the lot favours
HANDED_ON_MAX = 4  # requests in a round that are shown to the other members
NOT_HERE = ZERO  # in place of x0, of a peer to which the members will give x[0]
PROBE_TOLERANCE = 1e-3  # relative difference of the norms of one probe gradient between honest machines


@dataclass(frozen=True)
class Membership:
    """What a peer says of itself when it asks for a seat."""

    contract: bytes  # hash
    x0: bytes
    probe_norm: float
    chain_salt: bytes  # private, random, kept with the run: a chain is used in one run only
    addresses: tuple[str, ...] = ()
    probe_ms: int = 0
    invitations: tuple[bytes, ...] = ()

    def join(self, chain_end: bytes, anchored: int = 0, *, ready: bool = False) -> Join:
        """The request for a seat with this hash chain."""
        own = (self.contract, chain_end, self.x0, self.probe_norm, self.addresses, self.probe_ms)
        return Join(*own, anchored, ready, self.invitations)


@dataclass(frozen=True)
class Request:
    """Somebody wants a seat, or its own back. `until` is the last round in which that is listed."""

    admission: Admission
    since: int
    until: int
    ready: bool


@dataclass
class Seats:
    """Who asks to come and who to go."""

    desk: Desk
    membership: Membership
    addresses: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    _requests: dict[PeerId, Request] = field(default_factory=dict)
    _departures: dict[PeerId, int] = field(default_factory=dict)  # and the last round to list it
    _handed_on: int = 0  # in this round
    _lots: dict[PeerId, bytes] = field(default_factory=dict)  # of those in a full table, by this r
    _lots_of: bytes = b""

    def candidates(self, state: LedgerState) -> frozenset[PeerId]:
        """Peers without a seat that are let in: on probation, or admitted by a list or invitations and asking lately.

        Of an open run's strangers nobody is, however many ask.
        """
        asking = () if state.charter.admission == "open" else self._requests.items()
        return frozenset((*state.probation.peers, *(peer for peer, r in asking if r.until >= state.round)))

    def admissions(self, state: LedgerState) -> tuple[Admission, ...]:
        """Requests to list in the Commit of the open round."""
        round, seats = state.round, state.roster
        live = [r for r in self._requests.values() if r.until >= round and admissible(r.admission, state)]
        direct = [r.admission for r in live if r.ready and (seats.seat(r.admission.peer) or not self._by_lot(state))]
        return (*self._newcomers(live, state), *direct)[:LISTED_MAX]

    def _by_lot(self, state: LedgerState) -> bool:
        return state.charter.admission == "open"

    def _newcomers(self, live: list[Request], state: LedgerState) -> list[Admission]:
        """Those for whom there may be a place: drawn by r[t-1] among who asked before it was known."""
        if not self._by_lot(state) or not state.probation.places_left(len(state.roster.seats)):
            return []
        asked = [r.admission for r in live if r.since < state.round and not state.answers(r.admission.peer)]
        asked.sort(key=lambda admission: lot(state.randomness[1], admission.peer))
        return asked[:NEWCOMERS_LISTED_MAX]

    def departures(self, round: int) -> tuple[PeerId, ...]:
        """Farewells to list in the Commit of `round`."""
        return tuple(peer for peer, until in sorted(self._departures.items()) if until >= round)[:LISTED_MAX]

    def ask(self, state: LedgerState, chain: HashChain, ready: bool) -> None:
        """Ask for a seat, or for the own back, when the ledger lets this peer have one. `ready`: x of it is here."""
        me, round = self.desk.me, state.round
        link, at = chain.anchor(round)
        admission = Admission(me, link, at + 1)
        listed = state.charter.admits(me)  # who is not asks all the same, to be told so
        if me in state.probation.peers or (listed and not admissible(admission, state)):
            return
        body = self.membership.join(link, at + 1, ready=ready)
        statement = self.desk.statement(body, prev=state.head, round=round, index=int(ready))
        self.desk.broadcast(self.desk.sign(statement))
        self._requests[me] = Request(admission, round, round + ASKED_ROUNDS, ready)

    def asked(self, message: Message, body: Join, sender: PeerId, state: LedgerState) -> None:
        """A request for a seat has come.

        Raises:
            StaleMessage: an old one, sent again: it was for a seat that has been lost since.
        """
        peer, roster, round = message.sender, state.roster, state.round
        if abs(message.statement.round - round) > JOIN_ROUNDS:
            raise StaleMessage(f"join of round {message.statement.round} in round {round}")
        refusal = self._refusal(body, peer, state)
        if refusal is not None:
            self.desk.send(Refusal(refusal), sender)
            return
        seat = roster.seat(peer)
        if peer in state.probation.peers or (seat is not None and not seat.absent):
            return
        if message.statement.round <= roster.lost(peer):
            raise StaleMessage(f"join of round {message.statement.round}, of before {peer.hex()[:8]} lost its seat")
        known = self._requests.get(peer)
        if known is None and not self._make_room(peer, state):
            return
        fresh = known is None or known.until <= round + 1 or (body.ready and not known.ready)
        admission = Admission(peer, body.chain_end, body.anchored)
        since = round if known is None else known.since
        self._requests[peer] = Request(admission, since, round + ASKED_ROUNDS, body.ready)
        if body.addresses:
            self.addresses[peer] = body.addresses
        if fresh and self._handed_on < HANDED_ON_MAX:
            self._handed_on += 1
            self.desk.broadcast(message)

    def _make_room(self, peer: PeerId, state: LedgerState) -> bool:
        """Whether there is room for one more request: when many ask, the lot decides who stays in the table."""
        if len(self._requests) < REQUESTS_MAX:
            return True
        randomness = state.randomness[1]
        if self._lots_of != randomness:
            self._lots_of, self._lots = randomness, {other: lot(randomness, other) for other in self._requests}
        last = max(self._lots, key=self._lots.__getitem__)
        drawn = lot(randomness, peer)
        if drawn > self._lots[last]:
            return False
        self._lots[peer] = drawn
        del self._lots[last]
        self._requests.pop(last, None)
        self.addresses.pop(last, None)
        return True

    def _refusal(self, body: Join, peer: PeerId, state: LedgerState) -> str | None:
        charter, own = state.charter, self.membership
        if peer in state.roster.banned:
            return "this identity was banned from the run"
        if body.contract != own.contract:
            return "another contract: compare run.yaml, data and versions"
        if body.x0 != own.x0:
            return "the model starts from other parameters: another version of the model's code or of torch?"
        if not math.isclose(body.probe_norm, own.probe_norm, rel_tol=PROBE_TOLERANCE):
            return "a gradient of the same samples differs: another version of the data, the model or the task?"
        if state.roster.seat(peer) is not None:
            return None
        if not charter.admits(peer):
            return "the run admits only the peers on its list"
        if charter.admission == "invite":
            found = len(inviters(body.invitations, peer, state))
            if found < charter.invitations:
                return (
                    f"the run admits whom {charter.invitations} of its members have invited, and {found} invitations "
                    "hold now: each is for one peer, one run, a span of rounds and one seat"
                )
        return None

    def leaves(self, peer: PeerId, round: int) -> None:
        """A member says farewell."""
        self._departures[peer] = round + ASKED_ROUNDS

    def left(self, peer: PeerId) -> None:
        """A block has done what a farewell asked for: it is no reason to send away who returns."""
        self._departures.pop(peer, None)

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more. Seats are asked for anew each round; farewells come once."""
        self._requests.clear()
        self._departures = {peer: min(until, round + ASKED_ROUNDS) for peer, until in self._departures.items()}

    def forget(self, state: LedgerState) -> None:
        """Drop what is over: requests that were granted or have grown old, addresses of nobody."""
        roster, round = state.roster, state.round
        self._handed_on = 0
        self._requests = {
            peer: request
            for peer, request in self._requests.items()
            if request.until >= round and peer not in roster.banned and not self._granted(peer, state)
        }
        self._departures = {p: until for p, until in self._departures.items() if until >= round and roster.seat(p)}
        self.addresses = {p: known for p, known in self.addresses.items() if p in self._requests or state.answers(p)}

    def _granted(self, peer: PeerId, state: LedgerState) -> bool:
        seat = state.roster.seat(peer)
        return peer in state.probation.peers or (seat is not None and not seat.absent)
