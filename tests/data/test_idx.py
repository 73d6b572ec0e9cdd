"""IDX files: what is read, and everything that is refused by name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.data.idx import IdxError, read_idx


def idx_bytes(sizes: tuple[int, ...], values: bytes, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes) + values


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_plain_and_gzipped(tmp_path: Path, zipped: bool) -> None:
    data = idx_bytes((2, 3), bytes(range(6)))
    file = tmp_path / "x"
    file.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    assert read_idx(file, rank=2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "two zero bytes"),
        (b"\1\0\x08\1", "two zero bytes"),
        (idx_bytes((2,), b"ab", kind=0x0D), "0x0d"),
        (idx_bytes((1, 2), b"ab"), "2 dimensions, expected 1"),
        (idx_bytes((2,), b"ab")[:6], "cut off"),
        (idx_bytes((2,), b"a"), "promises 2 values"),
        (idx_bytes((2,), b"abc"), "promises 2 values"),
        (idx_bytes((0xFFFFFFFF,), b""), "promises 4294967295 values"),
        (gzip.compress(idx_bytes((2,), b"ab"), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8bnonsense", "cannot be read"),
    ],
)
def test_refuses_malformed_files(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "labels"
    file.write_bytes(data)
    with pytest.raises(IdxError, match=message) as refused:
        read_idx(file, rank=1)
    assert str(file) in str(refused.value)


def test_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IdxError, match=r"nowhere: cannot be read"):
        read_idx(tmp_path / "nowhere", rank=1)


@given(data=st.binary(max_size=64), rank=st.integers(1, 4))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, rank: int) -> None:
    file = tmp_path_factory.mktemp("idx") / "x"
    file.write_bytes(data)
    try:
        values = read_idx(file, rank)
    except IdxError:
        return
    assert idx_bytes(values.shape, np.ascontiguousarray(values).tobytes()) == data
