"""Philox4x32-10: random words that are a function of a key and a counter, so that every device draws the same ones.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3 and table 2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
LOW, HALF = np.uint64(MASK), np.uint64(32)


def philox_words(first: int, count: int, *, key: int, high: int = 0) -> npt.NDArray[np.uint32]:
    """Words of `count` counters from `first` on: uint32 [count, 4].

    key: 64 bits (low word first); the 128-bit counter is (counter as 64 bits, `high` as 64 bits), low word first.
    """
    counter = np.arange(count, dtype=np.uint64) + np.uint64(first)
    c0, c1 = counter & LOW, counter >> HALF
    c2, c3 = np.full(count, high & MASK, dtype=np.uint64), np.full(count, high >> 32, dtype=np.uint64)
    k0, k1 = key & MASK, key >> 32
    for _ in range(ROUNDS):
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (b >> HALF) ^ c1 ^ np.uint64(k0)
        c2 = (a >> HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = b & LOW, a & LOW
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return np.stack((c0, c1, c2, c3), 1).astype(np.uint32)
