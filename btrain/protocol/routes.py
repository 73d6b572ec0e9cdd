"""Which pairs of members have no working link, and who relays for them: remembered over rounds by those concerned."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from btrain.protocol.encoding import PeerId

ROUTE_ROUNDS = 64  # how long a pair keeps its relay before it tries its own link again

Pair = tuple[PeerId, PeerId]  # worker, aggregator


@dataclass
class Routes:
    """What a member remembers over rounds: relays of its own pairs, and the pairs that it relays for."""

    via: dict[PeerId, tuple[PeerId, int]] = field(default_factory=dict)  # aggregator -> its relay and since when
    carried: OrderedDict[Pair, int] = field(default_factory=OrderedDict)  # pair -> since when

    def keep(self, aggregator: PeerId, relay: PeerId, round: int) -> None:
        """Send parts for this aggregator to a relay from now on; what has expired goes, members that left with it."""
        self.via = {peer: (kept, since) for peer, (kept, since) in self.via.items() if round - since < ROUTE_ROUNDS}
        self.via[aggregator] = (relay, round)

    def relay_to(self, aggregator: PeerId, round: int) -> PeerId:
        """Where a part for this aggregator is sent."""
        relay, since = self.via.get(aggregator, (aggregator, 0))
        return relay if round - since < ROUTE_ROUNDS else aggregator

    def carries(self, pair: Pair, round: int) -> bool:
        """Whether this member relays for a pair without being asked again."""
        return round - self.carried.get(pair, -ROUTE_ROUNDS) < ROUTE_ROUNDS

    def carry(self, pair: Pair, round: int, pairs_max: int) -> None:
        """Relay for a pair from now on; the oldest pair goes when there are too many."""
        self.carried[pair] = round
        self.carried.move_to_end(pair)
        while len(self.carried) > pairs_max:
            self.carried.popitem(last=False)

    def connected(self, peer: PeerId) -> None:
        """There is a link again."""
        self.via.pop(peer, None)
