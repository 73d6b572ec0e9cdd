"""What all attackers have in common: a coalition, a schedule, and loyalty to each other.

Legend: H honest workers of a round, d parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor

from btrain.protocol.audit import GradientCheck
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Message
from btrain.protocol.randomness import batch_seed

if TYPE_CHECKING:
    from btrain.protocol.round import Round

INNOCENT: Final = 0
GUILTY: Final = 1

Outcome: TypeAlias = Literal["banned", "absent", "bounded"]
"""What becomes of an attacker: it is banned, or loses its seat for silence, or neither and its damage is bounded."""


@dataclass
class Adversary(Behaviour):
    """An attacker that is honest in every round in which it does not attack, but never convicts a friend.

    coalition: the attackers, itself included. seed: what they share and nobody else knows. attack_from: the first round
    of the attack. every, on: attack in the first `on` of every so many rounds only.
    """

    outcome: ClassVar[Outcome] = "bounded"

    coalition: frozenset[PeerId] = field(default=frozenset(), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    attack_from: int = field(default=0, kw_only=True)
    every: int = field(default=1, kw_only=True)
    on: int = field(default=1, kw_only=True)

    def attacks(self, round: int) -> bool:
        """Whether this round is one of the attack."""
        return round >= self.attack_from and (round - self.attack_from) % max(1, self.every) < self.on

    def honest_workers(self, round: Round) -> list[PeerId]:
        """Workers outside the coalition, in member order."""
        return [worker for worker in round.roles.workers if worker not in self.coalition]

    def honest_gradients(self, round: Round, replay: Replay) -> Tensor:
        """What the honest workers compute in this very round, float32 [H, d]: their seeds are public."""
        state = round.state
        seeds = [batch_seed(state.run, state.seed_randomness, p, state.round) for p in self.honest_workers(round)]
        return torch.stack([replay(seed) for seed in seeds])

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """The own gradient, or the attack's."""
        return self.forged(own, round, replay) if self.attacks(round.round) else own

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """The gradient to commit to in a round of the attack, float32 [d]."""
        return own

    def approves(self, table: Message, right: bool, round: Round) -> bool:
        """Approve like an honest contributor, and whatever a friend publishes."""
        return right or (table.sender in self.coalition and self.attacks(round.round))

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        """Accuse like an honest validator, but no friend."""
        return check.commit.sender not in self.coalition and super().accuses(check, tolerance)

    def vote(self, check: GradientCheck, tolerance: float) -> Literal[0, 1, 2, 3]:
        """Vote like an honest member, but for a friend."""
        return INNOCENT if check.commit.sender in self.coalition else super().vote(check, tolerance)

    def charges(self, accused: PeerId, deed: str) -> bool:
        """Pass on proofs against everybody but friends."""
        return accused not in self.coalition
