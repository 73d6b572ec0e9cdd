"""One decision of the agreement engine among simulated members: honest ones here, Byzantine ones by the caller.

Signatures are simulated: an envelope is the canonical bytes of (sender, kind, payload), and counts as signed when the
authority of the world has seen its sender sign it. Honest members are `MemberNode`s; the caller adds a node of its own
for every Byzantine peer, and may sign in their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from btrain.protocol import agreement
from btrain.protocol.agreement import Agreement, Effect, Electorate, Items, Payload, Timing, Vote, item_pairs
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import RemoteProtocolError
from btrain.simulation.heap import Heap, NodeId, Port

PAYLOADS = (agreement.Vote, agreement.Quit, agreement.Lock, agreement.Proposal, agreement.Final)


@dataclass(frozen=True)
class Item:
    """The body of an item arrives; the body is its hash."""

    key: str
    body_hash: bytes


@dataclass(frozen=True)
class Signed:
    """Signed messages, the sender's own or handed on."""

    envelopes: tuple[bytes, ...]


@dataclass(frozen=True)
class Value:
    """The items of a value."""

    items: Items


@dataclass(frozen=True)
class Ask:
    """A question for the items behind a digest."""

    digest: bytes


Packet: TypeAlias = Item | Signed | Value | Ask


def peer_ids(members: int) -> tuple[PeerId, ...]:
    """Peer ids in member order."""
    return tuple(index.to_bytes(2, "big") * 16 for index in range(1, members + 1))


def item_key(peer: PeerId) -> str:
    """Key of the one item that a member sends."""
    return f"item:{int.from_bytes(peer[:2], 'big'):04}"


def item_hash(peer: PeerId, variant: int = 0) -> bytes:
    """Hash of the body of a member's item; an equivocator has several."""
    return hashlib.sha256(peer + bytes([variant])).digest()


def items_digest(items: Items) -> bytes:
    """Digest of a value."""
    return hashlib.sha256(msgspec.msgpack.encode(item_pairs(items))).digest()


def slot_of(sender: PeerId, payload: Payload) -> tuple[PeerId, str, int]:
    """The slot of a signed message: its sender, kind and attempt."""
    return (sender, type(payload).__name__, 0 if isinstance(payload, agreement.Final) else payload.attempt)


class Authority:
    """Who has signed what. `doubles` lists the slots in which somebody signed two bodies."""

    def __init__(self) -> None:
        self._signed: dict[bytes, tuple[PeerId, Payload]] = {}
        self._slots: dict[tuple[PeerId, str, int], bytes] = {}
        self.doubles: set[tuple[PeerId, str, int]] = set()

    def sign(self, sender: PeerId, payload: Payload) -> bytes:
        """The signed envelope."""
        kind = type(payload).__name__
        envelope = msgspec.msgpack.encode((sender, kind, payload))
        slot = slot_of(sender, payload)
        if self._slots.setdefault(slot, envelope) != envelope:
            self.doubles.add(slot)
        self._signed[envelope] = (sender, payload)
        return envelope

    def open(self, envelope: bytes) -> tuple[PeerId, Payload] | None:
        """Sender and payload of an envelope, None for a forged one."""
        return self._signed.get(envelope)

    def payloads(self) -> list[tuple[PeerId, Payload]]:
        """Everything signed so far, in order."""
        return list(self._signed.values())

    def envelopes(self, wanted: Callable[[PeerId, Payload], bool]) -> tuple[bytes, ...]:
        """The signed messages so far that are wanted, in order."""
        return tuple(envelope for envelope, message in self._signed.items() if wanted(*message))

    def verify_vote(self, envelope: bytes) -> tuple[PeerId, Vote] | None:
        """See Rules.verify_vote."""
        opened = self.open(envelope)
        return (opened[0], opened[1]) if opened is not None and isinstance(opened[1], Vote) else None


@dataclass
class Disk:
    """What a member has stored durably."""

    snapshot: bytes | None = None
    bodies: dict[bytes, str] = field(default_factory=dict)
    signed: dict[tuple[str, int], bytes] = field(default_factory=dict)


