"""Where members are reached, kept in the run directory: what finds the others after a restart without --join."""

from __future__ import annotations

from collections.abc import Iterable

from btrain.identity import peer_id_bytes, peer_id_text
from btrain.p2p import Network
from btrain.p2p.addresses import parse_address
from btrain.p2p.errors import MalformedAddress
from btrain.peer.store import Addresses, Store
from btrain.protocol.encoding import PeerId


class Whereabouts:
    """The file peers.json and the network's book of addresses, kept alike."""

    def __init__(self, store: Store) -> None:
        self._store = store
        known = store.addresses()
        self.joins = known.joins
        self._own = known.own
        self._peers = {peer_id_bytes(text): addresses for text, addresses in known.peers.items()}
        self._network: Network | None = None

    def listen_again(self, listen: str) -> str | None:
        """An address with the port of last time in place of port 0: those who know it find this peer again."""
        if not listen.endswith("/tcp/0") or not self._own:
            return None
        try:
            port = parse_address(self._own[0]).port
        except MalformedAddress:
            return None
        return f"{listen.removesuffix('0')}{port}"

    def open(self, network: Network) -> None:
        """Tell the network what is known, and remember where this peer is."""
        self._network = network
        self._own = tuple(network.addresses)
        for peer, addresses in self._peers.items():
            network.learn(peer, addresses)
        self._save()

    def keep_joins(self, joins: tuple[bytes, ...]) -> None:
        """The founders' Joins, to be handed to newcomers."""
        self.joins = joins
        self._save()

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """A peer says, or has shown by connecting, where it is reached."""
        listed = tuple(addresses)
        if listed and self._peers.get(peer) != listed:
            self._peers[peer] = listed
            if self._network is not None:
                self._network.learn(peer, listed)
            self._save()

    def forget_all_but(self, members: set[PeerId]) -> None:
        """Strangers that never got a seat are not worth remembering."""
        if self._peers.keys() - members:
            self._peers = {peer: listed for peer, listed in self._peers.items() if peer in members}
            self._save()

    def _save(self) -> None:
        peers = {peer_id_text(peer): listed for peer, listed in sorted(self._peers.items())}
        self._store.save_addresses(Addresses(peers, self._own, self.joins))
