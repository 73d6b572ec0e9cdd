"""The peer that wires it all: the run directory, the network, the protocol and the training loop of one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btrain.peer.options import PeerOptions
    from btrain.peer.running import run_peer

__all__ = ["PeerOptions", "run_peer"]


def __getattr__(name: str) -> Any:
    if name == "PeerOptions":
        from btrain.peer.options import PeerOptions

        return PeerOptions
    if name == "run_peer":
        from btrain.peer.running import run_peer

        return run_peer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
