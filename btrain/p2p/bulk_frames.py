"""The frames of the bulk plane: a header (type, bytes in this frame, bytes of the blob, its SHA-256) and the payload.

A blob above `CHUNK_BYTES` goes in chunks; one such blob is under way at a time and direction, smaller ones pass between
its chunks.
"""

from __future__ import annotations

import struct

from btrain.p2p.limits import KIB

CHUNK_BYTES = 256 * KIB
HEADER = struct.Struct("!BIQ32s")
DATA, BYE, BYE_ACK = 1, 2, 3
NO_HASH = bytes(32)
