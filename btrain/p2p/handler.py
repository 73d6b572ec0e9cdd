"""What the network tells the layer above."""

from __future__ import annotations

from typing import Protocol

from btrain.p2p.outgoing import BlobSource


class Handler(Protocol):
    """What happens on the network. Called in the trio thread; must return quickly and may call the network.

    An exception that leaves a method ends the link it concerns and nothing else. Messages of one peer arrive in order,
    and so do blobs of one size class; between messages and blobs there is no order.
    """

    def control(self, peer: bytes, data: bytes) -> None:
        """A message; of a stranger if `peer` is no member."""

    def blob(self, peer: bytes, blob_hash: bytes, data: bytes) -> None:
        """A blob, requested or pushed; it has the hash."""

    def blob_missing(self, peer: bytes, blob_hash: bytes) -> None:
        """A requested blob will not come: the peer lacks it, is gone, or has taken too long."""

    def blob_wanted(self, peer: bytes, blob_hash: bytes) -> BlobSource | None:
        """The blob a member asks for: its bytes, the file that holds it, or None."""

    def connected(self, peer: bytes) -> None:
        """Messages and blobs can be sent."""

    def disconnected(self, peer: bytes, reason: str) -> None:
        """The link is gone; what was queued may or may not have arrived."""

    def misbehaved(self, peer: bytes, reason: str) -> None:
        """The peer sent what no honest peer sends and is kept away for a while; `disconnected` follows if it was
        connected."""
