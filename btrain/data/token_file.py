"""Token files: raw little-endian uint16 (nanoGPT), or with the header of llm.c and modded-nanogpt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from btrain.data.tokens import TokenSource, hold_out
from btrain.errors import ConfigError

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
VOCABULARY_MAX = 1 << 16


class TokenFileError(ConfigError):
    """A token file is missing, damaged or in another format; the message names the file."""


def open_token_file(
    path: Path, *, context: int, vocabulary: int | None = None, eval_path: Path | None = None
) -> TokenSource:
    """Tokens of `path`, with `eval_path` or the last 5 % held out.

    `vocabulary` defaults to the highest token plus one, which two files of one tokenizer need not share: name it
    where the model must fit others. Raises TokenFileError, ConfigError.
    """
    tokens = read_token_file(path)
    train, held_out = hold_out(tokens) if eval_path is None else (tokens, read_token_file(eval_path))
    highest = max(int(part.max()) if part.size else 0 for part in (train, held_out))
    if vocabulary is not None and highest >= vocabulary:
        raise TokenFileError(f"{path}: holds token {highest}, outside the vocabulary of {vocabulary}")
    return TokenSource(
        str(path), train, held_out, vocabulary=highest + 1 if vocabulary is None else vocabulary, context=context
    )


def read_token_file(path: Path) -> npt.NDArray[np.uint16]:
    """The tokens of `path`, uint16 [N], mapped into memory."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as stream:
            header = stream.read(12)
    except OSError as error:
        raise TokenFileError(f"{path}: cannot be read: {error.strerror}; expected a .bin of uint16 tokens") from error
    magic = int.from_bytes(header[:4], "little")
    start = HEADER_BYTES if magic == MAGIC else 0
    if size_bytes <= start or (size_bytes - start) % 2:
        raise TokenFileError(f"{path}: {size_bytes} bytes are no sequence of uint16 tokens")
    count = (size_bytes - start) // 2
    if magic == MAGIC:
        _check_header(path, header, count)
    return np.memmap(path, dtype="<u2", mode="r", offset=start, shape=(count,))


def _check_header(path: Path, header: bytes, count: int) -> None:
    version, promised = (int.from_bytes(header[at : at + 4], "little") for at in (4, 8))
    if version != VERSION:
        raise TokenFileError(f"{path}: token file version {version}, expected {VERSION}")
    if promised != count:
        raise TokenFileError(f"{path}: its header promises {promised} tokens, the file holds {count}")
