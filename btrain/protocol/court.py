"""Audits, accusations and verdicts at one member: what it lists in its Commits, and the checks that lead there.

An accusation says that a gradient is not what its seed gives; whoever hears it recomputes and lists a verdict. What an
audit can prove is charged (`charges.py`). Bans happen in blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from btrain.protocol.audit import Check, GradientCheck, PartCheck
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.charges import Charges
from btrain.protocol.checking import Checked
from btrain.protocol.contribution import decision_statements, leaf_of
from btrain.protocol.desk import Desk
from btrain.protocol.docket import Docket, Doubt
from btrain.protocol.effects import KeepParameters, SaveEvidence
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import InconsistentMessage, NotAMember
from btrain.protocol.evidence import bundle
from btrain.protocol.ledger import Ban, Block, Contribution, LedgerState
from btrain.protocol.messages import LISTED_MAX, Accusation, Commit, Message, Result, Verdict
from btrain.protocol.randomness import batch_seed
from btrain.protocol.recheck import TableCheck, parts_to_check, parts_without_table
from btrain.protocol.roles import Roles
from btrain.protocol.roster import Roster
from btrain.protocol.sweep import Sweep
from btrain.protocol.verdicts import GUILTY, INNOCENT, LOST, UNSURE, Question, question_of

CASE_ROUNDS = 16  # how long a verdict is listed
PARAMETERS_KEPT = 6  # rounds whose x members have at hand; those of sweeps and open cases besides
KEPT_MAX = 16  # rounds of sweeps and open cases whose x is kept

Case = tuple[PeerId, PeerId, int]  # accuser, accused, round of the gradient


@dataclass(frozen=True)
class Record:
    """What a member keeps of a round that is over, to audit and to be audited."""

    roles: Roles
    prev: bytes
    seed_randomness: bytes
    contribution: Contribution
    results: dict[int, Message]  # the decided Result of each part
    block: Block
    checked: Checked | None = None  # Tables and what is wrong with them

    def leaves_of(self, part: int) -> dict[PeerId, bytes]:
        """The committed hashes that the decided Result of `part` was reduced from."""
        body = self.results[part].body
        assert isinstance(body, Result)
        contribution = self.contribution
        return {worker: leaf_of(contribution.commits[worker], part) for worker in contribution.reduced(body.without)}


@dataclass
class Court:
    """What one member audits, and what it thinks of who is accused."""

    desk: Desk
    behaviour: Behaviour
    draw: Callable[[int], int]  # a private random integer below its argument
    state: LedgerState  # of the open round, in whose slots accusations are signed
    charges: Charges
    records: dict[int, Record] = field(default_factory=dict)
    verdicts: dict[Case, Verdict] = field(default_factory=dict)
    docket: Docket = field(init=False)
    _suspects: list[PeerId] = field(default_factory=list)
    _sought: dict[tuple[PeerId, int], set[PeerId]] = field(default_factory=dict)  # (auditor, round) -> who lost bytes
    _reduced: set[tuple[int, int]] = field(default_factory=set)  # parts of a round that are, or were, reduced again
    _kept: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.docket = Docket(self.desk, self._concluded)
        self.stand_at(self.state)

    @property
    def round(self) -> int:
        """The open round."""
        return self.state.round

    # --- what a Commit lists ---

    def listed_verdicts(self, roster: Roster, round: int) -> tuple[Verdict, ...]:
        """Verdicts of open cases, oldest first: one guilty of each question, one innocent of each accuser."""
        listed: dict[object, Verdict] = {}
        for verdict in sorted(self.verdicts.values(), key=lambda v: (v.round, v.accused, v.accuser)):
            if not self._is_kept(verdict.round, round):
                continue
            if not (self._matters(verdict.accused, verdict.round) and roster.seat(verdict.accuser)):
                continue
            matter = verdict.accuser if verdict.vote == INNOCENT else (verdict.vote, question_of(verdict))
            listed.setdefault(matter, verdict)
        decisive_first = sorted(listed.values(), key=lambda verdict: verdict.vote == UNSURE)
        return tuple(decisive_first[:LISTED_MAX])

    # --- rounds ---

    def stand_at(self, state: LedgerState) -> None:
        """The ledger has moved on, perhaps by many blocks: begin the sweeps that they have opened."""
        begun, self.state = self.state.sweeps, state
        for sweep in state.sweeps:
            if sweep not in begun:
                self._sweep(sweep)
        self._keep_parameters()

    def _keep_parameters(self) -> None:
        cases = {of for _, of in self._open_cases()}
        doubts = {of for _, of in self.docket.doubts}
        sweeps = {sweep.round for sweep in self.state.sweeps if sweep.closes >= self.round}
        kept = frozenset(sorted(cases | doubts | sweeps)[-KEPT_MAX:])
        if kept != self._kept:
            self._kept = kept
            self.desk.emit(KeepParameters(kept))

    def _open_cases(self) -> set[Question]:
        """Gradients that somebody is accused of, and that no block has answered yet."""
        members = self.state.roster.members
        return {
            (accused, of) for accuser, accused, of in self.verdicts if accuser in members and self._matters(accused, of)
        }

    def _matters(self, accused: PeerId, of: int) -> bool:
        """Whether what somebody did in a round has consequences: it can be banned, or the round be swept for it."""
        return self.state.roster.seat(accused) is not None or self.state.opens_sweep(accused, of)

    def _is_kept(self, of: int, round: int) -> bool:
        """Whether what concerns a round is still kept in `round`: in custody, or while a sweep of it is open."""
        sweep = self.state.sweep_of(of)
        return of + CASE_ROUNDS >= round or (sweep is not None and sweep.closes >= round)

    def close_round(self, record: Record) -> None:
        """Keep a decided round; forget those beyond custody. Whoever opened no link is audited before any other."""
        round = record.block.round
        self.records[round] = record
        silent = set(record.contribution.commits) & set(record.block.absences)
        self._suspects = sorted(silent & set(record.contribution.workers))
        custody = max(0, self.state.charter.custody_rounds - CASE_ROUNDS)
        self.records = {r: kept for r, kept in self.records.items() if self._is_kept(r, round - custody)}
        self.verdicts = {case: v for case, v in self.verdicts.items() if self._is_kept(case[2], round)}
        self._sought = {key: who for key, who in self._sought.items() if self._is_kept(key[1], round)}
        self._reduced = {place for place in self._reduced if self._is_kept(place[0], round)}
        for ban in record.block.bans:
            self._save_attested(ban, record)
        settled = {question_of(entry.verdict) for entry in record.block.verdicts if entry.verdict.vote == LOST}
        self.verdicts = {
            case: v for case, v in self.verdicts.items() if v.vote != LOST or question_of(v) not in settled
        }
        self._hear_commits(record)
        self.docket.forget(lambda of: self._is_kept(of, round), self._open_cases())
        if record.checked is not None:
            for part in parts_to_check(record.checked, record.block, self.desk.me, self.charges.accused):
                self._begin_table_check(record, record.checked, part)

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more. What proves itself is kept."""
        self.records = {at: record for at, record in self.records.items() if at < round}
        self.verdicts = {case: verdict for case, verdict in self.verdicts.items() if case[2] < round}
        self._suspects = []
        self._sought = {key: who for key, who in self._sought.items() if key[1] < round}
        self._reduced = {place for place in self._reduced if place[0] < round}
        self.docket.undo(round)

    def audit(self, round: int) -> None:
        """The duty of a validator of `round`: one worker and one part of the round before, drawn in private."""
        record = self.records.get(round - 1)
        if record is None:
            return
        workers = [w for w in record.contribution.workers if w != self.desk.me]
        suspects = [w for w in self._suspects if w in workers]
        if workers:
            target = suspects[0] if suspects else workers[self.draw(len(workers))]
            self._ask(record, target, self.desk.me, urgent=True)
        if record.results:
            drawn = sorted(record.results)[self.draw(len(record.results))]
            part = next(iter(parts_without_table(record.block)), drawn)
            self._reduce_again(record, part, urgent=True)

    def _sweep(self, sweep: Sweep) -> None:
        """Audit what the sweep draws this member for. Without the record of that round it is one of those missing."""
        record = self.records.get(sweep.round)
        if record is None or self.desk.me not in sweep.members:
            return
        gradients = sweep.gradients_for(self.desk.me, record.contribution.workers)
        parts = sweep.parts_for(self.desk.me, {part: result.sender for part, result in record.results.items()})
        self.desk.event("sweep", round=sweep.round, gradients=len(gradients), parts=len(parts))
        for worker in gradients:
            self._ask(record, worker, self.desk.me)
        for part in parts:
            self._reduce_again(record, part)

    def _ask(self, record: Record, worker: PeerId, by: PeerId | None, *, urgent: bool = False) -> None:
        """Recompute a gradient, or take what is known of it: by this member's own duty, to judge the accusation of
        another, or (None) because an auditor lacks bytes.
        """
        question = worker, record.roles.round
        found = self.docket.findings.get(question)
        known = found is not None and found.outcome != "unavailable"
        doubt = self.docket.doubts.get(question)
        if doubt is None:
            doubt = Doubt(found if known and found is not None else self._gradient_check(record, worker))
        if by is None:
            doubt.bereft = True
        elif by not in doubt.asking:
            doubt.asking.append(by)
        if known:
            self._answer(doubt)
        elif question in self.docket.doubts:
            self.docket.hurry(doubt.check.token)
        else:
            self.docket.doubts[question] = doubt
            self.docket.add(doubt.check, urgent=urgent)
            self._keep_parameters()

    def _gradient_check(self, record: Record, worker: PeerId) -> GradientCheck:
        round = record.roles.round
        seed = batch_seed(self.desk.run, record.seed_randomness, worker, round)
        commit = record.contribution.commits[worker]
        token = f"court:gradient:{round}:{commit.hash.hex()}"
        return GradientCheck(token, commit, record.roles, seed, self.state.charter.tolerance)

    def _reduce_again(self, record: Record, part: int, *, urgent: bool = False) -> None:
        result = record.results[part]
        place = record.roles.round, part
        if result.sender == self.desk.me or place in self._reduced:
            return
        self._reduced.add(place)
        token = f"court:part:{record.roles.round}:{result.hash.hex()}"
        numel, leaves = record.roles.layout.part_numel(part), record.leaves_of(part)
        check = PartCheck(token, part, numel, result, leaves, (result.sender,), self.state.charter.rule)
        self.docket.add(check, urgent=urgent)

    def _begin_table_check(self, record: Record, checked: Checked, part: int) -> None:
        """Reduce a part again whose Table is disputed or does not fit."""
        result = record.results[part]
        token = f"court:table:{record.roles.round}:{checked.tables[part].hash.hex()}"
        numel, leaves = record.roles.layout.part_numel(part), record.leaves_of(part)
        check = TableCheck(
            token, part, numel, result, leaves, (result.sender,), self.state.charter.rule,
            checked.tables[part], checked.disputes.get(part, []),
        )  # fmt: skip
        self.docket.add(check, urgent=True)

    # --- inputs of running checks ---

    def recomputed(self, token: str, gradient: Tensor | None, x: Tensor | None) -> None:
        """The oracle's answer for a check."""
        self.docket.recomputed(token, gradient, x)

    def work_done(self, token: str, result: object) -> None:
        """The result of a check's job."""
        self.docket.work_done(token, result)

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes that a check waits for; None when nobody has them."""
        self.docket.blob(hash, data)

    def _concluded(self, check: Check) -> None:
        if isinstance(check, PartCheck):
            self._conclude_part(check)
        elif isinstance(check, GradientCheck):
            doubt = self.docket.doubts.pop((check.commit.sender, check.roles.round))
            self.desk.event("checked", peer=check.commit.sender.hex(), round=check.roles.round, outcome=check.outcome,
                            excess=check.excess, audit=self.desk.me in doubt.asking)  # fmt: skip
            if check.illegal is not None:  # an aggregator that is its friend has not said so
                self._charge_illegal(check.commit, check.illegal)
            self._answer(doubt)

    def _charge_illegal(self, commit: Message, data: bytes) -> None:
        self.charges.charge("illegal_encoding", commit.sender, commit.statement.round, [commit], [data])

    def _conclude_part(self, check: PartCheck) -> None:
        self.desk.event("reduced_again", peer=check.result.sender.hex(), part=check.part, outcome=check.outcome)
        round = check.result.statement.round
        record = self.records.get(round)
        if check.outcome == "lost":
            self._list(self.desk.me, check.result.sender, round, LOST)
        if record is None:
            return
        for worker, data in check.illegal.items():
            self._charge_illegal(record.contribution.commits[worker], data)
        if isinstance(check, TableCheck):
            for deed, table_statements, table_blobs in check.proofs(decision_statements(record.contribution)):
                accused = table_statements[0].sender
                self.charges.charge(deed, accused, record.roles.round, table_statements, table_blobs)
        if check.outcome != "wrong":
            return
        statements = [check.result, *decision_statements(record.contribution)]
        blobs = list(check.blobs.values())
        self.charges.charge("wrong_reduction", check.result.sender, record.roles.round, statements, blobs)

    def _answer(self, doubt: Doubt) -> None:
        """Act on what was found: accuse if that is this member's duty, vote on the accusations that were heard."""
        check, me = doubt.check, self.desk.me
        vote = self.behaviour.vote(check, self.state.charter.tolerance)
        accused, of = check.commit.sender, check.roles.round
        for asking in doubt.asking:
            if asking != me:
                self._list(asking, accused, of, vote)
            elif self.behaviour.accuses(check, self.state.charter.tolerance):
                self._accuse(check)
            elif vote == LOST:
                self._list(me, accused, of, LOST)
        if doubt.bereft and vote in (GUILTY, LOST):
            self._list(me, accused, of, vote)
        self._keep_parameters()

    # --- accusations ---

    def _accuse(self, check: GradientCheck) -> None:
        accused, of = check.commit.sender, check.roles.round
        body, sweep = Accusation(accused, of, check.commit.hash), self._sweep_for(self.desk.me, accused, of, self.round)
        late = sweep is None and self.desk.me not in self._validators_after(of, self.state.roles().validators)
        if late or not self._matters(accused, of):
            return
        prev, index = (self.desk.run, 0) if sweep is None else (sweep.slot, self._place(accused, of))
        message = self.desk.sign(self.desk.statement(body, prev=prev, round=self.round, index=index))
        if message.body == body:  # else the round's slot is used up, and the verdict in the Commits accuses
            self.desk.broadcast(message)
        self.desk.event("accuses", peer=accused.hex(), round=of, excess=check.excess)
        self._list(self.desk.me, accused, of, GUILTY)

    def _sweep_for(self, accuser: PeerId, accused: PeerId, of: int, signed: int) -> Sweep | None:
        """The sweep in which `accuser` may accuse `accused`, in a statement of round `signed`."""
        sweep = self.state.sweep_of(of)
        if sweep is None or not sweep.is_open(signed) or accuser not in sweep.auditors_of(accused):
            return None
        return sweep

    def _place(self, accused: PeerId, of: int) -> int:
        """The index of a sweep's accusation: the accused's place among the workers of the round."""
        return self.records[of].contribution.workers.index(accused)

    def accused(self, message: Message, body: Accusation, validators: Collection[PeerId]) -> None:
        """An accusation of this round or of the one before has come: recompute at once. `validators` are this round's.

        Raises:
            NotAMember: its signer may not accuse of this: neither a validator of the round after nor drawn by a sweep.
            InconsistentMessage: it is in a slot of its own, or about a Commit that was not decided.
        """
        s, accuser = message.statement, message.sender
        sweep = self._sweep_for(accuser, body.accused, body.round, s.round)
        if s.attempt or ((s.prev, s.index) != (self.desk.run, 0) and (sweep is None or s.prev != sweep.slot)):
            raise InconsistentMessage(f"accusation of {accuser.hex()[:8]} outside of its slot")
        record = self.records.get(body.round)
        if s.prev != self.desk.run and record is not None and not self._is_in_place(record, body.accused, s.index):
            raise InconsistentMessage(f"accusation of {accuser.hex()[:8]} outside of its slot in the sweep")
        self.desk.notice(message)
        if record is None:
            return
        if sweep is None and accuser not in self._validators_after(body.round, validators):
            raise NotAMember(f"accusation by {accuser.hex()[:8]}, which did not validate round {body.round}")
        commit = record.contribution.commits.get(body.accused)
        leaves = commit.body.leaves if commit is not None and isinstance(commit.body, Commit) else ()
        if commit is None or commit.hash != body.commit or not leaves:
            raise InconsistentMessage("accusation about a commit that was not decided")
        self._hear(record, accuser, body.accused, sweep)

    def _is_in_place(self, record: Record, accused: PeerId, index: int) -> bool:
        workers = record.contribution.workers
        return index < len(workers) and workers[index] == accused

    def _validators_after(self, of: int, now: Collection[PeerId]) -> Collection[PeerId]:
        """Who may accuse of round `of` without a sweep: the validators of the round after it."""
        duty = self.records.get(of + 1)
        return duty.roles.validators if duty is not None else now if of + 1 == self.round else ()

    def _hear(self, record: Record, accuser: PeerId, accused: PeerId, sweep: Sweep | None) -> None:
        """Judge an accusation by one who may accuse. A validator without a sweep has one target."""
        of, roster = record.roles.round, self.state.roster
        if (accuser, accused, of) in self.verdicts or accused == self.desk.me:
            return  # nobody is asked about himself
        if not (roster.seat(accuser) and self._matters(accused, of)):
            return  # nothing is left to decide
        if sweep is None and self._targets_of(accuser, of) - {accused}:
            return
        self._ask(record, accused, accuser, urgent=True)

    def _targets_of(self, accuser: PeerId, of: int) -> set[PeerId]:
        """Whom `accuser` has accused of something in round `of`, as far as it was heard here."""
        doubts = {accused for (accused, o), d in self.docket.doubts.items() if o == of and accuser in d.asking}
        return doubts | {accused for a, accused, o in self.verdicts if (a, o) == (accuser, of)}

    def _hear_commits(self, record: Record) -> None:
        """Accusations that others have heard and this member has not: an accuser lists its own verdict."""
        round = record.block.round
        for sender, verdict in _own_verdicts(record.contribution):
            of = self.records.get(verdict.round)
            if of is None:
                continue
            sweep = self._sweep_for(sender, verdict.accused, verdict.round, round)
            validates = sender in self._validators_after(verdict.round, record.roles.validators)
            if verdict.vote == LOST:
                if validates or self._reduces(sender, verdict.accused, of, round) or sweep is not None:
                    self._look_for(of, sender, verdict.accused)
            elif (sweep is not None or validates) and verdict.accused in of.contribution.workers:
                self._hear(of, sender, verdict.accused, sweep)

    def _reduces(self, auditor: PeerId, aggregator: PeerId, of: Record, round: int) -> bool:
        """Whether a sweep draws `auditor` for a part that `aggregator` reduced."""
        sweep = self.state.sweep_of(of.roles.round)
        if sweep is None or not sweep.is_open(round):
            return False
        parts = {part: result.sender for part, result in of.results.items() if result.sender == aggregator}
        return bool(sweep.parts_for(auditor, parts))

    def _look_for(self, record: Record, auditor: PeerId, accused: PeerId) -> None:
        """An auditor could not get what `accused` must keep of a round: its gradient, or what it reduced.

        A validator has two targets, a worker and an aggregator; so many are looked into, and those of a sweep.
        """
        sought = self._sought.setdefault((auditor, record.roles.round), set())
        is_swept = self.state.sweep_of(record.roles.round) is not None
        if accused == self.desk.me or not self.state.roster.seat(accused) or accused in sought:
            return
        if len(sought) >= 2 and not is_swept:
            return
        sought.add(accused)
        if accused in record.contribution.workers:
            self._ask(record, accused, None)
        for part, result in record.results.items():
            if result.sender == accused:
                self._reduce_again(record, part)

    def _list(self, accuser: PeerId, accused: PeerId, round: int, vote: Literal[0, 1, 2, 3]) -> None:
        self.verdicts[accuser, accused, round] = Verdict(accuser, accused, round, vote)

    def _save_attested(self, ban: Ban, record: Record) -> None:
        """Evidence of a ban by votes: the judged Commit, its parts, the parameters, the Commits with the verdicts."""
        if ban.deed not in ("wrong_gradient", "false_accusation"):
            return
        listing = [m for m in record.contribution.commits.values() if isinstance(m.body, Commit) and m.body.verdicts]
        check = self.docket.findings.get(self._judged(ban))
        if check is not None:
            blobs = [check.blobs[leaf] for leaf in check.leaves if leaf in check.blobs]
            statements = [check.commit, *listing]
            data = bundle(self.state.genesis, ban.peer, ban.round, ban.deed, statements, [*blobs, check.x])
            self.desk.emit(SaveEvidence(ban.peer, ban.round, ban.deed, data))

    def _judged(self, ban: Ban) -> Question:
        """The gradient that a ban by votes is about."""
        if ban.deed == "false_accusation":
            for (accuser, accused, of), verdict in self.verdicts.items():
                if (accuser, of, verdict.vote) == (ban.peer, ban.round, INNOCENT):
                    return accused, of
        return ban.peer, ban.round


def _own_verdicts(contribution: Contribution) -> Iterator[tuple[PeerId, Verdict]]:
    """Accusations and losses that stand in decided Commits: (who found them, its verdict)."""
    for sender, message in sorted(contribution.commits.items()):
        for verdict in message.body.verdicts if isinstance(message.body, Commit) else ():
            if verdict.accuser == sender and verdict.vote in (GUILTY, LOST):
                yield sender, verdict
