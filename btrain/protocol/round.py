"""One round at one member: commit, reduce, reveal, certify, as three decisions of the agreement engine in a row.

The round owns the statements of its decisions; `Exchange` owns the bytes. What happens before and after it (catching up, audits,
charges, joining) is the member's business. Inputs return nothing: what is to be done lies on the desk, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from btrain.protocol import agreement_interface as engine_effects
from btrain.protocol.agreement import Agreement
from btrain.protocol.agreement_interface import Electorate, Timing
from btrain.protocol.agreement_messages import VOID, Final, Items, Lock, Payload, Proposal, Quit, Vote
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blobs import Blobs
from btrain.protocol.contribution import contribution_of, item_key
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, RESULTS, RULES, ResultsRules, link_key, links_of, result_key
from btrain.protocol.desk import Desk
from btrain.protocol.effects import CancelTimer, Compute, Journal, SetTimer, Work
from btrain.protocol.encoding import ZERO, PeerId, digest
from btrain.protocol.errors import InconsistentMessage, NotAMember, RemoteProtocolError
from btrain.protocol.exchange import Exchange, with_leaves
from btrain.protocol.ledger import Block, Contribution, LedgerState, ResultEntry, build_block
from btrain.protocol.messages import Commit, Message, Missing, Result, Reveal, Statement
from btrain.protocol.packets import BodyRequest, Envelopes, Value, ValueRequest
from btrain.protocol.randomness import HashChain, batch_seed
from btrain.protocol.reduction import ReducedPart, encode_gradient

NO_HISTORY_US = 120_000_000  # deadlines that follow the members' reports, before there are any
ENVELOPES_PER_PACKET = 12
PACKET_ENVELOPE_BYTES = 48 * 1024

EnginePayload = Vote | Quit | Lock | Proposal | Final


@dataclass(frozen=True)
class Clock:
    """The deadlines of a round, microseconds from the moment the last block was final here."""

    delta_us: int
    compute_us: int
    transfer_us: int

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
        return cls(delta, compute_us, automatic(charter.transfer_us, state.transfer_ms))

    def timing(self, decision: int) -> Timing:
        """Deadlines of a decision; those of `contributors` and `results` leave time for computing and for bytes."""
        slack = (self.compute_us + self.transfer_us, self.transfer_us, 0)[decision]
        delta = self.delta_us + (self.transfer_us if decision == RESULTS else 0)
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

    def __init__(self, state: LedgerState, post: Post, started_us: int, snapshots: Mapping[int, bytes]) -> None:
        self.state, self.round, self.roster = state, state.round, state.roster
        self.desk, self.chain, self.behaviour = post.desk, post.chain, post.behaviour
        self.side_items, self.started_us, self.snapshots = post.side_items, started_us, snapshots
        self.roles = state.roles()
        self.clock = Clock.of(state)
        self.exchange = Exchange(self.roles, state.charter.rule, post.desk, post.blobs)
        self.bodies: dict[bytes, Message] = {}  # statements of the decisions, by hash
        self.commits: dict[PeerId, Message] = {}
        self.results: dict[bytes, dict[str, Message]] = {}  # ctx -> item key -> Result
        self.links: dict[PeerId, Message] = {}
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
        self._values: dict[bytes, Items] = {}  # digest -> items, of what was asked for
        self._journaled: set[bytes] = set()
        self._blocks: dict[tuple[tuple[str, bytes], ...], Block] = {}
        self._opens: dict[tuple[PeerId, bytes], bool] = {}
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
        elif self.me in self.roles.workers:
            seed = batch_seed(self.state.run, self.state.seed_randomness, self.me, self.round)
            self.desk.emit(Compute(self.round, seed))
        else:
            self._commit([], now)
        if self._own_part is not None:
            due = self.started_us + self.clock.compute_us + self.clock.transfer_us
            self._set_timer("parts", due)

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
        self._take_commit(message, now)

    def work_done(self, token: str, result: object, now: int) -> None:
        """The result of a job of this round; `token` without the round's prefix."""
        if token == "encode" and self.me not in self.commits:
            self._commit(result, now)  # type: ignore[arg-type]
        elif token.startswith("reduce:") and isinstance(result, ReducedPart):
            _, part, attempt, ctx = token.split(":")
            self._publish(int(part), int(attempt), bytes.fromhex(ctx), result, now)

    # --- statements of others ---

    def receive(self, message: Message, now: int) -> None:
        """A verified statement of this round, from its signer or handed on.

        Raises:
            RemoteProtocolError: why the statement is refused.
        """
        body = message.body
        if isinstance(body, Commit):
            self._on_commit(message, body, now)
        elif isinstance(body, Missing):
            self._on_missing(message, body, now)
        elif isinstance(body, Result):
            self._on_result(message, body, now)
        elif isinstance(body, Reveal):
            self._on_reveal(message, body, now)
        elif isinstance(body, Vote | Quit | Lock | Proposal | Final):
            self._on_engine(message, body, now)

    def _on_commit(self, message: Message, body: Commit, now: int) -> None:
        sender = message.sender
        if sender not in self.roles.present:
            raise NotAMember(f"commit of {sender.hex()[:8]}, which has no present seat in round {self.round}")
        legal = {0, self.roles.layout.parts} if sender in self.roles.workers else {0}
        if len(body.leaves) not in legal:
            raise InconsistentMessage(f"commit with {len(body.leaves)} leaves, expected one of {sorted(legal)}")
        self._take_commit(message, now)

    def _take_commit(self, message: Message, now: int) -> None:
        self.bodies[message.hash] = message
        self.commits.setdefault(message.sender, message)
        self._hold(CONTRIBUTORS, item_key(message), message.hash, now)
        self._check_parts(now)
        self._check_decided(now)

    def _on_missing(self, message: Message, body: Missing, now: int) -> None:
        if self.roles.owned(message.sender) is None or body.worker not in self.roles.workers:
            raise NotAMember(f"complaint of {message.sender.hex()[:8]}, which aggregates nothing in round {self.round}")
        self.bodies[message.hash] = message
        self._hold(CONTRIBUTORS, item_key(message), message.hash, now)
        self._check_decided(now)

    def _on_result(self, message: Message, body: Result, now: int) -> None:
        if body.part >= self.roles.layout.parts or message.statement.index != body.part:
            raise InconsistentMessage(f"result of part {body.part}, there are {self.roles.layout.parts}")
        if message.sender not in self.roles.owners or message.statement.attempt > self.roster.faulty_max + 2:
            raise NotAMember(f"result of {message.sender.hex()[:8]}, which aggregates nothing in round {self.round}")
        ctx = message.statement.ctx
        if ctx not in self.results and len(self.results) > 2 * len(self.roster.seats):
            raise InconsistentMessage("results for too many different sets of contributors")
        self.results.setdefault(ctx, {})[result_key(message)] = message
        self.bodies[message.hash] = message
        self._check_results(now)
        self._check_decided(now)

    def _on_reveal(self, message: Message, body: Reveal, now: int) -> None:
        if not self.opens(message.sender, body.link):
            raise InconsistentMessage(f"link of {message.sender.hex()[:8]} is not on its chain")
        self.links[message.sender] = message
        if message.sender in self.expected_links:
            self._hold(BLOCK, link_key(message.sender), body.link, now)

    def _on_engine(self, message: Message, body: EnginePayload, now: int) -> None:
        index = message.statement.index
        if message.sender not in self.roster.members or index > BLOCK:
            raise NotAMember(f"{message.statement.kind} of {message.sender.hex()[:8]}, which holds no seat")
        if message.statement.attempt != getattr(body, "attempt", 0):
            raise InconsistentMessage(f"{message.statement.kind} whose slot names another attempt")
        engine = self.engines[index]
        if engine is None:
            if message.statement.attempt <= self.roster.faulty_max + 2:
                self._early[index][message.hash] = message
            return
        if isinstance(body, Proposal) and index != BLOCK:
            self._ask_bodies([hash for _, hash in body.items], message.sender)
        self._drive(index, engine.receive(message.sender, body, message.data, now), now)

    def equivocated(self, message: Message, now: int) -> None:
        """A second statement for a slot is known: the slot counts as empty."""
        self.bodies[message.hash] = message
        engine = self.engines[CONTRIBUTORS]
        if isinstance(message.body, Commit | Missing) and engine is not None:
            self._drive(CONTRIBUTORS, engine.equivocated(item_key(message), now), now)
        elif isinstance(message.body, Vote | Quit | Lock | Proposal | Final):
            self._on_engine(message, message.body, now)

    def blob(self, hash: bytes, now: int) -> None:
        """Bytes have come for a hash, or nobody asked had them."""
        self.exchange.arrived(hash)
        self._check_parts(now)
        self._check_results(now)

    def timer(self, name: str, now: int) -> None:
        """A timer of this round; `name` without the round's prefix."""
        if name == "parts" and self.contribution is None and self._own_part is not None:
            self.exchange.pull(self._own_part, self.commits, with_leaves(self.commits))
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
        part = self._own_part
        return part is None or not self.exchange.lacking(part, self.commits, with_leaves(self.commits))

    def _check_parts(self, now: int) -> None:
        """Reduce as soon as every input is here, and let the engine know."""
        part, engine = self._own_part, self.engines[CONTRIBUTORS]
        if self.contribution is None and engine is not None:
            if part is not None and set(self.commits) == set(self.roles.present) and self.holds_own_parts():
                contribution, items = contribution_of(self.commits.values())
                ctx = RULES[CONTRIBUTORS](self).digest(items)
                self.exchange.reduce(part, 0, Contribution(ctx, contribution.commits, (), contribution.workers))
            self._drive(CONTRIBUTORS, engine.recheck(now), now)
        self._reduce_decided()

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
        known = self.results.get(self.contribution.ctx, {}).values()
        return any(m.body.part == part and m.body.hash in self.exchange.opened for m in known)  # type: ignore[union-attr]

    def _publish(self, part: int, attempt: int, ctx: bytes, reduced: ReducedPart, now: int) -> None:
        reduced = self.behaviour.reduced(reduced, part, self)
        body = Result(part, self.exchange.publish(reduced, self.roster.members), reduced.coefficients)
        message = self.desk.sign(
            self.desk.statement(body, prev=self.state.head, round=self.round, attempt=attempt, index=part, ctx=ctx)
        )
        self.behaviour.broadcast(self.desk, message, self)
        self._on_result(message, body, now)

    def _complain(self, now: int) -> None:
        part = self._own_part
        lacking = [] if part is None else self.exchange.lacking(part, self.commits, with_leaves(self.commits))
        if lacking:
            message = self.desk.sign(self.desk.statement(Missing(lacking[0]), prev=self.state.head, round=self.round))
            self.behaviour.broadcast(self.desk, message, self)
            self.bodies[message.hash] = message
            self._hold(CONTRIBUTORS, item_key(message), message.hash, now)

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
        for key, message in self.results.get(self.contribution.ctx, {}).items():
            turn = self.roles.aggregator(
                message.statement.index, message.statement.attempt, self.contribution.complaining
            )
            if turn == message.sender:
                yield key, message

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
        self._drive(index, engine.start(now), now)

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
                    self._send_envelopes(envelopes, to)
                case engine_effects.PushBodies(keys, to):
                    self._push_bodies(index, keys, to)
                case engine_effects.PushValue(items, to):
                    self.desk.send(Value(self.round, index, tuple(sorted(items.items()))), to)
                case engine_effects.NeedValue(digest, holders):
                    for holder in holders:
                        self.desk.send(ValueRequest(self.round, index, digest), holder)
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

    def _sign(self, index: int, payload: Payload, now: int) -> None:
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
        for hash, message in self.bodies.items():
            if hash not in self._journaled:
                self._journaled.add(hash)
                self.desk.emit(Journal("body", self.round, message.data))
        self.desk.emit(Journal(f"engine:{index}", self.round, snapshot))

    def _set_timer(self, name: str, at_us: int) -> None:
        self.desk.emit(SetTimer(f"round:{self.round}:{name}", at_us))

    def _check_decided(self, now: int) -> None:
        """Act on a decision once the bodies of its items are here; ask for those that are not."""
        if self.contribution is None and self._decided[CONTRIBUTORS] is not None:
            self._on_contributors(self._decided[CONTRIBUTORS], now)
        elif self._decided[RESULTS] is not None and self.engines[BLOCK] is None:
            self._on_results(self._decided[RESULTS], now)
        elif self._decided[BLOCK] is not None and self.block is None:
            self.block = self.block_of(self._decided[BLOCK])

    def _on_contributors(self, items: Items, now: int) -> None:
        ctx = RULES[CONTRIBUTORS](self).digest(items)
        if items == VOID:
            self.contribution = Contribution(ctx, {}, (), (), void=True)
        else:
            bodies = self.bodies_of(items)
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
        self.transfer_ms = max(1, (now - self._contributors_at_us) // 1000)
        self._begin_block(rules.digest(items), now)

    def _await_bodies(self, items: Items, now: int) -> None:
        self._ask_bodies(list(items.values()), None)
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
            self.links[self.me] = message
        for peer in sorted(set(self.links) & self.expected_links):
            link_body = self.links[peer].body
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
            links = links_of(items) or {}
            self._blocks[key] = build_block(
                self.state, self.contribution, self.decided_results, self.results_void, links
            )
        return self._blocks[key]

    def opens(self, peer: PeerId, link: bytes) -> bool:
        """Whether the link is the one of this round on the peer's chain."""
        if (peer, link) not in self._opens:
            self._opens[peer, link] = self.roster.opens(peer, link, self.round)
        return self._opens[peer, link]

    # --- bodies and values ---

    def bodies_of(self, items: Items) -> list[Message] | None:
        """The statements of the items in key order; None if one is not here."""
        found = [self.bodies.get(items[key]) for key in sorted(items)]
        return None if None in found else found  # type: ignore[return-value]

    def _ask_bodies(self, hashes: list[bytes], holder: PeerId | None) -> None:
        unknown = tuple(hash for hash in hashes if hash not in self.bodies and hash != ZERO)
        if unknown:
            self.desk.send(BodyRequest(self.round, unknown), holder)

    def _push_bodies(self, index: int, keys: Iterable[str], to: PeerId | None) -> None:
        engine = self.engines[index]
        assert engine is not None
        if index == BLOCK:
            wanted = {bytes.fromhex(key.removeprefix("link:")) for key in keys if key.startswith("link:")}
            messages = [self.links[peer] for peer in sorted(wanted & set(self.links))]
        else:
            kinds = set(keys)
            by_key = item_key if index == CONTRIBUTORS else result_key
            kind = Commit | Missing if index == CONTRIBUTORS else Result
            messages = [m for m in self.bodies.values() if isinstance(m.body, kind) and by_key(m) in kinds]
        self._send_envelopes([message.data for message in messages], to)

    def _send_envelopes(self, envelopes: Iterable[bytes], to: PeerId | None) -> None:
        packet: list[bytes] = []
        for data in envelopes:
            if packet and (
                len(packet) == ENVELOPES_PER_PACKET or sum(map(len, packet)) + len(data) > PACKET_ENVELOPE_BYTES
            ):
                self.desk.send(Envelopes(tuple(packet)), to)
                packet = []
            packet.append(data)
        if packet:
            self.desk.send(Envelopes(tuple(packet)), to)

    def answer_bodies(self, hashes: Iterable[bytes], to: PeerId) -> None:
        """Hand on the statements that a peer lacks."""
        self._send_envelopes([self.bodies[hash].data for hash in hashes if hash in self.bodies], to)

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
        self._send_envelopes([m.data for m in (*self.bodies.values(), *self.links.values())], to)
        for index, engine in enumerate(self.engines):
            if engine is not None:
                self._drive(index, engine.resend(to, now), now)
