"""The `data:` section: every wrong use is one clear message."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from btrain.data import open_source
from btrain.errors import ConfigError

MODULE = """
import torch
from btrain.data import ArraySource
number = 5
def build(rows=4):
    pair = (torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.int64))
    return ArraySource("mine", {"train": pair, "eval": pair}, classes=2)
def wrong():
    return [1, 2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "btrain_test_user_data.py").write_text(MODULE)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("btrain_test_user_data", None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "exactly one of builtin, text, tokens, entry_point, got none"),
        ({"text": "a", "builtin": "digits"}, "got builtin, text"),
        ({"builtin": "mnist"}, "'mnist' is unknown; expected one of digits"),
        ({"builtin": "digits", "context": 5}, "data.context: not an option of digits"),
        ({"builtin": "stdlib_text", "path": "x"}, "data.path: not an option of stdlib_text"),
        ({"builtin": "stdlib_text", "context": 0}, "whole number from 1"),
        ({"builtin": "stdlib_text", "context": "8"}, "whole number from 1"),
        ({"text": 5}, "data.text: expected a path, got 5"),
        ({"entry_point": "nocolon"}, 'expected "package.module:function"'),
        ({"entry_point": "btrain_no_such_module:build"}, "cannot import 'btrain_no_such_module'"),
        ({"entry_point": "btrain_test_user_data:missing"}, "has no 'missing'"),
        ({"entry_point": "btrain_test_user_data:number"}, "is no function but int"),
        ({"entry_point": "btrain_test_user_data:wrong"}, "returned list, expected a btrain.data.Source"),
        ({"entry_point": "btrain_test_user_data:build", "args": 3}, "data.args a mapping"),
        ({"entry_point": "btrain_test_user_data:build", "args": {"lines": 3}}, "wrong arguments"),
    ],
)
def test_wrong_sections(folder: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(config, base=folder)


def test_entry_point_beside_the_configuration(folder: Path) -> None:
    source = open_source({"entry_point": "btrain_test_user_data:build", "args": {"rows": 7}}, base=folder)
    assert len(source) == 7


def test_the_context_of_data_and_model_must_agree() -> None:
    assert open_source({"builtin": "stdlib_text"}).sample_shape == (32,)
    assert open_source({"builtin": "stdlib_text", "context": 8}).sample_shape == (8,)
    assert open_source({"builtin": "stdlib_text", "context": 8}, context=8).sample_shape == (8,)
    with pytest.raises(ConfigError, match=r"data\.context: 8 differs from model\.context, which is 16"):
        open_source({"builtin": "stdlib_text", "context": 8}, context=16)
