"""A member of a group: round after round, catching up, auditing, joining and leaving. The whole protocol of one peer.

A pure state machine: every input returns the effects that its shell executes in order. The shell is the network runtime
(`btrain.peer`) or the simulator (`btrain.simulation`); neither has any protocol of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blobs import Blobs
from btrain.protocol.catchup import Replay
from btrain.protocol.court import Court, Record, decision_statements
from btrain.protocol.desk import Desk
from btrain.protocol.effects import AppendBlock, Apply, Drop, Effect, Halt, PutBlob, SetTimer
from btrain.protocol.encoding import PeerId, digest, encode
from btrain.protocol.errors import InconsistentMessage, NotAMember, RemoteProtocolError, StaleMessage
from btrain.protocol.ledger import Block, LedgerState, check_certificate, open_block
from btrain.protocol.messages import (
    LISTED_MAX,
    Accusation,
    Admission,
    Charge,
    Commit,
    Join,
    Leave,
    Message,
    Result,
    Verifier,
)  # fmt: skip
from btrain.protocol.packets import (
    BLOCKS_MAX,
    PACKET_BYTES_MAX,
    Blocks,
    BodyRequest,
    CertifiedBlock,
    Envelopes,
    Founding,
    Offer,
    Refusal,
    Value,
    ValueRequest,
    Where,
    decode_packet,
)  # fmt: skip
from btrain.protocol.randomness import HashChain
from btrain.protocol.round import Post, Round

FUTURE_MAX = 64  # statements of the next round kept for each member
BLOCKS_KEPT = 64  # decoded blocks in memory
ASKED_ROUNDS = 4  # how long a request for a seat, or to leave, is listed after it was heard


class Ledger(Protocol):
    """The blocks on disk (or in the simulator's memory)."""

    def read(self, round: int) -> CertifiedBlock | None:
        """The certified block of a round, None beyond the end."""


@dataclass(frozen=True)
class Membership:
    """What a peer says of itself when it asks for a seat."""

    contract: bytes  # hash
    x0: bytes
    probe_norm: float
    chain_salt: bytes  # private, random, kept with the run: a chain is used in one run only
    addresses: tuple[str, ...] = ()


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
        self.state = state
        self.membership, self.ledger, self.behaviour = membership, ledger, behaviour
        self.desk = Desk(key, state.run, verifier)
        self.blobs = Blobs()
        self.court = Court(self.desk, state.charter, state.genesis, behaviour, draw)
        self.replay = Replay(self.desk, self._block_at, state.charter.custody_rounds, x_round)
        self.round: Round | None = None
        self.open_certificates: dict[int, Round] = {}  # decided rounds whose q Finals are not here yet
        self.addresses: dict[PeerId, tuple[str, ...]] = {}
        self.leaving = False
        self._post = Post(
            self.desk,
            HashChain(key.seed, membership.chain_salt, state.charter.rounds),
            behaviour,
            self.blobs,
            self._side_items,
        )
        self._blocks: dict[int, Block] = {}  # the latest blocks; older ones are read from the ledger
        self._future: dict[PeerId, dict[bytes, Message]] = {}
        self._admissions: dict[PeerId, tuple[Admission, int]] = {}
        self._departures: dict[PeerId, int] = {}
        self._state_digests: dict[int, bytes] = {}
        self._connected: set[PeerId] = set()
        self._answered: dict[PeerId, int] = {}
        self._asked_us = 0
        self._decided_us = 0
        self._transfer_ms = 0
        self._halted = False
        self._snapshots: dict[int, dict[int, bytes]] = {}  # round -> decision -> the engine's, from before a restart

    @property
    def me(self) -> PeerId:
        """This peer."""
        return self.desk.me

    @property
    def candidates(self) -> frozenset[PeerId]:
        """Peers without a seat that have asked for one lately: they may fetch what members may."""
        return frozenset(peer for peer, (_, until) in self._admissions.items() if until >= self.state.round)

    # --- inputs ---

    def start(
        self, now: int, signed: dict[bytes, bytes], journal: Iterable[tuple[int, str, bytes]] = ()
    ) -> list[Effect]:
        """Begin, or begin again: `signed` and `journal` (round, kind, data) are what was persisted of the open rounds.

        A round is open until its block is in the ledger, so two rounds can be.
        """
        self.desk.restore(signed)
        self._decided_us = now
        for round, kind, data in journal:
            if kind == "body":
                message = self.desk.verifier.open(data, self.state.run)
                self._future.setdefault(message.sender, {})[message.hash] = message
            else:
                self._snapshots.setdefault(round, {})[int(kind.removeprefix("engine:"))] = data
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
            self.desk.event("refused", peer=sender.hex(), reason=error.reason)
            if not isinstance(error, StaleMessage | NotAMember):
                self.desk.emit(Drop(sender, error.reason))
        return self._done(now)

    def blob(self, hash: bytes, data: bytes | None, sender: PeerId | None, now: int) -> list[Effect]:
        """Bytes whose hash was checked: asked for or pushed by `sender`; None when nobody asked had them."""
        if data is not None:
            if sender is not None and self.state.roster.seat(sender) is not None:
                self.blobs.early(sender, hash, data)
            elif sender is None:
                self.blobs.keep(hash, data)
        if self.round is not None:
            self.round.blob(hash, now)
        self.court.blob(hash, data)
        self.replay.blob(hash, data, self.state)
        return self._done(now)

    def connected(self, peer: PeerId, now: int) -> list[Effect]:
        """A peer is there (again): both sides say where they are and send the open decisions again."""
        self._connected.add(peer)
        self._send_where(peer)
        if self.round is not None and self.state.roster.seat(peer) is not None:
            self.round.resend(peer, now)
        return self._done(now)

    def disconnected(self, peer: PeerId, now: int) -> list[Effect]:
        """A peer is gone; its silence has no other consequence than its deadlines."""
        self._connected.discard(peer)
        return self._done(now)

    def timer(self, name: str, now: int) -> list[Effect]:
        """A timer that was set is due."""
        scope, _, rest = name.partition(":")
        if scope == "round":
            number, _, inner = rest.partition(":")
            target = self._round_of(int(number))
            if target is not None:
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
        self.court.recomputed(token, gradient, x)
        return self._done(now)

    def work_done(self, token: str, result: object, now: int) -> list[Effect]:
        """The result of a job."""
        scope, _, rest = token.partition(":")
        if scope == "round":
            number, _, inner = rest.partition(":")
            if self.round is not None and self.round.round == int(number):
                self.round.work_done(inner, result, now)
        else:
            self.court.work_done(token, result)
        return self._done(now)

    def applied(self, round: int, state: bytes | None, now: int) -> list[Effect]:
        """The parameters are x[round + 1]; `state` is there if it was due."""
        if state is not None:
            self._state_digests[round + 1] = digest(state)
            self.desk.emit(PutBlob(digest(state), state, round + 1))
        self.replay.applied(round + 1)
        self._settle(now)
        return self._done(now)

    def state_loaded(self, round: int, now: int) -> list[Effect]:
        """The parameters are x[round], from a certified state."""
        self.desk.event("state_loaded", round=round)
        self.replay.applied(round)
        self._settle(now)
        return self._done(now)

    def leave(self, now: int) -> list[Effect]:
        """Give the seat up in order."""
        self.leaving = True
        if self.state.roster.seat(self.me) is not None:
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
                    self._take_message(self.desk.verifier.open(envelope, self.state.run), sender, now)
            case Where():
                self._on_where(sender, packet, now)
            case Blocks(blocks):
                self._on_blocks(blocks, now)
            case ValueRequest():
                target = self._round_of(packet.round)
                if target is not None:
                    target.answer_value(packet, sender)
            case Value():
                target = self._round_of(packet.round)
                if target is not None:
                    target.value(sender, packet, now)
            case BodyRequest():
                target = self._round_of(packet.round)
                if target is not None:
                    target.answer_bodies(packet.hashes, sender)
            case Refusal(reason):
                self.desk.event("refusal", peer=sender.hex(), reason=reason)
            case Offer() | Founding():
                pass  # the shell's business: it compares contracts and founds runs

    def _take_message(self, message: Message, sender: PeerId, now: int) -> None:
        body, of = message.body, message.statement.round
        if isinstance(body, Join):
            self._on_join(message, body, sender)
            return
        if self.state.roster.seat(message.sender) is None:
            raise NotAMember(f"{message.statement.kind} of {message.sender.hex()[:8]}, which holds no seat")
        if of + 2 < self.state.round or of > self.state.round + 2:
            if of > self.state.round + 2:
                self._ask_where(sender, now)
            raise StaleMessage(f"{message.statement.kind} of round {of} in round {self.state.round}")
        fresh = self.desk.notice(message)
        if isinstance(body, Charge):
            self.court.charged(message, body, self.state.round)
        elif isinstance(body, Accusation):
            self.court.accused(message, body)
        elif isinstance(body, Leave):
            self._departures[message.sender] = self.state.round + ASKED_ROUNDS
        else:
            self._to_round(message, fresh, sender, now)

    def _to_round(self, message: Message, fresh: bool, sender: PeerId, now: int) -> None:
        target = self._round_of(message.statement.round)
        if target is not None and message.statement.prev == target.state.head:
            if fresh:
                target.receive(message, now)
            else:
                target.equivocated(message, now)
        elif message.statement.round >= self.state.round:
            waiting = self._future.setdefault(message.sender, {})
            if len(waiting) < FUTURE_MAX:
                waiting[message.hash] = message
            if message.statement.round > self.state.round:
                self._ask_where(sender, now)

    def _round_of(self, number: int) -> Round | None:
        if self.round is not None and self.round.round == number:
            return self.round
        return self.open_certificates.get(number)

    # --- rounds ---

    def _settle(self, now: int) -> None:
        """Go on: catch up with the ledger, or open the next round."""
        if self._halted:
            return
        if self.replay.x_round < self.state.round:
            self.replay.go(self.state, tuple(sorted(self._connected)))
        if self.me in self.state.roster.banned:
            self._halt("banned", done=False)
        elif self.state.round >= self.state.charter.rounds:
            if self.replay.x_round == self.state.round and not self.open_certificates:
                self._halt("finished", done=True)
        elif self.round is None and self._ready():
            self._open_round(now)

    def _ready(self) -> bool:
        """Whether the next round can be opened: everything is replayed, or only the last step is still being applied."""
        behind = self.state.round - self.replay.x_round
        due = self.state.round > 0 and self.state.round % self.state.charter.state_sync_every == 0
        return behind == 0 or (behind == 1 and not due and self.replay.applying == 1)

    def _open_round(self, now: int) -> None:
        number = self.state.round
        self.round = Round(self.state, self._post, self._decided_us, self._snapshots.pop(number, {}))
        self.court.charges = {k: c for k, c in self.court.charges.items() if self.state.roster.seat(c.accused)}
        if self.me in self.round.roles.validators:
            self.court.audit(number)
        self._ask_for_seat()
        self.round.start(now)
        waiting, self._future = self._future, {}
        for message in (m for by_hash in waiting.values() for m in by_hash.values()):
            if message.statement.round == number:
                self._retry(message, now)
            elif message.statement.round > number:
                self._future.setdefault(message.sender, {})[message.hash] = message
        self.desk.event("round", round=number, role=self._role(), members=len(self.state.roster.seats),
                        present=len(self.state.roster.present))  # fmt: skip

    def _retry(self, message: Message, now: int) -> None:
        try:
            self._to_round(message, True, message.sender, now)
        except RemoteProtocolError as error:
            self.desk.event("refused", peer=message.sender.hex(), reason=error.reason)

    def _role(self) -> str:
        assert self.round is not None
        roles = self.round.roles
        return "validator" if self.me in roles.validators else "worker" if self.me in roles.workers else "absent"

    def _side_items(self) -> Commit:
        roster, number = self.state.roster, self.state.round
        due = number > 0 and number % self.state.charter.state_sync_every == 0
        known = self._state_digests.get(number)
        return Commit(
            leaves=(),
            charges=self.court.listed_charges(roster),
            verdicts=self.court.listed_verdicts(roster, number),
            admissions=tuple(a for a, until in self._admissions.values() if until >= number)[:LISTED_MAX],
            departures=tuple(peer for peer, until in sorted(self._departures.items()) if until >= number)[:LISTED_MAX],
            state=(known,) if due and known is not None else (),
            compute_ms=0,
            transfer_ms=self._transfer_ms,
        )

    def _conclude(self, finished: Round, now: int) -> None:
        """The round's block is decided here: step, keep what audits need, open the next round."""
        block = finished.block
        assert block is not None
        self.round = None
        self.open_certificates[block.round] = finished
        self._transfer_ms = finished.transfer_ms
        contribution = finished.contribution
        assert contribution is not None
        results = {entry.part: self._result_of(finished, entry.hash) for entry in block.results}
        self.court.close_round(
            Record(finished.roles, finished.state.head, finished.state.seed_randomness, contribution, results, block)
        )
        due = (block.round + 1) % self.state.charter.state_sync_every == 0
        self.replay.step(Apply(block.round, finished.update(), block.step, due))
        finished.exchange.release()
        self._advance(block, now)
        self._report(block, finished, now)
        self._settle(now)

    def _result_of(self, finished: Round, hash: bytes) -> Message:
        assert finished.contribution is not None
        known = finished.results[finished.contribution.ctx].values()
        return min(
            (m for m in known if isinstance(m.body, Result) and m.body.hash == hash), key=lambda m: m.statement.attempt
        )

    def _advance(self, block: Block, now: int) -> None:
        self.state = self.state.advance(block)
        self._blocks[block.round] = block
        self._blocks.pop(block.round - BLOCKS_KEPT, None)
        self._decided_us = now
        self.desk.forget(block.round - 1)
        for ban in block.bans:
            self.blobs.forget_sender(ban.peer)
            self.desk.event("banned", peer=ban.peer.hex(), round=block.round, deed=ban.deed, of_round=ban.round,
                            evidence=[hash.hex() for hash in ban.evidence])  # fmt: skip
        if block.state and self._state_digests.get(block.round, block.state[0].digest) != block.state[0].digest:
            self.desk.event("drift", round=block.round)
        self._state_digests = {r: d for r, d in self._state_digests.items() if r > block.round - 64}

    def _report(self, block: Block, finished: Round, now: int) -> None:
        self.desk.event(
            "block", round=block.round, hash=block.hash.hex(), void=block.void, step=block.step,
            contributors=len(block.contributors), absent=[p.hex() for p in block.absences],
            admitted=[a.peer.hex() for a in block.admissions], left=[p.hex() for p in block.departures],
            clipped_share=finished.exchange.clipped_share, losses_left=self.state.roster.losses_left,
            seconds=finished.seconds(now),
        )  # fmt: skip

    def _collect_certificates(self) -> None:
        """Append decided blocks to the ledger, in order, once their q Finals are here."""
        for number in sorted(self.open_certificates):
            finished = self.open_certificates[number]
            if finished.certificate is None:
                return
            assert finished.block is not None
            self.desk.emit(AppendBlock(number, encode(finished.block), finished.certificate))
            del self.open_certificates[number]

    def _block_at(self, number: int) -> Block:
        if number in self._blocks:
            return self._blocks[number]
        certified = self.ledger.read(number)
        assert certified is not None, "the ledger holds every block before its head"
        return open_block(certified.block)

    # --- where everybody is ---

    def _send_where(self, to: PeerId | None) -> None:
        self.desk.send(Where(self._certified_round, self._certified_head), to)

    @property
    def _certified_round(self) -> int:
        return min(self.open_certificates, default=self.state.round)

    @property
    def _certified_head(self) -> bytes:
        first = self.open_certificates.get(self._certified_round)
        return self.state.head if first is None else first.state.head

    def _set_where(self, now: int) -> None:
        self.desk.emit(SetTimer("where", now + 4 * self.state.charter.message_us))

    def _on_where_timer(self, now: int) -> None:
        """When nothing moved for a while, something may have been lost: ask."""
        if now - self._decided_us >= 4 * self.state.charter.message_us or self.open_certificates:
            self._send_where(None)
        self._settle(now)
        self._set_where(now)

    def _ask_where(self, peer: PeerId, now: int) -> None:
        if now - self._asked_us >= self.state.charter.message_us:
            self._asked_us = now
            self._send_where(peer)

    def _on_where(self, sender: PeerId, packet: Where, now: int) -> None:
        if packet.round > self.state.round:
            self._ask_where(sender, now)
            return
        if now - self._answered.get(sender, -(10**12)) < self.state.charter.message_us // 2:
            return
        self._answered[sender] = now
        blocks = self._blocks_from(packet.round)
        if blocks:
            self.desk.send(Blocks(tuple(blocks)), sender)
        elif packet.round + 1 >= self.state.round and self.state.roster.seat(sender) is not None:
            for target in (*self.open_certificates.values(), *([self.round] if self.round else [])):
                target.resend(sender, now)

    def _blocks_from(self, first: int) -> list[CertifiedBlock]:
        blocks: list[CertifiedBlock] = []
        size = 0
        while len(blocks) < BLOCKS_MAX:
            certified = self.ledger.read(first + len(blocks))
            if certified is None:
                break
            size += len(certified.block) + sum(len(final) + 8 for final in certified.certificate) + 64
            if blocks and size > PACKET_BYTES_MAX - 1024:
                break
            blocks.append(certified)
        return blocks

    def _on_blocks(self, blocks: tuple[CertifiedBlock, ...], now: int) -> None:
        """Certified blocks of a peer that is ahead: verify, append, replay."""
        moved = False
        for certified in blocks:
            block = open_block(certified.block)
            if block.round in self.open_certificates:
                self._certify_late(block, certified)
            elif block.round == self.state.round and not self.open_certificates:
                check_certificate(block, certified.certificate, self.state, self.desk.verifier)
                self._abandon_round()
                self._advance(block, now)
                self.desk.emit(AppendBlock(block.round, certified.block, certified.certificate))
                moved = True
        if moved:
            self.desk.event("caught_up", round=self.state.round)
            self._send_where(None)
        self._settle(now)

    def _certify_late(self, block: Block, certified: CertifiedBlock) -> None:
        open_round = self.open_certificates[block.round]
        if open_round.block is not None and open_round.block.hash == block.hash and open_round.certificate is None:
            check_certificate(block, certified.certificate, open_round.state, self.desk.verifier)
            open_round.certificate = certified.certificate

    def _abandon_round(self) -> None:
        if self.round is not None:
            self.round.exchange.release()
            self.round = None

    # --- seats ---

    def _ask_for_seat(self) -> None:
        """An absent member asks for its seat back once it may, a newcomer for one."""
        seat = self.state.roster.seat(self.me)
        if self.leaving or self.me in self.state.roster.banned:
            return
        if seat is None or (seat.absent and self.state.round + 1 >= seat.returns_at):
            body = Join(
                self.membership.contract, self._post.chain.end, self.membership.x0, self.membership.probe_norm,
                self.membership.addresses,
            )  # fmt: skip
            self.desk.broadcast(self.desk.sign(self.desk.statement(body, prev=self.state.head, round=self.state.round)))
            self._admissions[self.me] = (Admission(self.me, self._post.chain.end), self.state.round + ASKED_ROUNDS)

    def _on_join(self, message: Message, body: Join, sender: PeerId) -> None:
        peer, roster = message.sender, self.state.roster
        if peer in roster.banned:
            self.desk.send(Refusal("this identity was banned from the run"), sender)
            return
        seat = roster.seat(peer)
        if body.contract != self.membership.contract or body.x0 != self.membership.x0:
            self.desk.send(Refusal("another contract: compare run.yaml, data and versions"), sender)
            return
        if seat is None and not self.state.charter.admits(peer):
            self.desk.send(Refusal("the run admits only the peers on its list"), sender)
            return
        if len(self._admissions) > 4 * LISTED_MAX:
            raise InconsistentMessage("too many requests for seats")
        if body.addresses:
            self.addresses[peer] = body.addresses
        if seat is None or seat.absent:
            self._admissions[peer] = (Admission(peer, body.chain_end), self.state.round + ASKED_ROUNDS)

    # --- after every input ---

    def _done(self, now: int) -> list[Effect]:
        """Draw the conclusions that follow from what changed, and hand out the effects."""
        while self._draw_conclusions(now):
            pass
        return self.behaviour.effects(self.desk.take(), self.state.round, now)

    def _draw_conclusions(self, now: int) -> bool:
        for deed, statement, data in self._take_illegal():
            statements = [statement]
            if deed == "illegal_result" and self.round is not None and self.round.contribution is not None:
                statements += decision_statements(self.round.contribution)
            self.court.charge(deed, statement.sender, statement.statement.round, statements, [data])
        conflicts, self.desk.conflicts = self.desk.conflicts, []
        for one, other in conflicts:
            self.court.charge("equivocation", one.sender, one.statement.round, [one, other], [])
        self._collect_certificates()
        if self.round is not None and self.round.block is not None:
            self._conclude(self.round, now)
            return True
        if self.state.round >= self.state.charter.rounds and not self.open_certificates and not self._halted:
            self._settle(now)
        return bool(self.desk.conflicts)

    def _take_illegal(self) -> list[tuple[str, Message, bytes]]:
        if self.round is None:
            return []
        found, self.round.exchange.illegal = self.round.exchange.illegal, []
        return found

    def _halt(self, reason: str, done: bool) -> None:
        self._halted = True
        self._abandon_round()
        self.desk.emit(Halt(reason, done))
