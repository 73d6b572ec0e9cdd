"""CHECK at one member: Tables of the own parts, judgements on others', the own rows compared, disputes, approvals.

A part counts only with a Table that everybody found sound and no contributor disputed. Which ones those are is decided
in `block`, from statements and nothing else, so that no bytes are waited for. A Table counts at once when all
contributors approve; else, beyond attempt 0, when it was handed on 2 Delta ago: by then whoever has a wrong row has
said so. Where approvals do not come within Delta the Tables are handed on at once, so that one contributor that keeps
its approval to itself costs 3 Delta and not a second attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from btrain.kernels import QuantizedBlocks
from btrain.protocol.agreement_messages import Items
from btrain.protocol.block_items import BlockItems, dispute_key, table_key
from btrain.protocol.contribution import decision_statements, leaf_of
from btrain.protocol.decisions import BLOCK
from btrain.protocol.effects import Journal, Work
from btrain.protocol.encoding import PeerId, sha256
from btrain.protocol.ledger import Block, ResultEntry
from btrain.protocol.messages import Approval, Dispute, Message, Reveal, Table
from btrain.protocol.messages import Result as ResultBody
from btrain.protocol.randomness import permutation
from btrain.protocol.reduction import open_part, reduce_committed
from btrain.protocol.table_limits import UNSOUND, Judgement, judge
from btrain.protocol.tables import link_mask, masked, row_of, rows_of, sketch_seed, table_randomness

if TYPE_CHECKING:
    from btrain.protocol.round import Round

DISPUTES_MAX = 8  # of one member in a round that are looked at: as many as forge its rows at once and more
LINKS_DELTAS = 2  # after the results all honest links are here
MATURE_DELTAS = 2  # handed on, and back with a dispute
APPROVAL_DELTAS = 1  # what approvals may take before Tables mature without them


@dataclass(frozen=True)
class Proof:
    """Statements and bytes that prove a deed of the first statement's signer."""

    deed: str
    statements: list[Message]
    blobs: list[bytes]


@dataclass(frozen=True)
class Checked:
    """What a round leaves behind for those who reduce again: Tables and Disputes of its block, by part."""

    tables: dict[int, Message]
    disputes: dict[int, list[Message]]
    alarms: dict[int, float]  # by how much parts exceed a sharp limit
    checkers: dict[int, tuple[PeerId, ...]]  # who reduces a part again: b+1 others, so an honest one at least


