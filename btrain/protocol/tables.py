"""What an aggregator publishes about a part once r[t] is known: for every contributor its distance and its sketch.

A row follows from the committed bytes, the reduced bytes and the seed, with the same bits on every machine: exact
integers in a block, float64 over blocks in a fixed order, one rounding: of the distance to float32, of the buckets to
multiples of the largest one's 32767th. So a sender recomputes its own row and compares bytes. Numbers in rows are in
units of 2^24: the codec's largest legal vectors still fit into float32.

Legend: N contributors, 64 buckets.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from btrain.aggregation.geometry import squared_distances
from btrain.aggregation.ordered import F64
from btrain.kernels import QuantizedBlocks, block_gram, sketch
from btrain.protocol.encoding import Hash, PeerId, sha256
from btrain.protocol.messages import ROW_BYTES
from btrain.protocol.randomness import next_randomness

UNIT = 2.0**24
BUCKETS = 64
CODE_MAX = 32767
HEAD_BYTES = 8  # norm and peak, float32


class Row(NamedTuple):
    """A contributor's row: |g_i - v|, and S(g_i) as multiples of `peak` / 32767, all in units of 2^24.

    Its numbers may be anything unless it is `legal`.
    """

    norm: float
    peak: float
    codes: F64

    @property
    def legal(self) -> bool:
        """Whether `packed` could have made it: in particular its steps are as fine as its buckets allow."""
        largest = float(np.abs(self.codes).max())
        fine = largest == 0 if self.peak == 0 else CODE_MAX // 2 <= largest <= CODE_MAX
        return math.isfinite(self.norm) and self.norm >= 0 and math.isfinite(self.peak) and self.peak >= 0 and fine

    @property
    def buckets(self) -> F64:
        """S(g_i), rounded, float64 [64]."""
        return self.codes * self.peak / CODE_MAX

    @property
    def error(self) -> float:
        """The length of the rounding error of the buckets at most: half a step in each."""
        return math.sqrt(BUCKETS) * self.peak / (2 * CODE_MAX)


def sketch_seed(randomness: bytes, part: int) -> bytes:
    """The seed under which everything of a part is sketched."""
    return sha256(b"btrain/sketch/v1", randomness, part.to_bytes(8, "little"))


def row_of(part: QuantizedBlocks, result: QuantizedBlocks, seed: bytes) -> bytes:
    """The row of one contributor, little-endian: the norm and the peak in float32, the 64 buckets in int16."""
    return rows_of([part], result, seed)[0]


def rows_of(parts: Sequence[QuantizedBlocks | None], result: QuantizedBlocks, seed: bytes) -> tuple[bytes, ...]:
    """The rows of all contributors; an empty one where the committed bytes are no legal encoding."""
    legal = [part for part in parts if part is not None]
    sketches = iter(sketches_of(legal, seed)) if legal else iter(())
    return tuple(b"" if part is None else packed(distance(part, result), next(sketches)) for part in parts)


def packed(norm: float, sketch_S: F64) -> bytes:
    """A row. The peak is the largest bucket's magnitude rounded up, so that no code is beyond the largest."""
    largest = float(np.abs(sketch_S).max())
    peak = np.float32(largest)
    if 0 < float(peak) < largest:  # not in float32, where NumPy would compare the two equal
        peak = np.nextafter(peak, np.float32(np.inf))
    codes_S = np.rint(sketch_S * (CODE_MAX / float(peak))) if peak else np.zeros(BUCKETS)
    return np.array([norm, peak], "<f4").tobytes() + codes_S.astype("<i2").tobytes()


def distance(part: QuantizedBlocks, result: QuantizedBlocks) -> float:
    """|g - v| in units of 2^24."""
    gram_22 = block_gram([part.codes, result.codes], [part.scales, result.scales]).cpu().numpy()
    return math.sqrt(squared_distances(gram_22)[0, 1]) / UNIT


def sketches_of(vectors: Sequence[QuantizedBlocks], seed: bytes) -> F64:
    """S(x) of one vector or more of one length, in units of 2^24, float64 [N, 64]."""
    sketches_NS = sketch([q.codes for q in vectors], [q.scales for q in vectors], seed)
    scaled_NS: F64 = sketches_NS.cpu().numpy() / UNIT
    return scaled_NS


def sketch_of(vector: QuantizedBlocks, seed: bytes) -> F64:
    """S(x) in units of 2^24, float64 [64]."""
    sketch_S: F64 = sketches_of([vector], seed)[0]
    return sketch_S


def read_row(row: bytes) -> Row:
    """A row of a Table, `ROW_BYTES` long."""
    assert len(row) == ROW_BYTES
    norm, peak = np.frombuffer(row[:HEAD_BYTES], "<f4")
    return Row(float(norm), float(peak), np.frombuffer(row[HEAD_BYTES:], "<i2").astype(np.float64))


# --- the links that a table rests on ---


def link_mask(members: Sequence[PeerId], linked: Collection[PeerId]) -> bytes:
    """One bit for each of `members`, in their order, from the lowest on: whose links were used."""
    bits = sum(1 << i for i, peer in enumerate(members) if peer in linked)
    return bits.to_bytes(-(-len(members) // 8), "little")


def masked(members: Sequence[PeerId], mask: bytes) -> tuple[PeerId, ...] | None:
    """The members that a mask names; None if it is none for so many members."""
    bits = int.from_bytes(mask, "little")
    if len(mask) != -(-len(members) // 8) or bits >> len(members):
        return None
    return tuple(peer for i, peer in enumerate(members) if bits >> i & 1)


def table_randomness(previous: bytes, round: int, links: Mapping[PeerId, Hash]) -> bytes:
    """What r[t] would be with these links; a Table's ctx."""
    return next_randomness(previous, round, [links[peer] for peer in sorted(links)])
