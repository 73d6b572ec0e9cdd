"""Text as bytes: a file of the user's, or the sources of Python's standard library, which every machine has."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import numpy as np

from btrain.data.tokens import TokenSource, hold_out
from btrain.errors import ConfigError

BYTE_VALUES = 256
TEXT_BYTES_MAX = 1 << 30

# Modules that are one file in every Python from 3.11 on and that distributions do not patch.
# fmt: off
STDLIB_MODULES = (
    "_pydecimal", "argparse", "ast", "base64", "bdb", "calendar", "codecs", "configparser", "contextlib", "csv",
    "dataclasses", "difflib", "dis", "doctest", "enum", "fractions", "ftplib", "functools", "gzip", "heapq",
    "imaplib", "inspect", "ipaddress", "mailbox", "mimetypes", "optparse", "pdb", "pickle", "pickletools", "plistlib",
    "poplib", "pprint", "pstats", "random", "selectors", "shlex", "shutil", "smtplib", "socket", "socketserver",
    "ssl", "statistics", "subprocess", "tarfile", "textwrap", "threading", "tokenize", "trace", "traceback", "typing",
    "uuid", "warnings", "weakref",
)
# fmt: on


def open_stdlib_text(*, context: int) -> TokenSource:
    """About 2 MB of the running Python's own sources, byte by byte, the last 5 % held out.

    Python releases differ in it, and so does the fingerprint. Raises ConfigError where the sources are missing.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    parts = []
    for module in STDLIB_MODULES:
        file = folder / f"{module}.py"
        try:
            parts.append(file.read_bytes().replace(b"\r\n", b"\n"))
        except OSError as error:
            raise ConfigError(
                f"data.builtin stdlib_text: cannot read {file}: {error.strerror}; this Python "
                f"{sys.version_info.major}.{sys.version_info.minor} ships without its sources: use data.text: FILE"
            ) from error
    return _byte_source("stdlib_text", b"\n".join(parts), None, context)


def open_text_file(path: Path, *, context: int, eval_path: Path | None = None) -> TokenSource:
    """The bytes of `path`, with those of `eval_path` or the last 5 % held out. Raises ConfigError."""
    held_out = None if eval_path is None else _read_text(eval_path)
    return _byte_source(str(path), _read_text(path), held_out, context)


def _byte_source(kind: str, text: bytes, held_out: bytes | None, context: int) -> TokenSource:
    tokens = np.frombuffer(text, dtype=np.uint8)
    parts = hold_out(tokens) if held_out is None else (tokens, np.frombuffer(held_out, dtype=np.uint8))
    return TokenSource(kind, *parts, vocabulary=BYTE_VALUES, context=context)


def _read_text(path: Path) -> bytes:
    try:
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {TEXT_BYTES_MAX} bytes; make a token file of it: data.tokens: FILE")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a text file (data.text)") from error
