"""A scripted decision: honest members with chosen latencies and a coalition that speaks on cue.

Honest members come first in member order, then the Byzantine ones. Unless told otherwise packets take one microsecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from btrain.protocol.agreement import Agreement, Electorate, Final, Items, Payload, Proposal, Timing, Vote, item_pairs
from btrain.protocol.agreement_messages import Certificate
from btrain.protocol.encoding import PeerId
from btrain.simulation.decision import Item, Signed, World, item_hash, item_key, items_digest, peer_ids
from btrain.simulation.heap import Heap, NodeId

Delay = Callable[[PeerId, PeerId, object], int | None]

DELTA = 1_000_000


class Schedule:
    """One scripted run among n members, the last `byzantine` of which obey the script. Times are in microseconds."""

    def __init__(
        self,
        members: int,
        faulty_max: int,
        *,
        engine: type[Agreement] = Agreement,
        byzantine: int | None = None,
        proposers: Sequence[int] | None = None,
        begins_us: Mapping[int, int] | None = None,
        absent: Iterable[int] = (),
        void: Callable[[int, Items], bool] = lambda attempt, held: False,
    ) -> None:
        self.peers = peer_ids(members)
        liars = faulty_max if byzantine is None else byzantine
        self.honest = self.peers[: members - liars]
        self.coalition = self.peers[members - liars :]
        present = frozenset(self.peers) - {self.peers[index] for index in absent}
        order = tuple(self.peers[index] for index in (range(members) if proposers is None else proposers))
        electorate = Electorate(self.peers, present, faulty_max, tuple(peer for peer in order if peer in present))
        self.gone = set(self.honest) - present
        self.delays: list[Delay] = []
        self.heap = Heap(0, latency=self._latency)
        self.world = World(self.heap, electorate, Timing(DELTA, 3 * DELTA, 7 * DELTA), engine=engine, void=void)
        for index, peer in enumerate(self.peers):
            if peer in self.honest and peer in present:
                self.world.add_member(peer, begins_us=(begins_us or {}).get(index, 0))
            else:
                self.world.add_puppet(peer, self._overhear)
        self.overheard: Callable[[PeerId, Payload, int], None] | None = None
        for peer in self.coalition:
            if peer in present:
                for honest in self.honest:
                    self.world.say(peer, honest, Item(item_key(peer), item_hash(peer)), 1)

    # --- the network ---

    def delay(
        self,
        us: int,
        *,
        src: Iterable[PeerId] = (),
        dst: Iterable[PeerId] = (),
        kind: type | None = None,
        since_us: int = 0,
        until_us: int | None = None,
    ) -> None:
        """Packets from `src` to `dst` (nobody named: anybody) that carry a payload of this kind take `us`."""
        sources, destinations = frozenset(src), frozenset(dst)

        def rule(source: PeerId, destination: PeerId, packet: object) -> int | None:
            if (sources and source not in sources) or (destinations and destination not in destinations):
                return None
            if self.heap.now < since_us or (until_us is not None and self.heap.now >= until_us):
                return None
            return us if kind is None or self._carries(packet, kind) else None

        self.delays.append(rule)

    def _carries(self, packet: object, kind: type) -> bool:
        if not isinstance(packet, Signed):
            return isinstance(packet, kind)
        opened = (self.world.authority.open(envelope) for envelope in packet.envelopes)
        return any(message is not None and isinstance(message[1], kind) for message in opened)

    def _latency(self, src: NodeId, dst: NodeId, packet: object) -> int:
        assert isinstance(src, bytes)
        assert isinstance(dst, bytes)
        for rule in reversed(self.delays):
            us = rule(src, dst, packet)
            if us is not None:
                return us
        return 1

    def _overhear(self, src: NodeId, packet: object, now: int) -> None:
        if self.overheard is not None and isinstance(packet, Signed):
            for envelope in packet.envelopes:
                opened = self.world.authority.open(envelope)
                if opened is not None:
                    self.overheard(*opened, now)

    # --- values and what is said ---

    def items(self, *, without: Iterable[PeerId] = (), variants: Mapping[PeerId, int] | None = None) -> Items:
        """The items of all present members but some; an equivocator's in a variant."""
        chosen = self.world.electorate.present - frozenset(without)
        return {item_key(peer): item_hash(peer, (variants or {}).get(peer, 0)) for peer in chosen}

    def withhold_item(self, peer: PeerId, from_members: Iterable[PeerId]) -> None:
        """A Byzantine item does not come from its sender to these members (others may push it)."""
        spared = frozenset(from_members)
        world, arrive = self.world, self.world.deliver

        def filtered(sender: PeerId, to: PeerId, packet: object) -> None:
            if not (sender == peer and to in spared and packet == Item(item_key(peer), item_hash(peer))):
                arrive(sender, to, packet)

        world.deliver = filtered  # type: ignore[method-assign]

    def say(self, sender: PeerId, to: Iterable[PeerId], payload: object, at_us: int) -> None:
        """A Byzantine peer's packet or signed payload arrives at these members at a time."""
        for member in to:
            self.world.say(sender, member, payload, at_us)

    def vote(self, to: Iterable[PeerId], attempt: int, items: Items, at_us: int, voters: int | None = None) -> None:
        """The coalition's votes for a value arrive."""
        for peer in self.coalition[:voters]:
            self.say(peer, to, Vote(attempt, items_digest(items)), at_us)

    def hand_on(self, to: Iterable[PeerId], wanted: Callable[[PeerId, Payload], bool], at_us: int) -> None:
        """The coalition hands on honest messages of the past."""
        envelopes = self.world.authority.envelopes(wanted)
        for member in to:
            self.world.say(self.coalition[0], member, Signed(envelopes), at_us)

    def propose(self, to: Iterable[PeerId], attempt: int, items: Items, at_us: int) -> None:
        """The attempt's Byzantine proposer shows a proposal, with the certificate that the coalition can make."""
        proposer = self.world.electorate.proposer(attempt)
        assert proposer in self.coalition
        certificate = self.certificate(attempt, items)
        self.say(proposer, to, Proposal(attempt, item_pairs(items), certificate), at_us)

    def certificate(self, before: int, items: Items, attempt: int | None = None) -> Certificate | None:
        """The highest certificate of a value in an attempt earlier than `before` from all votes signed so far."""
        digest = items_digest(items)
        electorate = self.world.electorate
        for candidate in range(before - 1, -1, -1) if attempt is None else (attempt,):
            vote = Vote(candidate, digest)
            for peer in self.coalition:
                self.world.authority.sign(peer, vote)
            votes = self.world.authority.envelopes(lambda _, payload, vote=vote: payload == vote)  # type: ignore[misc]
            enough = electorate.fast_quorum if candidate == 0 else electorate.quorum
            if len(votes) >= enough:
                return Certificate(candidate, item_pairs(items), tuple(votes[-enough:]))
        return None

    # --- running and judging ---

    def at(self, us: int, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self.heap.call(us, action)

    def run(self, until_us: int) -> None:
        """Run to a time."""
        self.heap.run(until_us)

    def run_to_the_end(self, until_us: int = 300 * DELTA) -> None:
        """Run until every running honest member has decided, or to a time."""
        self.heap.run(lambda: self.finished or self.heap.now > until_us)

    @property
    def finished(self) -> bool:
        """Whether every honest member but those gone for good has decided."""
        return all(peer in self.world.decided for peer in self.honest if peer not in self.gone)

    def finals(self) -> dict[PeerId, bytes]:
        """Digest for which each honest member has signed Final."""
        signed = self.world.authority.payloads()
        return {peer: payload.digest for peer, payload in signed if peer in self.honest and isinstance(payload, Final)}

    def complete_finals(self, at_us: int) -> None:
        """The coalition adds its Final to whatever each honest member holds final: what it would do to split them."""

        def act() -> None:
            for member, digest in self.finals().items():
                for peer in self.coalition:
                    self.say(peer, [member], Final(digest), at_us)

        self.at(at_us, act)

    @property
    def forked(self) -> bool:
        """Whether two honest members have decided differently."""
        return len(self.world.values()) > 1

    @property
    def honest_doubles(self) -> set[tuple[PeerId, str, int]]:
        """Slots in which an honest member signed twice."""
        return {slot for slot in self.world.authority.doubles if slot[0] in self.honest}