class Checking:
    """The tables of one round."""

    def __init__(self, round: Round) -> None:
        self.round, self.desk = round, round.desk
        self.judgements: dict[bytes, Judgement] = {}  # by the Table's hash
        self.proofs: list[Proof] = []  # for the member to charge
        self._active = False
        self._early: dict[bytes, Message] = {}  # before the results are decided; two of each slot at most
        self._entries: dict[int, ResultEntry] = {}  # the decided results by part
        self._workers: dict[int, tuple[PeerId, ...]] = {}  # whose rows the Table of a part has, in member order
        self._unmade: set[int] = set()  # own parts without a Table
        self._unexamined: dict[bytes, Message] = {}
        self._tables: dict[int, Message] = {}  # the first of the rightful aggregator
        self._known: dict[bytes, Message] = {}
        self._fitting: set[bytes] = set()  # Tables whose links are here and fit, so that their numbers are read
        self._own_row: dict[bytes, bool] = {}  # whether the own row of a Table is right, or there is none to be
        self._disputes: dict[str, Message] = {}
        self._approvals: dict[PeerId, Message] = {}
        self._matured: set[bytes] = set()
        self._timely: dict[bytes, set[str]] = {}  # Table -> disputes that were here before it was mature
        self._jobs: set[str] = set()
        self._links_due = False
        self._unapproved = False  # approvals are overdue

    # --- inputs ---

    def begin(self, now: int) -> None:
        """The results are decided: whatever came before is looked at now."""
        if not self.round.decided_results:
            return
        self._active = True
        for entry in self.round.decided_results:
            self._entries[entry.part] = entry
            self._workers[entry.part] = self._contributors(entry)
            if entry.aggregator == self.round.me:
                self._unmade.add(entry.part)
        self.round.set_timer("tables", now + LINKS_DELTAS * self.round.clock.delta_us)
        self.round.set_timer("approvals", now + APPROVAL_DELTAS * self.round.clock.delta_us)
        early, self._early = self._early, {}
        for message in early.values():
            if self.desk.equivocated(message):
                self.second(message, now)
            else:
                self.take(message, now)
        self.advance(now)

    def awaits(self, table: Message) -> bool:
        """Whether a Table is by the aggregator of a decided part, or may turn out to be."""
        return not self._active or table.sender == self._entries[table.statement.index].aggregator

    def take(self, message: Message, now: int) -> None:
        """A statement of this phase that was kept."""
        body = message.body
        if not self._active:
            self._early[message.hash] = message
        elif isinstance(body, Table):
            if self.awaits(message):
                self._known[message.hash] = self._unexamined[message.hash] = message
                self._tables.setdefault(message.statement.index, message)
        elif isinstance(body, Dispute):
            self._take_dispute(message)
        elif isinstance(body, Approval):
            if not self.desk.equivocated(message):
                self._approvals.setdefault(message.sender, message)
            if self._approved():
                self.round.recheck(BLOCK, now)
            return
        self.advance(now)

    def second(self, message: Message, now: int) -> None:
        """Two statements stand in one slot: neither is there, and everybody shall see both."""
        if not self._active:
            self._early[message.hash] = message
        elif isinstance(message.body, Approval):
            self._approvals.pop(message.sender, None)
        elif isinstance(message.body, Dispute):
            key = dispute_key(message.statement.index, message.sender)
            for timely in self._timely.values():
                timely.discard(key)  # it is an item no longer, so no value can be asked to hold it
            self.round.drop_item(BLOCK, key, now)
        elif self.awaits(message) and message.hash not in self._known:  # handed on once, however often it comes
            first = self._tables.setdefault(message.statement.index, message)
            self._known[message.hash] = self._unexamined[message.hash] = message
            self.round.statements.send([first.data, message.data], None)
            for verdict in range(UNSOUND + 1):
                self.round.drop_item(BLOCK, table_key(message.statement.index, verdict), now)
            self.advance(now)

    def timer(self, name: str, now: int) -> None:
        """A timer of this phase is due."""
        if name == "tables":
            self._links_due = True
            self.advance(now)
        elif name == "approvals":
            self._await_no_approvals(now)
        else:
            self._matured.add(bytes.fromhex(name.partition(":")[2]))
            self.round.recheck(BLOCK, now)

    def _await_no_approvals(self, now: int) -> None:
        """Somebody does not approve: have the Tables mature, those that still come too.

        Approvals of other Tables are shown to all: who approves different ones to different members is found out.
        """
        if self._approved() or self.round.block is not None:
            return
        self._unapproved = True
        digest = self._digest()
        self.round.statements.send([m.data for m in self._approvals.values() if m.statement.ctx != digest], None)
        for message in self._tables.values():
            if message.hash in self.judgements:
                self.round.statements.send([message.data], None)
                self._handed_on(message.hash, now)
        self.advance(now)

    @property
    def _hands_on(self) -> bool:
        """Whether what is known shall be known to all, since somebody may not have been heard."""
        return self._unapproved or self.round.leaving(BLOCK)

    def work_done(self, job: str, key: str, result: object, now: int) -> None:
        """The result of a job."""
        if job == "table" and isinstance(result, Table):
            self._publish(int(key), result, now)
        elif job == "judge" and isinstance(result, Judgement):
            self._judged(self._known[bytes.fromhex(key)], result, now)
        elif job == "row" and isinstance(result, bool):
            self._compared(self._known[bytes.fromhex(key)], result, now)
        self.advance(now)

    def advance(self, now: int) -> None:
        """Do what has become possible."""
        if not self._active or self.round.block is not None:
            return
        if self._unmade or self._unexamined:
            links = self._links_here()
            for part in sorted(self._unmade):
                self._make(self._entries[part], links, now)
            for message in list(self._unexamined.values()):
                self._examine(message, links, now)
        self._hold_disputes(now)
        self._approve(now)

    # --- the own tables ---

    def _make(self, entry: ResultEntry, links: dict[PeerId, bytes], now: int) -> None:
        """Publish the Table of an own part, over the links that are here."""
        if f"table:{entry.part}" in self._jobs:
            return
        statement = self.desk.statement(
            Table(b"\0" * 32, b"", 0.0, ()), prev=self.round.state.head, round=self.round.round, index=entry.part
        )
        before = self.desk.signed_before(statement)
        if before is not None:
            self._send(before, now)
            return
        expected = self.round.expected_links
        ready = len(links) == len(expected) or (self._links_due and len(links) > self.round.roster.faulty_max)
        parts = self._parts(entry) if ready else None
        if parts is None:
            return
        numel, rule = self.round.roles.layout.part_numel(entry.part), self.round.exchange.rule
        result, reduced = self.round.result_of(entry).hash, self._reduced(entry)
        seed = sketch_seed(self._randomness(links), entry.part)
        mask, tau = link_mask(sorted(expected), links), self.round.exchange.taus.get(entry.hash)

        def table() -> Table:
            rows = rows_of([open_part(data, numel) for data in parts.values()], reduced, seed)
            return Table(result, mask, reduce_committed(parts, numel, rule).tau if tau is None else tau, rows)

        self._work(f"table:{entry.part}", table)

    def _parts(self, entry: ResultEntry) -> dict[PeerId, bytes] | None:
        """The committed bytes of every contributor; None while some are asked for."""
        round = self.round
        assert round.contribution is not None
        commits, contributors = round.contribution.commits, self._workers[entry.part]
        if round.exchange.lacking(entry.part, commits, contributors):
            round.exchange.pull(entry.part, commits, contributors, round.relays.holders)
            return None
        return round.exchange.committed(entry.part, commits, contributors)

    def _publish(self, part: int, table: Table, now: int) -> None:
        table = self.round.behaviour.table(table, part, self.round)
        members = masked(sorted(self.round.expected_links), table.links) or ()
        links = self._links_here()
        for peer in members:  # who names links in a Table can show them, also after a restart
            if peer in links:
                self.desk.emit(Journal("body", self.round.round, self.round.statements.links[peer].data))
        statement = self.desk.statement(
            table,
            prev=self.round.state.head,
            round=self.round.round,
            index=part,
            ctx=self._randomness({peer: links[peer] for peer in members if peer in links}),
        )
        self._send(self.desk.sign(statement), now)

    # --- the tables of all ---

    def _examine(self, message: Message, links: dict[PeerId, bytes], now: int) -> None:
        """Judge a Table and compare the own row, as soon as its links are here."""
        body, entry = message.body, self._entries[message.statement.index]
        assert isinstance(body, Table)
        if message.hash in self.judgements and message.hash in self._own_row:
            del self._unexamined[message.hash]
            return
        seed = sketch_seed(message.statement.ctx, entry.part)
        if message.hash not in self._fitting:
            failed = self._misfit(message, body, entry, links)
            if failed is not None:
                if failed.verdict:
                    self._judged(message, failed, now)
                    self._own_row[message.hash] = True  # nothing rests on it
                return
            self._fitting.add(message.hash)
            self._judge(message, body, entry, seed)
        if message.hash not in self._own_row:
            self._compare(message, body, entry, seed)

    def _judge(self, message: Message, body: Table, entry: ResultEntry, seed: bytes) -> None:
        """Hold a Table against the reduced bytes."""
        result = self.round.result_of(entry).body
        assert isinstance(result, ResultBody)
        rule, reduced = self.round.exchange.rule, self._reduced(entry)
        coefficients, count = result.coefficients, len(self._workers[entry.part])
        self._work(f"judge:{message.hash.hex()}", partial(judge, body, count, coefficients, reduced, rule, seed))

    def _misfit(
        self, message: Message, table: Table, entry: ResultEntry, links: dict[PeerId, bytes]
    ) -> Judgement | None:
        """What is wrong with a Table before its numbers are read; SOUND: it cannot be said yet; None: nothing."""
        members = masked(sorted(self.round.expected_links), table.links)
        if members is None or len(members) <= min(self.round.roster.faulty_max, len(self.round.expected_links) - 1):
            return Judgement(UNSOUND, "links: too few, or of others than the committed members")
        if table.result != self.round.result_of(entry).hash:
            return Judgement(UNSOUND, "result: of another than the decided one")
        if any(peer not in links for peer in members):
            return Judgement(0)
        if message.statement.ctx != self._randomness({peer: links[peer] for peer in members}):
            return Judgement(UNSOUND, "links: another randomness follows from them")
        return None

    def _compare(self, message: Message, table: Table, entry: ResultEntry, seed: bytes) -> None:
        """Recompute the own row."""
        if f"row:{message.hash.hex()}" in self._jobs:
            return
        contributors, me = self._workers[entry.part], self.round.me
        if me not in contributors or len(table.rows) != len(contributors):
            self._own_row[message.hash] = True
            return
        assert self.round.contribution is not None
        leaf = leaf_of(self.round.contribution.commits[me], entry.part)
        data = self.round.exchange.blobs.get(leaf)
        if data is None:
            self.round.exchange.fetch(leaf, (entry.aggregator,))
            return
        row, reduced = table.rows[contributors.index(me)], self._reduced(entry)
        numel = self.round.roles.layout.part_numel(entry.part)

        def same() -> bool:
            part = open_part(data, numel)
            return row == (b"" if part is None else row_of(part, reduced, seed))

        self._work(f"row:{message.hash.hex()}", same)

    def _judged(self, message: Message, judgement: Judgement, now: int) -> None:
        part = message.statement.index
        self.judgements[message.hash] = judgement
        if judgement.verdict or judgement.alarm > 1:
            self.desk.event("table", peer=message.sender.hex(), round=self.round.round, part=part,
                            verdict=judgement.verdict, reason=judgement.reason, alarm=judgement.alarm)  # fmt: skip
        if self._tables.get(part) is message and not self.desk.equivocated(message):
            self.round.hold(BLOCK, table_key(part, judgement.verdict), message.hash, now)
            if self._hands_on:
                self.round.statements.send([message.data], None)
                self._handed_on(message.hash, now)
        else:
            self.round.recheck(BLOCK, now)

    def _compared(self, message: Message, right: bool, now: int) -> None:
        self._own_row[message.hash] = self.round.behaviour.approves(message, right, self.round)
        if self._own_row[message.hash]:
            return
        part = message.statement.index
        if len([key for key in self._disputes if key.endswith(self.round.me.hex())]) < DISPUTES_MAX:
            statement = self.desk.statement(
                Dispute(), prev=self.round.state.head, round=self.round.round, index=part, ctx=message.hash
            )
            self._send(self.desk.sign(statement), now)
        if not right:
            self._prove(message)

    def _prove(self, message: Message) -> None:
        """A wrong row, with the sender's own bytes and the reduced ones."""
        contribution, entry = self.round.contribution, self._entries[message.statement.index]
        assert contribution is not None
        result, leaf = self.round.result_of(entry), leaf_of(contribution.commits[self.round.me], entry.part)
        data, reduced = self.round.exchange.blobs.get(leaf), self._reduced(entry).to_bytes()
        if data is not None:
            statements = [message, result, *decision_statements(contribution)]
            self.proofs.append(Proof("wrong_table", statements, [data, reduced]))

    # --- disputes and approvals ---

    def _take_dispute(self, message: Message) -> None:
        """Keep a dispute by a contributor; a few of each member."""
        part, sender = message.statement.index, message.sender
        mine = [key for key in self._disputes if key.endswith(sender.hex())]
        if sender in self._workers[part] and len(mine) < DISPUTES_MAX:
            self._disputes.setdefault(dispute_key(part, sender), message)

    def _hold_disputes(self, now: int) -> None:
        """A dispute counts once the Table it names is here."""
        for key, message in list(self._disputes.items()):
            table = self._known.get(message.statement.ctx)
            if table is None or table.statement.index != message.statement.index or self.desk.equivocated(message):
                continue
            if table.hash not in self._matured:
                self._timely.setdefault(table.hash, set()).add(key)
            self.round.hold(BLOCK, key, message.hash, now)
            if self._hands_on and key not in self._jobs:
                self._jobs.add(key)
                self.round.statements.send([message.data], None)

    def _approve(self, now: int) -> None:
        """Say so when all Tables are here and the own rows are right in all of them."""
        contribution, me = self.round.contribution, self.round.me
        assert contribution is not None
        if me in self._approvals or me not in contribution.workers:
            return
        digest = self._digest()
        if digest is not None and all(self._own_row.get(message.hash) for message in self._tables.values()):
            statement = self.desk.statement(Approval(), prev=self.round.state.head, round=self.round.round, ctx=digest)
            self._send(self.desk.sign(statement), now)

    def _digest(self) -> bytes | None:
        """What an approval is about: the Tables of all parts; None while one is missing."""
        if len(self._tables) < len(self._entries):
            return None
        return sha256(b"btrain/tables/v1", *(self._tables[part].hash for part in sorted(self._tables)))

    def _approved(self) -> bool:
        digest, contribution = self._digest(), self.round.contribution
        if digest is None or contribution is None:
            return False
        approvals = (self._approvals.get(worker) for worker in contribution.workers)
        return all(approval is not None and approval.statement.ctx == digest for approval in approvals)

    # --- what the decision asks ---

    def complete(self, held: Items) -> bool:
        """Whether every part has its judged Table, and all contributors approve or had their time to dispute."""
        if not self.round.decided_results:
            return True
        if not self._active or sum(key.startswith("table:") for key in held) < len(self._entries):
            return False
        return self._approved() or all(message.hash in self._matured for message in self._tables.values())

    def acceptable(self, items: BlockItems, attempt: int) -> bool:
        """Whether every Table was judged so here and is mature, with the disputes that were here before it was."""
        keys = {dispute_key(part, peer) for part, peer in items.disputes}
        for part, entry in items.tables.items():
            judgement, message = self.judgements.get(entry.hash), self._known.get(entry.hash)
            if judgement is None or message is None or message.statement.index != part:
                return False
            if judgement.verdict != entry.verdict:
                return False
            if attempt > 0 and (entry.hash not in self._matured or not self._timely.get(entry.hash, set()) <= keys):
                return False
        for (part, peer), hash in items.disputes.items():
            dispute = self.round.statements.bodies.get(hash)
            if dispute is None or not isinstance(dispute.body, Dispute):
                return False
            if (dispute.statement.index, dispute.sender) != (part, peer):
                return False
            table = self._known.get(dispute.statement.ctx)
            if table is None or table.statement.index != part:
                return False
        return True

    def push(self, keys: Iterable[str], to: PeerId | None, now: int) -> None:
        """Hand on the statements behind items of the block; from now on its Tables mature."""
        tables = {int(key.split(":")[1]) for key in keys if key.startswith("table:")}
        disputes = {key for key in keys if key.startswith("dispute:")}
        chosen = [m for m in self._known.values() if m.statement.index in tables]
        chosen += [m for key, m in self._disputes.items() if key in disputes]
        self.round.statements.send([message.data for message in chosen], to)
        if to is None:
            for message in chosen:
                if isinstance(message.body, Table):
                    self._handed_on(message.hash, now)

    def _handed_on(self, table: bytes, now: int) -> None:
        name = f"mature:{table.hex()}"
        if name not in self._jobs:
            self._jobs.add(name)
            self.round.set_timer(name, now + MATURE_DELTAS * self.round.clock.delta_us)

    # --- afterwards ---

    def checked(self, block: Block) -> Checked:
        """What those who reduce again need of this round."""
        decided = {entry.part: self._known[entry.hash] for entry in block.tables if entry.hash in self._known}
        judged = {part: self.judgements[m.hash] for part, m in decided.items() if m.hash in self.judgements}
        disputes: dict[int, list[Message]] = {}
        for entry in block.disputes:
            message = self._disputes.get(dispute_key(entry.part, entry.peer))
            if message is not None:
                disputes.setdefault(entry.part, []).append(message)
        alarms = {part: judgement.alarm for part, judgement in judged.items() if judgement.alarm > 1}
        checkers = {}
        for result in self.round.decided_results:
            others = [peer for peer in self.round.roles.present if peer != result.aggregator]
            order = permutation(block.randomness, f"check/{result.part}", others)
            checkers[result.part] = order[: self.round.roster.faulty_max + 1]
        return Checked(decided, disputes, alarms, checkers)

    # --- small things ---

    def _contributors(self, entry: ResultEntry) -> tuple[PeerId, ...]:
        """Whose rows a Table has, in member order."""
        result, contribution = self.round.result_of(entry).body, self.round.contribution
        assert isinstance(result, ResultBody) and contribution is not None
        return contribution.reduced(result.without)

    def _reduced(self, entry: ResultEntry) -> QuantizedBlocks:
        return self.round.exchange.opened[entry.part, entry.hash]

    def _links_here(self) -> dict[PeerId, bytes]:
        links = {}
        for peer in self.round.expected_links:
            message = self.round.statements.links.get(peer)
            if message is not None and isinstance(message.body, Reveal):
                links[peer] = message.body.link
        return links

    def _randomness(self, links: dict[PeerId, bytes]) -> bytes:
        return table_randomness(self.round.state.randomness[1], self.round.round, links)

    def _send(self, message: Message, now: int) -> None:
        if isinstance(message.body, Table):
            self._unmade.discard(message.statement.index)
        self.round.behaviour.broadcast(self.desk, message, self.round)
        self.round.statements.keep(message)
        self.take(message, now)

    def _work(self, job: str, run: Callable[[], object]) -> None:
        if job not in self._jobs:
            self._jobs.add(job)
            self.desk.emit(Work(f"round:{self.round.label}:{job}", run))
