"""Trials at one member: the work of newcomers on probation, held to be listed in Commits, audited and judged.

Only the trainee keeps the bytes of its Trial. A member whose recomputation gives another gradient and who does not get
the bytes cannot tell a thief of seats from a bad link, so an objection is no accusation: it makes the others look, and
what they find is counted apart from verdicts. Nobody is banned for an objection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from btrain.protocol.audit import Check, GradientCheck
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blocks import Ban, Block
from btrain.protocol.charges import Charges
from btrain.protocol.desk import Desk
from btrain.protocol.docket import Docket
from btrain.protocol.effects import SaveEvidence
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import InconsistentMessage, NotAMember
from btrain.protocol.evidence import bundle
from btrain.protocol.ledger import Contribution, LedgerState
from btrain.protocol.messages import LISTED_MAX, Commit, Judgement, Message, Objection, Trial, TrialEntry
from btrain.protocol.probation import Case, auditors
from btrain.protocol.randomness import batch_seed
from btrain.protocol.roles import Roles
from btrain.protocol.verdicts import GUILTY, INNOCENT, UNSURE

HEARING_ROUNDS = 8  # how long a trial can be objected to, and a judgement is listed
BASELESS_MAX = 2  # objections of one member to clean trials; further ones are not looked into


@dataclass
class Session:
    """The trials of a round that is over, and who audits whose: drawn by its r, when they were all handed in."""

    roles: Roles
    prev: bytes
    seed_randomness: bytes
    auditors: Mapping[PeerId, PeerId]
    trials: dict[PeerId, Message]


@dataclass
class Trials:
    """What trainees hand in, at most one Trial of each in a round."""

    desk: Desk
    behaviour: Behaviour
    charges: Charges
    state: LedgerState
    docket: Docket = field(init=False)
    judgements: dict[Case, Literal[1, 2]] = field(default_factory=dict)
    _held: dict[int, dict[PeerId, Message]] = field(default_factory=dict)
    _sessions: dict[int, Session] = field(default_factory=dict)
    _objectors: dict[Case, list[PeerId]] = field(default_factory=dict)  # of the checks under way; nobody: own duty
    _baseless: dict[PeerId, int] = field(default_factory=dict)
    _unsaid: list[GradientCheck] = field(default_factory=list)  # to be objected to: this round's slot is used up

    def __post_init__(self) -> None:
        self.docket = Docket(self.desk, self._concluded)

    # --- handing in ---

    def take(self, message: Message, roles: Roles) -> None:
        """A trainee's Trial of the open round.

        Raises:
            InconsistentMessage: in a slot of its own, after another block, or with another number of parts.
        """
        check_trial(message, self.state.head, roles)
        if self.desk.notice(message) == "new":
            self._held.setdefault(message.statement.round, {})[message.sender] = message

    def late(self, message: Message) -> None:
        """A Trial of a round that is over, with an objection to it: it counts for nothing but that.

        Raises:
            InconsistentMessage: it stands in no slot of that round.
        """
        session = self._sessions.get(message.statement.round)
        if session is not None and message.sender in session.auditors:
            check_trial(message, session.prev, session.roles)
            self.desk.notice(message)
            session.trials.setdefault(message.sender, message)

    # --- what a Commit lists ---

    def listed(self, round: int) -> tuple[TrialEntry, ...]:
        """The trials of `round`."""
        return tuple(TrialEntry(peer, message.hash) for peer, message in sorted(self._held.get(round, {}).items()))

    def listed_judgements(self) -> tuple[Judgement, ...]:
        """What this member has found not to be clean, the oldest first."""
        cases = sorted(self.judgements.items(), key=lambda item: (item[0][1], item[0][0]))
        return tuple(Judgement(peer, round, vote) for (peer, round), vote in cases)[:LISTED_MAX]

    # --- rounds ---

    def close(self, block: Block, roles: Roles) -> None:
        """The open round ends with `block`."""
        round, state = block.round, self.state
        drawn = auditors(state.probation.peers, block.randomness, state.roster, round)
        trials = dict(self._held.get(round, {}))
        if drawn:
            self._sessions[round] = Session(roles, state.head, state.seed_randomness, drawn, trials)

    def stand_at(self, state: LedgerState) -> None:
        """The ledger has moved on: drop what has been listed, or is too old to be heard."""
        self.state, first = state, state.round - HEARING_ROUNDS
        self._held = {round: trials for round, trials in self._held.items() if round + 1 >= state.round}
        self._sessions = {round: session for round, session in self._sessions.items() if round >= first}
        self.judgements = {
            case: vote
            for case, vote in self.judgements.items()
            if case[1] >= first and case[0] in state.probation.peers
        }
        self._baseless = {peer: count for peer, count in self._baseless.items() if state.roster.seat(peer)}
        self.docket.forget(lambda round: round >= first, self.judgements.keys())
        unsaid, self._unsaid = self._unsaid, []
        for check in unsaid:
            self._object(check)

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more: neither do trials after them, nor who was drawn to audit."""
        self._held = {of: trials for of, trials in self._held.items() if of <= round}
        self._sessions = {of: session for of, session in self._sessions.items() if of < round}
        self._objectors = {case: by for case, by in self._objectors.items() if case[1] < round}
        self.judgements = {case: vote for case, vote in self.judgements.items() if case[1] < round}
        self._unsaid = [check for check in self._unsaid if check.round < round]
        self.docket.undo(round)

    def audit(self) -> None:
        """Recompute the trials of the round before for which r has drawn this member: beside its own work."""
        session = self._sessions.get(self.state.round - 1)
        if session is None:
            return
        for trainee, trial in session.trials.items():
            if session.auditors.get(trainee) == self.desk.me:
                self._check(session, trial, None)

    def _check(self, session: Session, trial: Message, objector: PeerId | None) -> None:
        case = trial.sender, session.roles.round
        objectors = [] if objector is None else [objector]
        if case in self._objectors:
            self._objectors[case] += objectors
            return
        self._objectors[case] = objectors
        seed = batch_seed(self.desk.run, session.seed_randomness, *case)
        token = f"trial:{session.roles.round}:{trial.hash.hex()}"
        self.docket.add(GradientCheck(token, trial, session.roles, seed, self.state.charter.tolerance), urgent=True)

    # --- objections ---

    def objected(self, message: Message, body: Objection) -> None:
        """The auditor of a trial has found it not clean: look, unless it has said so of clean ones before.

        Raises:
            InconsistentMessage: in a slot of its own.
            NotAMember: its signer is not the auditor.
        """
        s, sender, session = message.statement, message.sender, self._sessions.get(body.round)
        if (s.prev, s.attempt, s.index) != (self.desk.run, 0, 0):
            raise InconsistentMessage(f"objection of {sender.hex()[:8]} outside of its slot")
        if self.desk.notice(message) != "new" or session is None:
            return
        if session.auditors.get(body.peer) != sender:
            raise NotAMember(f"objection by {sender.hex()[:8]}, which audits another trial or none")
        trial, believed = session.trials.get(body.peer), self._baseless.get(sender, 0) < BASELESS_MAX
        known = (body.peer, body.round) in self.judgements or body.peer not in self.state.probation.peers
        if trial is not None and trial.hash == body.trial and believed and not known and body.peer != self.desk.me:
            self._check(session, trial, sender)

    def _concluded(self, check: Check) -> None:
        assert isinstance(check, GradientCheck)
        case, tolerance = (check.commit.sender, check.roles.round), self.state.charter.tolerance
        objectors = self._objectors.pop(case)
        self.desk.event("checked", peer=case[0].hex(), round=case[1], outcome=check.outcome, excess=check.excess,
                        audit=not objectors, trial=True)  # fmt: skip
        if check.illegal is not None:
            self.charges.charge("illegal_encoding", *case, [check.commit], [check.illegal])
        if check.outcome == "unavailable":
            return  # what this member cannot recompute says nothing about the trainee
        vote = self.behaviour.vote(check, tolerance)
        if vote == INNOCENT:
            self._baseless |= {peer: self._baseless.get(peer, 0) + 1 for peer in objectors}
        objects = check.outcome == "lost" or self.behaviour.accuses(check, tolerance)
        if objects:
            self._object(check)
        if vote == GUILTY:
            self.judgements[case] = GUILTY
        elif vote != INNOCENT or objects:
            self.judgements[case] = UNSURE

    def _object(self, check: GradientCheck) -> None:
        """Show the trial to the others, with an objection, if that is this member's duty."""
        trial, of = check.commit, check.roles.round
        session = self._sessions.get(of)
        if session is None or session.auditors.get(trial.sender) != self.desk.me:
            return
        body = Objection(trial.sender, of, trial.hash)
        message = self.desk.sign(self.desk.statement(body, prev=self.desk.run, round=self.state.round))
        if message.body != body:  # to another trial, or of before a restart or a fork
            self._unsaid.append(check)
            return
        self.desk.broadcast(trial, message)
        self.desk.event("objects", peer=trial.sender.hex(), round=of, outcome=check.outcome, excess=check.excess)

    def save_evidence(self, ban: Ban, contribution: Contribution) -> None:
        """Evidence of a trainee's ban by votes: its Trial, the parts, the parameters, and the Commits that judge it."""
        check = self.docket.findings.get((ban.peer, ban.round))
        if ban.deed != "wrong_gradient" or check is None:
            return
        listing = [m for m in contribution.commits.values() if isinstance(m.body, Commit) and m.body.judgements]
        blobs = [check.blobs[leaf] for leaf in check.leaves if leaf in check.blobs]
        statements = [check.commit, *listing]
        data = bundle(self.state.genesis, ban.peer, ban.round, ban.deed, statements, [*blobs, check.x])
        self.desk.emit(SaveEvidence(ban.peer, ban.round, ban.deed, data))

    # --- inputs of running checks ---

    def recomputed(self, token: str, gradient: Tensor | None, x: Tensor | None) -> None:
        """The oracle's answer for a check."""
        self.docket.recomputed(token, gradient, x)

    def work_done(self, token: str, result: object) -> None:
        """The result of a check's job."""
        self.docket.work_done(token, result)

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes that a check waits for; None when the trainee does not give them."""
        self.docket.blob(hash, data)


def check_trial(message: Message, head: bytes, roles: Roles) -> None:
    """Whether a Trial stands in its slot of a round, after block `head`.

    Raises:
        InconsistentMessage: it does not.
    """
    s, body = message.statement, message.body
    assert isinstance(body, Trial)
    if (s.prev, s.attempt, s.index) != (head, 0, 0) or len(body.leaves) != roles.layout.parts:
        raise InconsistentMessage(f"trial of {message.sender.hex()[:8]} outside of its slot, or of another size")
