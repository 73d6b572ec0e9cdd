"""The field types of run.yaml that are more than a number or a word: durations, addresses, devices, import paths.

A validator here raises an error of the type `expected`, whose message says what was expected; what was found is added
where all errors are written (`problems`).
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from btrain.errors import ConfigError
from btrain.identity import peer_id_bytes

EXPECTED: Final = "expected"
DURATION_S_MIN: Final = 0.01
DURATION_S_MAX: Final = 24 * 3600.0

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,20})?)\s?(ms|s|min|h)")
_UNIT_S: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/\s]{1,253})/tcp/(\d{1,5})(?:/p2p/([^/\s]{1,128}))?")


def expected(what: str) -> PydanticCustomError:
    """The error of a value that is not `what`."""
    return PydanticCustomError(EXPECTED, "{what}", {"what": what})


def parsed_seconds(value: object) -> float | None:
    """`0s`, `500ms`, `1.5 min`, `2h` in seconds, None for anything else."""
    match_ = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match_ is None:
        return None
    number, unit = match_.groups()
    return float(number) / 1000 if unit == "ms" else float(number) * _UNIT_S[unit]


def seconds(value: object, what: str = "a duration such as 500ms, 1s or 2min") -> float:
    """A duration between 10 ms and a day in seconds."""
    duration_s = parsed_seconds(value)
    if duration_s is None:
        raise expected(what)
    if not DURATION_S_MIN <= duration_s <= DURATION_S_MAX:
        raise expected("a duration between 10ms and 24h")
    return duration_s


def duration_text(duration_s: float | None) -> str:
    """The text that `seconds` reads as exactly this number; None is `auto`."""
    return "auto" if duration_s is None else f"{duration_s!r}s".replace(".0s", "s")


def _seconds_or_auto(value: object) -> float | None:
    return None if value == "auto" else seconds(value, "auto or a duration such as 500ms, 1s or 2min")


def _auto_or_positive(value: object) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    raise expected("auto or a number above 0")


def _matching(pattern: str, what: str) -> Callable[[object], str]:
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        if isinstance(value, str) and compiled.fullmatch(value):
            return value
        raise expected(what)

    return check


def _address(value: object, *, with_peer: bool) -> str:
    match_ = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    example = "/ip4/203.0.113.5/tcp/4001" + ("/p2p/12D3KooW..." if with_peer else "")
    if match_ is None or (with_peer and match_[4] is None):
        raise expected(f"an address such as {example}")
    kind, host, port, peer = match_.groups()
    try:
        if kind in {"ip4", "ip6"} and ipaddress.ip_address(host).version != int(kind[2]):
            raise expected(f"an {kind} address such as {example}")
    except ValueError:
        raise expected(f"an {kind} address, which {host[:60]!r} is not") from None
    if int(port) > 65535 or (with_peer and int(port) == 0):
        raise expected(f"a port {'from 1 ' if with_peer else ''}up to 65535 in the address")
    if peer is not None:
        _peer_id(peer)
    return match_[0]


def _peer_id(value: object) -> str:
    if not isinstance(value, str):
        raise expected("a peer id, which `btrain id` prints")
    try:
        peer_id_bytes(value)
    except ConfigError:
        raise expected("a peer id: 52 characters beginning with 12D3KooW, as `btrain id` prints them") from None
    return value


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise expected("a path")
    return Path(value)


def _plain(value: Any) -> Any:
    """Keyword arguments for an entry point: a mapping of names."""
    if not isinstance(value, dict):
        raise expected("a mapping of argument names to values")
    for name in value:
        if not name.isidentifier():
            raise expected(f"argument names, which {name[:60]!r} is not")
    return value


Duration = Annotated[float, PlainValidator(seconds), PlainSerializer(duration_text, when_used="json")]
DurationOrAuto = Annotated[
    float | None, PlainValidator(_seconds_or_auto), PlainSerializer(duration_text, when_used="json")
]
AutoOrPositive = Annotated[float | Literal["auto"], PlainValidator(_auto_or_positive)]
RunName = Annotated[
    str,
    PlainValidator(
        _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of up to 64 letters, digits, dots and dashes")
    ),
]
EntryPoint = Annotated[
    str, PlainValidator(_matching(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", "an import path such as package.module:function"))
]
Device = Annotated[str, PlainValidator(_matching(r"auto|cpu|mps|cuda(:\d{1,3})?", "auto, cpu, mps, cuda or cuda:0"))]
HostPort = Annotated[str, PlainValidator(_matching(r"[\w.\-\[\]:]{1,255}:\d{1,5}", "HOST:PORT such as 127.0.0.1:9464"))]
Fingerprint = Annotated[str, PlainValidator(_matching(r"[0-9a-f]{64}", "64 hexadecimal digits"))]
FileName = Annotated[str, PlainValidator(_matching(r"[^\0\n]{1,1024}", "a path"))]
ListenAddress = Annotated[str, PlainValidator(lambda value: _address(value, with_peer=False))]
PeerAddress = Annotated[str, PlainValidator(lambda value: _address(value, with_peer=True))]
PeerIdText = Annotated[str, PlainValidator(_peer_id)]
LocalPath = Annotated[Path, PlainValidator(_path), PlainSerializer(str, when_used="json")]
Arguments = Annotated[dict[str, Any], PlainValidator(_plain)]
