"""Recomputing what others did: the tie-aware gradient test and the checks that a validator or a voter runs.

A gradient recomputed on other hardware differs in its last bits, and rounding to 8 bits turns a last bit into a whole
code wherever a value stood at a tie. So what is compared is by how much the committed value lies outside the interval
that rounds to it: e = max(0, |decoded - g'| - scale / 2). For an honest peer e is at most the noise of the replay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from btrain.aggregation import Rule
from btrain.kernels import BLOCK, QuantizedBlocks, dequantize_blockwise
from btrain.protocol.effects import Effect, FetchBlob, Recompute, Work
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.messages import Commit, Message, Trial
from btrain.protocol.reduction import encode_gradient, open_part, reduce_committed
from btrain.protocol.roles import PartLayout, Roles
from btrain.protocol.verdicts import GUILTY, INNOCENT, LOST, UNSURE

SLACK = 1 + 1e-5  # rounding of scale / 2 itself
PART_FLOOR = 1e-3  # a part counts as at least this share of its even share of |g'|: dead units convict nobody
ACCUSED = 4.0  # tolerances beyond which a gradient is accused
SCALE_FACTOR = 20.0  # a block's scale follows one value, which is noisier than the gradient's norm


def excess(parts: Sequence[QuantizedBlocks | None], recomputed: Tensor, layout: PartLayout) -> float:
    """Largest relative excess of a committed gradient over a recomputed one, over all parts together and each alone.

    parts: the committed encodings, in order, None where the bytes are not here: what is found then is a lower bound of
    what all parts would show. recomputed: float32 [d]. Returns a ratio to compare with the tolerance T
    of the contract: up to T passes, above 2 T is guilty, a validator accuses above 4 T. Infinite where nothing can be
    compared.
    """
    if not bool(torch.isfinite(recomputed).all()):
        return math.inf
    reference = recomputed.double()
    norm = float(reference.norm())
    if norm == 0.0:
        return 0.0 if all(part is None or not bool(part.codes.any()) for part in parts) else math.inf
    part_floor = PART_FLOOR * norm / math.sqrt(len(parts))
    value_floor = PART_FLOOR * norm / math.sqrt(layout.numel)
    total, worst = 0.0, 0.0
    for index, part in enumerate(parts):
        if part is None:
            continue
        start, end = layout.bounds(index)
        expected = reference[start:end]
        decoded = dequantize_blockwise(part)[: end - start].double()
        half_step = part.scales.double().repeat_interleave(BLOCK)[: end - start] * (SLACK / 2)
        outside = float(((decoded - expected).abs() - half_step).clamp_(min=0).norm())
        total += outside**2
        worst = max(worst, outside / max(float(expected.norm()), part_floor))
        worst = max(worst, _scale_error(part, expected, value_floor) / SCALE_FACTOR)
    return max(worst, math.sqrt(total) / norm)


def _scale_error(part: QuantizedBlocks, expected: Tensor, floor: float) -> float:
    """Largest relative error of a block's scale against absmax / 127 of the recomputed block."""
    padded = torch.zeros(len(part.scales) * BLOCK, dtype=torch.float64)
    padded[: len(expected)] = expected
    absmax = padded.view(-1, BLOCK).abs().amax(1)
    error = (part.scales.double() * 127 - absmax).abs()
    return float((error / absmax.clamp(min=floor)).max())


@dataclass
class Check:
    """Base of a running check: feed it what it asked for until `outcome` is there."""

    token: str
    outcome: str | None = field(default=None, init=False)  # see the subclasses
    waiting: set[bytes] = field(default_factory=set, init=False)
    blobs: dict[bytes, bytes] = field(default_factory=dict, init=False)

    @property
    def round(self) -> int:
        """The round of what is checked."""
        raise NotImplementedError

    def blob(self, hash: bytes, data: bytes | None) -> list[Effect]:
        """A blob that a FetchBlob asked for; None when nobody has it."""
        if hash not in self.waiting:
            return []
        self.waiting.discard(hash)
        if data is not None:
            self.blobs[hash] = data
        return self.arrived(lost=data is None)

    def _fetch(self, wanted: Mapping[bytes, tuple[PeerId, ...]]) -> list[Effect]:
        self.waiting = set(wanted)
        return [FetchBlob(hash, sources) for hash, sources in wanted.items()]

    def start(self) -> list[Effect]:
        """Begin."""
        raise NotImplementedError

    def arrived(self, lost: bool) -> list[Effect]:
        """A blob is there, or lost: neither who made it nor who used it gives it."""
        raise NotImplementedError


