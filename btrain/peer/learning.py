"""The learning side of a peer: the training loop's thread steps and computes, worker threads recompute for audits.

The protocol's thread hands over commands, in order; the loop answers each. Only the loop's thread touches the model and
the optimizer; recomputation uses the oracle's own replica and kept copies of the parameters.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from btrain.data import Batch
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.court import PARAMETERS_KEPT
from btrain.protocol.effects import Apply, Compute
from btrain.protocol.pieces import CutState, cut
from btrain.protocol.round import Round
from btrain.training import GradientOracle, Trainer


@dataclass(frozen=True)
class Stop:
    """The protocol's thread is done; `error` is what ended it, if anything did."""

    reason: str
    error: BaseException | None = None


@dataclass(frozen=True)
class ComputeHere:
    """A Compute effect, and the round that it belongs to."""

    effect: Compute
    round: Round


@dataclass(frozen=True)
class LoadHere:
    """A LoadState effect with the state that it names."""

    round: int
    state: bytes
    later_holds: bool = False


Command = ComputeHere | Apply | LoadHere | Stop


def flip_labels(batch: Batch) -> Batch:
    """Every label becomes the one at the other end: y -> max - y."""
    inputs, targets = batch
    return inputs, targets.max() - targets


class Learning:
    """What this peer trains. `oracle` is None if nobody can recompute its gradients (a loop without a task).

    here: whether the trainer's parameters are x[0]; if not, x[0] comes from the members (x_round is -1).
    """

    def __init__(
        self, trainer: Trainer, oracle: GradientOracle | None, behaviour: Behaviour, *, here: bool = True
    ) -> None:
        self.trainer, self.oracle, self.behaviour = trainer, oracle, behaviour
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.x_round = 0 if here else -1
        self._snapshots: dict[int, Tensor] = {0: trainer.parameters()} if here else {}
        self._pinned: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    def at(self, round: int, *, later_holds: bool = True) -> None:
        """The parameters are x[round] now: keep a copy, and those of later rounds while they hold."""
        x = self.trainer.parameters()
        with self._lock:
            self.x_round = round
            self._snapshots[round] = x
            late = {r for r in self._snapshots if r + PARAMETERS_KEPT <= round} - self._pinned
            for old in late if later_holds else late | {r for r in self._snapshots if r > round}:
                del self._snapshots[old]

    def restart_at(self, round: int, state: bytes, *, later_holds: bool = False) -> None:
        """Take a state over as x[round]."""
        self.trainer.load_state(state)
        self.at(round, later_holds=later_holds)

    def pin(self, rounds: frozenset[int]) -> None:
        """Keep the copies of these rounds until told otherwise."""
        with self._lock:
            self._pinned = rounds

    def x(self, round: int) -> Tensor | None:
        """The kept x[round], float32 [d]."""
        with self._lock:
            return self._snapshots.get(round)

    def apply(self, effect: Apply) -> CutState | None:
        """Step the optimizer, or not in a void round; returns the state in pieces if it is due."""
        if effect.update is not None:
            self.trainer.apply(effect.update, effect.step - 1)
        self.at(effect.round + 1)
        return cut(self.trainer.state_bytes()) if effect.digest_due else None

    def recompute(self, round: int, batch_seed: bytes) -> tuple[Tensor | None, Tensor | None]:
        """(gradient, x) of a round, float32 [d] each; None where it cannot be recomputed here."""
        x = self.x(round)
        if x is None or self.oracle is None:
            return None, None
        return self.oracle.gradient(x, batch_seed), x

    def behave(self, own: Tensor, command: ComputeHere) -> Tensor:
        """What this peer commits to: its gradient, or what an adversary makes of it."""
        round = command.effect.round

        def replay(batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
            x = self.x(round)
            assert x is not None and self.oracle is not None, "an adversary computes at the parameters of its round"
            return self.oracle.gradient(x, batch_seed, transform=_FLIP if flip_labels else None)

        return self.behaviour.gradient(own, command.round, replay)


_FLIP: Callable[[Any], Any] = flip_labels
