"""The codec benchmark: the document's form, and that its errors are those of the codec."""

import json
import subprocess
import sys

import pytest
import torch

from btrain.bench import quantize
from btrain.bench.codecs import available


def test_document() -> None:
    document = quantize.run(elements=5000, repeats=2)
    speeds, errors = document["speed"], document["relative_error"]
    assert document["elements"] == 4096
    assert speeds["btrain torch"]["encode"]["ratio"] > 0
    assert speeds["btrain torch"]["decode"]["ms_q1"] <= speeds["btrain torch"]["decode"]["ms_q3"]
    assert errors["gaussian"]["btrain torch"] == pytest.approx(0.0079, rel=0.02)
    assert errors["mlp gradient"]["btrain torch"] < 0.02
    assert set(speeds).isdisjoint(document["missing"])
    assert "| btrain torch |" in quantize.as_text(document)


def test_what_is_not_installed_is_named() -> None:
    codecs, missing = available(torch.device("cpu"))
    assert "btrain triton" in missing
    assert len(codecs) + len(missing) == 9


def test_command_prints_one_json_document() -> None:
    command = [sys.executable, "-m", "btrain.bench.quantize", "--json", "--elements", "2048", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["benchmark"] == "quantize"


def test_wrong_arguments_are_refused() -> None:
    command = [sys.executable, "-m", "btrain.bench.quantize", "--elements", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--elements is at least 1024" in done.stderr