@dataclass
class World:
    """What the members of one simulated decision share; `void` answers Rules.void_allowed."""

    heap: Heap
    electorate: Electorate
    timing: Timing
    engine: type[Agreement] = Agreement
    void: Callable[[int, Items], bool] = lambda attempt, held: False
    authority: Authority = field(default_factory=Authority)
    disks: dict[PeerId, Disk] = field(default_factory=dict)
    decided: dict[PeerId, tuple[int, Items]] = field(default_factory=dict)
    certified: dict[PeerId, int] = field(default_factory=dict)
    attempts: dict[PeerId, int] = field(default_factory=dict)
    refused: list[RemoteProtocolError] = field(default_factory=list)

    def add_member(self, peer: PeerId, begins_us: int = 0, item_at_us: int = 0) -> None:
        """Add an honest member that begins this decision at a time and sends its item at another."""
        self.disks[peer] = Disk()
        self.heap.add(peer, lambda port: MemberNode(self, peer, port, begins_us, item_at_us))

    def add_puppet(self, peer: PeerId, react: Callable[[NodeId, object, int], None] | None = None) -> None:
        """Add a Byzantine peer; what it receives goes to `react`."""
        self.heap.add(peer, lambda port: Puppet(react))

    def say(self, sender: PeerId, to: PeerId, payload: object, at_us: int) -> None:
        """Have a Byzantine peer's packet, or a payload signed in its name, arrive at a time."""
        packet = Signed((self.authority.sign(sender, payload),)) if isinstance(payload, PAYLOADS) else payload
        self.heap.call(at_us, lambda: self.deliver(sender, to, packet))

    def deliver(self, sender: PeerId, to: PeerId, packet: object) -> None:
        """Have a packet arrive now."""
        self.heap.inject(sender, to, packet)

    def member(self, peer: PeerId) -> MemberNode | None:
        """The running honest member."""
        node = self.heap.node(peer)
        return node if isinstance(node, MemberNode) else None

    def values(self) -> set[bytes]:
        """Digests of all decisions so far: two are a fork."""
        return {items_digest(items) for _, items in self.decided.values()}


@dataclass
class Puppet:
    """A Byzantine peer, silent by itself."""

    react: Callable[[NodeId, object, int], None] | None = None

    def start(self, now: int) -> None:
        """See Node."""

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        """See Node."""
        if self.react is not None:
            self.react(src, payload, now)

    def timer(self, name: str, now: int) -> None:
        """See Node."""

    def connected(self, peer: NodeId, now: int) -> None:
        """See Node."""


