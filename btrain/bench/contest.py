"""One training run under attack: real attackers, gradients, codec and rule, over the chain of roles and audits.

What is left out of the protocol is its messages: none is lost, no vote is late. Who works in a round and who is banned
when comes from `btrain.bench.chain`, what attackers commit to from `btrain.adversary`.

Shapes: N members, W workers of a round, B samples, D parameters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from btrain.adversary import Adversary, get_adversary
from btrain.aggregation import get_rule, reduce_part
from btrain.bench.chain import Bools, Chain, Play, Schedule, Work
from btrain.data import open_source
from btrain.kernels import BLOCK, NotEncodable, QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.models import build_model
from btrain.protocol.encoding import PeerId
from btrain.protocol.randomness import batch_seed
from btrain.protocol.roles import PartLayout
from btrain.protocol.round import Round
from btrain.protocol.trajectory import ROLLBACK_ROUNDS_MAX
from btrain.sampling import batch_indices
from btrain.training.schedule import Schedule as Decay

DIGITS = {"builtin": "digits"}
MLP = {"builtin": "mlp", "hidden": [32]}
MOMENTUM = 0.9
ROLLBACKS = ("rollback", "rollback_window")
TOLERANCE = 1e-4  # of the contract, for attackers that know it


@dataclass(frozen=True)
class Cell:
    """One run. `attack`: NAME[:key=value,...], None for an honest run. `verification`: off, audit, sweep, rollback or
    rollback_window, each with what stands before it but the last.
    """

    attack: str | None = None
    byzantine: int = 0
    verification: str = "sweep"
    rule: str = "centered_clip"
    seed: int = 0
    members: int = 16
    rounds: int = 400
    batch: int = 32
    lr: float = 0.1
    warmup: int = 0


@dataclass(frozen=True)
class Losses:
    """Cross-entropy at the end, on the training set and on the held-out split; inf if the run diverged."""

    train: float
    held_out: float


class Gradients:
    """Gradients of an MLP with one hidden layer on the digits, many minibatches at once.

    Written out, since torch.func.vmap takes ten times as long for so small a model. F inputs, H hidden, K classes.
    """

    def __init__(self, seed: int) -> None:
        source = open_source(DIGITS)
        held_out = source.split("eval")
        self.model = build_model(MLP, source, seed)
        self.shapes = [p.shape for p in self.model.parameters()]
        self.inputs, self.targets = source.batch(np.arange(len(source)))
        self.held_out = held_out.batch(np.arange(len(held_out)))
        self.classes = source.classes or 0

    def start(self) -> Tensor:
        """The start parameters, float32 [D]."""
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def of(self, x_D: Tensor, seeds: Sequence[bytes], batch: int, *, flip_labels: bool = False) -> Tensor:
        """The gradients on the minibatches of these seeds, float32 [len(seeds), D]."""
        rows_NB = torch.stack([torch.from_numpy(batch_indices(seed, batch, len(self.targets))) for seed in seeds])
        targets_NB = self.targets[rows_NB]
        if flip_labels:
            targets_NB = self.classes - 1 - targets_NB
        inputs_NBF = self.inputs.flatten(1)[rows_NB]
        hidden_NBH, logits_NBK = self._forward(x_D, inputs_NBF)
        wrong_NBK = logits_NBK.softmax(-1) - functional.one_hot(targets_NB, self.classes)
        back_NBK = wrong_NBK / batch
        back_NBH = (back_NBK @ self._weights(x_D)[2]) * (hidden_NBH > 0)
        pieces = [back_NBH.mT @ inputs_NBF, back_NBH.sum(1), back_NBK.mT @ hidden_NBH, back_NBK.sum(1)]
        return torch.cat([piece.flatten(1) for piece in pieces], dim=1)

    def losses(self, x_D: Tensor) -> Losses:
        """On both splits."""
        found = []
        for inputs, targets in ((self.inputs, self.targets), self.held_out):
            loss = float(functional.cross_entropy(self._forward(x_D, inputs.flatten(1))[1], targets))
            found.append(loss if math.isfinite(loss) else math.inf)
        return Losses(*found)

    def _weights(self, x_D: Tensor) -> list[Tensor]:
        pieces = torch.split(x_D, [shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def _forward(self, x_D: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden layer and the logits."""
        weight_HF, bias_H, weight_KH, bias_K = self._weights(x_D)
        hidden = functional.relu(inputs @ weight_HF.T + bias_H)
        return hidden, hidden @ weight_KH.T + bias_K


@dataclass(frozen=True)
class Moment:
    """A round that stands, at its start; `workers`: whose gradients are in its update, bool [N]."""

    round: int
    step: int
    x: Tensor  # float32 [D]
    velocity: Tensor  # float32 [D]
    workers: Bools


