"""Charges at one member: its own and those it heard, each on evidence that proves itself.

Evidence is verified before a charge is listed; a charge that it does not bear out is charged in turn. Bans happen in
blocks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from btrain.protocol.behaviour import Behaviour
from btrain.protocol.cheats import CHEATS, ROUNDS_MAX
from btrain.protocol.desk import Desk
from btrain.protocol.effects import FetchBlob, PutBlob, SaveEvidence, Work
from btrain.protocol.encoding import ZERO, PeerId, digest, encode
from btrain.protocol.errors import InconsistentMessage, InvalidEvidence, RemoteProtocolError
from btrain.protocol.evidence import Finding, bundle, named_deed, open_evidence, verify_evidence
from btrain.protocol.forks import FORK_ROUNDS_MAX
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import LISTED_MAX, Charge, Commit, Message

CHARGES_PER_ROUND_MAX = 8  # charges of one member that are looked at in one round


Matter = tuple[PeerId, int | None]  # accused, round whose work it spoiled; None: any deed that spoils none


def matter_of(charge: Charge) -> Matter:
    """What one proof is enough of: each round that is spoiled may be swept, the rest only bans."""
    return charge.accused, charge.round if charge.deed in CHEATS else None


def matters(charge: Charge, state: LedgerState) -> bool:
    """Whether a charge has consequences: its accused can be banned, or a round be swept for it."""
    swept = charge.deed in CHEATS and state.opens_sweep(charge.accused, charge.round)
    return state.answers(charge.accused) or swept


@dataclass(frozen=True)
class Look:
    """What came out of looking at somebody's evidence."""

    data: bytes
    deed: str  # that the bundle names; empty if it is none
    finding: Finding | None  # None: it proves nothing


