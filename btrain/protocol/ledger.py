"""Genesis, blocks and their certificates, and the state that follows from them, verified block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median_low
from typing import Literal
from weakref import WeakValueDictionary

import msgspec

from btrain.aggregation import Rule
from btrain.protocol import contest, membership
from btrain.protocol.agreement_messages import Final as FinalVote
from btrain.protocol.blocks import (
    Ban,
    Block,
    CertifiedState,
    CommitEntry,
    Complaint,
    DisputeEntry,
    Founder,
    Genesis,
    LinkEntry,
    ListedCharge,
    ListedJudgement,
    ListedVerdict,
    Reproach,
    ResultEntry,
    TableEntry,
    open_block,
    open_genesis,
)
from btrain.protocol.cheats import ROUNDS_MAX, Cheat, Expelled, expelled_after, first_key, opening, proven
from btrain.protocol.closing import closes_after, last_rounds
from btrain.protocol.contest import Contest
from btrain.protocol.encoding import (
    PeerId,
    sha256,
)  # fmt: skip
from btrain.protocol.errors import InconsistentMessage, InvalidCertificate
from btrain.protocol.messages import (
    Charge,
    Commit,
    GenesisSignature,
    Message,
    Verifier,
)  # fmt: skip
from btrain.protocol.probation import Probation, convictions, decisive_judgements, recorded_trials
from btrain.protocol.randomness import next_randomness
from btrain.protocol.roles import Roles, draw_roles
from btrain.protocol.roster import Roster, Seat
from btrain.protocol.strikes import listed_reproaches, struck, with_reproaches
from btrain.protocol.sweep import SWEEP_ROUNDS, Sweep, sweeps_after
from btrain.protocol.table_limits import UNSOUND
from btrain.protocol.trajectory import ROLLBACK_ROUNDS_MAX, Trajectory
from btrain.protocol.verdicts import contradicted, decisive_verdicts, verdict_bans, withholding

__all__ = [
    "Ban",
    "Block",
    "CertifiedState",
    "Charter",
    "CommitEntry",
    "Complaint",
    "Contribution",
    "DisputeEntry",
    "Founder",
    "Genesis",
    "LedgerState",
    "LinkEntry",
    "ListedCharge",
    "ListedVerdict",
    "ResultEntry",
    "Sweep",
    "TableEntry",
    "build_block",
    "check_certificate",
    "check_genesis",
    "items_digest",
    "open_block",
    "open_genesis",
    "parted",
]

BLOCK_DECISION = 2
REPORTED_MS_MAX = 3_600_000
KEPT_PERIODS = 4  # of custody and certification: for so long newcomers can follow although no state is certified
OVERTIME_ROUNDS_MAX = 512  # how much later than planned a run ends; half of the links that a chain has to spare


@dataclass(frozen=True)
class Charter:
    """The contract as the protocol reads it. Times in microseconds; None means: three times what members report."""

    rounds: int
    byzantine_max: int
    audits_per_round: float
    tolerance: float
    rule: Rule
    message_us: int
    compute_us: int | None = None
    transfer_us: int | None = None
    admission: Literal["open", "allowlist", "invite"] = "open"
    allowed: frozenset[PeerId] = frozenset()
    probation_rounds: int = 32  # k, of an open run
    invitations: int = 1  # members that must have invited a newcomer
    state_sync_every: int = 16
    custody_rounds: int = 16
    sweep: bool = True
    state_tolerance: float = 2**-20  # of the root mean square of each tensor of a state
    banned: frozenset[PeerId] = frozenset()  # in the run that this one goes on from
    rollback: bool = False  # whether a proven cheat has x of the proven round restored
    rollback_whole: bool = False  # or that of the first round kept in which the banned had a share
    final_sweep: int = 0  # rounds at the end that are swept before the run is over

    @property
    def kept_rounds(self) -> int:
        """For how many rounds members keep the bytes of one: sweeps take a while, certified aggregates are replayed."""
        return self.custody_rounds + max(SWEEP_ROUNDS, self.state_sync_every)

    @property
    def sweeps_last(self) -> int:
        """Rounds at the end that are swept; none where nothing is."""
        return self.final_sweep if self.sweep and self.audits_per_round else 0

    def state_due(self, round: int) -> bool:
        """Whether members list the digest of their state at the start of `round`: now and then, and at the end."""
        return round % self.state_sync_every == 0 or (self.sweeps_last > 0 and round >= self.rounds)

    @property
    def trajectory(self) -> Trajectory:
        """The way of the parameters before round 0. What is needed to rebuild x is kept for one more period."""
        window = min(self.custody_rounds, ROLLBACK_ROUNDS_MAX) if self.rollback else 0
        return Trajectory(window, self.rollback_whole, (KEPT_PERIODS - 1) * self.kept_rounds)

    def admits(self, peer: PeerId) -> bool:
        """Whether a peer that holds no seat may ask for one; of invitations the members judge that hold them."""
        return self.admission != "allowlist" or peer in self.allowed


@dataclass(frozen=True)
class LedgerState:
    """What the genesis and the blocks so far say; `advance` is the only way on."""

    genesis: Genesis
    charter: Charter
    round: int  # the next round, t
    head: bytes  # hash of the last block
    roster: Roster
    randomness: tuple[bytes, bytes]  # r[t-2], r[t-1]
    step: int
    compute_ms: int
    transfer_ms: int
    probation: Probation
    trajectory: Trajectory
    sweeps: tuple[Sweep, ...] = ()
    contest: Contest | None = None  # states that differ, until one of them is certified
    expelled: tuple[Expelled, ...] = ()  # members banned while what they did is in custody
    closes: int = 0  # the round in which the run is over unless more is found; 0 before all rounds are made

    @classmethod
    def start(cls, genesis: Genesis, charter: Charter) -> LedgerState:
        """Before round 0: every founder holds a seat.

        Raises:
            InconsistentMessage: a founder was banned in the run that this one goes on from.
        """
        for founder in genesis.founders:
            if founder.peer in charter.banned:
                raise InconsistentMessage(f"genesis: founder {founder.peer.hex()[:8]} was banned in the parent run")
        seats = sorted((Seat(f.peer, f.chain_end, -1) for f in genesis.founders), key=lambda seat: seat.peer)
        roster = Roster(tuple(seats), charter.byzantine_max, charter.audits_per_round, charter.banned)
        run = genesis.run
        probation = Probation(charter.probation_rounds)
        return cls(genesis, charter, 0, run, roster, (run, run), 0, 0, 0, probation, charter.trajectory)

    @cached_property
    def run(self) -> bytes:
        """The run's id."""
        return self.genesis.run

    @property
    def state(self) -> CertifiedState | None:
        """The newest certified state that leads to the parameters of now."""
        return self.trajectory.state

    @cached_property
    def over(self) -> bool:
        """Whether the run has ended."""
        late = self.round >= self.charter.rounds + OVERTIME_ROUNDS_MAX
        return late or (self.closing and self.round >= self.closes)

    @cached_property
    def closing(self) -> bool:
        """Whether all rounds are made, those that were undone made up for: what is left is to audit the last ones."""
        return self.round - self.trajectory.rounds_undone >= self.charter.rounds

    def answers(self, peer: PeerId) -> bool:
        """Whether a peer can be accused and banned: it holds a seat or is on probation."""
        return self.roster.seat(peer) is not None or peer in self.probation.peers

    def roles(self) -> Roles:
        """Roles of round t."""
        return self._roles

    @cached_property
    def _roles(self) -> Roles:
        return draw_roles(self.roster, self.randomness[1], self.round, self.genesis.numel, works=not self.closing)

    @property
    def seed_randomness(self) -> bytes:
        """r[t-2], from which the minibatches of round t are drawn; round 1 takes r[0]."""
        return self.randomness[1] if self.round <= 1 else self.randomness[0]

    def advance(self, block: Block) -> LedgerState:
        """The state after `block`, once everything in it that follows from the ledger has been checked.

        Whoever goes on from this state by the same block gets the same object, while anybody holds it.

        Raises:
            InconsistentMessage: names the field of the block that contradicts the ledger.
        """
        hash = block.hash
        later = self._later.get(hash)
        if later is None:
            later = self._later[hash] = self._after(block, hash)
        return later

    @cached_property
    def _later(self) -> WeakValueDictionary[bytes, LedgerState]:
        return WeakValueDictionary()

    def _after(self, block: Block, hash: bytes) -> LedgerState:
        _check(block, self)
        bans = [ban.peer for ban in block.bans]
        probation = self.probation.after(
            block.round, self.roster, trainees=block.trainees, trials=block.trials,
            gone={*bans, *block.dismissed}, seated=[entry.peer for entry in block.admissions],
        )  # fmt: skip
        roster = self.roster.after(
            block.round,
            links={entry.peer: entry.link for entry in block.links},
            absences=block.absences,
            bans=bans,
            departures=membership.freed(self, block.departures, block.admissions, block.bans),
            admissions={entry.peer: (entry.chain_end, entry.anchored - 1) for entry in block.admissions},
            barred=contradicted(self.roster, block.verdicts),
            void=block.void == 1 and not block.commits,
        )
        roster = with_reproaches(roster, block, self.roles())
        trajectory = self.trajectory.after(block, self.step, self.proofs(block))
        after = replace(
            self,
            round=block.round + 1,
            head=hash,
            roster=roster,
            randomness=(self.randomness[1], block.randomness),
            step=block.step,
            compute_ms=block.compute_ms,
            transfer_ms=block.transfer_ms,
            probation=probation,
            trajectory=trajectory,
            contest=contest.after(self.contest, block, trajectory),
        )
        sweeps, expelled = self._swept_after(block, roster, last_rounds(self, after))
        return replace(after, sweeps=sweeps, expelled=expelled, closes=closes_after(self, after, sweeps))

    def _swept_after(
        self, block: Block, roster: Roster, last: Sequence[int]
    ) -> tuple[tuple[Sweep, ...], tuple[Expelled, ...]]:
        """`sweeps` and `expelled` after a block; `last`: rounds that are swept because the run is complete."""
        charter = self.charter
        if not charter.sweep or not charter.audits_per_round:
            return (), ()
        members = [ban for ban in block.bans if self.roster.seat(ban.peer)]  # a trainee's work was in no sum
        cheats = opening(proven(self.roster.quorum, block.charges, block.verdicts), self.expelled, self.opens_sweep)
        banned, custody = [ban.peer for ban in members], charter.custody_rounds
        sweeps = sweeps_after(
            self.sweeps, self.run, block.round, block.randomness, [*members, *cheats], roster, custody, last
        )
        return sweeps, expelled_after(self.expelled, block.round, banned, cheats, custody)

    def proofs(self, block: Block) -> list[Ban | Cheat]:
        """What a block proves of members, for which earlier parameters may be restored: once for each of them."""
        found = proven(self.roster.quorum, block.charges, block.verdicts)
        late = {entry.peer for entry in self.expelled if self.trajectory.steps(entry.banned)}
        return [*block.bans, *(cheat for cheat in found if self.roster.seat(cheat.peer) or cheat.peer in late)]

    def opens_sweep(self, accused: PeerId, round: int) -> bool:
        """Whether proof that `accused` spoiled the work of `round` has it swept; it may have been banned lately."""
        charter = self.charter
        if not charter.sweep or not charter.audits_per_round or self.sweep_of(round) is not None:
            return False
        of_member = self.roster.seat(accused) is not None or any(
            entry.peer == accused and len(entry.opened) < ROUNDS_MAX for entry in self.expelled
        )
        return of_member and max(1, self.round - charter.custody_rounds) <= round <= self.round

    def sweep_of(self, round: int) -> Sweep | None:
        """The sweep of a round, if it is swept."""
        return next((sweep for sweep in self.sweeps if sweep.round == round), None)


