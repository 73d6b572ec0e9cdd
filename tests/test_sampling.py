"""The sampler: golden values, range, independence of anything but the seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.sampling import SamplingError, batch_indices, sample_seed

SEED = bytes(range(32))
GOLDEN_1500 = [525, 129, 780, 975, 501, 1392]
GOLDEN_LARGE = [180370761657938025, 6574459994614903629, 1388550023433198780]
GOLDEN_SAMPLE_0 = "f5c37063411be78356eeb1666d103601758ed9a697a49f6ae71bd5f317c732b4"


def test_golden_indices() -> None:
    assert batch_indices(SEED, 6, 1500).tolist() == GOLDEN_1500
    assert batch_indices(SEED, 3, (1 << 63) - 1).tolist() == GOLDEN_LARGE


def test_golden_sample_seed() -> None:
    assert sample_seed(SEED, 0).hex() == GOLDEN_SAMPLE_0
    assert sample_seed(SEED, 1) != sample_seed(SEED, 0)


@given(seed=st.binary(min_size=32, max_size=32), count=st.integers(0, 50), samples=st.integers(1, 1 << 62))
def test_indices_are_the_stream_modulo_the_number_of_samples(seed: bytes, count: int, samples: int) -> None:
    stream = hashlib.shake_256(seed).digest(8 * count)
    expected = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") % samples for i in range(count)]
    indices = batch_indices(seed, count, samples)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


def test_a_longer_batch_begins_with_the_shorter() -> None:
    assert batch_indices(SEED, 100, 77)[:10].tolist() == batch_indices(SEED, 10, 77).tolist()


def test_indices_are_spread_evenly() -> None:
    counts = np.bincount(batch_indices(SEED, 100_000, 10), minlength=10)
    assert abs(counts - 10_000).max() < 500


@pytest.mark.parametrize(("seed", "count", "samples"), [(b"", 1, 1), (bytes(31), 1, 1), (SEED, -1, 5), (SEED, 1, 0)])
def test_wrong_arguments(seed: bytes, count: int, samples: int) -> None:
    with pytest.raises(SamplingError):
        batch_indices(seed, count, samples)
