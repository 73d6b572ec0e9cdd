"""What btrain finds on this machine, and what is unhealthy in a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from btrain.errors import BtrainError, ConfigError
from btrain.identity import peer_id_text, read_key
from btrain.monitor import CLIPPED_SHARE_MAX
from btrain.storage.streams import read_json_lines

PACKAGES = ("btrain", "torch", "libp2p", "cryptography", "msgspec", "numpy", "pydantic", "trio", "triton")
OPEN_FILES_MIN = 1024


def examine(run_dir: Path | None) -> dict[str, Any]:
    """The machine, and the run directory if one is given. Raises ConfigError, StorageError for that."""
    if run_dir is not None and not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: is no run directory")
    document: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "codec_backend": _codec(),
        "open_files_limit": _open_files(),
        "advice": [],
    }
    if document["open_files_limit"] < OPEN_FILES_MIN:
        document["advice"].append(f"only {document['open_files_limit']} files may be open; run: ulimit -n 4096")
    if run_dir is not None:
        document["run"] = _run(run_dir, document["advice"])
    return document


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _codec() -> str:
    import torch

    from btrain.kernels.choice import BUILD_MIN_ELEMENTS, choose

    return choose("auto", torch.device("cpu"), BUILD_MIN_ELEMENTS).name


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _run(path: Path, advice: list[str]) -> dict[str, Any]:
    key, metrics = path / "identity.key", path / "metrics.jsonl"
    found: dict[str, Any] = {"path": str(path), "peer_id": None, "rounds": 0, "clipped_share": None, "void_rounds": 0}
    try:
        found["peer_id"] = peer_id_text(read_key(key).public_key) if key.exists() else None
    except BtrainError as error:
        advice.append(str(error))
    rounds = list(read_json_lines(metrics, lambda damage: advice.append(str(damage)))) if metrics.exists() else []
    shares = [line["clipped_share"] for line in rounds if line.get("clipped_share") is not None]
    found |= {
        "rounds": len(rounds),
        "clipped_share": median(shares) if shares else None,
        "void_rounds": sum(1 for line in rounds if line.get("round") and line.get("void")),
    }
    if shares and median(shares) > CLIPPED_SHARE_MAX:
        advice.append(
            f"{path}: {median(shares):.0%} of the gradients are clipped in a typical round: "
            "batch_size is too small for robust averaging"
        )
    return found


def doctor_text(document: Mapping[str, Any]) -> str:
    """The findings in words."""
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items() if version)
    lines = [
        f"Python {document['python']} on {document['system']}, {document['cores']} cores",
        packages,
        f"GPUs: {', '.join(document['gpus']) or 'none'}; codec: {document['codec_backend']}",
    ]
    run = document.get("run")
    if run is not None:
        share = "" if run["clipped_share"] is None else f", {run['clipped_share']:.0%} clipped"
        lines.append(f"{run['path']}: peer {run['peer_id']}, {run['rounds']} rounds{share}, {run['void_rounds']} void")
    return "\n".join([*lines, *(f"ADVICE {line}" for line in document["advice"] or ["none: all is well"])])
