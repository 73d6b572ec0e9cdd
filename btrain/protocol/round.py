"""One round at one member: commit, reduce, reveal, certify, as three decisions of the agreement engine in a row.

`Statements` owns what was signed, `Exchange` the bytes. What happens before and after a round (catching up, audits,
charges, joining) is the member's business. Inputs return nothing: what is to be done lies on the desk, in order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

import msgspec
from torch import Tensor

from btrain.protocol.agreement_messages import VOID, Final, ItemPairs, Items, item_pairs
from btrain.protocol.block_items import BlockItems, link_key
from btrain.protocol.contribution import (
    COMPLAINT_INDEX,
    answers,
    contribution_of,
    in_sum,
    is_item,
    item_key,
    may_leave_out,
)
from btrain.protocol.deciding import Deciding, Post
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, RESULTS, RULES, ResultsRules, result_key
from btrain.protocol.effects import Compute, Work
from btrain.protocol.encoding import ZERO, PeerId, digest
from btrain.protocol.exchange import Exchange, has_leaves, with_leaves
from btrain.protocol.hearing import Hearing, helpers_of
from btrain.protocol.ledger import Block, Contribution, LedgerState, ResultEntry, build_block, items_digest
from btrain.protocol.messages import (
    Approval,
    Commit,
    Dispute,
    Message,
    Missing,
    Receipt,
    Result,
    Reveal,
    Statement,
    Table,
    Trial,
)
from btrain.protocol.packets import HandOn
from btrain.protocol.randomness import batch_seed
from btrain.protocol.reduction import ReducedPart, encode_gradient
from btrain.protocol.relays import Relays
from btrain.protocol.statements import ENGINE_PAYLOADS

BLOCKS_REMEMBERED = 32  # blocks of different sets of items, built and kept


class Round(Deciding):
    """Round t at this member."""

    def __init__(
        self, state: LedgerState, post: Post, started_us: int, snapshots: Mapping[int, bytes], trusted_from_us: int = 0
    ) -> None:
        super().__init__(state, post, started_us, snapshots, trusted_from_us)
        self.chain, self.side_items = post.chain, post.side_items
        self.exchange = Exchange(self.roles, self.label, state.charter.rule, post.desk, post.blobs)
        self.relays = Relays(
            state, self.roles, post.desk, self.exchange, self.statements, post.routes, self._set_relay_timer
        )
        self.hearing = Hearing()
        self.unheard: set[PeerId] = set()  # members that others are asked to hand on
        self.contribution: Contribution | None = None
        self.decided_results: tuple[ResultEntry, ...] = ()
        self._result_statements: dict[int, Message] = {}  # of the decided results, by part
        self.results_void = False
        self.results_digest = ZERO
        self.block: Block | None = None
        self.compute_ms = self.transfer_ms = 0
        self._own_part = self.roles.owned(self.me)
        self._held_results: set[bytes] = set()  # what the engine was given
        self._overdue: set[PeerId] = set()  # workers whose part was asked for once more, in vain
        self._guessed = False  # the own part is reduced over all before the decision says so
        self._blocks: dict[ItemPairs, Block] = {}
        self._digests: dict[ItemPairs, bytes] = {}
        self._committed_us = self._contributors_at_us = self._results_at_us = started_us

    # --- computing and committing ---

    def start(self, now: int) -> None:
        """Open the first decision and begin to compute, or send again what was committed before a restart."""
        self._open(CONTRIBUTORS, now)
        if self.me not in self.roles.present:
            if self.me in self.state.probation.peers and self.roles.layout.parts:
                self.desk.emit(Compute(self.round, self._seed))
            return
        earlier = self.desk.signed_before(self._commit_statement([]))
        if earlier is not None:
            self._send_commit(earlier, now)
        elif self.me in self.roles.workers:
            self.desk.emit(Compute(self.round, self._seed))
        elif self.state.closing:
            self.set_timer("audited", self.started_us + self.clock.compute_us)
        else:
            self._commit([], now)
        self.set_timer("complaints", self._complaints_from_us)
        self.set_timer("unheard", self.started_us + self.clock.compute_us + self.clock.delta_us)

    def audited(self, now: int) -> None:
        """In a closing round: this member's audits are over, or have taken all their time."""
        if self.state.closing and self.me in self.roles.present and self.me not in self.statements.commits:
            self._commit([], now)

    @property
    def _seed(self) -> bytes:
        return batch_seed(self.state.run, self.state.seed_randomness, self.me, self.round)

    def computed(self, gradient: Tensor | None, seconds: float, now: int) -> None:
        """This peer's gradient, float32 [d]; None if it could not be computed."""
        self.compute_ms = max(1, round(seconds * 1000))
        if gradient is None:
            self._commit([], now)
            return
        layout = self.roles.layout
        self.desk.emit(Work(f"round:{self.label}:encode", lambda: encode_gradient(gradient, layout)))

    def _commit_statement(self, parts: list[bytes]) -> Statement:
        leaves = tuple(digest(part) for part in parts)
        body = msgspec.structs.replace(self.side_items(), leaves=leaves, compute_ms=self.compute_ms)
        return self.desk.statement(body, prev=self.state.head, round=self.round)

    def _commit(self, parts: list[bytes] | None, now: int) -> None:
        if parts is None:
            self.desk.event("no_gradient", round=self.round, reason="a value is not finite or beyond the codec's range")
        parts = self.behaviour.parts(parts or [], self)
        for part in parts:
            self.exchange.keep(digest(part), part)
        if self.me not in self.roles.present:
            self._hand_in(parts)
            return
        self._send_commit(self.desk.sign(self._commit_statement(parts)), now)

    def _hand_in(self, parts: list[bytes]) -> None:
        """On probation: what is computed counts in no sum; it is listed by the members and audited."""
        if parts:
            trial = Trial(tuple(digest(part) for part in parts))
            message = self.desk.sign(self.desk.statement(trial, prev=self.state.head, round=self.round))
            self.behaviour.broadcast(self.desk, message, self)

    def _send_commit(self, message: Message, now: int) -> None:
        self._committed_us = now
        self.behaviour.broadcast(self.desk, message, self)
        self.exchange.scatter(message, self.relays.route)
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
        else:
            self.checking.work_done(job, rest, result, now)

    # --- statements of others ---

    def receive(self, message: Message, now: int) -> None:
        """A verified statement of this round, from its signer or handed on.

        Raises:
            RemoteProtocolError: why the statement is refused.
        """
        self.statements.check_slot(message)
        body = message.body
        attempt = message.statement.attempt
        if attempt and isinstance(body, ENGINE_PAYLOADS) and attempt > self.attempts_noticed:
            return  # Quits lead there, and bring them again
        if isinstance(body, Result):
            decided = None if self.contribution is None else self.contribution.ctx
            notice = self.statements.notice_result(message, decided)
        else:
            notice = self.desk.notice(message)
        self.statements.check_body(message)
        if notice == "ignored" and not self._counts_once_more(message):
            return
        if isinstance(body, ENGINE_PAYLOADS):
            self._on_engine(message, body, now)
        elif isinstance(body, Table) and not self.checking.awaits(message):
            pass
        elif notice == "second":
            self._on_second(message, now)
        else:
            self.statements.keep(message)
            self._take(message, now)
        if notice != "ignored":
            self.statements.took(message)

    def _counts_once_more(self, message: Message) -> bool:
        """A liar's third Final may be among those that decided for somebody; the engine keeps few of them."""
        return isinstance(message.body, Final) and self.engines[message.statement.index] is not None

    def _take(self, message: Message, now: int) -> None:
        """Act on a statement that was kept."""
        body = message.body
        if isinstance(body, Commit):
            self.hold(CONTRIBUTORS, item_key(message), message.hash, now)
            self._await_part(message.sender, now)
            self.relays.serve()
        elif isinstance(body, Missing | Receipt):
            self._on_dispute(message, now)
        elif isinstance(body, Reveal) and message.sender in self.expected_links:
            self.hold(BLOCK, link_key(message.sender), body.link, now)
            self.checking.advance(now)
        elif isinstance(body, (Table, Dispute, Approval)):
            self.checking.take(message, now)
        if isinstance(body, Commit):
            self._reduce_all()
            self._reduce_decided()
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
        if isinstance(message.body, (Table, Dispute, Approval)):
            self.checking.second(message, now)
            return
        if not is_item(message):
            return
        engine = self.engines[CONTRIBUTORS]
        if engine is not None:
            self._drive(CONTRIBUTORS, engine.equivocated(item_key(message), now), now)
        self._check_decided(now)

    def blob(self, hash: bytes, now: int) -> None:
        """Bytes have come for a hash, or nobody asked had them."""
        self.exchange.arrived(hash)
        self.relays.serve()
        self._check_parts(now)
        self._check_results(now)
        self.checking.advance(now)

    def timer(self, name: str, now: int) -> None:
        """A timer of this round; `name` without the round's prefix."""
        scope, _, of = name.partition(":")
        if scope in ("part", "lacking"):
            self._on_late_part(scope, bytes.fromhex(of), now)
        elif scope == "relay":
            self.relays.overdue(bytes.fromhex(of))
        elif name == "audited":
            self.audited(now)
        elif name == "complain":
            self._say_missing(COMPLAINT_INDEX, now)
        elif name == "unheard":
            self.cannot_hear(set(self.roles.present) - self.statements.commits.keys())
        elif name == "complaints":
            self._hold_complaints(now)
        elif name == "without":
            self._reduce_decided(patient=False)
        elif name == "fetch":
            self._fetch_results(now)
        elif name == "bodies":
            self._check_decided(now)
        elif name in ("tables", "approvals") or name.startswith("mature:"):
            self.checking.timer(name, now)
        elif name[:1].isdigit():
            index, _, rest = name.partition(":")
            engine = self.engines[int(index)]
            if engine is not None:
                self._drive(int(index), engine.timer(rest, now), now)

    # --- members that are not heard ---

    def cannot_hear(self, members: Collection[PeerId]) -> None:
        """Have others hand on what these say; of more than b + 1 this member is cut off itself."""
        fresh = set(members) & set(self.roles.present) - self.unheard - {self.me}
        if not 0 < len(fresh) + len(self.unheard) <= self.statements.lacking_max or not fresh:
            return
        self.unheard |= fresh
        for helper in helpers_of(self.state.randomness[1], self.me, self.unheard, self.roles.present):
            self.desk.send(HandOn(self.round, tuple(sorted(fresh))), helper)

    def not_heard(self) -> frozenset[PeerId]:
        """Members whose Commit counts and did not come from themselves: their link to this one is broken."""
        return self.hearing.unheard(self.expected_links - {self.me})

    def reproaches(self) -> tuple[PeerId, ...]:
        """Whom this member saw failing: its part never came.

        Of more than b it is the one that was cut off. After a restart it cannot tell.
        """
        contribution, block = self.contribution, self.block
        if contribution is None or block is None or not contribution.commits or self.trusted_from_us > self.started_us:
            return ()
        failed = {worker for worker in self._lacking() if worker in self._overdue}
        for (ctx, _, _), without in self.exchange.without.items():
            if ctx == contribution.ctx and len(without) == 2:
                failed |= set(without)
        failed -= {self.me}
        return tuple(sorted(failed)) if len(failed) <= self.roster.faulty_max else ()

    # --- parts that do not come ---

    @property
    def _complaints_from_us(self) -> int:
        """From then on complaints are items of `contributors`: before, they would only make votes differ."""
        return self.started_us + self.clock.compute_us + self.clock.transfer_us + 2 * self.clock.delta_us

    def _set_relay_timer(self, aggregator: PeerId, now: int) -> None:
        self.set_timer(f"relay:{aggregator.hex()}", now + self.clock.transfer_us + self.clock.delta_us)

    def _await_part(self, worker: PeerId, now: int) -> None:
        """A Commit is here: its part shall follow within the transfer deadline."""
        if self._lacks(worker):
            self.set_timer(f"part:{worker.hex()}", now + self.clock.transfer_us)

    def _on_late_part(self, scope: str, worker: PeerId, now: int) -> None:
        """Ask the worker for its part; Delta later ask in public, for relays; at last complain."""
        if self._decided[RESULTS] is not None or self._own_part is None or not self._lacks(worker):
            return
        if scope == "part":
            self.exchange.retry()
            self.exchange.pull(self._own_part, self.statements.commits, [worker], self.relays.holders)
            self._overdue.add(worker)
            self.set_timer(f"lacking:{worker.hex()}", now + self.clock.delta_us)
        else:
            self._say_missing(0, now)
            patience_us = now + self.clock.transfer_us + 2 * self.clock.delta_us
            last_us = self._complaints_from_us if self.contribution is None else patience_us
            self.set_timer("complain", max(now, min(patience_us, last_us)))

    def _say_missing(self, index: int, now: int) -> None:
        """Say whose part is overdue; those first for which no relay has signed."""
        part = self._own_part
        lacking = [worker for worker in self._lacking() if worker in self._overdue]
        if part is None or not lacking or self._decided[RESULTS] is not None:
            return
        lacking.sort(key=lambda worker: bool(self.relays.holders(worker, self.me)))
        body = Missing(part, tuple(lacking[: self.statements.lacking_max]))
        message = self.desk.sign(self.desk.statement(body, prev=self.state.head, round=self.round, index=index))
        self.behaviour.broadcast(self.desk, message, self)
        self.statements.keep(message)
        self._take(message, now)

    def _on_dispute(self, message: Message, now: int) -> None:
        """An aggregator lacks parts, or a relay has signed for one."""
        if isinstance(message.body, Missing):
            self.relays.missing(message, now)
        else:
            self.relays.receipt(message)
        self._hold_complaints(now)

    def _hold_complaints(self, now: int) -> None:
        if now < self._complaints_from_us:
            return
        complaints = [m for m in self.statements.missing if m.statement.index == COMPLAINT_INDEX]
        receipts = [
            r for r in self.statements.receipts if any(answers(r, m, self.statements.commits) for m in complaints)
        ]
        for message in complaints + receipts:
            self.hold(CONTRIBUTORS, item_key(message), message.hash, now)

    # --- parts and results ---

    def holds_own_parts(self) -> bool:
        """Whether this member, if it aggregates, has its part of every committed gradient: only then does it vote."""
        return not self._lacking()

    def _lacks(self, worker: PeerId) -> bool:
        """Whether the own part of a worker that has committed is not here."""
        part, commit = self._own_part, self.statements.commits.get(worker)
        if part is None or commit is None or not has_leaves(commit):
            return False
        return bool(self.exchange.lacking(part, self.statements.commits, [worker]))

    def _lacking(self) -> list[PeerId]:
        """Workers whose bytes of the own part are not here."""
        part, commits = self._own_part, self.statements.commits
        return [] if part is None else self.exchange.lacking(part, commits, with_leaves(commits))

    def _check_parts(self, now: int) -> None:
        """Reduce as soon as every input is here, and let the engine know."""
        self._reduce_all()
        engine = self.engines[CONTRIBUTORS]
        if self.contribution is None and engine is not None:
            self._drive(CONTRIBUTORS, engine.recheck(now), now)
        self._reduce_decided()

    def _reduce_all(self) -> None:
        """Reduce the own part over everybody before the decision says so, once all is here."""
        part = self._own_part
        if self.contribution is None and part is not None and not self._guessed and self._all_here():
            self._guessed = True
            contribution, items = contribution_of(self.statements.commits.values())
            ctx = RULES[CONTRIBUTORS](self).digest(items)
            self.exchange.reduce(part, 0, Contribution(ctx, contribution.commits, (), contribution.workers))

    def _all_here(self) -> bool:
        return len(self.statements.commits) == len(self.roles.present) and self.holds_own_parts()

    def _reduce_decided(self, *, patient: bool = True) -> None:
        """Reduce the parts that fall to this member in the current attempt of `results`; in later attempts, at last,
        without what nobody has given.
        """
        contribution, engine = self.contribution, self.engines[RESULTS]
        if contribution is None or engine is None or self._decided[RESULTS] is not None:
            return
        for part in range(self.roles.layout.parts):
            if self.roles.aggregator(part, engine.attempt, contribution.out) != self.me:
                continue
            if engine.attempt > 0 and self._has_result(part):
                continue
            lacking = self.exchange.lacking(part, contribution.commits, contribution.workers)
            if not lacking:
                self.exchange.reduce(part, engine.attempt, contribution)
            elif patient or engine.attempt == 0:
                self.exchange.pull(part, contribution.commits, contribution.workers, self.relays.holders)
            else:
                without = {lacking[0], self.me} if len(lacking) == 1 else set(contribution.workers)
                self.exchange.reduce(part, engine.attempt, contribution, in_sum(without, contribution))

    def _has_result(self, part: int) -> bool:
        assert self.contribution is not None
        known = self.statements.results.get(self.contribution.ctx, {}).values()
        return any(m.statement.index == part and self.exchange.has_opened(m) for m in known)

    def _publish(self, part: int, attempt: int, ctx: bytes, reduced: ReducedPart, now: int) -> None:
        reduced = self.behaviour.reduced(reduced, part, self)
        hash, without = (
            self.exchange.publish(reduced, (*self.roster.members, *self.state.probation.peers)),
            self.exchange.without.get((ctx, part, attempt), ()),
        )
        body = Result(part, hash, reduced.coefficients, without)
        message = self.desk.sign(
            self.desk.statement(body, prev=self.state.head, round=self.round, attempt=attempt, index=part, ctx=ctx)
        )
        self.behaviour.broadcast(self.desk, message, self)
        self.statements.keep(message)
        self._take(message, now)

    def _check_results(self, now: int) -> None:
        """Open the bytes that have come and put the results of the decided contributors before the engine."""
        if self.contribution is None or self.block is not None:
            return
        for message in list(self._rightful_results(besides=self._held_results)):
            if self.exchange.open_result(message):
                self._held_results.add(message.hash)
                self.hold(RESULTS, result_key(message), message.hash, now)
            elif message.sender in self.unheard and not self.exchange.has_opened(message):
                self._fetch_result(message)  # it is not going to be pushed to this member
        engine = self.engines[RESULTS]
        if engine is not None:
            self._drive(RESULTS, engine.recheck(now), now)
        self._check_decided(now)

    def _rightful_results(self, besides: Collection[bytes] = ()) -> Iterable[Message]:
        """Results over the decided contributors by the member whose turn it was, without those of these hashes."""
        assert self.contribution is not None
        for message in self.statements.results.get(self.contribution.ctx, {}).values():
            if message.hash not in besides and self.rightful(message):
                yield message

    def rightful(self, result: Message) -> bool:
        """Whether a Result is over the decided contributors and by the member whose turn it was."""
        s, contribution = result.statement, self.contribution
        if contribution is None or s.ctx != contribution.ctx:
            return False
        if self.roles.aggregator(s.index, s.attempt, contribution.out) != result.sender:
            return False
        assert isinstance(result.body, Result)
        return may_leave_out(result.body.without, result.sender, contribution)

    def result_of(self, entry: ResultEntry) -> Message:
        """The statement behind a decided result; its signer may have signed others about the same bytes."""
        return self._result_statements[entry.part]

    def contribution_in(self, block: Block) -> Contribution | None:
        """What was contributed to a block that the others have decided, if its Commits are here."""
        commits = [self.statements.bodies.get(entry.hash) for entry in block.commits]
        disputes = [m for m in self.statements.bodies.values() if is_item(m) and not isinstance(m.body, Commit)]
        found, items = contribution_of([*(m for m in commits if m is not None), *disputes])
        if None in commits or found.workers != block.contributors:
            return None
        return replace(found, ctx=RULES[CONTRIBUTORS](self).digest(items))

    def _fetch_results(self, now: int) -> None:
        """Ask for bytes that have not come: results of the aggregator first, then of everybody; parts to reduce."""
        if self.contribution is None or self.block is not None:
            return
        self.exchange.retry()
        self._reduce_decided()
        for message in self._rightful_results():
            if not self.exchange.open_result(message):
                self._fetch_result(message)
        self.set_timer("fetch", now + self.clock.delta_us)

    def _fetch_result(self, message: Message) -> None:
        """From two others first, everybody from his own two: an aggregator that is slow to one member holds up none."""
        assert isinstance(message.body, Result)
        present, aggregator = self.roles.present, message.sender
        here = present.index(self.me) + 1 if self.me in present else 0
        others = [peer for peer in (*present[here:], *present[:here]) if peer != aggregator]
        near = len(others) if aggregator in self.unheard else 2
        self.exchange.fetch(message.body.hash, (*others[:near], aggregator, *others[near:]))

    def seconds(self, now: int) -> dict[str, float]:
        """How long the phases took here, in seconds."""
        marks = [self.started_us, self._committed_us, self._contributors_at_us, self._results_at_us, now]
        names = ("compute", "commit", "reduce", "certify")
        return {name: max(0, end - start) / 1e6 for name, start, end in zip(names, marks, marks[1:], strict=False)}

    def update(self) -> Tensor | None:
        """The decided update, float32 [d]; None in a void round."""
        assert self.block is not None
        counted = [entry for entry in self.block.results if entry.part not in self.block.void_parts]
        return None if self.block.void else self.exchange.update(counted)

    # --- decisions ---

    def _entered(self, now: int) -> None:
        self._reduce_decided()
        self.set_timer("without", now + self.clock.timing(RESULTS).delta_us)

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
            self.contribution, _ = contribution_of(bodies, ctx)
        self._contributors_at_us = now
        if self.contribution.void or not self.contribution.workers:
            self._begin_block(ctx, now)
            return
        self._open(RESULTS, now)
        self.set_timer("fetch", now + self.clock.delta_us)
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
            decided = {
                (m.statement.index, m.statement.attempt, m.sender): m for m in self.statements.bodies_of(items) or ()
            }
            self._result_statements = {e.part: decided[e.part, e.attempt, e.aggregator] for e in entries}
        engine = self.engines[RESULTS]
        if engine is not None and engine.attempt == 0:  # what a fault delayed is no measure of the network
            self.transfer_ms = max(1, (now - self._contributors_at_us) // 1000)
        self._begin_block(rules.digest(items), now)

    def _await_bodies(self, items: Items, now: int) -> None:
        self.statements.ask(items.values(), None)
        self.set_timer("bodies", now + self.clock.delta_us)

    def _begin_block(self, results_digest: bytes, now: int) -> None:
        """The results are decided: agree on the block."""
        self.results_digest = results_digest
        self._results_at_us = now
        self._open(BLOCK, now)
        self._reveal(now)
        for peer in sorted(set(self.statements.links) & self.expected_links):
            link_body = self.statements.links[peer].body
            assert isinstance(link_body, Reveal)
            self.hold(BLOCK, link_key(peer), link_body.link, now)
        self.checking.begin(now)

    def _reveal(self, now: int) -> None:
        """Open the own link, with the Final for `results`: nobody can make a result to suit r[t] any more."""
        if self.me in self.expected_links and self.me not in self.statements.links:
            link = Reveal(self.chain.link(self.round))
            message = self.desk.sign(self.desk.statement(link, prev=self.state.head, round=self.round))
            self.behaviour.broadcast(self.desk, message, self)
            self.statements.links[self.me] = message

    @property
    def opened_link(self) -> bool:
        """Whether this member has opened its link: r of this round is not secret any more."""
        return self.engines[BLOCK] is not None or self.me in self.statements.links

    @property
    def expected_links(self) -> AbstractSet[PeerId]:
        """Members whose Commit was decided."""
        return self.contribution.commits.keys() if self.contribution is not None else frozenset()

    def block_digest(self, items: Items) -> bytes:
        """The hash of the block that follows from the items; of what makes up no block a digest that no block has."""
        key = item_pairs(items)
        if key not in self._digests:
            if len(self._digests) >= BLOCKS_REMEMBERED:
                self._digests.clear()
            found = BlockItems.read(items)
            fits = found is not None and found.fits(self)
            self._digests[key] = (
                self.block_of(items).hash if fits else items_digest("no block", self.results_digest, items)
            )
        return self._digests[key]

    def block_of(self, items: Items) -> Block:
        """The block that follows from these links, Tables and disputes."""
        assert self.contribution is not None
        key = item_pairs(items)
        if key not in self._blocks:
            if len(self._blocks) >= BLOCKS_REMEMBERED:
                self._blocks.clear()
            found = BlockItems.read(items) or BlockItems()
            self._blocks[key] = build_block(
                self.state, self.contribution, self.decided_results, self.results_void, found.links,
                found.table_entries, found.dispute_entries,
            )  # fmt: skip
        return self._blocks[key]
