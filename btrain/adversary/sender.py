"""Attacks on what is said to whom, and when."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from btrain.adversary.adversary import Adversary
from btrain.protocol.decisions import CONTRIBUTORS
from btrain.protocol.effects import Effect, PushBlob, PutBlob, Send
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.messages import ENVELOPE_BYTES_MAX, Commit, Message, Reveal
from btrain.protocol.packets import PACKET_BYTES_MAX, Envelopes, decode_packet, encode_packet, says_it_is
from btrain.protocol.roles import draw_roles
from btrain.protocol.tables import table_randomness

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round

KEPT_PACKETS = 256


def others(round: Round) -> list[PeerId]:
    """All other members, in member order."""
    return [peer for peer in round.roster.members if peer != round.me]


@dataclass
class Withholding(Adversary):
    """Base: keeps own statements to itself, also when it hands on or sends again what others lack."""

    _withheld: dict[bytes, frozenset[PeerId]] = field(default_factory=dict, init=False, repr=False)
    _withheld_in: int = field(default=-1, init=False, repr=False)  # the round of what is withheld

    def withhold(self, message: Message, shown: Iterable[PeerId] = ()) -> None:
        """Keep a statement from everybody but `shown`, until one of another round is withheld."""
        if self._withheld_in != message.statement.round:
            self._withheld_in, self._withheld = message.statement.round, {}
        self._withheld[message.data] = frozenset(shown)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """What an honest peer does, without what is withheld."""
        return [kept for effect in effects if (kept := self._censored(effect)) is not None]

    def _censored(self, effect: Effect) -> Effect | None:
        if not isinstance(effect, Send) or effect.delay_us or not any(data in effect.packet for data in self._withheld):
            return effect
        if not says_it_is(effect.packet, Envelopes):  # another attack may have made blocks, more than a packet holds
            return effect
        packet = decode_packet(effect.packet)
        assert isinstance(packet, Envelopes)
        kept = tuple(data for data in packet.envelopes if effect.to in self._withheld.get(data, {effect.to}))
        return replace(effect, packet=encode_packet(Envelopes(kept))) if kept else None


@dataclass
class EdgeLate(Withholding):
    """Delivers its Commit to `few` members only, at the deadline or up to `late` Delta later.

    While others wait for the attempts that the deadline leads to, one of the few may still bring the Commit in, or not.
    """

    name = "edge_late"
    outcome = "absent"
    few: int = 1
    late: float = 6.0

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, the Commit around its deadline."""
        if not self.attacks(round.round) or not isinstance(message.body, Commit):
            desk.broadcast(message)
            return
        self.withhold(message)
        packet = encode_packet(Envelopes((message.data,)))
        honest = [peer for peer in others(round) if peer not in self.coalition]
        desk.emit(*(Send(packet, peer, self._delay_us(round)) for peer in honest[: self.few]))

    def _delay_us(self, round: Round) -> int:
        timing = round.clock.timing(CONTRIBUTORS)
        draw = random.Random(f"{self.seed}/{round.round}/{round.me.hex()}").uniform(-0.05, self.late)
        return max(1, timing.first_deadline_us - round.compute_ms * 1000 + int(draw * timing.delta_us))


@dataclass
class SelectiveSend(Withholding):
    """Shows its Commit to every other member only."""

    name = "selective_send"

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement."""
        if not self.attacks(round.round) or not isinstance(message.body, Commit):
            desk.broadcast(message)
            return
        shown = others(round)[::2]
        self.withhold(message, shown)
        for peer in shown:
            desk.send(Envelopes((message.data,)), peer)


@dataclass
class AbortLink(Withholding):
    """Never opens its link: it would choose between two values of r[t] if that were worth anything."""

    name = "abort_link"
    outcome = "absent"

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement unless it opens the link."""
        if self.attacks(round.round) and isinstance(message.body, Reveal):
            self.withhold(message)
        else:
            desk.broadcast(message)


