"""A member of a group: round after round, catching up, auditing, joining and leaving. The whole protocol of one peer.

A pure state machine: every input returns the effects that its shell executes in order. The shell is the network runtime
(`btrain.peer`) or the simulator (`btrain.simulation`); neither has any protocol of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from btrain.identity import SigningKey
from btrain.protocol.agreement_messages import Final
from btrain.protocol.allowance import Allowance
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blobs import Blobs
from btrain.protocol.catchup import Replay
from btrain.protocol.charges import Charges
from btrain.protocol.checking import Checked
from btrain.protocol.chronicle import Chronicle, Ledger
from btrain.protocol.contribution import decision_statements
from btrain.protocol.court import Court, Record
from btrain.protocol.deciding import Post
from btrain.protocol.decisions import BLOCK
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Drop, Effect, Halt, SetTimer
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import NotAMember, RemoteProtocolError, StaleMessage
from btrain.protocol.healing import Comparison, Condition
from btrain.protocol.hearing import Listeners
from btrain.protocol.holdings import NOTHING
from btrain.protocol.ledger import Block, Contribution, LedgerState
from btrain.protocol.messages import (
    LISTED_MAX,
    Accusation,
    Charge,
    Commit,
    Join,
    Leave,
    Message,
    Objection,
    Trial,
    Verifier,
)
from btrain.protocol.packets import (
    PACKET_BYTES_MAX,
    Blocks,
    BodyRequest,
    CertifiedBlock,
    Envelopes,
    Founding,
    HandOn,
    Offer,
    Refusal,
    Value,
    ValueRequest,
    Where,
    decode_packet,
)  # fmt: skip
from btrain.protocol.pieces import CutState
from btrain.protocol.randomness import HashChain
from btrain.protocol.round import Round
from btrain.protocol.routes import Routes
from btrain.protocol.seats import Membership, Seats
from btrain.protocol.standstill import Standstill
from btrain.protocol.statements import ENGINE_PAYLOADS
from btrain.protocol.trials import Trials

__all__ = ["Ledger", "Member", "Membership"]

FUTURE_MAX = 64  # statements of rounds to come kept for each member
ROUNDS_AHEAD_MAX = 2
REFUSALS_LOGGED_MAX = 8  # for each peer in one round
REFUSERS_MAX = 1024
ANSWER_BYTES_MAX = 64 * PACKET_BYTES_MAX  # what one member is handed on request within Delta


def _has_block(message: Message) -> bool:
    """Whether its signer has decided the block: it gets the other Finals as everybody does, and asks if it does not."""
    return isinstance(message.body, Final) and message.statement.index == BLOCK


class Member:
    """One peer in one group."""

    def __init__(
        self,
        key: SigningKey,
        state: LedgerState,
        membership: Membership,
        ledger: Ledger,
        *,
        x_round: int,
        behaviour: Behaviour,
        verifier: Verifier,
        draw: Callable[[int], int],
    ) -> None:
        self.membership, self.behaviour = membership, behaviour
        self.desk = Desk(key, state.run, verifier)
        self.chronicle = Chronicle(self.desk, state, ledger)
        self.seats = Seats(self.desk, membership)
        self.blobs = Blobs()
        self.routes = Routes()
        self.charges = Charges(self.desk, behaviour, state)
        self.court = Court(self.desk, behaviour, draw, state, self.charges)
        self.trials = Trials(self.desk, behaviour, self.charges, state)
        self.replay = Replay(self.desk, self.chronicle.block, state.charter, x_round)
        self.round: Round | None = None
        self.leaving = False
        self._post = Post(
            self.desk,
            HashChain(key.seed, membership.chain_salt, state.charter.rounds),
            behaviour,
            self.blobs,
            self.routes,
            self._side_items,
        )
        self._future: dict[PeerId, dict[bytes, tuple[Message, PeerId]]] = {}  # and who delivered it
        self._listeners: dict[int, Listeners] = {}  # by round
        self._unheard: frozenset[PeerId] = frozenset()  # in the round before
        self._reproaches: tuple[PeerId, ...] = ()
        self.condition = Condition(self.desk, state.charter.state_due)
        self.comparison = Comparison(self.desk, self.condition, state.charter.state_tolerance)
        self._connected: set[PeerId] = set()
        self._standstill = Standstill(self.desk)
        self._answers = Allowance(ANSWER_BYTES_MAX, state.charter.message_us)
        self._refusals: dict[PeerId, int] = {}
        self._transfer_ms = 0
        self._halted = False
        # (round, block before it) -> decision -> the engine's snapshot, from before a restart
        self._snapshots: dict[tuple[int, bytes], dict[int, bytes]] = {}
        self._trusted_from_us = 0

    @property
    def me(self) -> PeerId:
        """This peer."""
        return self.desk.me

    @property
    def state(self) -> LedgerState:
        """What follows from the decided blocks."""
        return self.chronicle.state

    @property
    def _sources(self) -> tuple[PeerId, ...]:
        """Whom to ask for what the ledger certifies."""
        return tuple(sorted(self._connected))

    @property
    def candidates(self) -> frozenset[PeerId]:
        """Peers without a seat that hear what members hear and may fetch what members may: see `Seats.candidates`."""
        return self.seats.candidates(self.state)

    @property
    def addresses(self) -> dict[PeerId, tuple[str, ...]]:
        """Where peers that asked for a seat say that they are reached."""
        return self.seats.addresses

    # --- inputs ---

    def start(
        self, now: int, signed: dict[bytes, bytes], journal: Iterable[tuple[int, str, bytes]] = ()
    ) -> list[Effect]:
        """Begin, or begin again: `signed` and `journal` (round, kind, data) are what was persisted of the open rounds.

        A round is open until its block is in the ledger, so two rounds can be. The block before the second may yet
        yield to another, as may one of a chain that was given up: what was decided behind it is another decision.
        """
        self.desk.restore(signed)
        self.charges.restore()
        self.chronicle.decided_us = now
        if signed or self.state.round:
            self._trusted_from_us = now + 2 * self.state.charter.message_us
        for round, kind, data in journal:
            if kind == "body":
                message = self.desk.verifier.open(data, self.state.run)
                self._future.setdefault(message.sender, {})[message.hash] = (message, self.me)
            else:
                _, index, head = kind.split(":")
                self._snapshots.setdefault((round, bytes.fromhex(head)), {})[int(index)] = data
        self._settle(now)
        self._set_where(now)
        return self._done(now)

    def packet(self, sender: PeerId, data: bytes, now: int) -> list[Effect]:
        """A control packet from a connected peer."""
        if not self.behaviour.hears(sender, self.state.round):
            return []
        try:
            self._take_packet(sender, data, now)
        except RemoteProtocolError as error:
            self._refuse(sender, error)
            if not isinstance(error, StaleMessage | NotAMember):
                self.desk.emit(Drop(sender, error.reason))
        return self._done(now)

    def blob(self, hash: bytes, data: bytes | None, sender: PeerId | None, now: int) -> list[Effect]:
        """Bytes whose hash was checked: asked for or pushed by `sender`; None when nobody asked had them."""
        if data is not None:
            if sender is not None and self.state.roster.seat(sender) is not None:
                self.blobs.early(sender, hash, data)
            elif sender is None and self.round is not None and self.round.exchange.awaits(hash):
                self.blobs.keep(hash, data)
        if self.round is not None:
            self.round.blob(hash, now)
        self.court.blob(hash, data)
        self.charges.blob(hash, data)
        self.trials.blob(hash, data)
        self.replay.blob(hash, data, self.state, self._sources)
        self.comparison.blob(hash, data)
        if self.replay.loads:
            self._settle(now)
        return self._done(now)

    def connected(self, peer: PeerId, now: int) -> list[Effect]:
        """A peer is there (again): both sides say where they are and send the open decisions again."""
        self._connected.add(peer)
        self.routes.connected(peer)
        self.chronicle.greet(peer)
        for opened in self._open_rounds:
            if opened.roster.seat(peer) is not None:
                opened.resend(peer, NOTHING, now)
        return self._done(now)

    def disconnected(self, peer: PeerId, now: int) -> list[Effect]:
        """A peer is gone; its silence has no other consequence than its deadlines."""
        self._connected.discard(peer)
        self.chronicle.pursuit.forget(peer)
        return self._done(now)

    def timer(self, name: str, now: int) -> list[Effect]:
        """A timer that was set is due."""
        scope, _, rest = name.partition(":")
        if scope == "round":
            label, _, inner = rest.partition(":")
            for target in self._open_rounds:
                if target.label == label:
                    target.timer(inner, now)
        elif scope == "where":
            self._on_where_timer(now)
        return self._done(now)

    def computed(self, round: int, gradient: Tensor | None, seconds: float, now: int) -> list[Effect]:
        """The gradient that a Compute asked for, float32 [d]."""
        if self.round is not None and self.round.round == round:
            self.round.computed(gradient, seconds, now)
        return self._done(now)

    def recomputed(self, token: str, gradient: Tensor | None, x: Tensor | None, now: int) -> list[Effect]:
        """The gradient that a Recompute asked for, and the parameters it was computed at; None when these are gone."""
        of = self.trials if token.startswith("trial:") else self.court
        of.recomputed(token, gradient, x)
        return self._done(now)

    def work_done(self, token: str, result: object, now: int) -> list[Effect]:
        """The result of a job."""
        scope, _, rest = token.partition(":")
        if scope == "round":
            label, _, inner = rest.partition(":")
            if self.round is not None and self.round.label == label:
                self.round.work_done(inner, result, now)
        elif scope == "trial":
            self.trials.work_done(token, result)
        elif scope == "charge":
            self.charges.work_done(token, result)
        else:
            self.court.work_done(token, result)
        return self._done(now)

    def applied(self, round: int, state: CutState | None, now: int) -> list[Effect]:
        """The parameters are x[round + 1]; `state` is there if it was due."""
        if state is not None and not self.replay.undone:
            self.condition.own(round + 1, self.behaviour.state(state, round + 1))
            self._look_at_states()
        self.replay.applied(round + 1)
        self._settle(now)
        return self._done(now)

    def state_loaded(self, round: int, now: int) -> list[Effect]:
        """The parameters are x[round], from a certified state."""
        self.condition.took_over(self.replay.loaded())
        self._settle(now)
        return self._done(now)

    def compared(self, candidate: bytes, close: bool, now: int) -> list[Effect]:
        """The answer of a CompareStates."""
        self.comparison.compared(candidate, self.behaviour.finds_close(candidate, close))
        self._look_at_states()
        return self._done(now)

    def leave(self, now: int) -> list[Effect]:
        """Give the seat up in order."""
        self.leaving = True
        if self.state.roster.seat(self.me) is not None:
            self.seats.leaves(self.me, self.state.round)
            self.desk.broadcast(
                self.desk.sign(self.desk.statement(Leave(), prev=self.state.head, round=self.state.round))
            )
        return self._done(now)

    # --- packets ---

    def _take_packet(self, sender: PeerId, data: bytes, now: int) -> None:
        packet = decode_packet(data)
        match packet:
            case Envelopes(envelopes):
                for envelope in envelopes:
                    self._take_envelope(envelope, sender, now)
            case Where():
                self.chronicle.answer(sender, packet, self.round, now)
            case Blocks(blocks):
                self._on_blocks(sender, blocks, now)
            case Refusal(reason):
                self.desk.event("refusal", peer=sender.hex(), reason=reason)
            case Offer() | Founding():
                pass  # the shell's business: it compares contracts and founds runs
            case HandOn():
                self._hand_on(packet, sender)
            case ValueRequest() | Value() | BodyRequest():
                self._about_decision(packet, sender, now)

    def _about_decision(self, packet: ValueRequest | Value | BodyRequest, sender: PeerId, now: int) -> None:
        target = self._round_of(packet.round)
        if target is None or not self.state.answers(sender):
            return
        if isinstance(packet, Value):
            if self.state.roster.seat(sender) is not None:
                target.value(sender, packet, now)
            return
        cost = PACKET_BYTES_MAX if isinstance(packet, ValueRequest) else target.statements.size(packet.hashes)
        if not self._answers.spend(sender, cost, now):
            self.desk.event("overdrawn", peer=sender.hex())
        elif isinstance(packet, ValueRequest):
            target.answer_value(packet, sender)
        else:
            target.statements.answer(packet.hashes, sender)

    def _hand_on(self, packet: HandOn, asker: PeerId) -> None:
        """Tell a member from now on, and of what is known already, what others say whom it does not hear."""
        roster, target = self.state.roster, self._round_of(packet.round)
        if roster.seat(asker) is None or abs(packet.round - self.state.round) > 1:
            return
        listeners = self._listeners.setdefault(packet.round, Listeners())
        fresh = listeners.ask(asker, packet.members, roster.faulty_max + 1)
        if target is not None and fresh:
            target.statements.send(target.statements.said_by(fresh), asker)

    def _take_envelope(self, envelope: bytes, sender: PeerId, now: int) -> None:
        """Take a statement; what its signer did wrong is no fault of who hands it on, and stops nothing else."""
        message = self.desk.verifier.open(envelope, self.desk.run)
        try:
            self._take_message(message, sender, now)
        except RemoteProtocolError as error:
            if message.sender == sender:
                raise
            self._refuse(message.sender, error)

    def _take_message(self, message: Message, sender: PeerId, now: int) -> None:
        body, of, state = message.body, message.statement.round, self.state
        if isinstance(body, Join):
            self.seats.asked(message, body, sender, state)
            return
        if isinstance(body, Trial) and message.sender in state.probation.peers:
            self._on_trial(message, sender, now)
            return
        if state.roster.seat(message.sender) is None:
            decided = self.chronicle.uncertified.get(of)  # its block may have freed the seat
            if decided is not None and decided.roster.seat(message.sender) and isinstance(body, ENGINE_PAYLOADS):
                self._to_round(message, sender, now)
                return
            raise NotAMember(f"{message.statement.kind} of {message.sender.hex()[:8]}, which holds no seat")
        ahead = of - state.round
        if ahead > ROUNDS_AHEAD_MAX:
            self.chronicle.ask(sender, self.round, now)
        if abs(ahead) > ROUNDS_AHEAD_MAX and of not in self.chronicle.uncertified:
            raise StaleMessage(f"{message.statement.kind} of round {of} in round {state.round}")
        if isinstance(body, Leave):
            if of > state.roster.lost(message.sender):
                self.seats.leaves(message.sender, state.round)
        elif isinstance(body, Charge):
            self.charges.charged(message, body)
        elif isinstance(body, Objection):
            self.trials.objected(message, body)
        elif ahead > 0 or (ahead == 0 and self.round is None):
            self._await_round(message, sender, now)
        elif isinstance(body, Accusation):
            self.court.accused(message, body, self.round.roles.validators if self.round is not None else ())
        else:
            self._to_round(message, sender, now)

    def _on_trial(self, message: Message, sender: PeerId, now: int) -> None:
        """A trainee's Trial of the open round counts until the own link is opened: r[t] must not be known to it."""
        of = message.statement.round
        if of > self.state.round + ROUNDS_AHEAD_MAX:
            raise StaleMessage(f"trial of round {of} in round {self.state.round}")
        if of < self.state.round:
            self.trials.late(message)
        elif of > self.state.round or self.round is None:
            self._await_round(message, sender, now)
        elif not self.round.opened_link:
            self.trials.take(message, self.round.roles)

    def _await_round(self, message: Message, sender: PeerId, now: int) -> None:
        waiting = self._future.setdefault(message.sender, {})
        if len(waiting) < FUTURE_MAX:
            waiting.setdefault(message.hash, (message, sender))
        if message.statement.round > self.state.round:
            self.chronicle.ask(sender, self.round, now)

    def _to_round(self, message: Message, sender: PeerId, now: int) -> None:
        target = self._round_of(message.statement.round)
        if target is not None and message.statement.prev == target.state.head:
            target.hearing.heard(message, sender)
            target.receive(message, now)
            if self._listeners and sender == message.sender and target.round in self._listeners:
                for listener in self._listeners[target.round].of(sender):
                    self.desk.send(Envelopes((message.data,)), listener)
        elif target is None and message.sender == sender and not _has_block(message):
            head = message.statement.prev
            self.chronicle.answer(sender, Where(message.statement.round, head), self.round, now)

    @property
    def _open_rounds(self) -> list[Round]:
        """Those that lack their certificate, and the open one."""
        return [*self.chronicle.uncertified.values(), *([self.round] if self.round is not None else [])]

    def _round_of(self, number: int) -> Round | None:
        if self.round is not None and self.round.round == number:
            return self.round
        return self.chronicle.uncertified.get(number)

    def _refuse(self, peer: PeerId, error: RemoteProtocolError) -> None:
        """Log a refusal, a few of each peer in a round: a flood shall not fill the disk."""
        count = self._refusals.get(peer, 0)
        strangers_fit = len(self._refusals) < REFUSERS_MAX or peer in self._refusals
        if count < REFUSALS_LOGGED_MAX and strangers_fit:
            self._refusals[peer] = count + 1
            self.desk.event("refused", peer=peer.hex(), reason=error.reason)

    # --- rounds ---

    def _settle(self, now: int) -> None:
        """Go on: catch up with the ledger, or open the next round."""
        if self._halted:
            return
        between_rounds = self.round is None or not self.replay.loads  # when parameters may change
        if between_rounds and not self.chronicle.pursuit.under_way:
            self.replay.go(self.state, self._sources)
        if self.me in self.state.roster.banned:
            self._halt("banned", done=False)
        elif self.state.over:
            replayed = self.replay.x_round == self.state.round and not self.replay.undone
            if replayed and not self.chronicle.uncertified:
                self._halt("finished", done=True)
        elif self.round is None and self._ready():
            self._open_round(now)

    def _ready(self) -> bool:
        """Whether the next round can be opened: all is replayed, or only the last step is still being applied."""
        if self.replay.loads or self.replay.undone or not self.state.trajectory.passes(self.replay.x_round):
            return False
        behind = self.state.round - self.replay.x_round
        due = self.state.round > 0 and self.state.charter.state_due(self.state.round)
        return behind == 0 or (behind == 1 and not due and self.replay.applying == 1)

    def _open_round(self, now: int) -> None:
        number = self.state.round
        self.round = Round(
            self.state,
            self._post,
            self.chronicle.decided_us,
            self._snapshots.pop((number, self.state.head), {}),
            self._trusted_from_us,
        )
        if self.me in self.round.roles.validators:
            self.court.audit(number)
        self.trials.audit()
        self._ask(ready=True)
        self.round.start(now)
        self.round.cannot_hear(self._unheard)
        waiting, self._future = self._future, {}
        for message, deliverer in (entry for by_hash in waiting.values() for entry in by_hash.values()):
            if message.statement.round >= number:
                self._again(message, deliverer, now)
        self.desk.event("round", round=number, role=self._role(), members=len(self.state.roster.seats),
                        present=len(self.state.roster.present))  # fmt: skip

    def _ask(self, *, ready: bool) -> None:
        if not self.leaving:
            self.seats.ask(self.state, self._post.chain, ready)

    def _again(self, message: Message, deliverer: PeerId, now: int) -> None:
        """Take a statement that had come before its round."""
        try:
            self._take_message(message, deliverer, now)
        except RemoteProtocolError as error:
            self._refuse(message.sender, error)

    def _role(self) -> str:
        assert self.round is not None
        roles = self.round.roles
        if self.me in self.state.probation.peers:
            return "trainee"
        return "validator" if self.me in roles.validators else "worker" if self.me in roles.workers else "absent"

    def _side_items(self) -> Commit:
        number = self.state.round
        return Commit(
            leaves=(),
            charges=self.charges.listed(self.state),
            verdicts=self.court.listed_verdicts(self.state.roster, number),
            admissions=self.seats.admissions(self.state),
            departures=self.seats.departures(number),
            state=self.condition.listed(number),
            compute_ms=0,
            transfer_ms=self._transfer_ms,
            close=tuple(self.comparison.close)[:LISTED_MAX],
            reproaches=tuple(peer for peer in self._reproaches if self.state.roster.seat(peer) is not None)[
                : self.state.roster.faulty_max
            ],
            trials=self.trials.listed(number - 1),
            judgements=self.trials.listed_judgements(),
        )

    def _conclude(self, finished: Round, now: int) -> None:
        """The round's block is decided here: step, keep what audits need, open the next round."""
        block = finished.block
        assert block is not None
        self.round = None
        self.chronicle.uncertified[block.round] = finished
        self._transfer_ms = finished.transfer_ms
        contribution = finished.contribution
        assert contribution is not None
        results = {entry.part: finished.result_of(entry) for entry in block.results}
        checked = finished.checking.checked(block)
        self.court.close_round(_record(finished, contribution, block, results, checked))
        self.trials.close(block, finished.roles)
        for ban in block.bans:
            self.trials.save_evidence(ban, contribution)
        self._reproaches, self._unheard = finished.reproaches(), finished.not_heard()
        update = finished.update()
        finished.exchange.release()
        self.chronicle.append(block, now)
        if self.state.trajectory.steps(block.round):
            self.replay.step(block, update)
        self._appended(block)
        self.charges.hear_commits(contribution.commits.values(), finished.roster.faulty_max)
        self._report(block, finished, now)
        self._settle(now)

    def _appended(self, block: Block) -> None:
        """The ledger has a new block."""
        self.desk.forget(block.round - 1)
        self.seats.forget(self.state)
        self.trials.stand_at(self.state)
        self.charges.stand_at(self.state)
        self.court.stand_at(self.state)
        self._refusals.clear()
        self._listeners = {r: listeners for r, listeners in self._listeners.items() if r >= block.round}
        self._snapshots = {place: kept for place, kept in self._snapshots.items() if place[0] > block.round}
        self._report_restored(block)
        for ban in block.bans:
            self.blobs.forget_sender(ban.peer)
            self.desk.event("banned", peer=ban.peer.hex(), round=block.round, deed=ban.deed, of_round=ban.round,
                            evidence=[hash.hex() for hash in ban.evidence])  # fmt: skip
        for peer in block.departures:
            self.blobs.forget_sender(peer)
            self.seats.left(peer)
        if block.candidates:
            self.desk.event("contested", round=block.round, candidates=len(block.candidates))
        self._look_at_states()

    def _report_restored(self, block: Block) -> None:
        undone = self.state.trajectory.undone_by(block.round)
        if undone is not None:
            self.desk.event("restored", round=block.round, to_round=undone.first, step=block.step,
                            from_step=self.chronicle.block(block.round - 1).step,
                            rounds_undone=self.state.trajectory.rounds_undone)  # fmt: skip

    def _look_at_states(self) -> None:
        """Compare the own state with the newest certified one; who differs fetches that, and goes on meanwhile."""
        self.comparison.go(self.state.contest, self.state.round, self._sources)
        certified = self.state.state
        verdict = None if certified is None else self.condition.compare(certified)
        if verdict == "drifted" and certified is not None:
            self.replay.take_over(certified, self.state.round, self._sources)
        elif verdict == "equal" and self.state.trajectory.passes(self.replay.x_round):
            self.replay.keep_own()

    def _report(self, block: Block, finished: Round, now: int) -> None:
        self.desk.event(
            "block", round=block.round, hash=block.hash.hex(), void=block.void, step=block.step,
            contributors=len(block.contributors), absent=[p.hex() for p in block.absences],
            admitted=[a.peer.hex() for a in block.admissions], left=[p.hex() for p in block.departures],
            clipped_share=finished.exchange.clipped_share, losses_left=self.state.roster.losses_left,
            heals=self.condition.heals,
            seconds=finished.seconds(now), void_parts=list(block.void_parts),
        )  # fmt: skip

    # --- where everybody is ---

    def _set_where(self, now: int) -> None:
        """Members ask when nothing moves; who has no seat hears nothing by itself and asks all the time."""
        deltas = 4 if self.state.roster.seat(self.me) is not None else 1
        self.desk.emit(SetTimer("where", now + deltas * self.state.charter.message_us))

    def _on_where_timer(self, now: int) -> None:
        seatless = self.state.roster.seat(self.me) is None
        if not seatless and not self._halted:
            self._standstill.look(self.state, self._connected, self.chronicle.decided_us, now)
        if self.chronicle.quiet(self.round, now) or seatless:
            self.chronicle.tell(None, self.round)
        self.chronicle.pursuit.under_way = False
        self._settle(now)
        if seatless and not self._halted:
            self._ask(ready=self.round is not None)
        self._set_where(now)

    def _on_blocks(self, sender: PeerId, blocks: tuple[CertifiedBlock, ...], now: int) -> None:
        """Certified blocks of a peer that is ahead, or on another chain. Raises RemoteProtocolError."""
        if self._halted:
            return
        try:
            self.chronicle.take(sender, blocks, now)
        finally:
            self.chronicle.go_on(sender, blocks, now)
            self._on_taken(now)

    def _on_taken(self, now: int) -> None:
        """Certified blocks were appended, perhaps in place of others: replay them, keep what the open round knew."""
        if self.chronicle.two_chains:
            self._halt("two_chains", done=False)
            return
        if self.chronicle.rolled_back is not None:
            self._undo(self.chronicle.rolled_back)
            self.chronicle.rolled_back = None
        fresh = self.chronicle.taken()
        open_round = self.round
        if fresh and open_round is not None and open_round.round == fresh[0].round:
            contribution = open_round.contribution_in(fresh[0])
            if contribution is not None:
                self.court.close_round(_record(open_round, contribution, fresh[0], {}, None))
        for block in fresh:
            self._appended(block)
        if fresh:
            self._abandon_round()
            self.desk.event("caught_up", round=self.state.round)
        self._settle(now)
        if fresh and self.state.roster.seat(self.me) is None and not self.chronicle.pursuit.under_way:
            self._ask(ready=self.round is not None)

    def _undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more."""
        self._abandon_round()
        self._snapshots.clear()
        self._future.clear()
        self._listeners.clear()
        self._unheard = frozenset()
        self.desk.undo(round)
        self.seats.undo(round)
        self.charges.undo(round)
        self.court.undo(round)
        self.trials.undo(round)
        self.condition.undo(round)
        self.replay.undo(round)
        self.desk.event("rolled_back", round=round)

    def _abandon_round(self) -> None:
        self._reproaches = ()
        if self.round is not None:
            self.round.exchange.release()
            self.round = None

    # --- after every input ---

    def _done(self, now: int) -> list[Effect]:
        """Draw the conclusions that follow from what changed, and hand out the effects."""
        while self._draw_conclusions(now):
            pass
        return self.behaviour.effects(self.desk.take(), self.state.round, now)

    def _draw_conclusions(self, now: int) -> bool:
        open_round, chronicle = self.round, self.chronicle
        if open_round is not None and (open_round.exchange.illegal or open_round.checking.proofs):
            self._charge_proven(open_round)
        if self.desk.conflicts or chronicle.forks.conflicts:
            self._charge_conflicts()
        chronicle.certify()
        if self.state.closing and self.round is not None and self.court.docket.is_idle:
            self.round.audited(now)
        if self.round is not None and self.round.block is not None:
            self._conclude(self.round, now)
            return True
        if self.state.over and not chronicle.uncertified and not self._halted:
            self._settle(now)
        return bool(self.desk.conflicts)

    def _charge_proven(self, open_round: Round) -> None:
        """What the round has found that proves itself by bytes."""
        illegal, open_round.exchange.illegal = open_round.exchange.illegal, []
        for deed, statement, data in illegal:
            statements = [statement]
            if deed == "illegal_result" and open_round.contribution is not None:
                statements += decision_statements(open_round.contribution)
            self.charges.charge(deed, statement.sender, statement.statement.round, statements, [data])
        proofs, open_round.checking.proofs = open_round.checking.proofs, []
        for proof in proofs:
            accused = proof.statements[0]
            self.charges.charge(proof.deed, accused.sender, accused.statement.round, proof.statements, proof.blobs)

    def _charge_conflicts(self) -> None:
        """Two statements in one slot."""
        conflicts = [*self.desk.conflicts, *self.chronicle.forks.conflicts]
        self.desk.conflicts, self.chronicle.forks.conflicts = [], []
        for one, other in conflicts:
            self.charges.charge("equivocation", one.sender, one.statement.round, [one, other], [])

    def _halt(self, reason: str, done: bool) -> None:
        self._halted = True
        self._abandon_round()
        self.desk.emit(Halt(reason, done))


def _record(
    round: Round, contribution: Contribution, block: Block, results: dict[int, Message], checked: Checked | None
) -> Record:
    """What audits need of a round that is over."""
    state = round.state
    return Record(round.roles, state.head, state.seed_randomness, contribution, results, block, checked)
