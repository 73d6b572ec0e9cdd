"""Peers on a network: identity-bound links for messages and blobs over libp2p and TLS. It knows bytes, not gradients.

    async with open_network(key, handler=handler, run_tag=b"my run") as network:
        await network.connect("/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...")
        network.send_control(peer, b"...")

Importing this package imports neither libp2p nor trio; the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btrain.p2p.handler import Handler
    from btrain.p2p.limits import Limits, Traffic
    from btrain.p2p.network import Network, open_network

__all__ = ["Handler", "Limits", "Network", "Traffic", "open_network"]


_HOME = {"Handler": "handler", "Limits": "limits", "Traffic": "limits"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'network')}"), name)