@dataclass
class Contest:
    """A cell being played."""

    cell: Cell
    gradients: Gradients = field(init=False)
    moments: list[Moment] = field(default_factory=list, init=False)  # rounds that may be undone

    def __post_init__(self) -> None:
        cell = self.cell
        self.gradients = Gradients(cell.seed)
        self.rule = get_rule(cell.rule)
        self.run = hashlib.sha256(f"contest/{cell.seed}".encode()).digest()
        self.members = [hashlib.sha256(self.run + bytes([i])).digest() for i in range(cell.members)]
        coalition = frozenset(self.members[: cell.byzantine])
        self.adversaries: dict[PeerId, Adversary] = {}
        for peer in coalition:
            adversary = get_adversary(str(cell.attack), coalition=coalition, attack_from=1, seed=cell.seed)
            assert isinstance(adversary, Adversary), f"{cell.attack} is no attack"
            self.adversaries[peer] = adversary
        self.play = Play(self._chain(), runs=1, seed=cell.seed)
        self.numel = len(self.gradients.start())

    def _chain(self) -> Chain:
        cell, schedule = self.cell, Schedule()
        for adversary in self.adversaries.values():
            schedule = Schedule(max(1, adversary.attack_from), adversary.every, adversary.on)
        audits = 0.0 if cell.verification == "off" else 1.0
        return Chain(cell.members, cell.byzantine, schedule, cell.verification in ("sweep", *ROLLBACKS), audits)

    def train(self) -> Losses:
        """SGD with Nesterov's momentum; after a warm-up the learning rate decays along a cosine to zero."""
        x_D = self.gradients.start()
        velocity_D = torch.zeros_like(x_D)
        decay = Decay("cosine", steps=self.cell.rounds, warmup=self.cell.warmup)
        step = 0
        while step < self.cell.rounds:
            work = self.play.step()
            self.moments.append(Moment(work.round, step, x_D, velocity_D, work.workers[0]))
            update_D = self._update(x_D, work)
            if update_D is None:
                return Losses(math.inf, math.inf)
            restored = self._restored()
            if restored is not None:
                x_D, velocity_D, step = restored.x, restored.velocity, restored.step
                continue
            velocity_D = MOMENTUM * velocity_D + update_D
            x_D = x_D - self.cell.lr * decay.factor(step) * (MOMENTUM * velocity_D + update_D)
            step += 1
        return self.gradients.losses(x_D)

    def _restored(self) -> Moment | None:
        """Where the bans of the round's block put the parameters, as `btrain.protocol.trajectory` has it."""
        self.moments = [m for m in self.moments if m.round >= self.play.number - ROLLBACK_ROUNDS_MAX]
        bans = self.play.banned if self.cell.verification in ROLLBACKS else []
        ever = self.cell.verification == "rollback_window"
        for index, moment in enumerate(self.moments):
            if any((ever or moment.round >= proven) and (banned[0] & moment.workers).any() for proven, banned in bans):
                del self.moments[index:]
                return moment
        return None

    def _update(self, x_D: Tensor, work: Work) -> Tensor | None:
        """What the round's workers agree on, float32 [D]; None if a gradient cannot be encoded."""
        workers = sorted(m for m, works in zip(self.members, work.workers[0], strict=True) if works)
        randomness = hashlib.sha256(self.run + work.round.to_bytes(8, "little")).digest()
        seeds = [batch_seed(self.run, randomness, worker, work.round) for worker in workers]
        known: dict[bool, dict[bytes, Tensor]] = {}

        def replay(batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
            if flip_labels not in known:
                gradients = self.gradients.of(x_D, seeds, self.cell.batch, flip_labels=flip_labels)
                known[flip_labels] = dict(zip(seeds, gradients, strict=True))
            return known[flip_labels][batch_seed]

        committed = []
        for worker, seed in zip(workers, seeds, strict=True):
            gradient, adversary = replay(seed), self.adversaries.get(worker)
            if adversary is not None:
                round = self._as_seen_by(worker, workers, randomness, work.round)
                gradient = adversary.gradient(gradient, round, replay)
            committed.append(gradient)
        return self._reduced(torch.stack(committed))

    def _as_seen_by(self, worker: PeerId, workers: list[PeerId], randomness: bytes, round: int) -> Round:
        """As much of a round as an attacker on gradients looks at."""
        charter = SimpleNamespace(tolerance=TOLERANCE)
        state = SimpleNamespace(run=self.run, seed_randomness=randomness, round=round, charter=charter)
        roles = SimpleNamespace(workers=tuple(workers), layout=PartLayout(self.numel, 1))
        return cast("Round", SimpleNamespace(round=round, me=worker, state=state, roles=roles))

    def _reduced(self, gradients_WD: Tensor) -> Tensor | None:
        """Encoded, reduced as one part, and decoded."""
        workers, numel = gradients_WD.shape
        blocks = -(-numel // BLOCK)
        try:
            encoded = quantize_blockwise(functional.pad(gradients_WD, (0, blocks * BLOCK - numel)))
        except NotEncodable:
            return None
        codes, scales = encoded.codes.view(workers, blocks, BLOCK), encoded.scales.view(workers, blocks)
        parts = {bytes([i]): QuantizedBlocks(codes[i], scales[i], numel) for i in range(workers)}
        reduced: Tensor = dequantize_blockwise(reduce_part(parts, self.rule))[:numel]
        return reduced


def contest(cell: Cell) -> Losses:
    """Play one cell."""
    return Contest(cell).train()
