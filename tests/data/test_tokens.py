"""Windows of tokens: text, the standard library, token files."""

from __future__ import annotations

import math
import struct
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.data import TokenSource, open_source
from btrain.data.text import STDLIB_MODULES
from btrain.data.token_file import read_token_file
from btrain.errors import ConfigError


def source_of(count: int, context: int) -> TokenSource:
    tokens = (np.arange(count) % 251).astype(np.uint8)
    return TokenSource("test", tokens, tokens, vocabulary=256, context=context)


def test_training_windows_overlap_and_targets_are_one_later() -> None:
    source = source_of(20, context=4)
    assert len(source) == 16
    inputs, targets = source.batch(np.array([0, 15, 3]))
    assert inputs.tolist() == [[0, 1, 2, 3], [15, 16, 17, 18], [3, 4, 5, 6]]
    assert targets.tolist() == [[1, 2, 3, 4], [16, 17, 18, 19], [4, 5, 6, 7]]
    assert inputs.is_contiguous()
    assert targets.is_contiguous()


@given(count=st.integers(2, 250), context=st.integers(1, 16))
def test_held_out_windows_are_disjoint_and_cover_the_text(count: int, context: int) -> None:
    if count <= context:
        return
    held_out = source_of(count, context).split("eval")
    inputs, targets = held_out.batch(np.arange(len(held_out)))
    assert len(held_out) == (count - 1) // context
    assert sorted(inputs.flatten().tolist()) == list(range(len(held_out) * context))
    assert sorted(targets.flatten().tolist()) == list(range(1, len(held_out) * context + 1))


def test_first_held_out_windows_are_spread_over_the_text() -> None:
    held_out = source_of(200, context=2).split("eval")
    starts = held_out.batch(np.arange(20))[0][:, 0]
    assert np.bincount(starts.numpy() // 50).min() >= 4


def test_too_little_text_for_the_context() -> None:
    with pytest.raises(ConfigError, match="too few for a context of 20"):
        source_of(20, context=20)


def test_unigram_entropy() -> None:
    tokens = np.array([0, 0, 1, 1, 2, 2, 3, 3] * 10, dtype=np.uint8)
    assert TokenSource("t", tokens, tokens, vocabulary=256, context=2).unigram_entropy() == pytest.approx(math.log(4))


def test_stdlib_text() -> None:
    source = open_source({"builtin": "stdlib_text"}, context=16)
    assert isinstance(source, TokenSource)
    assert source.vocabulary == 256
    assert source.sample_shape == (16,)
    assert 1.5e6 < len(source) < 5e6
    assert 0.04 < len(source.split("eval")) * 16 / len(source) < 0.06
    assert 2.5 < source.unigram_entropy() < 3.5
    inputs, _ = source.batch(np.array([0]))
    first = (Path(sysconfig.get_path("stdlib")) / f"{STDLIB_MODULES[0]}.py").read_bytes()[:16]
    assert bytes(inputs[0].tolist()) == first
    assert source.fingerprint() == open_source({"builtin": "stdlib_text"}, context=64).fingerprint()


def test_stdlib_without_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"without its sources: use data\.text: FILE"):
        open_source({"builtin": "stdlib_text"})


def test_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 20)
    (tmp_path / "copy.txt").write_bytes(b"0123456789" * 20)
    (tmp_path / "held.txt").write_bytes(b"abcdefghij")
    source = open_source({"text": "a.txt"}, context=4, base=tmp_path)
    assert len(source) == 190 - 4
    assert bytes(source.batch(np.array([9]))[0][0].tolist()) == b"9012"
    assert source.fingerprint() == open_source({"text": "copy.txt"}, context=8, base=tmp_path).fingerprint()
    separate = open_source({"text": "a.txt", "eval": "held.txt"}, context=4, base=tmp_path)
    assert len(separate) == 200 - 4
    assert separate.fingerprint() != source.fingerprint()
    assert {bytes(row.tolist()) for row in separate.split("eval").batch(np.arange(2))[0]} == {b"abcd", b"efgh"}


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read: No such file"):
        open_source({"text": "none.txt"}, base=tmp_path)


def headed(tokens: list[int], magic: int = 20240520, version: int = 1, promised: int | None = None) -> bytes:
    header = struct.pack("<3i", magic, version, len(tokens) if promised is None else promised)
    return header.ljust(1024, b"\0") + np.array(tokens, dtype="<u2").tobytes()


def test_token_files_with_and_without_header(tmp_path: Path) -> None:
    tokens = [i * 7 % 400 for i in range(400)]
    (tmp_path / "raw.bin").write_bytes(np.array(tokens, dtype="<u2").tobytes())
    (tmp_path / "headed.bin").write_bytes(headed(tokens))
    raw = open_source({"tokens": "raw.bin"}, context=8, base=tmp_path)
    assert raw.vocabulary == 400
    assert raw.batch(np.array([2]))[0][0].tolist() == tokens[2:10]
    assert raw.batch(np.array([2]))[1][0].tolist() == tokens[3:11]
    assert open_source({"tokens": "headed.bin"}, context=8, base=tmp_path).fingerprint() == raw.fingerprint()
    wide = open_source({"tokens": "raw.bin", "vocabulary": 50257}, context=8, base=tmp_path)
    assert wide.vocabulary == 50257
    with pytest.raises(ConfigError, match="token 399, outside the vocabulary of 300"):
        open_source({"tokens": "raw.bin", "vocabulary": 300}, base=tmp_path)
    both = open_source({"tokens": "raw.bin", "eval": "headed.bin"}, context=8, base=tmp_path)
    assert (len(both), len(both.split("eval"))) == (392, 49)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no sequence"),
        (b"abc", "3 bytes are no sequence"),
        (headed([1, 2], version=2), "version 2, expected 1"),
        (headed([1, 2], promised=3), "promises 3 tokens, the file holds 2"),
        (headed([1, 2])[:100], "no sequence"),
        (headed([1, 2]) + b"x", "no sequence"),
    ],
)
def test_wrong_token_files(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "t.bin"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=message) as refused:
        read_token_file(file)
    assert str(file) in str(refused.value)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.bin: cannot be read"):
        open_source({"tokens": str(tmp_path / "gone.bin")})