class MemberNode:
    """An honest member: the engine, and an owner that does what the engine asks."""

    def __init__(self, world: World, peer: PeerId, port: Port, begins_us: int, item_at_us: int) -> None:
        self.world = world
        self.peer = peer
        self.port = port
        self.disk = world.disks[peer]
        self.bodies = dict(self.disk.bodies)
        self.began_listening_us = world.heap.now
        self._begins_us = begins_us
        self._item_at_us = item_at_us
        self._connected_late = world.heap.now > 0
        self._known: dict[tuple[PeerId, str, int], set[bytes]] = {}
        engine = world.engine
        if self.disk.snapshot is not None:
            self.engine = engine.restore(
                self.disk.snapshot, peer, world.electorate, world.timing, self, max(begins_us, world.heap.now)
            )
        else:
            self.engine = engine(peer, world.electorate, world.timing, self, max(begins_us, world.heap.now))

    # --- Rules ---

    def complete(self, held: Items) -> bool:
        """See Rules."""
        return set(held) >= {item_key(peer) for peer in self.world.electorate.present}

    def acceptable(self, items: Items, attempt: int) -> bool:
        """See Rules."""
        return all(self.bodies.get(body_hash) == key for key, body_hash in items.items())

    def digest(self, items: Items) -> bytes:
        """See Rules."""
        return items_digest(items)

    def void_allowed(self, attempt: int, held: Items) -> bool:
        """See Rules."""
        return self.world.void(attempt, held)

    def verify_vote(self, envelope: bytes) -> tuple[PeerId, Vote] | None:
        """See Rules."""
        return self.world.authority.verify_vote(envelope)

    # --- Node ---

    def start(self, now: int) -> None:
        """Replay what was signed; begin now or at the planned time."""
        for envelope in self.disk.signed.values():
            self._receive(envelope, now)
        for body_hash, key in self.bodies.items():
            self._drive(self.engine.hold(key, body_hash, now), now)
        self.port.set_timer("owner:begin", self._begins_us)
        self.port.set_timer("owner:item", self._item_at_us)

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        """Take an item, a message, a value or a question."""
        assert isinstance(src, bytes)
        if isinstance(payload, Item):
            self._take_item(payload, now)
        elif isinstance(payload, Signed):
            for envelope in payload.envelopes:
                self._receive(envelope, now)
        elif isinstance(payload, Value):
            self._drive(self.engine.value(src, payload.items, now), now)
        elif isinstance(payload, Ask):
            items = self.engine.known_value(payload.digest)
            if items is not None:
                self.send(Value(items), src)

    def timer(self, name: str, now: int) -> None:
        """Ring the engine's timers and the owner's own."""
        if name == "owner:begin":
            trusted_from = self.began_listening_us + 2 * self.world.timing.delta_us if self._connected_late else 0
            self._drive(self.engine.start(now, trusted_from), now)
        elif name == "owner:item":
            self._take_item(Item(item_key(self.peer), item_hash(self.peer)), now)
            self.send(Item(item_key(self.peer), item_hash(self.peer)))
        else:
            self._drive(self.engine.timer(name, now), now)

    def connected(self, peer: NodeId, now: int) -> None:
        """Send everything again to who may lack it."""
        assert isinstance(peer, bytes)
        for body_hash, key in self.bodies.items():
            self.send(Item(key, body_hash), peer)
        for envelope in self.disk.signed.values():
            self.send(Signed((envelope,)), peer)
        self._drive(self.engine.resend(peer, now), now)

    # --- owner ---

    def send(self, packet: Packet, to: PeerId | None = None) -> None:
        """Send to one peer or to all others."""
        for peer in self.world.electorate.seats if to is None else (to,):
            if peer != self.peer:
                self.port.send(peer, packet)

    def _take_item(self, item: Item, now: int) -> None:
        if item.body_hash in self.bodies:
            return
        known = [body_hash for body_hash, key in self.bodies.items() if key == item.key]
        self.bodies[item.body_hash] = self.disk.bodies[item.body_hash] = item.key
        if known:
            self.send(item)
            for body_hash in known:
                self.send(Item(item.key, body_hash))
        self._drive(self.engine.hold(item.key, item.body_hash, now), now)

    def _receive(self, envelope: bytes, now: int) -> None:
        opened = self.world.authority.open(envelope)
        if opened is None or self._third_of_its_slot(*opened, envelope):
            return
        try:
            effects = self.engine.receive(*opened, envelope, now)
        except RemoteProtocolError as error:
            self.world.refused.append(error)
        else:
            self._drive(effects, now)

    def _third_of_its_slot(self, sender: PeerId, payload: Payload, envelope: bytes) -> bool:
        """Two bodies prove the double signer; more are not looked at, but for Finals, of which the engine keeps few."""
        known = self._known.setdefault(slot_of(sender, payload), set())
        if len(known) < 2:
            known.add(envelope)
        return envelope not in known and not isinstance(payload, agreement.Final)

    def _drive(self, effects: Sequence[Effect], now: int) -> None:
        for effect in effects:
            self._execute(effect, now)
        self.world.attempts[self.peer] = self.engine.attempt

    def _execute(self, effect: Effect, now: int) -> None:  # noqa: C901 one branch an effect
        match effect:
            case agreement.Persist():
                self.disk.snapshot = effect.snapshot
            case agreement.Sign():
                self._sign(effect.payload, now)
            case agreement.Forward():
                self.send(Signed(effect.envelopes), effect.to)
            case agreement.PushBodies():
                for body_hash, key in list(self.bodies.items()):
                    if key in effect.keys:
                        self.send(Item(key, body_hash), effect.to)
            case agreement.PushValue():
                self.send(Value(effect.items), effect.to)
            case agreement.NeedValue():
                for holder in effect.holders:
                    self.send(Ask(effect.digest), holder)
            case agreement.SetTimer():
                self.port.set_timer(effect.name, effect.at_us)
            case agreement.CancelTimer():
                self.port.cancel_timer(effect.name)
            case agreement.Decided():
                self.world.decided.setdefault(self.peer, (now, effect.items))
            case agreement.Certified():
                self.world.certified.setdefault(self.peer, now)
            case agreement.Entered():
                pass

    def _sign(self, payload: Payload, now: int) -> None:
        slot = (type(payload).__name__, 0 if isinstance(payload, agreement.Final) else payload.attempt)
        envelope = self.disk.signed.get(slot)
        if envelope is None:
            envelope = self.world.authority.sign(self.peer, payload)
            self.disk.signed[slot] = envelope
        self.send(Signed((envelope,)))
        self._receive(envelope, now)
