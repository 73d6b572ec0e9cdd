"""The statements of one round at one member: which may stand in it, which are known, and handing them to others."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from btrain.protocol.agreement_messages import Final, Items, Lock, Proposal, Quit, Vote
from btrain.protocol.block_items import link_key
from btrain.protocol.contribution import COMPLAINT_INDEX, is_item, item_key
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, result_key
from btrain.protocol.desk import Desk, Notice
from btrain.protocol.encoding import MEMBERS_MAX, ZERO, PeerId
from btrain.protocol.errors import InconsistentMessage, NotAMember
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import (
    ROW_BYTES,
    Approval,
    Commit,
    Dispute,
    Message,
    Missing,
    Receipt,
    Result,
    Reveal,
    Table,
)
from btrain.protocol.packets import BodyRequest, Envelopes
from btrain.protocol.roles import Roles, relays_of

ENVELOPES_PER_PACKET = 12
PACKET_ENVELOPE_BYTES = 48 * 1024
RESULT_SETS_MAX = 3  # sets of contributors over which one member may sign results in a round

EnginePayload = Vote | Quit | Lock | Proposal | Final
ENGINE_PAYLOADS = (Vote, Quit, Lock, Proposal, Final)  # isinstance is several times faster on a tuple than on a union


def _slot_text(message: Message) -> str:
    s = message.statement
    return f"{s.kind} of {message.sender.hex()[:8]}, attempt {s.attempt}, index {s.index}"


class Statements:
    """Checked statements by hash and by role. What depends on time or on who is listened to is decided elsewhere."""

    def __init__(self, state: LedgerState, roles: Roles, desk: Desk) -> None:
        self.state, self.roles, self.desk = state, roles, desk
        self.bodies: dict[bytes, Message] = {}  # items of the decisions, by hash
        self.commits: dict[PeerId, Message] = {}
        self.results: dict[bytes, dict[bytes, Message]] = {}  # ctx -> hash -> Result
        self.links: dict[PeerId, Message] = {}
        self.missing: list[Message] = []
        self.receipts: list[Message] = []
        self._result_sets: dict[PeerId, list[bytes]] = {}
        self._opens: set[tuple[PeerId, bytes]] = set()  # links found on their chains: one a member
        self._taken: set[bytes] = set()  # by hash, in whatever form they are kept: two of a slot

    # --- what may stand in the round ---

    def check_slot(self, message: Message) -> None:
        """Whether this round has such a slot.

        This answer and that of `check_body` are the same at every member: handing on what passed is never a fault.

        Raises:
            NotAMember: the sender has not the role that the slot needs.
            InconsistentMessage: there is no such slot.
        """
        s, body, roles = message.statement, message.body, self.roles
        if isinstance(body, ENGINE_PAYLOADS):
            if s.index > BLOCK or s.attempt != getattr(body, "attempt", 0):
                raise InconsistentMessage(_slot_text(message))
        elif isinstance(body, Result):
            if body.part >= roles.layout.parts or s.index != body.part:
                raise InconsistentMessage(f"{_slot_text(message)}: there are {roles.layout.parts} parts")
            if message.sender not in roles.owners or s.attempt > self.state.roster.faulty_max + 2:
                raise NotAMember(f"{_slot_text(message)}: it aggregates nothing in round {s.round}")
        elif isinstance(body, Missing):
            if s.attempt or s.index > COMPLAINT_INDEX:
                raise InconsistentMessage(_slot_text(message))
        elif isinstance(body, Receipt):
            self._check_receipt(message, body)
        elif isinstance(body, (Table, Dispute)):
            if s.attempt or s.index >= roles.layout.parts:
                raise InconsistentMessage(f"{_slot_text(message)}: there are {roles.layout.parts} parts")
            if message.sender not in roles.workers:
                raise NotAMember(f"{_slot_text(message)}: it has no part in round {s.round}")
        elif not isinstance(body, (Commit, Reveal, Approval)) or (s.attempt, s.index) != (0, 0):
            raise InconsistentMessage(_slot_text(message))

    def _check_receipt(self, message: Message, body: Receipt) -> None:
        s, roles, place = message.statement, self.roles, _slot_text(message)
        part, position = divmod(s.index, MEMBERS_MAX)
        if s.attempt or part >= roles.layout.parts or position >= len(roles.workers):
            raise InconsistentMessage(f"{place}: there is no such part of a worker")
        worker, aggregator = roles.workers[position], roles.owners[part]
        if (body.worker, body.part) != (worker, part):
            raise InconsistentMessage(f"{place} for another part or worker")
        if message.sender not in relays_of(self.state.randomness[1], worker, aggregator, roles.present):
            raise NotAMember(f"{place}: it is no relay of the pair")

    def check_body(self, message: Message) -> None:
        """Whether a statement says nothing that the ledger excludes.

        Raises:
            NotAMember: the sender has not the role that the statement needs.
            InconsistentMessage: wrong counts, or a link off its chain.
        """
        body = message.body
        if isinstance(body, ENGINE_PAYLOADS):
            return
        sender, roles = message.sender, self.roles
        place = f"{message.statement.kind} of {sender.hex()[:8]}"
        if isinstance(body, Commit):
            if sender not in roles.present:
                raise NotAMember(f"{place}, which has no present seat in round {roles.round}")
            legal = {0, roles.layout.parts} if sender in roles.workers else {0}
            if len(body.leaves) not in legal:
                raise InconsistentMessage(f"{place} with {len(body.leaves)} leaves, expected one of {sorted(legal)}")
            if body.reproaches:
                self._check_reproaches(sender, body, place)
        elif isinstance(body, Missing):
            if roles.owned(sender) != body.part or not set(body.workers) <= set(roles.workers) - {sender}:
                raise NotAMember(f"{place}, which aggregates nothing that these send")
            if len(set(body.workers)) < len(body.workers) or len(body.workers) > self.lacking_max:
                raise InconsistentMessage(f"{place} of {len(body.workers)} workers, at most {self.lacking_max}")
        elif isinstance(body, Result):
            ordered = list(body.without) == sorted(set(body.without) & set(roles.workers))
            if not ordered or (body.without and message.statement.attempt == 0):
                raise InconsistentMessage(f"{place} without {len(body.without)} contributors")
        elif isinstance(body, Table):
            if len(body.rows) > len(roles.workers) or any(len(row) not in {0, ROW_BYTES} for row in body.rows):
                raise InconsistentMessage(f"{place} with rows that are none of {len(roles.workers)} workers")
        elif isinstance(body, Reveal) and not self.opens(sender, body.link):
            raise InconsistentMessage(f"{place} is not on its chain")

    def _check_reproaches(self, sender: PeerId, commit: Commit, place: str) -> None:
        roster, reproached = self.state.roster, set(commit.reproaches)
        strange = reproached - set(roster.members) | (reproached & {sender})
        if strange or list(commit.reproaches) != sorted(reproached) or len(reproached) > roster.faulty_max:
            raise InconsistentMessage(f"{place} with reproaches of {len(commit.reproaches)} members")

    @property
    def lacking_max(self) -> int:
        """Workers of which an aggregator can lack parts while it is not cut off itself: b, and one broken link."""
        return self.state.roster.faulty_max + 1

    def opens(self, peer: PeerId, link: bytes) -> bool:
        """Whether the link is the one of this round on the peer's chain."""
        key = (peer, link)
        if key not in self._opens and self.state.roster.opens(peer, link, self.state.round):
            self._opens.add(key)
        return key in self._opens

    # --- keeping ---

    def took(self, message: Message) -> None:
        """A statement was taken in: it needs not come again."""
        self._taken.add(message.hash)

    @property
    def held(self) -> set[bytes]:
        """Hashes of all that was taken in, is kept, or was given to an engine of the own: a restart loses the rest."""
        own = (m for m in self.desk.signed.values() if isinstance(m.body, ENGINE_PAYLOADS))
        return self._taken.union(self.kept(), (m.hash for m in own if m.statement.prev == self.state.head))

    def keep(self, message: Message) -> None:
        """Keep a checked statement."""
        body = message.body
        if isinstance(body, Reveal):
            self.links.setdefault(message.sender, message)
            return
        if isinstance(body, Commit):
            self.commits.setdefault(message.sender, message)
        elif isinstance(body, Result):
            self.results.setdefault(message.statement.ctx, {})[message.hash] = message
        elif isinstance(body, Missing) and message.hash not in self.bodies:
            self.missing.append(message)
        elif isinstance(body, Receipt) and message.hash not in self.bodies:
            self.receipts.append(message)
        self.bodies[message.hash] = message

    def notice_result(self, message: Message, decided: bytes | None) -> Notice:
        """As `Desk.notice`, for results: their slots are as many as there may be sets of contributors.

        Who signs over more than a few sets loses the oldest, never `decided`: what is needed is asked for again.
        """
        ctx, sets = message.statement.ctx, self._result_sets.setdefault(message.sender, [])
        if ctx not in sets:
            sets.append(ctx)
            if len(sets) > RESULT_SETS_MAX:
                oldest = next(known for known in sets if known != decided)
                sets.remove(oldest)
                self._drop_results(oldest, message.sender)
        known = [m for m in self.results.get(ctx, {}).values() if m.slot == message.slot]
        if any(m.statement == message.statement for m in known):
            return "known"
        if not known:
            return "new"
        if len(known) == 1:
            self.desk.conflicts.append((known[0], message))
            return "second"
        return "ignored"

    def _drop_results(self, ctx: bytes, signer: PeerId) -> None:
        dropped = {hash for hash, m in self.results.get(ctx, {}).items() if m.sender == signer}
        self.results[ctx] = {hash: m for hash, m in self.results.get(ctx, {}).items() if hash not in dropped}
        self.bodies = {hash: m for hash, m in self.bodies.items() if hash not in dropped}
        self._taken -= dropped
        if not self.results[ctx]:
            del self.results[ctx]

    def bodies_of(self, items: Items) -> list[Message] | None:
        """The statements of the items in key order; None if one is not here."""
        found = [message for key in sorted(items) if (message := self.bodies.get(items[key])) is not None]
        return found if len(found) == len(items) else None

    # --- asking and handing on ---

    def ask(self, hashes: Iterable[bytes], holder: PeerId | None) -> None:
        """Ask for the statements of these hashes that are not here."""
        unknown = tuple(dict.fromkeys(hash for hash in hashes if hash not in self.bodies and hash != ZERO))
        if unknown:
            self.desk.send(BodyRequest(self.state.round, unknown), holder)

    def size(self, hashes: Iterable[bytes]) -> int:
        """Bytes of the statements that are known of these."""
        return sum(len(self.bodies[hash].data) for hash in set(hashes) if hash in self.bodies)

    def answer(self, hashes: Iterable[bytes], to: PeerId) -> None:
        """Hand on the statements that a peer lacks."""
        self.send([self.bodies[hash].data for hash in dict.fromkeys(hashes) if hash in self.bodies], to)

    def push(self, index: int, keys: Iterable[str], to: PeerId | None) -> None:
        """Hand on the statements behind the items of a decision."""
        kinds = set(keys)
        if index == BLOCK:
            self.send([m.data for peer, m in sorted(self.links.items()) if link_key(peer) in kinds], to)
            return
        if index == CONTRIBUTORS:
            chosen = [m for m in self.bodies.values() if is_item(m) and item_key(m) in kinds]
        else:
            chosen = [m for m in self.bodies.values() if isinstance(m.body, Result) and result_key(m) in kinds]
        self.send([message.data for message in chosen], to)

    def said_by(self, members: Collection[PeerId]) -> list[bytes]:
        """What is known of these members in the round."""
        known = {m.hash: m for m in (*self.bodies.values(), *self.links.values())}
        known |= {m.hash: m for m in self.desk.noticed() if m.statement.prev == self.state.head}
        return [message.data for message in known.values() if message.sender in members]

    def kept(self) -> dict[bytes, bytes]:
        """The envelopes of all that is kept, by hash."""
        return {message.hash: message.data for message in (*self.bodies.values(), *self.links.values())}

    def send(self, envelopes: Iterable[bytes], to: PeerId | None) -> None:
        """Send envelopes in packets that fit."""
        packet: list[bytes] = []
        for data in envelopes:
            full = len(packet) == ENVELOPES_PER_PACKET or sum(map(len, packet)) + len(data) > PACKET_ENVELOPE_BYTES
            if packet and full:
                self.desk.send(Envelopes(tuple(packet)), to)
                packet = []
            packet.append(data)
        if packet:
            self.desk.send(Envelopes(tuple(packet)), to)
