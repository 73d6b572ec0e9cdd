"""Parts that do not arrive: asked for in public, sent through relays, which sign a receipt and serve them.

An aggregator that lacks parts signs Missing. For every pair of a worker and an aggregator r[t-1] draws three relays.
They tell the worker; it sends the part to the first, and to the two others when no receipt comes or the aggregator asks
again. A pair that needed a relay keeps it: in later rounds the worker sends that part to the relay at once, so a link
that stays broken costs no time.

Whatever liars ask for is bounded: a worker answers an aggregator once, and sends at most so many parts beyond that; a
relay serves at most so many parts in a round.
"""

from __future__ import annotations

from collections.abc import Callable

from btrain.protocol.contribution import COMPLAINT_INDEX, leaf_of
from btrain.protocol.desk import Desk
from btrain.protocol.effects import PushBlob
from btrain.protocol.encoding import MEMBERS_MAX, PeerId
from btrain.protocol.exchange import Exchange
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import Commit, Message, Missing, Receipt
from btrain.protocol.packets import Envelopes
from btrain.protocol.roles import Roles, relays_of
from btrain.protocol.routes import Pair, Routes
from btrain.protocol.statements import Statements

PARTS_RELAYED_MIN = 4


def parts_relayed_max(members: int) -> int:
    """Parts that one member relays for others, or sends to relays beyond the first ones, in a round."""
    return max(PARTS_RELAYED_MIN, members // 2)


def receipt_index(roles: Roles, worker: PeerId, part: int) -> int:
    """The slot of a relay's receipt for this part of this worker."""
    return part * MEMBERS_MAX + roles.workers.index(worker)


class Relays:
    """The missing parts of one round at one member: as worker, as relay, as aggregator."""

    def __init__(
        self,
        state: LedgerState,
        roles: Roles,
        desk: Desk,
        exchange: Exchange,
        statements: Statements,
        routes: Routes,
        set_timer: Callable[[PeerId, int], None],
    ) -> None:
        self.state, self.roles, self.desk = state, roles, desk
        self.exchange, self.statements, self.routes = exchange, statements, routes
        self._set_timer = set_timer  # (aggregator, now): call `overdue` when a relay has had its time
        self._parts_max = parts_relayed_max(len(state.roster.seats))
        self._sent: dict[PeerId, list[PeerId]] = {}  # aggregator -> relays that have been sent its part of this worker
        self._answered: set[tuple[PeerId, int]] = set()  # aggregator and index of its Missing
        self._sent_more = 0
        self._served: set[Pair] = set()
        self._told: set[tuple[PeerId, bytes]] = set()

    @property
    def me(self) -> PeerId:
        """This member."""
        return self.desk.me

    def drawn(self, worker: PeerId, aggregator: PeerId) -> tuple[PeerId, ...]:
        """The relays of a pair in this round."""
        return relays_of(self.state.randomness[1], worker, aggregator, self.roles.present)

    # --- the worker ---

    def route(self, aggregator: PeerId) -> PeerId:
        """Where to send an aggregator its part: to itself, or to the relay that the pair has kept."""
        relay = self.routes.relay_to(aggregator, self.roles.round)
        if relay != aggregator and relay in self.roles.present:
            self._sent.setdefault(aggregator, []).append(relay)
            return relay
        return aggregator

    def _answer(self, aggregator: PeerId, index: int, now: int) -> None:
        """An aggregator lacks the own part: to the first relay, or to all that have not had it."""
        if (aggregator, index) in self._answered:
            return
        self._answered.add((aggregator, index))
        fresh = [relay for relay in self.drawn(self.me, aggregator) if relay not in self._sent.get(aggregator, [])]
        self._push(aggregator, fresh[:1], free=index != COMPLAINT_INDEX)
        if index == COMPLAINT_INDEX:
            self._push(aggregator, fresh[1:], free=False)
        else:
            self._set_timer(aggregator, now)

    def overdue(self, aggregator: PeerId) -> None:
        """A relay has had its time: the others, unless its receipt is here."""
        if not self.holders(self.me, aggregator):
            sent = self._sent.get(aggregator, [])
            self._push(
                aggregator, [relay for relay in self.drawn(self.me, aggregator) if relay not in sent], free=False
            )

    def _push(self, aggregator: PeerId, relays: list[PeerId], *, free: bool) -> None:
        leaf, part = self._leaf(self.me, aggregator), self.roles.owned(aggregator)
        if leaf is None or part is None:
            return
        for relay in relays:
            if not free:
                if self._sent_more >= self._parts_max:
                    return
                self._sent_more += 1
            self._sent.setdefault(aggregator, []).append(relay)
            self.desk.emit(PushBlob(relay, leaf))

    # --- what is heard ---

    def missing(self, message: Message, now: int) -> None:
        """An aggregator lacks parts: send the own one, or tell the workers for whose parts this member is a relay."""
        assert isinstance(message.body, Missing)
        aggregator, index = message.sender, message.statement.index
        if self.me in message.body.workers:
            self._answer(aggregator, index, now)
        for worker in message.body.workers:
            if self.me in self.drawn(worker, aggregator) and (worker, message.hash) not in self._told:
                self._told.add((worker, message.hash))
                self.desk.send(Envelopes((message.data,)), worker)
        self.serve()

    def receipt(self, message: Message) -> None:
        """A relay holds a part: the pair keeps it."""
        assert isinstance(message.body, Receipt)
        aggregator = self.roles.owners[message.body.part]
        if message.body.worker == self.me and message.body.leaf == self._leaf(self.me, aggregator):
            self.routes.keep(aggregator, message.sender, self.roles.round)

    # --- the relay ---

    def serve(self) -> None:
        """Sign receipts for the parts that were asked for and have come, and pass them on, with those of kept pairs."""
        if not self.statements.missing and not self.routes.carried:
            return
        asked = {
            (worker, m.sender) for m in self.statements.missing for worker in m.body.workers  # type: ignore[union-attr]
            if self.me in self.drawn(worker, m.sender)
        }  # fmt: skip
        kept = {pair for pair in self.routes.carried if self.routes.carries(pair, self.roles.round)}
        for pair in sorted((asked | kept) - self._served):
            if len(self._served) >= self._parts_max:
                return
            self._pass_on(pair)
        for pair in sorted(asked & self._served):
            self._sign(pair)

    def _pass_on(self, pair: Pair) -> None:
        leaf = self._leaf(*pair)
        data = None if leaf is None else self.exchange.blobs.get(leaf)
        if leaf is not None and data is not None:
            self._served.add(pair)
            self.exchange.keep(leaf, data)
            self.desk.emit(PushBlob(pair[1], leaf))

    def _sign(self, pair: Pair) -> None:
        worker, aggregator = pair
        leaf, part = self._leaf(*pair), self.roles.owned(aggregator)
        assert leaf is not None and part is not None
        statement = self.desk.statement(
            Receipt(worker, part, leaf), prev=self.state.head, round=self.roles.round,
            index=receipt_index(self.roles, worker, part),
        )  # fmt: skip
        if self.desk.signed_before(statement) is None:
            message = self.desk.sign(statement)
            self.routes.carry(pair, self.roles.round, len(self.state.roster.seats))
            self.desk.broadcast(message)
            self.statements.keep(message)

    # --- receipts ---

    def _leaf(self, worker: PeerId, aggregator: PeerId) -> bytes | None:
        """Hash of the worker's part that the aggregator reduces."""
        commit, part = self.statements.commits.get(worker), self.roles.owned(aggregator)
        if commit is None or part is None or not isinstance(commit.body, Commit) or not commit.body.leaves:
            return None
        return leaf_of(commit, part)

    def holders(self, worker: PeerId, aggregator: PeerId) -> list[PeerId]:
        """Relays that have signed for the worker's part that the aggregator reduces."""
        leaf = self._leaf(worker, aggregator)
        bodies = ((m.sender, m.body) for m in self.statements.receipts)
        return [relay for relay, r in bodies if isinstance(r, Receipt) and (r.worker, r.leaf) == (worker, leaf)]
