"""Charges, accusations and verdicts at one member: what it lists in its Commits, and the checks that lead there.

A charge rests on evidence that proves itself; it is verified before it is listed. An accusation says that a gradient is
not what its seed gives; whoever hears it recomputes and lists a verdict. Bans happen in blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from btrain.protocol.audit import Check, GradientCheck, PartCheck
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.contribution import item_key
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, FetchBlob, PutBlob, SaveEvidence, Work
from btrain.protocol.encoding import PeerId, digest, encode
from btrain.protocol.errors import InconsistentMessage, InvalidEvidence, NotAMember, RemoteProtocolError
from btrain.protocol.evidence import Finding, bundle, named_deed, open_evidence, verify_evidence
from btrain.protocol.exchange import leaf_of
from btrain.protocol.ledger import GUILTY, Ban, Block, Charter, Contribution, Genesis, LedgerState
from btrain.protocol.messages import LISTED_MAX, Accusation, Charge, Commit, Message, Result, Verdict
from btrain.protocol.randomness import batch_seed
from btrain.protocol.roles import Roles
from btrain.protocol.roster import Roster

CASE_ROUNDS = 16  # how long a verdict is listed
CHARGES_PER_ROUND_MAX = 8  # charges of one member that are looked at in one round
CLOSED_MAX = 4  # closed cases whose parameters are kept for the evidence

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


@dataclass(frozen=True)
class Look:
    """What came out of looking at somebody's evidence."""

    data: bytes
    deed: str  # that the bundle names; empty if it is none
    finding: Finding | None  # None: it proves nothing


