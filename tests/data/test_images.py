"""Digits and Fashion-MNIST as sources."""

from __future__ import annotations

import builtins
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from btrain.data import ArraySource, open_source
from btrain.errors import ConfigError

DIGITS = {"builtin": "digits"}


@pytest.fixture(scope="module")
def digits() -> ArraySource:
    source = open_source(DIGITS)
    assert isinstance(source, ArraySource)
    return source


def test_digits_split_and_values(digits: ArraySource) -> None:
    held_out = digits.split("eval")
    assert (len(digits), len(held_out)) == (1500, 297)
    assert digits.classes == 10
    images, labels = digits.batch(np.arange(1500))
    assert images.shape == (1500, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert torch.equal(images * 16, (images * 16).round())
    assert labels.bincount().min() > 120
    held_out_labels = held_out.batch(np.arange(297))[1]
    assert held_out_labels.bincount(minlength=10).min() > 15


def test_digits_fingerprint_is_the_content(digits: ArraySource) -> None:
    expected = "83a42e5fb20994823adbe198c2379c63e12147aa034b6c5ed55b090019333888"
    assert digits.fingerprint() == digits.split("eval").fingerprint() == expected


def test_digits_are_read_without_importing_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *rest: object, **named: object) -> object:
        assert name.partition(".")[0] != "sklearn"
        return real_import(name, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    before = set(sys.modules)
    open_source(DIGITS)
    assert not [name for name in set(sys.modules) - before if name.startswith("sklearn")]


def test_digits_without_sklearn_name_the_extra_or_take_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: ArraySource
) -> None:
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations
    original = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    copy = tmp_path / "copy.csv.gz"
    copy.write_bytes(gzip.compress(gzip.decompress(original.read_bytes()), compresslevel=1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'btrain\[demo\]'"):
        open_source(DIGITS)
    assert open_source({**DIGITS, "path": "copy.csv.gz"}, base=tmp_path).fingerprint() == digits.fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain", "cannot read"),
        (gzip.compress(b"a,b\n", mtime=0), "no table of numbers"),
        (gzip.compress(b"1,2\n1\n", mtime=0), "no table of numbers"),
        (gzip.compress(b"1,2\n", mtime=0), r"table of \(1, 2\)"),
        (gzip.compress(b"17," * 64 + b"0\n" + (b"1," * 64 + b"0\n") * 1796, mtime=0), "outside"),
        (gzip.compress((b"0.5," * 64 + b"0\n") * 1797, mtime=0), "outside"),
    ],
)
def test_wrong_digits_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "digits.csv.gz"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        open_source({**DIGITS, "path": str(file)})
    assert str(file) in str(refused.value)


def idx_bytes(sizes: tuple[int, ...], values: bytes) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes) + values


def fashion_folder(folder: Path, suffix: str = "", images: int = 5) -> Path:
    folder.mkdir()
    for prefix, first in (("train", 0), ("t10k", 100)):
        pixels = bytes((first + i) % 256 for i in range(images * 784))
        files = {
            f"{prefix}-images-idx3-ubyte": idx_bytes((images, 28, 28), pixels),
            f"{prefix}-labels-idx1-ubyte": idx_bytes((5,), bytes([0, 1, 2, 3, 9])),
        }
        for name, data in files.items():
            (folder / (name + suffix)).write_bytes(gzip.compress(data, mtime=0) if suffix else data)
    return folder


def test_fashion_mnist_from_plain_and_gzipped_files(tmp_path: Path) -> None:
    plain = open_source({"builtin": "fashion_mnist", "path": str(fashion_folder(tmp_path / "a"))})
    zipped = open_source({"builtin": "fashion_mnist", "path": str(fashion_folder(tmp_path / "b", ".gz"))})
    assert plain.fingerprint() == zipped.fingerprint()
    assert plain.fingerprint() != open_source(DIGITS).fingerprint()
    images, labels = zipped.split("eval").batch(np.array([4, 0]))
    assert images.shape == (2, 1, 28, 28)
    assert labels.tolist() == [9, 0]
    assert images[1, 0, 0, 0] == pytest.approx((100 / 255 - 0.286) / 0.353, rel=1e-6)


def test_fashion_mnist_problems(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds neither train-images-idx3-ubyte"):
        open_source({"builtin": "fashion_mnist", "path": str(tmp_path)})
    folder = fashion_folder(tmp_path / "four", images=4)
    with pytest.raises(ConfigError, match=r"train-labels-idx1-ubyte: 5 labels do not go with"):
        open_source({"builtin": "fashion_mnist", "path": str(folder)})


def test_fashion_mnist_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("btrain.data.fashion_mnist.DEFAULT_FOLDERS", (tmp_path / "none",))
    with pytest.raises(ConfigError, match="apt-get install dataset-fashion-mnist"):
        open_source({"builtin": "fashion_mnist"})


def test_batches_are_pure_and_leave_the_data_alone(digits: ArraySource) -> None:
    indices = np.array([3, 3, 7], dtype=np.int64)
    first = digits.batch(indices)
    first[0].zero_()
    first[1].zero_()
    again = digits.batch(indices)
    assert again[0].abs().sum() > 0
    assert torch.equal(again[0][0], again[0][1])


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 2]), "outside 0..1"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "outside 0..1"),
        (torch.zeros(2, 3), torch.tensor([0]), "one label for each row"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one row"),
        (torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1]), "float32"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_arrays_that_do_not_fit(inputs: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ArraySource("mine", {"train": (inputs, labels), "eval": (inputs, labels)}, classes=2)


def test_fingerprint_sees_every_part() -> None:
    def source(pixel: float = 0.0, label: int = 0, held_out: float = 0.0, scale: float = 1.0) -> ArraySource:
        train = (torch.tensor([[pixel]]), torch.tensor([label]))
        return ArraySource(
            "mine", {"train": train, "eval": (torch.tensor([[held_out]]), torch.tensor([0]))}, classes=2, scale=scale
        )

    variants = [source(), source(pixel=1.0), source(label=1), source(held_out=1.0), source(scale=2.0)]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
