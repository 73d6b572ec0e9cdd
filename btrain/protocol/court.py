"""Charges, accusations and verdicts at one member: what it lists in its Commits, and the checks that lead there.

A charge rests on evidence that proves itself; it is verified before it is listed. An accusation says that a gradient is not
what its seed gives; whoever hears it recomputes and lists a verdict. Bans happen in blocks only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from btrain.protocol.audit import GUILTY, Check, GradientCheck, PartCheck
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.contribution import item_key
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, FetchBlob, PutBlob, SaveEvidence, Work
from btrain.protocol.encoding import PeerId, digest, encode
from btrain.protocol.errors import InconsistentMessage, InvalidEvidence, NotAMember, RemoteProtocolError
from btrain.protocol.evidence import Finding, bundle, open_evidence, verify_evidence
from btrain.protocol.exchange import leaf_of
from btrain.protocol.ledger import Ban, Block, Charter, Contribution, Genesis
from btrain.protocol.messages import LISTED_MAX, Accusation, Charge, Commit, Message, Verdict
from btrain.protocol.randomness import batch_seed
from btrain.protocol.roles import Roles
from btrain.protocol.roster import Roster

CASE_ROUNDS = 16  # how long a verdict is listed
CHARGES_PER_ROUND_MAX = 8  # charges of one member that are looked at in one round


@dataclass(frozen=True)
class Record:
    """What a member keeps of a round that is over, to audit and to be audited."""

    roles: Roles
    prev: bytes
    seed_randomness: bytes
    contribution: Contribution
    results: dict[int, Message]  # the decided Result of each part
    block: Block


@dataclass
class Court:
    """The docket of one member."""

    desk: Desk
    charter: Charter
    genesis: Genesis
    behaviour: Behaviour
    draw: Callable[[int], int]  # a private random integer below its argument
    records: dict[int, Record] = field(default_factory=dict)
    charges: dict[tuple[PeerId, int, str], Charge] = field(default_factory=dict)
    verdicts: dict[tuple[PeerId, PeerId, int], Verdict] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    _cases: dict[str, Message | None] = field(default_factory=dict)  # token -> the accusation; None: our own audit
    _closed: dict[tuple[PeerId, PeerId, int], GradientCheck] = field(default_factory=dict)
    _evidence: dict[bytes, Message] = field(default_factory=dict)  # evidence on its way -> the charge
    _heard: dict[tuple[PeerId, int], int] = field(default_factory=dict)
    _suspects: list[PeerId] = field(default_factory=list)

    # --- what a Commit lists ---

    def listed_charges(self, roster: Roster) -> tuple[Charge, ...]:
        """Charges against members, oldest first."""
        return tuple(c for c in self.charges.values() if roster.seat(c.accused))[:LISTED_MAX]

    def listed_verdicts(self, roster: Roster, round: int) -> tuple[Verdict, ...]:
        """Verdicts of open cases."""
        open_cases = (
            verdict
            for (accuser, accused, of), verdict in self.verdicts.items()
            if of + CASE_ROUNDS >= round and roster.seat(accused) and roster.seat(accuser)
        )
        return tuple(open_cases)[:LISTED_MAX]

    # --- rounds ---

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
        self._heard = {key: count for key, count in self._heard.items() if key[1] >= round}
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
        leaves = {worker: leaf_of(contribution.commits[worker], part) for worker in contribution.workers}
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
        elif token.startswith("court:evidence:"):
            self._judge_evidence(bytes.fromhex(token.rpartition(":")[2]), result)

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes that a check or a charge waits for; None when nobody has them."""
        for check in list(self.checks.values()):
            self._run(check, check.blob(hash, data))
        if hash in self._evidence:
            if data is None:
                del self._evidence[hash]
            else:
                self._look_at(hash, data)

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
        round = int(check.token.rpartition(":")[2])
        record = self.records.get(check.roles.round)
        if record is None:
            return
        body = Accusation(check.commit.sender, check.roles.round, check.commit.hash)
        message = self.desk.sign(self.desk.statement(body, prev=record.block.hash, round=round))
        self.desk.broadcast(message)
        self.desk.event("accuses", peer=check.commit.sender.hex(), round=check.roles.round, excess=check.excess)
        self._closed[self.desk.me, check.commit.sender, check.roles.round] = check
        self._list(self.desk.me, check.commit.sender, check.roles.round, GUILTY)

    def accused(self, message: Message, body: Accusation) -> None:
        """An accusation has come: recompute at once.

        Raises:
            NotAMember: its signer was no validator of that round.
            InconsistentMessage: it is about another round than the one before, or about a Commit that was not decided.
        """
        case = (message.sender, body.accused, body.round)
        token = f"court:case:{message.hash.hex()}"
        if case in self.verdicts or token in self.checks:
            return
        here, record = self.records.get(message.statement.round), self.records.get(body.round)
        if record is None:
            return
        if here is not None and message.sender not in here.roles.validators:
            raise NotAMember(f"accusation by {message.sender.hex()[:8]}, which validates nothing in that round")
        if body.round + 1 != message.statement.round:
            raise InconsistentMessage(f"accusation in round {message.statement.round} about round {body.round}")
        commit = record.contribution.commits.get(body.accused)
        if (
            commit is None
            or commit.hash != body.commit
            or not isinstance(commit.body, Commit)
            or not commit.body.leaves
        ):
            raise InconsistentMessage("accusation about a commit that was not decided")
        if body.accused == self.desk.me:
            return  # nobody is asked about himself
        self._begin_gradient_check(token, record, body.accused, message)

    def _vote(self, accuser: PeerId, check: GradientCheck) -> None:
        case = (accuser, check.commit.sender, check.roles.round)
        self._closed[case] = check
        self._list(*case, self.behaviour.vote(check, self.charter.tolerance))

    def _list(self, accuser: PeerId, accused: PeerId, round: int, vote: int) -> None:
        self.verdicts[accuser, accused, round] = Verdict(accuser, accused, round, vote)  # type: ignore[arg-type]

    def _save_attested(self, ban: Ban, record: Record) -> None:
        """Evidence of a ban by votes: the Commit, its parts, the parameters, and the Commits that carry the verdicts."""
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
        if (accused, round, deed) in self.charges or accused == self.desk.me:
            return
        if not self.behaviour.charges(accused, deed):
            return
        data = bundle(self.genesis, accused, round, deed, statements, blobs)
        body = Charge(accused, round, deed, digest(data))
        self._enter(body, data)
        message = self.desk.sign(
            self.desk.statement(body, prev=self.desk.run, round=round, index=self._next_index(round))
        )
        self.desk.broadcast(message)

    def _next_index(self, round: int) -> int:
        """A slot of its own for every charge that this member signs."""
        used = [m.statement.index for m in self.desk.signed.values() if m.statement.kind == "charge"
                and m.statement.round == round]  # fmt: skip
        return max(used, default=-1) + 1

    def _enter(self, charge: Charge, data: bytes) -> None:
        self.charges[charge.accused, charge.round, charge.deed] = charge
        self.desk.emit(PutBlob(charge.evidence, data, charge.round))
        self.desk.emit(SaveEvidence(charge.accused, charge.round, charge.deed, data))
        self.desk.event("charged", peer=charge.accused.hex(), round=charge.round, deed=charge.deed)

    def charged(self, message: Message, body: Charge, round: int) -> None:
        """Somebody's charge: get the evidence and look at it.

        Raises:
            InconsistentMessage: too many charges of one member.
        """
        if (body.accused, body.round, body.deed) in self.charges or body.evidence in self._evidence:
            return
        count = self._heard.get((message.sender, round), 0) + 1
        self._heard[message.sender, round] = count
        if count > CHARGES_PER_ROUND_MAX:
            raise InconsistentMessage(f"more than {CHARGES_PER_ROUND_MAX} charges in one round")
        self._evidence[body.evidence] = message
        self.desk.emit(FetchBlob(body.evidence, (message.sender,)))

    def _look_at(self, hash: bytes, data: bytes) -> None:
        verifier, rule = self.desk.verifier, self.charter.rule

        def look() -> tuple[Finding | InvalidEvidence, bytes]:
            try:
                return verify_evidence(open_evidence(data), verifier, lambda genesis: rule), data
            except RemoteProtocolError as error:
                return InvalidEvidence(str(error)), data

        self.desk.emit(Work(f"court:evidence:{hash.hex()}", look))

    def _judge_evidence(self, hash: bytes, result: object) -> None:
        message = self._evidence.pop(hash, None)
        if message is None:
            return
        finding, data = result  # type: ignore[misc]
        body = message.body
        assert isinstance(body, Charge)
        holds = isinstance(finding, Finding) and open_evidence(data).genesis == encode(self.genesis)
        if holds and (finding.accused, finding.round, finding.deed) == (body.accused, body.round, body.deed):
            self._enter(body, data)
        else:
            self.charge("false_charge", message.sender, message.statement.round, [message], [data])

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
