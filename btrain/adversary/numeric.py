"""Hostile numbers: encodings that break a rule of the codec, and legal ones of absurd size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from btrain.adversary.adversary import Adversary
from btrain.kernels.blocks import BLOCK, SCALE_BYTES
from btrain.protocol.behaviour import Replay

if TYPE_CHECKING:
    from btrain.protocol.round import Round

HUGE = 1e38  # below 2^127, so the encoding is legal


@dataclass
class Encoding(Adversary):
    """Base: changes the bytes of every part before they are committed to."""

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        """The encoded parts to commit to."""
        if not self.attacks(round.round):
            return parts
        return [self._forged_part(part) for part in parts]

    def _forged_part(self, part: bytes) -> bytes:
        data = np.frombuffer(part, np.uint8).copy()
        blocks = len(data) // (BLOCK + SCALE_BYTES)
        self.forge(data[: blocks * BLOCK].view(np.int8), data[blocks * BLOCK :].view("<f4"))
        return data.tobytes()

    def forge(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        """Change codes, int8 [B * 1024], and scales, float32 [B], in place."""
        raise NotImplementedError


@dataclass
class NanScale(Encoding):
    """A scale that is no number: illegal, so the commitment proves it."""

    name = "nan"
    outcome = "banned"

    def forge(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        """The first block."""
        scales[:1] = math.nan


@dataclass
class InfiniteScale(Encoding):
    """An infinite scale: illegal."""

    name = "inf"
    outcome = "banned"

    def forge(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        """The first block."""
        scales[:1] = math.inf


@dataclass
class MinusOneTwentyEight(Encoding):
    """The code -128, which the symmetric code does not have: illegal."""

    name = "minus_128"
    outcome = "banned"

    def forge(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        """The first code."""
        codes[:1] = -128


@dataclass
class DenormalScale(Encoding):
    """A subnormal scale, which machines that flush to zero read otherwise: illegal."""

    name = "denormal"
    outcome = "banned"

    def forge(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        """The first block."""
        scales[:1] = 1e-40


@dataclass
class ForgedScale(Encoding):
    """The codes of the true gradient under scales that are `factor` times too large: legal, and wrong."""

    name = "forged_scale"
    outcome = "banned"
    factor: float = 1000.0

    def forge(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        """All blocks."""
        scales *= np.float32(self.factor)


@dataclass
class Huge(Adversary):
    """Every number 1e38 large, signs against the own gradient: legal, and beyond what fp32 sums can hold."""

    name = "huge"
    outcome = "banned"

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        return own.sign() * -HUGE