@dataclass
class Court:
    """The docket of one member."""

    desk: Desk
    charter: Charter
    genesis: Genesis
    behaviour: Behaviour
    draw: Callable[[int], int]  # a private random integer below its argument
    round: int = 0  # the open round, in whose slots charges and accusations are signed
    records: dict[int, Record] = field(default_factory=dict)
    charges: dict[PeerId, Charge] = field(default_factory=dict)  # one proof is enough
    verdicts: dict[Case, Verdict] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    _cases: dict[str, Message | None] = field(default_factory=dict)  # token -> the accusation; None: our own audit
    _closed: dict[Case, GradientCheck] = field(default_factory=dict)
    _evidence: dict[bytes, list[Message]] = field(default_factory=dict)  # evidence on its way -> charges resting on it
    _heard: dict[PeerId, int] = field(default_factory=dict)  # charges looked at in this round
    _suspects: list[PeerId] = field(default_factory=list)

    # --- what a Commit lists ---

    def listed_charges(self, roster: Roster) -> tuple[Charge, ...]:
        """Charges against members, oldest first."""
        listed = (c for c in self.charges.values() if roster.seat(c.accused))
        return tuple(c for c in listed if self.behaviour.charges(c.accused, c.deed))[:LISTED_MAX]

    def listed_verdicts(self, roster: Roster, round: int) -> tuple[Verdict, ...]:
        """Verdicts of open cases."""
        open_cases = (
            verdict
            for (accuser, accused, of), verdict in self.verdicts.items()
            if of + CASE_ROUNDS >= round and roster.seat(accused) and roster.seat(accuser)
        )
        return tuple(open_cases)[:LISTED_MAX]

    # --- rounds ---

    def stand_at(self, state: LedgerState) -> None:
        """The ledger has moved on."""
        self.round = state.round
        self.charges = {accused: c for accused, c in self.charges.items() if state.roster.seat(accused)}
        self._heard.clear()

    def close_round(self, record: Record) -> None:
        """Keep a decided round; forget those beyond custody. Whoever opened no link is audited before any other."""
        round = record.block.round
        self.records[round] = record
        silent = set(record.contribution.commits) & set(record.block.absences)
        self._suspects = sorted(silent & set(record.contribution.workers))
        for old in [r for r in self.records if r + self.charter.custody_rounds < round]:
            del self.records[old]
        self.verdicts = {case: v for case, v in self.verdicts.items() if case[2] + CASE_ROUNDS >= round}
        self._closed = {case: c for case, c in self._closed.items() if case[2] + CASE_ROUNDS >= round}
        for ban in record.block.bans:
            self._save_attested(ban, record)

    def audit(self, round: int) -> None:
        """The duty of a validator of `round`: one worker and one part of the round before, drawn in private."""
        record = self.records.get(round - 1)
        if record is None:
            return
        workers = [w for w in record.contribution.workers if w != self.desk.me]
        suspects = [w for w in self._suspects if w in workers]
        if workers:
            target = suspects[0] if suspects else workers[self.draw(len(workers))]
            self._begin_gradient_check(f"court:audit:{round}", record, target, None)
        if record.results:
            part = sorted(record.results)[self.draw(len(record.results))]
            self._begin_part_check(f"court:part:{round}", record, part)

    def _begin_gradient_check(self, token: str, record: Record, target: PeerId, accusation: Message | None) -> None:
        seed = batch_seed(self.desk.run, record.seed_randomness, target, record.roles.round)
        check = GradientCheck(token, record.contribution.commits[target], record.roles, seed)
        self.checks[token] = check
        self._cases[token] = accusation
        self._run(check, check.start())

    def _begin_part_check(self, token: str, record: Record, part: int) -> None:
        result, contribution = record.results[part], record.contribution
        if result.sender == self.desk.me:
            return
        assert isinstance(result.body, Result)
        workers = [worker for worker in contribution.workers if worker not in result.body.without]
        leaves = {worker: leaf_of(contribution.commits[worker], part) for worker in workers}
        numel = record.roles.layout.part_numel(part)
        check = PartCheck(token, part, numel, result, leaves, (result.sender,), self.charter.rule)
        self.checks[token] = check
        self._run(check, check.start())

    # --- inputs of running checks ---

    def recomputed(self, token: str, gradient: Tensor | None, x: Tensor | None) -> None:
        """The oracle's answer for a check."""
        check = self.checks.get(token)
        if isinstance(check, GradientCheck):
            self._run(check, check.recomputed(gradient, x))

    def work_done(self, token: str, result: object) -> None:
        """The result of a job: of a check, or of looking at somebody's evidence."""
        check = self.checks.get(token)
        if isinstance(check, GradientCheck | PartCheck):
            self._run(check, check.work_done(result))
        elif isinstance(result, Look):
            self._judge_evidence(bytes.fromhex(token.rpartition(":")[2]), result)

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes that a check or a charge waits for; None when nobody has them."""
        for check in list(self.checks.values()):
            self._run(check, check.blob(hash, data))
        charges = self._evidence.get(hash)
        if charges and data is not None:
            self._look_at(hash, data)
        elif charges:
            charges.pop(0)
            self._fetch_evidence(hash, charges)

    def _run(self, check: Check, effects: list[Effect]) -> None:
        self.desk.emit(*effects)
        if check.outcome is None:
            return
        del self.checks[check.token]
        if isinstance(check, PartCheck):
            self._conclude_part(check)
        elif isinstance(check, GradientCheck):
            accusation = self._cases.pop(check.token)
            self.desk.event("checked", peer=check.commit.sender.hex(), round=check.roles.round, outcome=check.outcome,
                            excess=check.excess, audit=accusation is None)  # fmt: skip
            if accusation is None:
                self._conclude_audit(check)
            else:
                self._vote(accusation.sender, check)

    # --- accusations ---

    def _conclude_audit(self, check: GradientCheck) -> None:
        if not self.behaviour.accuses(check, self.charter.tolerance):
            return
        accused, of = check.commit.sender, check.roles.round
        body = Accusation(accused, of, check.commit.hash)
        message = self.desk.sign(self.desk.statement(body, prev=self.desk.run, round=self.round))
        if message.body != body:
            return  # one accusation a round: this one comes after another, or after a restart
        self.desk.broadcast(message)
        self.desk.event("accuses", peer=accused.hex(), round=of, excess=check.excess)
        self._close((self.desk.me, accused, of), check)
        self._list(self.desk.me, accused, of, GUILTY)

    def accused(self, message: Message, body: Accusation, validators: Collection[PeerId]) -> None:
        """An accusation of this round or of the one before has come: recompute at once. `validators` are this round's.

        Raises:
            NotAMember: its signer was no validator of the round after the accused one.
            InconsistentMessage: it is in a slot of its own, or about a Commit that was not decided.
        """
        s, case = message.statement, (message.sender, body.accused, body.round)
        if (s.prev, s.attempt, s.index) != (self.desk.run, 0, 0):
            raise InconsistentMessage(f"accusation of {message.sender.hex()[:8]} outside of its slot")
        self.desk.notice(message)
        token = f"court:case:{message.hash.hex()}"
        record, duty = self.records.get(body.round), self.records.get(body.round + 1)
        if case in self.verdicts or token in self.checks or record is None:
            return
        eligible = duty.roles.validators if duty is not None else validators if body.round + 1 == self.round else ()
        if message.sender not in eligible:
            raise NotAMember(f"accusation by {message.sender.hex()[:8]}, which did not validate round {body.round}")
        if any(accuser == message.sender and of == body.round for accuser, _, of in self.verdicts):
            return  # a validator has one target
        commit = record.contribution.commits.get(body.accused)
        leaves = commit.body.leaves if commit is not None and isinstance(commit.body, Commit) else ()
        if commit is None or commit.hash != body.commit or not leaves:
            raise InconsistentMessage("accusation about a commit that was not decided")
        if body.accused != self.desk.me:  # nobody is asked about himself
            self._begin_gradient_check(token, record, body.accused, message)

    def _vote(self, accuser: PeerId, check: GradientCheck) -> None:
        case = (accuser, check.commit.sender, check.roles.round)
        self._close(case, check)
        self._list(*case, self.behaviour.vote(check, self.charter.tolerance))

    def _close(self, case: Case, check: GradientCheck) -> None:
        """Keep what evidence of the case would need."""
        check.gradient = None
        self._closed[case] = check
        while len(self._closed) > CLOSED_MAX:
            del self._closed[next(iter(self._closed))]

    def _list(self, accuser: PeerId, accused: PeerId, round: int, vote: Literal[0, 1, 2]) -> None:
        self.verdicts[accuser, accused, round] = Verdict(accuser, accused, round, vote)

    def _save_attested(self, ban: Ban, record: Record) -> None:
        """Evidence of a ban by votes: the judged Commit, its parts, the parameters, the Commits with the verdicts."""
        if ban.deed not in ("wrong_gradient", "false_accusation"):
            return
        listing = [m for m in record.contribution.commits.values() if isinstance(m.body, Commit) and m.body.verdicts]
        for (accuser, accused, round), check in self._closed.items():
            if (ban.peer, ban.round) not in ((accused, round), (accuser, round)):
                continue
            blobs = [check.blobs[leaf] for leaf in check.leaves if leaf in check.blobs]
            data = bundle(self.genesis, ban.peer, ban.round, ban.deed, [check.commit, *listing], [*blobs, check.x])
            self.desk.emit(SaveEvidence(ban.peer, ban.round, ban.deed, data))
            return

    # --- charges ---

    def charge(self, deed: str, accused: PeerId, round: int, statements: list[Message], blobs: list[bytes]) -> None:
        """Charge a member on evidence that proves itself: save it, tell everybody, list it in the next Commit."""
        if accused in self.charges or accused == self.desk.me or not self.behaviour.charges(accused, deed):
            return
        index = self._next_index()
        if index == CHARGES_PER_ROUND_MAX:
            return  # more than anybody would look at: others charge too
        data = bundle(self.genesis, accused, round, deed, statements, blobs)
        body = Charge(accused, round, deed, digest(data))
        self._enter(body, data)
        self.desk.broadcast(
            self.desk.sign(self.desk.statement(body, prev=self.desk.run, round=self.round, index=index))
        )

    def _next_index(self) -> int:
        """A slot of its own for every charge that this member signs in a round."""
        used = [m.statement.index for m in self.desk.signed.values() if m.statement.kind == "charge"
                and m.statement.round == self.round]  # fmt: skip
        return max(used, default=-1) + 1

    def _enter(self, charge: Charge, data: bytes) -> None:
        self.charges[charge.accused] = charge
        self.desk.emit(PutBlob(charge.evidence, data, self.round))
        self.desk.emit(SaveEvidence(charge.accused, charge.round, charge.deed, data))
        self.desk.event("charged", peer=charge.accused.hex(), round=charge.round, deed=charge.deed)

    def charged(self, message: Message, body: Charge) -> None:
        """Somebody's charge: get the evidence and look at it.

        Raises:
            InconsistentMessage: outside of its slots, or too many charges of one member in a round.
        """
        s = message.statement
        if (s.prev, s.attempt) != (self.desk.run, 0) or s.index >= CHARGES_PER_ROUND_MAX:
            raise InconsistentMessage(f"charge of {message.sender.hex()[:8]} outside of its slots")
        known = self.desk.notice(message) == "known"
        if known or body.accused in self.charges:
            return
        self._heard[message.sender] = self._heard.get(message.sender, 0) + 1
        if self._heard[message.sender] > CHARGES_PER_ROUND_MAX:
            raise InconsistentMessage(f"more than {CHARGES_PER_ROUND_MAX} charges in one round")
        waiting = self._evidence.setdefault(body.evidence, [])
        waiting.append(message)
        if len(waiting) == 1:
            self._fetch_evidence(body.evidence, waiting)

    def _fetch_evidence(self, hash: bytes, charges: list[Message]) -> None:
        """From who charges first; the next is asked when that one does not have it."""
        if charges:
            self.desk.emit(FetchBlob(hash, (charges[0].sender,)))
        else:
            del self._evidence[hash]

    def _look_at(self, hash: bytes, data: bytes) -> None:
        verifier, rule, genesis = self.desk.verifier, self.charter.rule, encode(self.genesis)

        def look() -> Look:
            try:
                evidence = open_evidence(data)
                if evidence.genesis != genesis:
                    raise InvalidEvidence("of another run")
                return Look(data, evidence.deed, verify_evidence(evidence, verifier, lambda genesis: rule))
            except RemoteProtocolError:
                return Look(data, named_deed(data), None)

        self.desk.emit(Work(f"court:evidence:{hash.hex()}", look))

    def _judge_evidence(self, hash: bytes, look: Look) -> None:
        for message in self._evidence.pop(hash, []):
            body, finding = message.body, look.finding
            assert isinstance(body, Charge)
            if finding is not None and (finding.accused, finding.round, finding.deed) == (
                body.accused, body.round, body.deed,
            ):  # fmt: skip
                if body.accused not in self.charges:
                    self._enter(body, look.data)
            elif look.deed != "false_charge":  # that a false charge is falsely charged has no proof: it is only noise
                self.charge("false_charge", message.sender, message.statement.round, [message], [look.data])

    def _conclude_part(self, check: PartCheck) -> None:
        self.desk.event("reduced_again", peer=check.result.sender.hex(), part=check.part, outcome=check.outcome)
        record = self.records.get(check.result.statement.round)
        if check.outcome != "wrong" or record is None:
            return
        statements = [check.result, *decision_statements(record.contribution)]
        blobs = list(check.blobs.values())
        self.charge("wrong_reduction", check.result.sender, record.roles.round, statements, blobs)


def decision_statements(contribution: Contribution) -> list[Message]:
    """Every statement of a decided `contributors`, so that its digest can be computed again."""
    statements = [*contribution.commits.values(), *contribution.complaints]
    return sorted(statements, key=item_key)