@dataclass
class GradientCheck(Check):
    """Recompute `accused`'s gradient of a round.

    Outcome: 'equal', 'unavailable' (it cannot be recomputed here), 'measured' with `excess`, or 'lost': committed bytes
    were not given, and the others show no more than `excess`. What is guilty beyond doubt waits for no further bytes.
    """

    commit: Message
    roles: Roles
    batch_seed: bytes
    tolerance: float
    excess: float = field(default=0.0, init=False)
    gradient: Tensor | None = field(default=None, init=False)
    x: bytes = field(default=b"", init=False)  # parameters of that round, float32, for the evidence
    _measuring: int = field(default=0, init=False)  # how many parts are being measured
    illegal: bytes | None = field(default=None, init=False)  # a committed part that is no legal encoding

    @property
    def round(self) -> int:
        """The round of the gradient."""
        return self.roles.round

    @property
    def on_trial(self) -> bool:
        """Whether it is a trainee's: only the sender keeps its bytes."""
        return isinstance(self.commit.body, Trial)

    def start(self) -> list[Effect]:
        """Ask for the recomputation; bytes are fetched only if the hashes differ."""
        return [Recompute(self.token, self.roles.round, self.batch_seed)]

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """Hashes of the committed parts."""
        assert isinstance(self.commit.body, Commit | Trial)
        return self.commit.body.leaves

    def recomputed(self, gradient: Tensor | None, x: bytes | None) -> list[Effect]:
        """The oracle's answer, and x as bytes: hashes first, on equal hardware nothing is fetched."""
        if gradient is None or x is None:
            self.outcome = "unavailable"
            return []
        self.gradient, self.x = gradient, x
        layout = self.roles.layout
        return [Work(self.token, lambda: [digest(part) for part in encode_gradient(gradient, layout) or []])]

    def work_done(self, result: object) -> list[Effect]:
        """Hashes of the recomputed encoding, then the excess of the parts that had come."""
        if isinstance(result, float):
            return self._measured(result)
        if result == list(self.leaves):
            self.outcome = "equal"
            return []
        return self._fetch({leaf: self._holders(part) for part, leaf in enumerate(self.leaves)})

    def _holders(self, part: int) -> tuple[PeerId, ...]:
        sender = self.commit.sender
        return (sender,) if self.on_trial else tuple(dict.fromkeys((self.roles.owners[part], sender)))

    def _measured(self, found: float) -> list[Effect]:
        measured, self._measuring = self._measuring, 0
        self.excess = max(self.excess, found)
        if self.excess > ACCUSED * self.tolerance:
            self.outcome = "measured"
        elif measured < len(self.blobs):
            return self._measure()
        elif not self.waiting:
            self._conclude()
        return []

    def _conclude(self) -> None:
        self.outcome = "measured" if self.blobs.keys() >= set(self.leaves) else "lost"

    def arrived(self, lost: bool) -> list[Effect]:
        """Measure at once: one part of a forged gradient is enough."""
        if not self._measuring and not lost:
            return self._measure()
        if not self._measuring and not self.waiting:
            self._conclude()
        return []

    def _measure(self) -> list[Effect]:
        assert self.gradient is not None
        layout, gradient, blobs = self.roles.layout, self.gradient, self.blobs
        parts = [open_part(blobs[leaf], layout.part_numel(p)) if leaf in blobs else None
                 for p, leaf in enumerate(self.leaves)]  # fmt: skip
        illegal = [leaf for part, leaf in zip(parts, self.leaves, strict=True) if part is None and leaf in blobs]
        if illegal:
            self.illegal = blobs[illegal[0]]
            self.outcome = "unavailable"
            return []
        self._measuring = len(blobs)
        return [Work(self.token, lambda: excess(parts, gradient, layout))]

    def vote(self, tolerance: float) -> Literal[0, 1, 2, 3]:
        """Innocent up to T, guilty above 2 T, lost where bytes are missing and others prove nothing, else unsure."""
        if self.outcome == "equal" or (self.outcome == "measured" and self.excess <= tolerance):
            return INNOCENT
        if self.outcome in ("measured", "lost") and self.excess > 2 * tolerance:
            return GUILTY
        return LOST if self.outcome == "lost" else UNSURE


@dataclass
class PartCheck(Check):
    """Reduce a part again from the committed bytes, tolerance zero. Outcome: 'equal', 'wrong', or 'lost'."""

    part: int
    numel: int
    result: Message
    leaves: dict[PeerId, bytes]  # the contributors' leaf of this part
    sources: tuple[PeerId, ...]
    rule: Rule
    illegal: dict[PeerId, bytes] = field(default_factory=dict, init=False)  # committed parts of no legal encoding

    @property
    def round(self) -> int:
        """The round of the reduction."""
        return self.result.statement.round

    def start(self) -> list[Effect]:
        """Fetch the part of every contributor from whoever keeps it."""
        wanted: dict[bytes, tuple[PeerId, ...]] = {}
        for worker, leaf in self.leaves.items():
            wanted[leaf] = (*self.sources, worker)
        return self._fetch(wanted) if wanted else self._reduce()

    def arrived(self, lost: bool) -> list[Effect]:
        """Reduce when every part is here; who signed a Result has them all."""
        if lost:
            self.outcome = "lost"
        return [] if lost or self.waiting else self._reduce()

    def _reduce(self) -> list[Effect]:
        inputs = tuple((worker, self.blobs[leaf]) for worker, leaf in self.leaves.items())
        return [Work(self.token, partial(reduce_committed, inputs, self.numel, self.rule))]

    def work_done(self, result: object) -> list[Effect]:
        """Compare with what the aggregator signed."""
        body = self.result.body
        right = getattr(result, "data", b"")
        coefficients = getattr(result, "coefficients", ())
        same = digest(right) == body.hash and coefficients == body.coefficients  # type: ignore[union-attr]
        self.outcome = "equal" if same else "wrong"
        if len(coefficients) < len(self.leaves):
            parts = ((worker, self.blobs[leaf]) for worker, leaf in self.leaves.items())
            self.illegal = {worker: data for worker, data in parts if open_part(data, self.numel) is None}
        return []
