"""The decisions of a round in the hands of the agreement engine: its effects carried out, its messages given in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from btrain.protocol import agreement_interface as engine_effects
from btrain.protocol.agreement import Agreement
from btrain.protocol.agreement_interface import Electorate
from btrain.protocol.agreement_messages import Final, Items, Payload, Proposal
from btrain.protocol.agreement_state import ATTEMPTS_AHEAD_MAX
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blobs import Blobs
from btrain.protocol.checking import Checking
from btrain.protocol.clock import Clock
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, RESULTS, RULES
from btrain.protocol.desk import Desk
from btrain.protocol.effects import CancelTimer, Journal, SetTimer
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.holdings import Holdings
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import Commit, Message
from btrain.protocol.packets import Value, ValueRequest
from btrain.protocol.randomness import HashChain
from btrain.protocol.routes import Routes
from btrain.protocol.statements import ENGINE_PAYLOADS, EnginePayload, Statements

if TYPE_CHECKING:
    from btrain.protocol.round import Round


@dataclass(frozen=True)
class Post:
    """What a member brings into each of its rounds."""

    desk: Desk
    chain: HashChain
    behaviour: Behaviour
    blobs: Blobs
    routes: Routes
    side_items: Callable[[], Commit]  # a Commit whose leaves are still to be filled in


class Deciding:
    """Base of a round: three engines, each opened when what it decides about is known."""

    def __init__(
        self, state: LedgerState, post: Post, started_us: int, snapshots: Mapping[int, bytes], trusted_from_us: int
    ) -> None:
        self.state, self.round, self.roster = state, state.round, state.roster
        self.label = f"{self.round}@{state.head.hex()[:16]}"  # in timers and jobs; on another chain it is another
        self.desk, self.behaviour = post.desk, post.behaviour
        self.started_us, self.snapshots = started_us, snapshots
        self.trusted_from_us = trusted_from_us  # what was sent before this process began to listen is here by then
        self.roles = state.roles()
        self.clock = Clock.of(state)
        self.statements = Statements(state, self.roles, post.desk)
        self.engines: list[Agreement | None] = [None, None, None]
        self.checking = Checking(cast("Round", self))
        self.certificate: tuple[bytes, ...] | None = None
        self._decided: list[Items | None] = [None, None, None]
        self._early: list[dict[bytes, Message]] = [{}, {}, {}]
        self._journaled: set[bytes] = set()

    @property
    def me(self) -> PeerId:
        """This member."""
        return self.desk.me

    def _entered(self, now: int) -> None:
        """A further attempt has begun."""
        raise NotImplementedError

    def _reveal(self, now: int) -> None:
        """Open the own link."""
        raise NotImplementedError

    def _check_decided(self, now: int) -> None:
        """Act on a decision once the bodies of its items are here."""
        raise NotImplementedError

    def _open(self, index: int, now: int) -> None:
        roster, rules = self.roster, RULES[index](cast("Round", self))
        electorate = Electorate(roster.members, frozenset(roster.present), roster.faulty_max, self.roles.proposers)
        timing = self.clock.timing(index)
        began = self.started_us if index == CONTRIBUTORS else now
        snapshot = self.snapshots.get(index)
        if snapshot is None:
            engine = Agreement(self.me, electorate, timing, rules, began)
        else:
            engine = Agreement.restore(snapshot, self.me, electorate, timing, rules, began)
        self.engines[index] = engine
        early, self._early[index] = self._early[index], {}
        for message in (*self._signed_before(index), *early.values()):
            self._give(engine, message, now)
        self._drive(index, engine.start(now, self.trusted_from_us), now)

    def _signed_before(self, index: int) -> list[Message]:
        """What this member signed in the decision before a restart."""
        mine = (
            m for m in self.desk.signed.values() if m.statement.index == index and m.statement.prev == self.state.head
        )
        return [m for m in mine if isinstance(m.body, ENGINE_PAYLOADS)]

    def _give(self, engine: Agreement, message: Message, now: int) -> None:
        """Give the engine a message that came before it started; a wrong one is dropped."""
        try:
            engine.receive(message.sender, message.body, message.data, now)  # type: ignore[arg-type]
        except RemoteProtocolError as error:
            self.desk.event("refused", peer=message.sender.hex(), reason=error.reason)

    def hold(self, index: int, key: str, hash: bytes, now: int) -> None:
        """Put an item before a decision that is open."""
        engine = self.engines[index]
        if engine is not None and self._decided[index] is None:
            self._drive(index, engine.hold(key, hash, now), now)

    def drop_item(self, index: int, key: str, now: int) -> None:
        """Two bodies of an item are known: it counts as never sent."""
        engine = self.engines[index]
        if engine is not None and self._decided[index] is None:
            self._drive(index, engine.equivocated(key, now), now)

    def recheck(self, index: int, now: int) -> None:
        """What the rules of a decision answer may have changed."""
        engine = self.engines[index]
        if engine is not None and self._decided[index] is None:
            self._drive(index, engine.recheck(now), now)

    def leaving(self, index: int) -> bool:
        """Whether this member has wished to leave attempt 0 of a decision."""
        engine = self.engines[index]
        return engine is not None and (engine.attempt > 0 or engine.state.left or engine.state.quit >= 0)

    @property
    def awaits_commits(self) -> bool:
        """Whether members may still be computing in time."""
        return self._decided[CONTRIBUTORS] is None and not self.leaving(CONTRIBUTORS)

    def _drive(self, index: int, effects: list[engine_effects.Effect], now: int) -> None:
        for effect in effects:
            match effect:
                case engine_effects.Sign(payload):
                    self._sign(index, payload, now)
                case engine_effects.Forward(envelopes, to):
                    self.statements.send(envelopes, to)
                case engine_effects.PushBodies(keys, to):
                    self.statements.push(index, keys, to)
                    if index == BLOCK:
                        self.checking.push(keys, to, now)
                case engine_effects.PushValue() | engine_effects.NeedValue():
                    self._exchange_values(index, effect)
                case engine_effects.Persist(snapshot):
                    self._persist(index, snapshot)
                case engine_effects.SetTimer(name, at_us):
                    self.set_timer(f"{index}:{name}", at_us)
                case engine_effects.CancelTimer(name):
                    self.desk.emit(CancelTimer(f"round:{self.label}:{index}:{name}"))
                case engine_effects.Entered():
                    self._entered(now)
                case engine_effects.Decided(items):
                    self._decided[index] = items
                    self._show_dissent(index, items)
                    self._check_decided(now)
                case engine_effects.Certified(envelopes):
                    if index == BLOCK:
                        self.certificate = envelopes

    def _show_dissent(self, index: int, items: Items) -> None:
        """Hand on votes of attempt 0 and Finals against the decision: who signed another for others is found out."""
        digest = RULES[index](cast("Round", self)).digest(items)
        self.statements.send(self.desk.dissent(self.state.head, index, digest), None)

    def _exchange_values(self, index: int, effect: engine_effects.PushValue | engine_effects.NeedValue) -> None:
        if isinstance(effect, engine_effects.PushValue):
            self.desk.send(Value(self.round, index, tuple(sorted(effect.items.items()))), effect.to)
            return
        for holder in effect.holders:
            self.desk.send(ValueRequest(self.round, index, effect.digest), holder)

    def _sign(self, index: int, payload: Payload, now: int) -> None:
        if self.roster.seat(self.me) is None:
            return  # who has no seat follows and is silent
        attempt = getattr(payload, "attempt", 0)
        statement = self.desk.statement(
            payload,
            prev=self.state.head,
            round=self.round,
            attempt=attempt,
            index=index,
            ctx=RULES[index](cast("Round", self)).ctx,
        )
        message = self.desk.sign(statement)
        self.behaviour.broadcast(self.desk, message, cast("Round", self))
        engine = self.engines[index]
        assert engine is not None
        self._drive(index, engine.receive(self.me, message.body, message.data, now), now)  # type: ignore[arg-type]
        if index == RESULTS and isinstance(payload, Final):
            self._reveal(now)

    def _persist(self, index: int, snapshot: bytes) -> None:
        """The engine's state, and the bodies that it holds: after a restart of everybody nothing honest is lost."""
        for hash, message in self.statements.bodies.items():
            if hash not in self._journaled:
                self._journaled.add(hash)
                self.desk.emit(Journal("body", self.round, message.data))
        self.desk.emit(Journal(f"engine:{index}:{self.state.head.hex()}", self.round, snapshot))

    def set_timer(self, name: str, at_us: int) -> None:
        """Have `timer(name)` called."""
        self.desk.emit(SetTimer(f"round:{self.label}:{name}", at_us))

    def _on_engine(self, message: Message, body: EnginePayload, now: int) -> None:
        index = message.statement.index
        engine = self.engines[index]
        if engine is None:
            self._early[index][message.hash] = message  # two of each slot at most: others are ignored
            return
        self._drive(index, engine.receive(message.sender, body, message.data, now), now)
        if isinstance(body, Proposal):
            self.statements.ask([hash for key, hash in body.items if not key.startswith("link:")], message.sender)

    @property
    def attempts_noticed(self) -> int:
        """The last attempt of which anything is kept: a signer has a bounded number of slots."""
        return max(0 if engine is None else engine.attempt for engine in self.engines) + ATTEMPTS_AHEAD_MAX

    def answer_value(self, request: ValueRequest, to: PeerId) -> None:
        """Tell which items stand behind a digest, if known."""
        engine = self.engines[request.decision] if request.decision <= BLOCK else None
        items = engine.known_value(request.digest) if engine is not None else None
        if items is not None:
            self.desk.send(Value(self.round, request.decision, tuple(sorted(items.items()))), to)

    def value(self, sender: PeerId, packet: Value, now: int) -> None:
        """The items behind a digest, asked for or pushed."""
        engine = self.engines[packet.decision] if packet.decision <= BLOCK else None
        if engine is not None:
            self._drive(packet.decision, engine.value(sender, dict(packet.items), now), now)

    @property
    def held(self) -> set[bytes]:
        """Hashes of the statements that are here, and digests of the values whose items are."""
        return self.statements.held.union(*(engine.known_digests for engine in self.engines if engine is not None))

    def resend(self, to: PeerId, held: Holdings, now: int) -> None:
        """Everything of the open decisions to a peer that may have missed it, but for what it says it holds."""
        told = self.statements.kept()
        for index, engine in enumerate(self.engines):
            for effect in () if engine is None else engine.resend(to, now):
                match effect:
                    case engine_effects.Forward(envelopes) if effect.to == to:
                        opened = (self.desk.verifier.open(envelope, self.state.run) for envelope in envelopes)
                        told |= {message.hash: message.data for message in opened}
                    case engine_effects.PushBodies() if effect.to == to:
                        pass  # they are among all that is kept
                    case engine_effects.PushValue(items) if effect.to == to:
                        if held.lacking([RULES[index](cast("Round", self)).digest(items)]):
                            self._exchange_values(index, effect)
                    case _:
                        self._drive(index, [effect], now)
        lacking = held.lacking(told)
        self.statements.send((data for hash, data in told.items() if hash in lacking), to)