@dataclass(frozen=True)
class Contribution:
    """The decided `contributors`: which Commits count, and whose gradients."""

    ctx: bytes  # digest of the decision
    commits: Mapping[PeerId, Message]
    disputes: tuple[Message, ...]  # complaints and receipts
    workers: tuple[PeerId, ...]  # whose gradient is in the sum, in member order
    void: bool = False
    missing: tuple[Complaint, ...] = ()  # complaints that no receipt answers

    @property
    def out(self) -> frozenset[PeerId]:
        """Members that reduce nothing and are not in the sum this round."""
        return parted(self.missing)

    def reduced(self, without: Collection[PeerId]) -> tuple[PeerId, ...]:
        """The contributors of a Result: those in the sum but whom it leaves out, in member order."""
        return tuple(worker for worker in self.workers if worker not in without)


def parted(complaints: Iterable[Complaint]) -> frozenset[PeerId]:
    """Both members of as many complaints, in their order, as can be taken without taking anybody twice.

    Each pair holds a faulty member or one cut off, so the others keep their honest majority; and no two of the others
    have anything to complain of each other.
    """
    out: set[PeerId] = set()
    for complaint in complaints:
        pair = {complaint.aggregator, complaint.worker}
        if not pair & out:
            out |= pair
    return frozenset(out)


