"""The 1,797 handwritten digits of 8x8 pixels (UCI, 1998) that scikit-learn ships as a file."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from btrain.data.arrays import ArraySource
from btrain.errors import ConfigError

ROWS = 1797
PIXELS = 64
TRAIN_ROWS = 1500
FILE_BYTES_MAX = 1 << 20


def open_digits(path: Path | None = None) -> ArraySource:
    """Digits as float32 [B, 1, 8, 8] in 0..1 with labels 0..9; 1,500 for training, 297 held out.

    Reads `path`, or the file inside an installed scikit-learn, which is not imported. Raises ConfigError.
    """
    table = _read_table(path if path is not None else _installed_file())
    # The file is ordered by writer; a fixed permutation gives both splits the same writers.
    table = table[_fixed_order(ROWS)]
    pixels = torch.from_numpy(table[:, :PIXELS].reshape(ROWS, 1, 8, 8).astype(np.uint8))
    labels = torch.from_numpy(table[:, PIXELS].astype(np.int64))
    return ArraySource(
        "digits",
        {
            "train": (pixels[:TRAIN_ROWS], labels[:TRAIN_ROWS]),
            "eval": (pixels[TRAIN_ROWS:], labels[TRAIN_ROWS:]),
        },
        classes=10,
        scale=16.0,
    )


def _installed_file() -> Path:
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return file
    raise ConfigError(
        "data.builtin digits: needs the digits file of scikit-learn, which is not installed; "
        "run: pip install 'btrain[demo]'   (or give data.path, the path of a digits.csv.gz)"
    )


def _read_table(path: Path) -> npt.NDArray[np.int64]:
    """The rows of `path` as int64 [1797, 65]: 64 pixels of 0..16, then the label."""
    try:
        with gzip.open(path, "rb") as stream:
            text = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"data.builtin digits: cannot read {path}: {error}; expected scikit-learn's digits.csv.gz"
        ) from error
    try:
        table = np.array([line.split(b",") for line in text.split()], dtype=np.float64)
    except ValueError as error:
        raise ConfigError(f"data.builtin digits: {path} is no table of numbers: {error}") from error
    if table.shape != (ROWS, PIXELS + 1):
        raise ConfigError(f"data.builtin digits: {path} holds a table of {table.shape}, expected {(ROWS, PIXELS + 1)}")
    whole = table.astype(np.int64)
    highest = np.array([16] * PIXELS + [9])
    if not np.array_equal(whole, table) or whole.min() < 0 or bool((whole > highest).any()):
        raise ConfigError(f"data.builtin digits: {path} holds values outside 0..16 (pixels) or 0..9 (labels)")
    return whole


def _fixed_order(count: int) -> npt.NDArray[np.int64]:
    """A permutation of range(count) that depends on no library's generator."""
    stream = hashlib.shake_256(b"btrain/digits/order/v1").digest(8 * count)
    return np.argsort(np.frombuffer(stream, dtype="<u8"), kind="stable").astype(np.int64)
