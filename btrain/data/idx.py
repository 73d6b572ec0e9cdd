"""The IDX files of MNIST, plain or gzipped: two zero bytes, a type byte, the rank, big-endian sizes, the values."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btrain.errors import ConfigError

UNSIGNED_BYTE = 0x08
RANK_MAX = 4
FILE_BYTES_MAX = 1 << 30


class IdxError(ConfigError):
    """An IDX file is missing, damaged or not what was expected; the message names the file."""


def read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """The unsigned bytes of the IDX file `path`, which must have `rank` dimensions; gzip is recognised by its magic.

    Raises IdxError for anything else, trailing bytes included.
    """
    data = _read(path)
    if len(data) < 4 or data[0] != 0 or data[1] != 0:
        raise IdxError(f"{path}: no IDX file: expected it to begin with two zero bytes")
    if data[2] != UNSIGNED_BYTE:
        raise IdxError(f"{path}: IDX values of type 0x{data[2]:02x}, expected unsigned bytes (0x08)")
    if data[3] != rank or rank > RANK_MAX:
        raise IdxError(f"{path}: IDX file with {data[3]} dimensions, expected {rank}")
    start = 4 + 4 * rank
    if len(data) < start:
        raise IdxError(f"{path}: IDX header is cut off after {len(data)} bytes, expected {start}")
    sizes = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=rank, offset=4))
    values = math.prod(sizes)
    if len(data) - start != values:
        raise IdxError(f"{path}: IDX header promises {values} values for {sizes}, the file holds {len(data) - start}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(sizes)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            data: bytes = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise IdxError(f"{path}: cannot be read: {error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise IdxError(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    return data