def build_block(
    state: LedgerState,
    contribution: Contribution,
    results: Sequence[ResultEntry],
    results_void: bool,
    links: Mapping[PeerId, bytes],
    tables: Sequence[TableEntry] = (),
    disputes: Sequence[DisputeEntry] = (),
) -> Block:
    """The one block that follows from the decisions of round t; tables and disputes in order."""
    commits = {peer: message.body for peer, message in sorted(contribution.commits.items())}
    bodies = {peer: body for peer, body in commits.items() if isinstance(body, Commit)}
    void = 1 if contribution.void or not contribution.workers else 2 if results_void else 0
    if state.round == 0:
        void = 1
    charges = _decisive_charges(state, bodies)
    listed = {member: body.verdicts for member, body in bodies.items()}
    verdicts = decisive_verdicts(state.roster, listed, state.opens_sweep, len(charges))
    reproaches = listed_reproaches(bodies)
    judgements = decisive_judgements(state.probation.peers, state.roster, bodies)
    bans = _bans(state, charges, verdicts, judgements)
    dismissed = membership.dismissed(state, judgements, bans)
    admissions = membership.admissions(state, bodies, {*(ban.peer for ban in bans), *dismissed})
    departures = membership.departures(state, bodies, admissions, bans)
    kept = set(departures).difference(membership.freed(state, departures, admissions, bans))
    kept |= _blamed(state, results, tables, reproaches, verdicts)
    ordered_links = tuple(LinkEntry(peer, links[peer]) for peer in sorted(links))
    certified = contest.certified(state.round, state.roster, state.contest, bodies)
    randomness = next_randomness(state.randomness[1], state.round, [entry.link for entry in ordered_links])
    block = Block(
        version=1,
        run=state.run,
        group=0,
        round=state.round,
        prev=state.head,
        commits=tuple(CommitEntry(peer, message.hash) for peer, message in sorted(contribution.commits.items())),
        missing=contribution.missing,
        contributors=contribution.workers,
        void=void,
        results=() if void else tuple(sorted(results, key=lambda entry: entry.part)),
        links=ordered_links,
        randomness=randomness,
        charges=charges,
        verdicts=verdicts,
        bans=bans,
        admissions=admissions,
        departures=departures,
        absences=membership.absences(state, commits, links, kept),
        step=state.step,
        state=certified,
        compute_ms=_typical([body.compute_ms for body in bodies.values()], state.compute_ms),
        transfer_ms=_typical([body.transfer_ms for body in bodies.values()], state.transfer_ms),
        candidates=contest.candidates(state.round, state.roster, certified, bodies, randomness),
        reproaches=reproaches,
        trainees=membership.trainees(state, bodies),
        trials=recorded_trials(state.probation.peers, state.roster, bodies),
        judgements=judgements,
        dismissed=dismissed,
        tables=tuple(tables),
        disputes=tuple(disputes),
    )
    return msgspec.structs.replace(block, step=_step_after(state, block))


