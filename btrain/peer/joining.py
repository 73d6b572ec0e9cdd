"""Reaching the peers named by --join: until the run is founded, and whenever a member has lost everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import trio

from btrain.errors import NetworkError
from btrain.p2p import Network
from btrain.p2p.addresses import parse_peer_address
from btrain.p2p.errors import LinkLost, MalformedAddress, OwnIdentity, PeerUnreachable, WrongPeer, WrongRun
from btrain.protocol.encoding import PeerId

PATIENCE_S = 6.0  # how long addresses are tried; one attempt, of at most 10 s, may follow
PAUSE_S = 0.5
ALONE_PAUSE_S = 5.0


class Joining:
    """Dials the addresses. `settled()`: the run is known, so that this peer can also wait for others to dial it."""

    def __init__(self, network: Network, addresses: Iterable[str], settled: Callable[[], bool]) -> None:
        self._network, self._settled = network, settled
        self._peers = {address: parse_peer_address(address).peer for address in addresses}
        self._lost: dict[str, NetworkError] = {}
        self._reached = False

    @property
    def targets(self) -> set[PeerId]:
        """Whom this peer asked for."""
        return {peer for peer in self._peers.values() if peer is not None}

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            NetworkError: no address led to a peer of this run, and nobody has dialled this one.
        """
        async with trio.open_nursery() as nursery:
            for address in self._peers:
                nursery.start_soon(partial(self._keep, address))

    async def _keep(self, address: str) -> None:
        begin = trio.current_time()
        while True:
            if not self._settled() or not self._network.peers:
                try:
                    await self._network.connect(address)
                    self._reached = True
                except (WrongPeer, WrongRun, MalformedAddress, OwnIdentity) as error:
                    self._lose(address, error)
                    return
                except NetworkError as error:
                    if trio.current_time() - begin > PATIENCE_S:
                        self._lose(address, error)
            await trio.sleep(ALONE_PAUSE_S if self._settled() else PAUSE_S)

    def _lose(self, address: str, error: NetworkError) -> None:
        """Give up when the last address is lost; a wrong answer tells more than none."""
        self._lost[address] = error
        if self._reached or self._settled() or self._network.peers or len(self._lost) < len(self._peers):
            return
        silent = [e for e in self._lost.values() if isinstance(e, PeerUnreachable | LinkLost)]
        answered = [e for e in self._lost.values() if e not in silent]
        if answered:
            raise answered[0]
        first = silent[0]
        advice = f"tried for {PATIENCE_S:.0f} s; is that peer running, and is the address the one it printed?"
        raise PeerUnreachable(f"{first}; {advice}") from first