@dataclass
class AbortDraw(Withholding):
    """Waits for everybody else's link, and opens its own unless the next validators are friends only without it.

    One of the coalition waits, the others have opened theirs: it alone has seen both draws.
    """

    name = "abort_draw"
    _held: tuple[Message, Round] | None = field(default=None, init=False, repr=False)

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement; the link only when all others are here."""
        present = self.coalition & round.expected_links if isinstance(message.body, Reveal) else frozenset()
        if self.attacks(round.round) and round.me == min(present, default=None):
            self._held = message, round
            self.withhold(message)
        else:
            desk.broadcast(message)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """What an honest peer does, and the held link if opening it is better than an absent seat."""
        said = super().effects(effects, round, now)
        if self._held is None:
            return said
        message, of = self._held
        assert isinstance(message.body, Reveal)
        links = {p: m.body.link for p, m in of.statements.links.items() if isinstance(m.body, Reveal) and p != of.me}
        if len(links) < len(of.expected_links) - 1 and of.block is None:
            return said
        self._held = None
        friends_anyway = self._draws_friends({**links, of.me: message.body.link}, of)
        if not friends_anyway and self._draws_friends(links, of):
            return said
        self._withheld.clear()
        return [*said, Send(encode_packet(Envelopes((message.data,))))]

    def _draws_friends(self, links: dict[PeerId, bytes], round: Round) -> bool:
        """Whether r[t] of these links draws validators of the coalition alone."""
        randomness = table_randomness(round.state.randomness[1], round.round, links)
        drawn = draw_roles(round.roster, randomness, round.round + 1, round.state.genesis.numel).validators
        return bool(drawn) and self.coalition.issuperset(drawn)


@dataclass
class WithholdPart(Adversary):
    """Commits to all parts and gives them to no honest aggregator and no relay, or not to `aggregators` of these."""

    name = "withhold_part"
    aggregators: int = 0
    _withheld: set[bytes] = field(default_factory=set, init=False, repr=False)

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        """The honest parts; those of honest aggregators are remembered."""
        if self.attacks(round.round):
            owners = [round.roles.aggregator(part, 0) for part in range(len(parts))]
            honest = [digest(part) for part, owner in zip(parts, owners, strict=True) if owner not in self.coalition]
            self._withheld = set(honest[: self.aggregators or None])
        return parts

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """Neither keep nor send what is withheld."""
        return [e for e in effects if not (isinstance(e, PutBlob | PushBlob) and e.hash in self._withheld)]


@dataclass
class Freeze(Adversary):
    """Falls silent. It cannot be told from a crash, so it is no crime: it costs the seat."""

    name = "freeze"
    outcome = "absent"

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """Nothing is sent."""
        return [e for e in effects if not (isinstance(e, Send | PushBlob) and self.attacks(round))]


@dataclass
class Flap(Freeze):
    """Falls silent for `span` rounds, is heard for as many, and so on."""

    name = "flap"
    span: int = 2

    def attacks(self, round: int) -> bool:
        """Whether this round is a silent one."""
        return super().attacks(round) and (round // max(1, self.span)) % 2 == 0


@dataclass
class SlowDrip(Adversary):
    """Says everything `delay` Delta late, so that each step waits for it and none is missed."""

    name = "slow_drip"
    delay: float = 0.9
    _delay_us: int = field(default=0, init=False, repr=False)

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement."""
        self._delay_us = int(self.delay * round.clock.delta_us)
        desk.broadcast(message)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """What an honest peer does, later."""
        if not self.attacks(round):
            return effects
        return [replace(e, delay_us=e.delay_us + self._delay_us) if isinstance(e, Send) else e for e in effects]


@dataclass
class OncePerRound(Adversary):
    """Base: adds packets of its own once in every round of the attack."""

    _done: int = field(default=-1, init=False, repr=False)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """What an honest peer does, and more."""
        if round == self._done or not self.attacks(round):
            return effects
        self._done = round
        return [*effects, *self.additions(round)]

    def additions(self, round: int) -> Iterable[Effect]:
        """The packets."""
        raise NotImplementedError


@dataclass
class Garbage(OncePerRound):
    """Bytes that are no message."""

    name = "garbage"

    def additions(self, round: int) -> Iterable[Effect]:
        """Nonsense, and the beginning of a packet."""
        yield Send(b"\xc1" * (1 + round % 100))
        yield Send(encode_packet(Envelopes((b"",)))[:-1])


@dataclass
class Oversize(OncePerRound):
    """What is longer than anything may be: a packet, an envelope, a list of envelopes."""

    name = "oversize"

    def additions(self, round: int) -> Iterable[Effect]:
        """All three."""
        yield Send(bytes(PACKET_BYTES_MAX + 1))
        yield Send(encode_packet(Envelopes((bytes(ENVELOPE_BYTES_MAX + 1),))))
        yield Send(encode_packet(Envelopes((b"",) * 1000)))


@dataclass
class Flood(OncePerRound):
    """`packets` small packets a round to everybody, each of which costs its receiver a parse."""

    name = "flood"
    packets: int = 200

    def additions(self, round: int) -> Iterable[Effect]:
        """Unfounded envelopes."""
        return [
            Send(encode_packet(Envelopes((round.to_bytes(4, "big") + i.to_bytes(4, "big"),))))
            for i in range(self.packets)
        ]


@dataclass
class Replay(Adversary):
    """Sends again, to everybody, what it sent in earlier rounds."""

    name = "replay"
    _sent: dict[int, list[Send]] = field(default_factory=dict, init=False, repr=False)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """What an honest peer sends, and what one sent before, once in every round."""
        fresh = round not in self._sent
        kept = self._sent.setdefault(round, [])
        kept += [e for e in effects if isinstance(e, Send)][: KEPT_PACKETS - len(kept)]
        if not (fresh and self.attacks(round)):
            return effects
        old = [replace(e, to=None) for r, sends in self._sent.items() if r < round for e in sends]
        self._sent = {r: sends for r, sends in self._sent.items() if r >= round - 2}
        return [*effects, *old]