def _step_after(state: LedgerState, block: Block) -> int:
    """Optimizer steps after a block: those before the round that it restores, else one more unless it is void."""
    restored = state.trajectory.restored_by(block, state.step, state.proofs(block))
    return state.step + (block.void == 0) if restored is None else restored.step


def _typical(reported_ms: Sequence[int], before: int) -> int:
    """Lower median of the positive reports: fewer than half liars cannot move it beyond an honest report."""
    positive = [min(ms, REPORTED_MS_MAX) for ms in reported_ms if ms > 0]
    return median_low(positive) if positive else before


CHARGES_MAX = 112  # in one block, beyond those at the first accused; 16 members can charge 7 at once


def _decisive_charges(state: LedgerState, bodies: Mapping[PeerId, Commit]) -> tuple[ListedCharge, ...]:
    """Charges against those whom a quorum charges, one of each member: all that a block needs to name.

    For a ban it does not matter what it is that each of the quorum has verified: one honest member is among them. Were
    it counted by deed, who accuses himself of something else before everybody would split the votes. A round is swept
    for what a quorum lists under one key, also of one who was banned for something else.

    Accused beyond `CHARGES_MAX` are left to later blocks: one that does not fit a packet reaches nobody who missed it.
    """
    by_accused: dict[PeerId, dict[PeerId, list[Charge]]] = {}
    for member, body in bodies.items():
        for charge in body.charges:
            by_accused.setdefault(charge.accused, {}).setdefault(member, []).append(charge)
    chosen: dict[PeerId, dict[PeerId, Charge]] = {}
    for accused, listed in by_accused.items():
        chosen[accused] = first_key(listed, state.roster.quorum, state.opens_sweep)
        if not chosen[accused] and state.answers(accused) and len(listed) >= state.roster.quorum:
            chosen[accused] = {member: charges[0] for member, charges in listed.items()}
    named: list[ListedCharge] = []
    for _, by_member in sorted(chosen.items()):
        if not named or len(named) + len(by_member) <= CHARGES_MAX:
            named += (ListedCharge(member, charge) for member, charge in sorted(by_member.items()))
    return tuple(named)


