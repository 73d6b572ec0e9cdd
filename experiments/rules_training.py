"""Training under attack, for experiments/rules.py: tasks, attackers, the chain of roles and audits, one run.

Shapes: N members that send, H honest ones of them, B samples (or attackers), D parameters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from btrain.aggregation import AffineRule, NonFiniteInput, Rule, aggregate, get_rule, reduce_part
from btrain.data import open_source
from btrain.kernels import BLOCK, NotEncodable, QuantizedBlocks, block_count, dequantize_blockwise, quantize_blockwise
from btrain.models import build_model
from btrain.protocol.randomness import permutation

MEMBERS = 16
RULES: dict[str, Rule] = {
    "mean": get_rule("mean"),
    "centered_clip c=1": get_rule("centered_clip"),
    "centered_clip c=2": get_rule("centered_clip", c=2.0),
    "geometric_median": get_rule("geometric_median"),
    "multi_krum": get_rule("multi_krum"),
    "trimmed_mean": get_rule("trimmed_mean"),
    "nnm + centered_clip": get_rule("nearest_neighbor_mixing"),
}


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained."""

    data: dict[str, object]
    model: dict[str, object]
    steps: int
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    context: int | None = None


TASKS = {
    "digits": Task(
        {"builtin": "digits"},
        {"builtin": "mlp", "hidden": [32]},
        150,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "text": Task(
        {"builtin": "stdlib_text"},
        {"builtin": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 8},
        90,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        context=8,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    rule: str
    attack: str | None = None
    byzantine: int = 0
    verification: str = "off"
    """off, audit (one auditor a round) or sweep (and all who cheated in a proven round)."""
    batch: int = 32
    seed: int = 0


class Gradients:
    """Per-member gradients of one model on random minibatches, and the loss on the training set."""

    def __init__(self, task: Task, seed: int) -> None:
        source = open_source(task.data, context=task.context)
        self.model = build_model(task.model, source, seed)
        self.names = [(name, p.shape, p.numel()) for name, p in self.model.named_parameters()]
        indices = np.arange(min(len(source), 8192), dtype=np.int64)
        self.inputs, self.targets = source.batch(indices)
        self.classes = source.classes or source.vocabulary or 0
        self.per_member = vmap(grad(self.loss), in_dims=(None, 0, 0))

    def start(self) -> Tensor:
        """The start parameters, flat [D]."""
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def loss(self, flat_D: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of one minibatch."""
        pieces = torch.split(flat_D, [numel for _, _, numel in self.names])
        named = {name: piece.view(shape) for (name, shape, _), piece in zip(self.names, pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap takes apart without a loop
            logits = functional_call(self.model, named, (inputs,))
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def minibatches(self, flat_D: Tensor, indices_NB: Tensor, flipped_N: Tensor) -> Tensor:
        """One gradient for each row of indices, with mirrored labels where flipped: [N, D]."""
        targets = self.targets[indices_NB]
        flip = flipped_N.view(-1, *[1] * (targets.dim() - 1))
        targets = torch.where(flip, self.classes - 1 - targets, targets)
        gradients_ND: Tensor = self.per_member(flat_D, self.inputs[indices_NB], targets)
        return gradients_ND

    def total(self, flat_D: Tensor) -> float:
        """Loss on the training set, inf if the run diverged."""
        with torch.no_grad():
            loss = float(self.loss(flat_D, self.inputs, self.targets))
        return loss if math.isfinite(loss) else math.inf


Attack = Callable[[Tensor, Tensor, Rule], Tensor]
"""What the coalition sends, [B, D], from its own gradients [B, D], the honest ones [H, D] and the rule they face."""


def ipm(strength: float) -> Attack:
    """Inner product manipulation (Xie et al. 2019)."""
    return lambda own_BD, honest_HD, rule: (-strength * honest_HD.mean(0)).expand_as(own_BD)


def alie(strength: float) -> Attack:
    """A little is enough (Baruch et al. 2019)."""
    return lambda own_BD, honest_HD, rule: (honest_HD.mean(0) - strength * honest_HD.std(0)).expand_as(own_BD)


def random_direction(own_BD: Tensor, honest_HD: Tensor, rule: Rule) -> Tensor:
    """A thousand times one's gradient's length in one direction that the coalition shares for good."""
    direction_D = torch.randn(own_BD.shape[1], generator=torch.Generator().manual_seed(666))
    scaled_BD: Tensor = 1000 * own_BD.norm(dim=1, keepdim=True) * direction_D / direction_D.norm()
    return scaled_BD


def min_max(own_BD: Tensor, honest_HD: Tensor, rule: Rule) -> Tensor:
    """As far against the deviation as keeps within the largest honest distance (Shejwalkar, Houmansadr 2021)."""
    mean_D, deviation_D = honest_HD.mean(0), honest_HD.std(0)
    diameter = torch.cdist(honest_HD, honest_HD).max()
    low, high = 0.0, 100.0
    for _ in range(20):
        middle = (low + high) / 2
        inside = (honest_HD - (mean_D - middle * deviation_D)).norm(dim=1).max() <= diameter
        low, high = (middle, high) if inside else (low, middle)
    return (mean_D - low * deviation_D).expand_as(own_BD)


def tuned(own_BD: Tensor, honest_HD: Tensor, rule: Rule) -> Tensor:
    """Of ipm and alie in many strengths the one that turns this rule's result furthest against the honest mean."""
    candidates = [ipm(s) for s in (0.3, 0.6, 1.0, 2.0, 4.0, 10.0, 100.0)] + [alie(s) for s in (0.5, 1.0, 2.0, 4.0)]
    mean_D = honest_HD.mean(0)

    def along(attack: Attack) -> float:
        hostile_BD = attack(own_BD, honest_HD, rule)
        return float(aggregate(torch.cat([hostile_BD, honest_HD]), rule) @ mean_D)

    return min(candidates, key=along)(own_BD, honest_HD, rule)


ATTACKS: dict[str, Attack] = {
    "sign_flip": lambda own_BD, honest_HD, rule: -1000 * own_BD,
    "random_direction": random_direction,
    "ipm 0.6": ipm(0.6),
    "ipm 100": ipm(100.0),
    "alie 1.5": alie(1.5),
    "min_max": min_max,
    "mimic": lambda own_BD, honest_HD, rule: honest_HD[0].expand_as(own_BD),
    "label_flip": lambda own_BD, honest_HD, rule: own_BD,  # its minibatches already carry the wrong labels
    "tuned": tuned,
}


@dataclass
class Chain:
    """Who audits whom, and who is banned when."""

    seed: int
    byzantine: frozenset[bytes]
    verification: str
    members: list[bytes]
    cheats: set[bytes] = field(default_factory=set)
    """Who cheated in the round before."""
    pending: dict[int, set[bytes]] = field(default_factory=dict)
    """Bans by the round from which they hold."""

    def workers(self, step: int) -> list[bytes]:
        """Who sends in this round. The one who does not audits the round before."""
        banned = self.pending.pop(step, set())
        self.members = [member for member in self.members if member not in banned]
        if self.verification == "off":
            return self.members
        randomness = hashlib.sha256(f"{self.seed}/{step}".encode()).digest()
        auditor = permutation(randomness, "validate", self.members)[0]
        others = [member for member in self.members if member != auditor]
        target = others[int.from_bytes(hashlib.sha256(randomness + auditor).digest()[:8], "little") % len(others)]
        if auditor not in self.byzantine and target in self.cheats:
            self.pending.setdefault(step + 1, set()).add(target)
            if self.verification == "sweep":
                self.pending.setdefault(step + 2, set()).update(self.cheats)
        return others


def combine(x_ND: Tensor, rule: Rule) -> Tensor:
    """Encode, reduce and decode as a part would be; coordinate-wise rules work on the decoded vectors."""
    blocks = block_count(x_ND.shape[1])
    padded_ND = functional.pad(x_ND, (0, blocks * BLOCK - x_ND.shape[1])).clamp(-1e38, 1e38)
    encoded = quantize_blockwise(padded_ND)
    rows = zip(encoded.codes.view(len(x_ND), blocks, BLOCK), encoded.scales.view(len(x_ND), blocks), strict=True)
    parts = {bytes([i]): QuantizedBlocks(codes, scales, blocks * BLOCK) for i, (codes, scales) in enumerate(rows)}
    if isinstance(rule, AffineRule):
        reduced = dequantize_blockwise(reduce_part(parts, rule))
    else:
        decoded = dequantize_blockwise(encoded).view_as(padded_ND)
        reduced = dequantize_blockwise(quantize_blockwise(aggregate(decoded, rule)))
    return reduced[: x_ND.shape[1]]


def train(cell: Cell) -> float:
    """Final training loss of one run."""
    task = TASKS[cell.task]
    gradients = Gradients(task, cell.seed)
    flat_D = gradients.start().requires_grad_()
    optimizer = task.optimizer([flat_D])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    members = [hashlib.sha256(f"{cell.seed}/member/{i}".encode()).digest() for i in range(MEMBERS)]
    byzantine = frozenset(members[: cell.byzantine])
    chain = Chain(cell.seed, byzantine, cell.verification, list(members))
    generator = torch.Generator().manual_seed(cell.seed)
    for step in range(task.steps):
        draws = torch.randint(len(gradients.inputs), (MEMBERS, cell.batch), generator=generator)
        workers = chain.workers(step)
        active = byzantine.intersection(workers) if step >= task.steps // 3 else frozenset()
        hostile_N = torch.tensor([worker in active for worker in workers])
        flipped_N = hostile_N & (cell.attack == "label_flip")
        rows = torch.tensor([members.index(worker) for worker in workers])
        x_ND = gradients.minibatches(flat_D.detach(), draws[rows], flipped_N)
        chain.cheats = set(active)
        try:
            if active:
                attack = ATTACKS[str(cell.attack)]
                x_ND[hostile_N] = attack(x_ND[hostile_N], x_ND[~hostile_N], RULES[cell.rule])
            flat_D.grad = combine(x_ND, RULES[cell.rule])
        except (NonFiniteInput, NotEncodable):
            return math.inf
        optimizer.step()
        schedule.step()
    return gradients.total(flat_D.detach())
