"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 70,000 images of clothes, 28x28, ten classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from btrain.data.arrays import ArraySource
from btrain.data.idx import IdxError, read_idx
from btrain.data.source import Batch
from btrain.errors import ConfigError

DEFAULT_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("~/.cache/btrain/fashion-mnist"))
MEAN = 0.286
DEVIATION = 0.353


def open_fashion_mnist(folder: Path | None = None) -> ArraySource:
    """Images as float32 [B, 1, 28, 28], normalised, with labels 0..9; the published train and test sets.

    `folder` holds the four IDX files, plain or gzipped. Raises ConfigError that names the file and what to do.
    """
    found = folder if folder is not None else _default_folder()
    return ArraySource(
        "fashion_mnist",
        {"train": _read_pair(found, "train"), "eval": _read_pair(found, "t10k")},
        classes=10,
        shift=255.0 * MEAN,
        scale=255.0 * DEVIATION,
    )


def _default_folder() -> Path:
    for folder in DEFAULT_FOLDERS:
        if folder.expanduser().is_dir():
            return folder.expanduser()
    raise ConfigError(
        "data.builtin fashion_mnist: no data in " + " or ".join(str(folder) for folder in DEFAULT_FOLDERS) + "; "
        "on Debian and Ubuntu run: apt-get install dataset-fashion-mnist   "
        "(or give data.path, a folder with the four idx files)"
    )


def _read_pair(folder: Path, prefix: str) -> Batch:
    images = read_idx(_locate(folder, f"{prefix}-images-idx3-ubyte"), rank=3)
    labels_file = _locate(folder, f"{prefix}-labels-idx1-ubyte")
    labels = read_idx(labels_file, rank=1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise IdxError(f"{labels_file}: {len(labels)} labels do not go with images of {images.shape}")
    return torch.from_numpy(images[:, np.newaxis].copy()), torch.from_numpy(labels.astype(np.int64))


def _locate(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"data.builtin fashion_mnist: {folder} holds neither {name} nor {name}.gz")