def _bans(
    state: LedgerState,
    charges: Sequence[ListedCharge],
    verdicts: Sequence[ListedVerdict],
    judgements: Sequence[ListedJudgement],
) -> tuple[Ban, ...]:
    """A quorum of charges bans the accused; a quorum of guilty the accused, of innocent the accuser."""
    roster = state.roster
    bans: dict[PeerId, Ban] = {}
    by_accused: dict[PeerId, dict[PeerId, Charge]] = {}
    for entry in charges:
        by_accused.setdefault(entry.charge.accused, {})[entry.member] = entry.charge
    for accused, by in sorted(by_accused.items()):
        if len(by) >= roster.quorum and state.answers(accused):
            named = Counter((charge.round, charge.deed) for charge in by.values())
            round, deed = min(named, key=lambda key: (-named[key], key))
            bans[accused] = Ban(accused, deed, round, tuple(sorted({charge.evidence for charge in by.values()})))
    failed = convictions(state.probation.peers, roster, judgements)
    on_trial = {peer: Ban(peer, "wrong_gradient", round, ()) for peer, round in failed.items()}
    bans = verdict_bans(roster, verdicts) | on_trial | bans
    return tuple(bans[peer] for peer in sorted(bans))


def _without_table(results: Sequence[ResultEntry], tables: Sequence[TableEntry]) -> set[PeerId]:
    """Aggregators of a part that has no Table, or an unsound one."""
    vouched = {entry.part for entry in tables if entry.verdict < UNSOUND}
    return {entry.aggregator for entry in results if entry.part not in vouched}


def _blamed(
    state: LedgerState,
    results: Sequence[ResultEntry],
    tables: Sequence[TableEntry],
    reproaches: Sequence[Reproach],
    verdicts: Sequence[ListedVerdict],
) -> set[PeerId]:
    """Members that lose their seat though they committed and opened their link: without a Table, struck, or for losing
    what they had to keep.

    Where more than b gave no Table it was not their fault.
    """
    without = _without_table(results, tables)
    blamed = without if len(without) <= state.roster.faulty_max else set()
    return {*blamed, *struck(state.roster, state.round, reproaches), *withholding(state.roster, verdicts)}


