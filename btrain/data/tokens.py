"""Sources of token sequences: a long array of tokens from which windows of T + 1 are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from btrain.data.source import Batch, Indices, Source, SplitName, content_digest
from btrain.errors import ConfigError

Tokens = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
HELD_OUT_FRACTION = 0.05
GOLDEN = 0.6180339887498949


class TokenSource(Source):
    """Next-token prediction on `train` and `held_out`, each uint8 or uint16 [N].

    Training sample i is the window that begins at token i, so that windows overlap. Held-out samples are the
    disjoint windows in a fixed scattered order, so that the first samples of it already cover the whole text.
    """

    vocabulary: int

    def __init__(
        self,
        kind: str,
        train: Tokens,
        held_out: Tokens,
        *,
        vocabulary: int,
        context: int,
        name: SplitName = "train",
    ) -> None:
        self.kind = kind
        self.vocabulary = vocabulary
        self.context = context
        self.sample_shape = (context,)
        self._splits: dict[SplitName, Tokens] = {"train": train, "eval": held_out}
        self._tokens = self._splits[name]
        self._overlapping = name == "train"
        self._window = np.arange(context + 1)
        self._fingerprint: str | None = None
        if len(self._tokens) <= context:
            raise ConfigError(
                f"data {kind}: the {name} split holds {len(self._tokens)} tokens, too few for a context of {context}"
            )
        self._disjoint = (len(self._tokens) - 1) // context
        self._stride = _coprime_stride(self._disjoint)

    def __len__(self) -> int:
        return len(self._tokens) - self.context if self._overlapping else self._disjoint

    def batch(self, indices: Indices, seeds: Sequence[bytes] | None = None) -> Batch:
        """Inputs and targets int64 [B, T]; the targets are the inputs one token later."""
        starts = indices if self._overlapping else indices * self._stride % self._disjoint * self.context
        windows = torch.from_numpy(self._tokens[starts[:, np.newaxis] + self._window].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def fingerprint(self) -> str:
        """SHA-256 over both splits' tokens; the context belongs to the model and is not in it."""
        if self._fingerprint is None:
            self._fingerprint = content_digest(f"tokens {self.vocabulary}", self._splits.values())
        return self._fingerprint

    def split(self, name: SplitName) -> TokenSource:
        """The split `name`; both share their memory."""
        return TokenSource(
            self.kind,
            self._splits["train"],
            self._splits["eval"],
            vocabulary=self.vocabulary,
            context=self.context,
            name=name,
        )

    def unigram_entropy(self) -> float:
        """Entropy of a single token of this split, in nats: the loss of a model that knows only frequencies."""
        counts = np.bincount(self._tokens, minlength=self.vocabulary)
        shares = counts[counts > 0] / len(self._tokens)
        return float(-(shares * np.log(shares)).sum())


def hold_out(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """`tokens` without their last 5 %, and those."""
    cut = len(tokens) - math.ceil(len(tokens) * HELD_OUT_FRACTION)
    return tokens[:cut], tokens[cut:]


def _coprime_stride(count: int) -> int:
    """The first number from the golden section of `count` upwards that is coprime to it."""
    stride = max(1, int(count * GOLDEN))
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride
