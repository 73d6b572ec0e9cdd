"""A round as an attacker sees it: its state, its roles, nothing that it does not use."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from btrain.protocol.encoding import PeerId
from btrain.protocol.randomness import batch_seed
from btrain.protocol.roles import PartLayout

D = 3000
RUN, RANDOMNESS = b"r" * 32, b"s" * 32


@dataclass
class Scene:
    """Seven workers, the last three of which attack; the last one acts."""

    workers: tuple[PeerId, ...] = tuple(bytes([i]) * 32 for i in range(7))
    layout: PartLayout = field(default_factory=lambda: PartLayout(D, 3))

    @property
    def coalition(self) -> frozenset[PeerId]:
        return frozenset(self.workers[4:])

    @property
    def own(self) -> Tensor:
        """The acting attacker's true gradient."""
        return self.gradient(self.seed(self.workers[-1]))

    @property
    def honest(self) -> Tensor:
        return torch.stack([self.gradient(self.seed(peer)) for peer in self.workers[:4]])

    def round(self, number: int = 9, me: int = -1, attempt: int = 0) -> Any:
        charter = SimpleNamespace(tolerance=1e-4)
        state = SimpleNamespace(run=RUN, seed_randomness=RANDOMNESS, round=number, charter=charter, head=b"h" * 32)
        roles = SimpleNamespace(
            workers=self.workers,
            layout=self.layout,
            aggregator=lambda part, attempt: self.workers[part],
            owned=lambda peer: self.workers.index(peer) if peer in self.coalition else None,
            validators=self.workers[me:],
        )
        roster = SimpleNamespace(members=self.workers)
        engines = [SimpleNamespace(attempt=attempt)] * 3
        statements = SimpleNamespace(commits={}, bodies={})
        return SimpleNamespace(
            state=state, roles=roles, round=number, me=self.workers[me], roster=roster, engines=engines,
            statements=statements,
        )  # fmt: skip

    def seed(self, peer: PeerId, number: int = 9) -> bytes:
        return batch_seed(RUN, RANDOMNESS, peer, number)

    def gradient(self, seed: bytes, *, flip_labels: bool = False) -> Tensor:
        """A common direction and noise of the seed."""
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "little"))
        common = torch.linspace(-1, 1, D)
        return (-1 if flip_labels else 1) * common + 0.3 * torch.randn(D, generator=generator)


@pytest.fixture
def scene() -> Scene:
    return Scene()