def _check(block: Block, state: LedgerState) -> None:
    """Recompute what follows from the ledger alone; the Commits' content is vouched for by the certificate."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise InconsistentMessage(f"block {block.round}: {what}")

    roster = state.roster
    require((block.run, block.group) == (state.run, 0), "run: belongs to another run or group")
    require(block.round == state.round, f"round: expected {state.round}")
    require(block.prev == state.head, "prev: is not the hash of the block before")
    committed = [entry.peer for entry in block.commits]
    linked = [entry.peer for entry in block.links]
    for name, peers in (("commits", committed), ("links", linked), ("contributors", block.contributors)):
        require(list(peers) == sorted(set(peers)), f"{name}: not in member order")
    require(set(committed) <= set(roster.present), "commits: of a peer that is no present member")
    require(
        set(block.contributors) <= set(committed) - parted(block.missing),
        "contributors: not among the commits, or complained of",
    )
    require(set(linked) <= set(committed), "links: of a member without a commit")
    for entry in block.links:
        require(roster.opens(entry.peer, entry.link, block.round), f"links: {entry.peer.hex()[:8]} is off its chain")
    links = [entry.link for entry in block.links]
    require(block.randomness == next_randomness(state.randomness[1], block.round, links), "randomness")
    voters = {c.member for c in block.charges} | {v.member for v in block.verdicts}
    voters |= {j.member for j in block.judgements}
    require(voters <= set(committed), "votes: of a member without a commit")
    bans = _bans(state, block.charges, block.verdicts, block.judgements)
    require(block.bans == bans, "bans: do not follow from the votes")
    reproaching = {(reproach.member, reproach.of) for reproach in block.reproaches}
    require({member for member, _ in reproaching} <= set(committed), "reproaches: of a member without a commit")
    require(len(reproaching) == len(block.reproaches), "reproaches: one is listed twice")
    blamed = _blamed(state, block.results, block.tables, block.reproaches, block.verdicts)
    membership.check_members(block, state, blamed, require)
    parts = [entry.part for entry in block.results]
    require(parts == (list(range(state.roles().layout.parts)) if block.void == 0 else []), "results: not one a part")
    require(block.void <= 2, "void")
    _check_tables(block, require)
    require(block.step == _step_after(state, block), "step")
    require(contest.follows(block, state.contest, roster), "state: of another round, or no candidate")


def _check_tables(block: Block, require: Callable[[bool, str], None]) -> None:
    """Tables and disputes are in order, and of parts and members of this block."""
    tabled = [entry.part for entry in block.tables]
    require(
        tabled == sorted(set(tabled)) and set(tabled) <= {r.part for r in block.results}, "tables: not of its parts"
    )
    require(all(entry.verdict <= UNSOUND for entry in block.tables), "tables: an unknown verdict")
    disputes = [(entry.part, entry.peer) for entry in block.disputes]
    require(disputes == sorted(set(disputes)), "disputes: not in order")
    require({part for part, _ in disputes} <= set(tabled), "disputes: of a part without a table")
    require({peer for _, peer in disputes} <= set(block.contributors), "disputes: by one who contributed nothing")


def check_genesis(genesis: Genesis, signatures: Sequence[bytes], verifier: Verifier) -> None:
    """Every founder has signed the genesis.

    Raises:
        InvalidCertificate: names the founder whose signature is missing.
    """
    signers = set()
    for data in signatures:
        message = verifier.open(data, genesis.run)
        if isinstance(message.body, GenesisSignature) and message.body.genesis == genesis.run:
            signers.add(message.sender)
    for founder in genesis.founders:
        if founder.peer not in signers:
            raise InvalidCertificate(f"genesis: founder {founder.peer.hex()[:8]} has not signed")


def check_certificate(block: Block, finals: Sequence[bytes], state: LedgerState, verifier: Verifier) -> None:
    """q members of the roster before the block signed its hash as final.

    Raises:
        InvalidCertificate: names the block and what is wrong.
    """
    place = f"certificate of block {block.round}"
    members = set(state.roster.members)
    signers: set[PeerId] = set()
    for data in finals:
        message = verifier.open(data, state.run)
        s, body = message.statement, message.body
        if not isinstance(body, FinalVote) or (s.round, s.index, s.prev) != (block.round, BLOCK_DECISION, block.prev):
            raise InvalidCertificate(f"{place}: holds a signature for something else")
        if body.digest != block.hash:
            raise InvalidCertificate(f"{place}: a signature is for another block")
        if message.sender not in members:
            raise InvalidCertificate(f"{place}: {message.sender.hex()[:8]} is no member")
        signers.add(message.sender)
    if len(signers) < state.roster.quorum:
        raise InvalidCertificate(f"{place}: {len(signers)} members signed, {state.roster.quorum} must")


def items_digest(purpose: str, ctx: bytes, items: Mapping[str, bytes]) -> bytes:
    """Digest of a decision's value: its items in key order, bound to what it was derived from."""
    return sha256(
        b"btrain/items/v1", purpose.encode(), ctx, *(p for k, v in sorted(items.items()) for p in (k.encode(), v))
    )