@dataclass
class Charges:
    """Whom this member charges."""

    desk: Desk
    behaviour: Behaviour
    state: LedgerState  # of the open round, in whose slots charges are signed
    standing: dict[Matter, Charge] = field(default_factory=dict)  # one proof of each matter is enough
    _settled: dict[Matter, tuple[int, Charge]] = field(default_factory=dict)  # what blocks have settled, and when
    _evidence: dict[bytes, list[Message]] = field(default_factory=dict)  # on its way -> who charges or lists that
    _heard: dict[PeerId, int] = field(default_factory=dict)  # charges looked at in this round
    _untold: list[Charge] = field(default_factory=list)  # own charges that found no slot in their round

    def listed(self, state: LedgerState) -> tuple[Charge, ...]:
        """Charges that matter, oldest first, but before all others the first against each accused."""
        listed = [c for c in self.standing.values() if matters(c, state) and self.behaviour.charges(c.accused, c.deed)]
        firsts = {charge.accused: charge for charge in reversed(listed)}
        return tuple(sorted(listed, key=lambda charge: firsts[charge.accused] != charge))[:LISTED_MAX]

    @property
    def accused(self) -> frozenset[PeerId]:
        """Against whom there is proof."""
        return frozenset(charge.accused for charge in self.standing.values())

    def _is_news(self, accused: PeerId, deed: str, round: int) -> bool:
        """Whether proof of this has consequences, and there is none yet."""
        charge = Charge(accused, round, deed, ZERO)
        proven = [matter for matter in self.standing if matter[0] == accused]
        return matters(charge, self.state) and matter_of(charge) not in proven and len(proven) <= ROUNDS_MAX

    def stand_at(self, state: LedgerState) -> None:
        """The ledger has moved on: drop charges of who is gone, tell what found no slot."""
        self.state = state
        settled = {matter: (state.round, c) for matter, c in self.standing.items() if not matters(c, state)}
        self._settled = {
            matter: (at, c) for matter, (at, c) in self._settled.items() if at >= state.round - FORK_ROUNDS_MAX
        } | settled
        self.standing = {matter: c for matter, c in self.standing.items() if matter not in settled}
        self._heard.clear()
        untold, self._untold = self._untold, []
        for charge in untold:
            self._tell(charge)

    def restore(self) -> None:
        """After a restart: what this member has charged stands, and its evidence is in custody. It is told again."""
        own = [m.body for m in self.desk.signed.values() if isinstance(m.body, Charge) and matters(m.body, self.state)]
        self.standing |= {matter_of(charge): charge for charge in own}
        self._untold = list(self.standing.values())

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more. What proves itself does, and may be news on the other chain."""
        again = {matter: charge for matter, (at, charge) in self._settled.items() if at > round}
        self._settled = {matter: settled for matter, settled in self._settled.items() if matter not in again}
        self.standing = again | self.standing
        self._untold = list(self.standing.values())

    def charge(self, deed: str, accused: PeerId, round: int, statements: list[Message], blobs: list[bytes]) -> None:
        """Charge a member on evidence that proves itself: save it, tell everybody, list it in the next Commit."""
        if accused == self.desk.me or not self.behaviour.charges(accused, deed):
            return
        if not self._is_news(accused, deed, round):
            return
        data = bundle(self.state.genesis, accused, round, deed, statements, blobs)
        body = Charge(accused, round, deed, digest(data))
        self._enter(body, data)
        self._tell(body)

    def _tell(self, charge: Charge) -> None:
        """Broadcast an own charge, in a later round if this one's slots are used up."""
        index = self._next_index()
        if matter_of(charge) not in self.standing:
            return
        if index == CHARGES_PER_ROUND_MAX:
            self._untold.append(charge)
            return
        self.desk.broadcast(
            self.desk.sign(self.desk.statement(charge, prev=self.desk.run, round=self.state.round, index=index))
        )

    def _next_index(self) -> int:
        """A slot of its own for every charge that this member signs in a round."""
        used = [m.statement.index for m in self.desk.signed.values() if m.statement.kind == "charge"
                and m.statement.round == self.state.round]  # fmt: skip
        return max(used, default=-1) + 1

    def _enter(self, charge: Charge, data: bytes) -> None:
        self.standing[matter_of(charge)] = charge
        seen = self.state.round
        self.desk.emit(PutBlob(charge.evidence, data, seen))
        self.desk.emit(SaveEvidence(charge.accused, charge.round, charge.deed, data))
        self.desk.event("charged", peer=charge.accused.hex(), round=charge.round, deed=charge.deed, seen=seen)

    def charged(self, message: Message, body: Charge) -> None:
        """Somebody's charge: get the evidence and look at it.

        Raises:
            InconsistentMessage: outside of its slots, or too many charges of one member in a round.
        """
        s = message.statement
        if (s.prev, s.attempt) != (self.desk.run, 0) or s.index >= CHARGES_PER_ROUND_MAX:
            raise InconsistentMessage(f"charge of {message.sender.hex()[:8]} outside of its slots")
        known = self.desk.notice(message) == "known"
        if known or not self._is_news(body.accused, body.deed, body.round):
            return
        self._heard[message.sender] = self._heard.get(message.sender, 0) + 1
        if self._heard[message.sender] > CHARGES_PER_ROUND_MAX:
            raise InconsistentMessage(f"more than {CHARGES_PER_ROUND_MAX} charges in one round")
        self._await_evidence(body, message)

    def hear_commits(self, commits: Iterable[Message], faulty_max: int) -> None:
        """Look at what more than b members list, one of whom has verified it, and this one has not been told of."""
        listed: dict[PeerId, list[tuple[Charge, Message]]] = {}
        for message in commits:
            for charge in message.body.charges if isinstance(message.body, Commit) else ():
                if self._is_news(charge.accused, charge.deed, charge.round):
                    listed.setdefault(charge.accused, []).append((charge, message))
        for found in listed.values():
            if len({message.sender for _, message in found}) > faulty_max:
                for charge, message in found:
                    self._await_evidence(charge, message)

    def _await_evidence(self, charge: Charge, by: Message) -> None:
        waiting = self._evidence.setdefault(charge.evidence, [])
        waiting.append(by)
        if len(waiting) == 1:
            self._fetch_evidence(charge.evidence, waiting)

    def _fetch_evidence(self, hash: bytes, charges: list[Message]) -> None:
        """From who charges first; the next is asked when that one does not have it."""
        if charges:
            self.desk.emit(FetchBlob(hash, (charges[0].sender,)))
        else:
            del self._evidence[hash]

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes that a charge waits for; None when who was asked does not have them."""
        charges = self._evidence.get(hash)
        if charges and data is not None:
            self._look_at(hash, data)
        elif charges:
            charges.pop(0)
            self._fetch_evidence(hash, charges)

    def _look_at(self, hash: bytes, data: bytes) -> None:
        verifier, rule, genesis = self.desk.verifier, self.state.charter.rule, encode(self.state.genesis)

        def look() -> Look:
            try:
                evidence = open_evidence(data)
                if evidence.genesis != genesis:
                    raise InvalidEvidence("of another run")
                return Look(data, evidence.deed, verify_evidence(evidence, verifier, lambda genesis: rule))
            except RemoteProtocolError:
                return Look(data, named_deed(data), None)

        self.desk.emit(Work(f"charge:{hash.hex()}", look))

    def work_done(self, token: str, look: object) -> None:
        """What came out of looking at evidence: enter the charges that it bears out, charge who made the others."""
        assert isinstance(look, Look)
        hash, finding = bytes.fromhex(token.removeprefix("charge:")), look.finding
        for message in self._evidence.pop(hash, []):
            for body in message.body.charges if isinstance(message.body, Commit) else (message.body,):
                assert isinstance(body, Charge)
                if finding is not None and (finding.accused, finding.round, finding.deed, hash) == (
                    body.accused, body.round, body.deed, body.evidence,
                ):  # fmt: skip
                    if self._is_news(body.accused, body.deed, body.round):
                        self._enter(body, look.data)
                elif look.deed != "false_charge" and body is message.body:
                    # that a false charge is falsely charged has no proof: it is only noise
                    self.charge("false_charge", message.sender, message.statement.round, [message], [look.data])
