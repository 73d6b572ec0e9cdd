"""One round at one member: commit, reduce, reveal, certify, as three decisions of the agreement engine in a row.

`Statements` owns what was signed, `Exchange` the bytes. What happens before and after a round (catching up, audits,
charges, joining) is the member's business. Inputs return nothing: what is to be done lies on the desk, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from btrain.protocol import agreement_interface as engine_effects
from btrain.protocol.agreement import Agreement
from btrain.protocol.agreement_interface import Electorate, Timing
from btrain.protocol.agreement_messages import VOID, Items, Payload, Proposal
from btrain.protocol.agreement_state import ATTEMPTS_AHEAD_MAX
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blobs import Blobs
from btrain.protocol.contribution import contribution_of, item_key
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, RESULTS, RULES, ResultsRules, link_key, links_of, result_key
from btrain.protocol.desk import Desk
from btrain.protocol.effects import CancelTimer, Compute, Journal, SetTimer, Work
from btrain.protocol.encoding import ZERO, PeerId, digest
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.exchange import Exchange, with_leaves
from btrain.protocol.ledger import Block, Contribution, LedgerState, ResultEntry, build_block
from btrain.protocol.messages import Commit, Message, Missing, Result, Reveal, Statement
from btrain.protocol.packets import Value, ValueRequest
from btrain.protocol.randomness import HashChain, batch_seed
from btrain.protocol.reduction import ReducedPart, encode_gradient
from btrain.protocol.statements import EnginePayload, Statements

NO_HISTORY_US = 120_000_000  # deadlines that follow the members' reports, before there are any
NO_HISTORY_RETRY_US = 10_000_000  # what a further attempt of `results` then waits for bytes
BLOCKS_REMEMBERED = 32  # blocks of different sets of links, built and kept


@dataclass(frozen=True)
class Clock:
    """The deadlines of a round, microseconds from the moment the last block was final here."""

    delta_us: int
    compute_us: int
    transfer_us: int
    retry_us: int = 0  # for the bytes of one more attempt of `results`

    @classmethod
    def of(cls, state: LedgerState) -> Clock:
        """From the contract and the last block; never below Delta. Round 0 computes nothing."""
        charter, delta = state.charter, state.charter.message_us
        if state.round == 0:
            return cls(delta, 0, 0)

        def automatic(fixed_us: int | None, reported_ms: int) -> int:
            if fixed_us is not None:
                return max(delta, fixed_us)
            return max(delta, 3000 * reported_ms) if reported_ms else NO_HISTORY_US

        compute_us = automatic(charter.compute_us, state.compute_ms)
        transfer_us = automatic(charter.transfer_us, state.transfer_ms)
        known = charter.transfer_us is not None or state.transfer_ms > 0
        return cls(delta, compute_us, transfer_us, transfer_us if known else NO_HISTORY_RETRY_US)

    def timing(self, decision: int) -> Timing:
        """Deadlines of a decision; those of `contributors` and `results` leave time for computing and for bytes."""
        slack = (self.compute_us + self.transfer_us, self.transfer_us, 0)[decision]
        delta = self.delta_us + (self.retry_us if decision == RESULTS else 0)
        return Timing(delta, 3 * self.delta_us + slack, 7 * delta)


@dataclass(frozen=True)
class Post:
    """What a member brings into each of its rounds."""

    desk: Desk
    chain: HashChain
    behaviour: Behaviour
    blobs: Blobs
    side_items: Callable[[], Commit]  # a Commit whose leaves are still to be filled in


class Round:
    """Round t at this member."""

    def __init__(
        self, state: LedgerState, post: Post, started_us: int, snapshots: Mapping[int, bytes], trusted_from_us: int = 0
    ) -> None:
        self.state, self.round, self.roster = state, state.round, state.roster
        self.trusted_from_us = trusted_from_us  # what was sent before this process began to listen is here by then
        self.desk, self.chain, self.behaviour = post.desk, post.chain, post.behaviour
        self.side_items, self.started_us, self.snapshots = post.side_items, started_us, snapshots
        self.roles = state.roles()
        self.clock = Clock.of(state)
        self.exchange = Exchange(self.roles, state.charter.rule, post.desk, post.blobs)
        self.statements = Statements(state, self.roles, post.desk)
        self.engines: list[Agreement | None] = [None, None, None]
        self.contribution: Contribution | None = None
        self.decided_results: tuple[ResultEntry, ...] = ()
        self.results_void = False
        self.results_digest = ZERO
        self.block: Block | None = None
        self.certificate: tuple[bytes, ...] | None = None
        self.compute_ms = self.transfer_ms = 0
        self._decided: list[Items | None] = [None, None, None]
        self._early: list[dict[bytes, Message]] = [{}, {}, {}]
        self._guessed = False  # the own part is reduced over all before the decision says so
        self._journaled: set[bytes] = set()
        self._blocks: dict[tuple[tuple[str, bytes], ...], Block] = {}
        self._committed_us = self._contributors_at_us = self._results_at_us = started_us

    @property
    def me(self) -> PeerId:
        """This member."""
        return self.desk.me

    # --- computing and committing ---

    def start(self, now: int) -> None:
        """Open the first decision and begin to compute, or send again what was committed before a restart."""
        self._open(CONTRIBUTORS, now)
        if self.me not in self.roles.present:
            return
        earlier = self.desk.signed_before(self._commit_statement([]))
        if earlier is not None:
            self._send_commit(earlier, now)
            self._set_timer("parts", now + self.clock.delta_us)
        elif self.me in self.roles.workers:
            seed = batch_seed(self.state.run, self.state.seed_randomness, self.me, self.round)
            self.desk.emit(Compute(self.round, seed))
        else:
            self._commit([], now)
        if self._own_part is not None and earlier is None:
            self._set_timer("parts", self.started_us + self.clock.compute_us + self.clock.transfer_us)

    def computed(self, gradient: Tensor | None, seconds: float, now: int) -> None:
        """This peer's gradient, float32 [d]; None if it could not be computed."""
        self.compute_ms = max(1, round(seconds * 1000))
        if gradient is None:
            self._commit([], now)
            return
        layout = self.roles.layout
        self.desk.emit(Work(f"round:{self.round}:encode", lambda: encode_gradient(gradient, layout)))

    def _commit_statement(self, parts: list[bytes]) -> Statement:
        side = self.side_items()
        leaves = tuple(digest(part) for part in parts)
        body = Commit(
            leaves,
            side.charges,
            side.verdicts,
            side.admissions,
            side.departures,
            side.state,
            self.compute_ms,
            side.transfer_ms,
        )
        return self.desk.statement(body, prev=self.state.head, round=self.round)

    def _commit(self, parts: list[bytes] | None, now: int) -> None:
        if parts is None:
            self.desk.event("no_gradient", round=self.round, reason="a value is not finite or beyond the codec's range")
        parts = self.behaviour.parts(parts or [], self)
        for part in parts:
            self.exchange.keep(digest(part), part)
        self._send_commit(self.desk.sign(self._commit_statement(parts)), now)

    def _send_commit(self, message: Message, now: int) -> None:
        self._committed_us = now
        self.behaviour.broadcast(self.desk, message, self)
        self.exchange.scatter(message)
        self.statements.keep(message)
        self._take(message, now)

    def work_done(self, token: str, result: object, now: int) -> None:
        """The result of a job of this round; `token` without the round's prefix."""
        job, _, rest = token.partition(":")
        if job == "encode" and self.me not in self.statements.commits:
            self._commit(result, now)  # type: ignore[arg-type]
        elif job == "reduce" and isinstance(result, ReducedPart):
            part, attempt, ctx = rest.split(":")
            self._publish(int(part), int(attempt), bytes.fromhex(ctx), result, now)

    # --- statements of others ---

    def receive(self, message: Message, now: int) -> None:
        """A verified statement of this round, from its signer or handed on.

        Raises:
            RemoteProtocolError: why the statement is refused.
        """
        self.statements.check_slot(message)
        body = message.body
        if isinstance(body, EnginePayload) and message.statement.attempt > self.attempts_noticed:
            return  # Quits lead there, and bring them again
        if isinstance(body, Result):
            decided = None if self.contribution is None else self.contribution.ctx
            notice = self.statements.notice_result(message, decided)
        else:
            notice = self.desk.notice(message)
        self.statements.check_body(message)
        if notice == "ignored":
            return
        if isinstance(body, EnginePayload):
            self._on_engine(message, body, now)
        elif notice == "second":
            self._on_second(message, now)
        else:
            self.statements.keep(message)
            self._take(message, now)

    @property
    def attempts_noticed(self) -> int:
        """The last attempt of which anything is kept: a signer has a bounded number of slots."""
        return max(0 if engine is None else engine.attempt for engine in self.engines) + ATTEMPTS_AHEAD_MAX

    def _take(self, message: Message, now: int) -> None:
        """Act on a statement that was kept."""
        body = message.body
        if isinstance(body, Commit | Missing):
            self._hold(CONTRIBUTORS, item_key(message), message.hash, now)
        elif isinstance(body, Reveal) and message.sender in self.expected_links:
            self._hold(BLOCK, link_key(message.sender), body.link, now)
        if isinstance(body, Commit):
            self._check_parts(now)
        elif isinstance(body, Result):
            self._check_results(now)
        self._check_decided(now)

    def _on_second(self, message: Message, now: int) -> None:
        """Two statements for a slot are known: it counts as empty, but a decision may name either."""
        self.statements.keep(message)
        if isinstance(message.body, Result):
            self._check_results(now)
            return
        if isinstance(message.body, Reveal):
            self._take(message, now)  # the chain has one link for a round: the other statement was refused
            return
        engine = self.engines[CONTRIBUTORS]
        if engine is not None:
            self._drive(CONTRIBUTORS, engine.equivocated(item_key(message), now), now)
        self._check_decided(now)

    def _on_engine(self, message: Message, body: EnginePayload, now: int) -> None:
        index = message.statement.index
        engine = self.engines[index]
        if engine is None:
            self._early[index][message.hash] = message  # two of each slot at most: others are ignored
            return
        self._drive(index, engine.receive(message.sender, body, message.data, now), now)
        if isinstance(body, Proposal) and index != BLOCK:
            self.statements.ask([hash for _, hash in body.items], message.sender)

    def blob(self, hash: bytes, now: int) -> None:
        """Bytes have come for a hash, or nobody asked had them."""
        self.exchange.arrived(hash)
        self._check_parts(now)
        self._check_results(now)

    def timer(self, name: str, now: int) -> None:
        """A timer of this round; `name` without the round's prefix."""
        if name == "parts" and self.contribution is None and self._own_part is not None:
            self.exchange.pull(self._own_part, self.statements.commits, with_leaves(self.statements.commits))
            self._set_timer("missing", now + self.clock.delta_us)
        elif name == "missing" and self.contribution is None:
            self._complain(now)
        elif name == "fetch":
            self._fetch_results(now)
        elif name == "bodies":
            self._check_decided(now)
        elif name[:1].isdigit():
            index, _, rest = name.partition(":")
            engine = self.engines[int(index)]
            if engine is not None:
                self._drive(int(index), engine.timer(rest, now), now)

    # --- parts and results ---

    @property
    def _own_part(self) -> int | None:
        return self.roles.owned(self.me)

    def holds_own_parts(self) -> bool:
        """Whether this member, if it aggregates, has its part of every committed gradient: only then does it vote."""
        return not self._lacking()

    def _lacking(self) -> list[PeerId]:
        """Workers whose bytes of the own part are not here."""
        part, commits = self._own_part, self.statements.commits
        return [] if part is None else self.exchange.lacking(part, commits, with_leaves(commits))

    def _check_parts(self, now: int) -> None:
        """Reduce as soon as every input is here, and let the engine know."""
        part, engine = self._own_part, self.engines[CONTRIBUTORS]
        if self.contribution is None and engine is not None:
            if part is not None and not self._guessed and self._all_here():
                self._guessed = True
                contribution, items = contribution_of(self.statements.commits.values())
                ctx = RULES[CONTRIBUTORS](self).digest(items)
                self.exchange.reduce(part, 0, Contribution(ctx, contribution.commits, (), contribution.workers))
            self._drive(CONTRIBUTORS, engine.recheck(now), now)
        self._reduce_decided()

    def _all_here(self) -> bool:
        return len(self.statements.commits) == len(self.roles.present) and self.holds_own_parts()

    def _reduce_decided(self) -> None:
        """Reduce the parts that fall to this member in the current attempt of `results`."""
        contribution, engine = self.contribution, self.engines[RESULTS]
        if contribution is None or engine is None or self._decided[RESULTS] is not None:
            return
        for part in range(self.roles.layout.parts):
            if self.roles.aggregator(part, engine.attempt, contribution.complaining) != self.me:
                continue
            if engine.attempt > 0 and self._has_result(part):
                continue
            if self.exchange.lacking(part, contribution.commits, contribution.workers):
                self.exchange.pull(part, contribution.commits, contribution.workers)
            else:
                self.exchange.reduce(part, engine.attempt, contribution)

    def _has_result(self, part: int) -> bool:
        assert self.contribution is not None
        known = self.statements.results.get(self.contribution.ctx, {}).values()
        return any(m.statement.index == part and self.exchange.has_opened(m) for m in known)

    def _publish(self, part: int, attempt: int, ctx: bytes, reduced: ReducedPart, now: int) -> None:
        reduced = self.behaviour.reduced(reduced, part, self)
        body = Result(part, self.exchange.publish(reduced, self.roster.members), reduced.coefficients)
        message = self.desk.sign(
            self.desk.statement(body, prev=self.state.head, round=self.round, attempt=attempt, index=part, ctx=ctx)
        )
        self.behaviour.broadcast(self.desk, message, self)
        self.statements.keep(message)
        self._take(message, now)

    def _complain(self, now: int) -> None:
        lacking = [worker for worker in self._lacking() if worker != self.me]
        if lacking:
            message = self.desk.sign(self.desk.statement(Missing(lacking[0]), prev=self.state.head, round=self.round))
            self.behaviour.broadcast(self.desk, message, self)
            self.statements.keep(message)
            self._take(message, now)

    def _check_results(self, now: int) -> None:
        """Open the bytes that have come and put the results of the decided contributors before the engine."""
        if self.contribution is None or self.block is not None:
            return
        for key, message in list(self._rightful_results()):
            if self.exchange.open_result(message):
                self._hold(RESULTS, key, message.hash, now)
        engine = self.engines[RESULTS]
        if engine is not None:
            self._drive(RESULTS, engine.recheck(now), now)
        self._check_decided(now)

    def _rightful_results(self) -> Iterable[tuple[str, Message]]:
        """Results over the decided contributors by the member whose turn it was."""
        assert self.contribution is not None
        for message in self.statements.results.get(self.contribution.ctx, {}).values():
            if self.rightful(message):
                yield result_key(message), message

    def rightful(self, result: Message) -> bool:
        """Whether a Result is over the decided contributors and by the member whose turn it was."""
        s, contribution = result.statement, self.contribution
        if contribution is None or s.ctx != contribution.ctx:
            return False
        return self.roles.aggregator(s.index, s.attempt, contribution.complaining) == result.sender

    def result_of(self, entry: ResultEntry) -> Message:
        """The statement behind a decided result."""
        assert self.contribution is not None
        known = self.statements.results[self.contribution.ctx].values()
        place = (entry.part, entry.attempt, entry.aggregator)
        return next(m for m in known if (m.statement.index, m.statement.attempt, m.sender) == place
                    and isinstance(m.body, Result) and m.body.hash == entry.hash)  # fmt: skip

    def _fetch_results(self, now: int) -> None:
        """Ask for result bytes that have not come: the aggregator first, then everybody who may have them."""
        if self.contribution is None or self.block is not None:
            return
        for _, message in self._rightful_results():
            assert isinstance(message.body, Result)
            if not self.exchange.open_result(message):
                self.exchange.fetch(message.body.hash, (message.sender, *self.roles.present))
        self._set_timer("fetch", now + self.clock.delta_us)

    def seconds(self, now: int) -> dict[str, float]:
        """How long the phases took here, in seconds."""
        marks = [self.started_us, self._committed_us, self._contributors_at_us, self._results_at_us, now]
        names = ("compute", "commit", "reduce", "certify")
        return {name: max(0, end - start) / 1e6 for name, start, end in zip(names, marks, marks[1:], strict=False)}

    def update(self) -> Tensor | None:
        """The decided update, float32 [d]; None in a void round."""
        assert self.block is not None
        return None if self.block.void else self.exchange.update(self.block.results)

    # --- decisions ---

    def _open(self, index: int, now: int) -> None:
        roster, rules = self.roster, RULES[index](self)
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
        mine = (m for m in self.desk.signed.values() if isinstance(m.body, EnginePayload))
        return [m for m in mine if (m.statement.prev, m.statement.index) == (self.state.head, index)]

    def _give(self, engine: Agreement, message: Message, now: int) -> None:
        """Give the engine a message that came before it started; a wrong one is dropped."""
        try:
            engine.receive(message.sender, message.body, message.data, now)  # type: ignore[arg-type]
        except RemoteProtocolError as error:
            self.desk.event("refused", peer=message.sender.hex(), reason=error.reason)

    def _hold(self, index: int, key: str, hash: bytes, now: int) -> None:
        engine = self.engines[index]
        if engine is not None and self._decided[index] is None:
            self._drive(index, engine.hold(key, hash, now), now)

    def _drive(self, index: int, effects: list[engine_effects.Effect], now: int) -> None:
        for effect in effects:
            match effect:
                case engine_effects.Sign(payload):
                    self._sign(index, payload, now)
                case engine_effects.Forward(envelopes, to):
                    self.statements.send(envelopes, to)
                case engine_effects.PushBodies(keys, to):
                    self.statements.push(index, keys, to)
                case engine_effects.PushValue() | engine_effects.NeedValue():
                    self._exchange_values(index, effect)
                case engine_effects.Persist(snapshot):
                    self._persist(index, snapshot)
                case engine_effects.SetTimer(name, at_us):
                    self._set_timer(f"{index}:{name}", at_us)
                case engine_effects.CancelTimer(name):
                    self.desk.emit(CancelTimer(f"round:{self.round}:{index}:{name}"))
                case engine_effects.Entered():
                    self._reduce_decided()
                case engine_effects.Decided(items):
                    self._decided[index] = items
                    self._check_decided(now)
                case engine_effects.Certified(envelopes):
                    if index == BLOCK:
                        self.certificate = envelopes

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
            payload, prev=self.state.head, round=self.round, attempt=attempt, index=index, ctx=RULES[index](self).ctx
        )
        message = self.desk.sign(statement)
        self.behaviour.broadcast(self.desk, message, self)
        engine = self.engines[index]
        assert engine is not None
        self._drive(index, engine.receive(self.me, message.body, message.data, now), now)  # type: ignore[arg-type]

    def _persist(self, index: int, snapshot: bytes) -> None:
        """The engine's state, and the bodies that it holds: after a restart of everybody nothing honest is lost."""
        for hash, message in self.statements.bodies.items():
            if hash not in self._journaled:
                self._journaled.add(hash)
                self.desk.emit(Journal("body", self.round, message.data))
        self.desk.emit(Journal(f"engine:{index}", self.round, snapshot))

    def _set_timer(self, name: str, at_us: int) -> None:
        self.desk.emit(SetTimer(f"round:{self.round}:{name}", at_us))

    def _check_decided(self, now: int) -> None:
        """Act on a decision once the bodies of its items are here; ask for those that are not."""
        contributors, results, links = self._decided
        if self.contribution is None and contributors is not None:
            self._on_contributors(contributors, now)
        elif results is not None and self.engines[BLOCK] is None:
            self._on_results(results, now)
        elif links is not None and self.block is None:
            self.block = self.block_of(links)

    def _on_contributors(self, items: Items, now: int) -> None:
        ctx = RULES[CONTRIBUTORS](self).digest(items)
        if items == VOID:
            self.contribution = Contribution(ctx, {}, (), (), void=True)
        else:
            bodies = self.statements.bodies_of(items)
            if bodies is None:
                self._await_bodies(items, now)
                return
            decided, _ = contribution_of(bodies)
            self.contribution = Contribution(ctx, decided.commits, decided.complaints, decided.workers)
        self._contributors_at_us = now
        if self.contribution.void or not self.contribution.workers:
            self._begin_block(ctx, now)
            return
        self._open(RESULTS, now)
        self._set_timer("fetch", now + self.clock.delta_us)
        self._reduce_decided()
        self._check_results(now)

    def _on_results(self, items: Items, now: int) -> None:
        rules = ResultsRules(self)
        if items == VOID:
            self.results_void = True
        else:
            entries = rules.entries(items)
            if entries is None or not rules.complete(items):
                self._await_bodies(items, now)
                return
            self.decided_results = tuple(entries)
        engine = self.engines[RESULTS]
        if engine is not None and engine.attempt == 0:  # what a fault delayed is no measure of the network
            self.transfer_ms = max(1, (now - self._contributors_at_us) // 1000)
        self._begin_block(rules.digest(items), now)

    def _await_bodies(self, items: Items, now: int) -> None:
        self.statements.ask(items.values(), None)
        self._set_timer("bodies", now + self.clock.delta_us)

    def _begin_block(self, results_digest: bytes, now: int) -> None:
        """Open the link: the results are final, so nobody can make one to suit r[t]."""
        self.results_digest = results_digest
        self._results_at_us = now
        self._open(BLOCK, now)
        if self.me in self.expected_links:
            link = Reveal(self.chain.link(self.round))
            message = self.desk.sign(self.desk.statement(link, prev=self.state.head, round=self.round))
            self.behaviour.broadcast(self.desk, message, self)
            self.statements.links[self.me] = message
        for peer in sorted(set(self.statements.links) & self.expected_links):
            link_body = self.statements.links[peer].body
            assert isinstance(link_body, Reveal)
            self._hold(BLOCK, link_key(peer), link_body.link, now)

    @property
    def expected_links(self) -> set[PeerId]:
        """Members whose Commit was decided."""
        return set(self.contribution.commits) if self.contribution is not None else set()

    def block_of(self, items: Items) -> Block:
        """The block that follows from these links."""
        assert self.contribution is not None
        key = tuple(sorted(items.items()))
        if key not in self._blocks:
            if len(self._blocks) >= BLOCKS_REMEMBERED:
                self._blocks.clear()
            links = links_of(items) or {}
            self._blocks[key] = build_block(
                self.state, self.contribution, self.decided_results, self.results_void, links
            )
        return self._blocks[key]

    # --- values ---

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

    def resend(self, to: PeerId, now: int) -> None:
        """Everything of the open decisions, to a peer that may have missed it."""
        self.statements.push_all(to)
        for index, engine in enumerate(self.engines):
            if engine is not None:
                self._drive(index, engine.resend(to, now), now)
