"""The learning side of simulated peers: the real data, model and optimizer of a configuration, computed once.

Peers that hold equal parameters share them: a step from equal states with equal updates is taken once, and a gradient
at equal parameters on equal samples is computed once, whoever needs it. Who differs gets a state of its own.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from btrain.config import RunConfig
from btrain.data.source import Batch, Source
from btrain.protocol.encoding import digest
from btrain.training import Evaluation, Training, build_training, states_close

GRADIENTS_KEPT = 512


class Moment:
    """One state of model and optimizer; `later` holds the states that updates lead to, by the update's digest."""

    def __init__(self, x: Tensor, state: bytes) -> None:
        self.x, self.state = x, state
        self.later: dict[bytes, Moment] = {}


class SharedLearning:
    """Everything that the peers of one simulation have in common."""

    def __init__(self, config: RunConfig, base: Path | None = None) -> None:
        training: Training = build_training(config, base=base)
        self._trainer, self._oracle, self._source, self.config = training
        if self.config.start_fingerprint is not None and (config.model is None or config.model.start is None):
            key = "model.fingerprint" if config.fork_from is None else "fork_from"
            raise config.error(key, "a simulation has nobody who gives the state to start from; it can take model.from")
        self._moments: weakref.WeakValueDictionary[bytes, Moment] = weakref.WeakValueDictionary()
        self._moment = self.first = self._moment_of(self._trainer.state_bytes())
        self._gradients: OrderedDict[tuple[bytes, bytes, bool], Tensor] = OrderedDict()

    def learner(self) -> PeerLearner:
        """A new peer's learner, at x[0]."""
        return PeerLearner(self)

    def gradient(self, x: Tensor, batch_seed: bytes, flip_labels: bool) -> Tensor:
        """The gradient at x (float32 [d]) on the minibatch of a seed; not to be changed in place."""
        key = (digest(x.numpy().tobytes()), batch_seed, flip_labels)
        known = self._gradients.get(key)
        if known is None:
            transform = self._flipped if flip_labels else None
            known = self._gradients[key] = self._oracle.gradient(x, batch_seed, transform=transform)
            if len(self._gradients) > GRADIENTS_KEPT:
                self._gradients.popitem(last=False)
        return known

    def step(self, moment: Moment, update: Tensor, step: int) -> Moment:
        """The state after an update (float32 [d]); `step` counts the steps after it."""
        key = digest(update.numpy().tobytes())
        later = moment.later.get(key)
        if later is None:
            self._go(moment)
            self._trainer.apply(update, step - 1)
            later = self._moment = self._moment_of(self._trainer.state_bytes())
            moment.later[key] = later
        return later

    def at(self, state: bytes) -> Moment:
        """The moment of these state bytes."""
        known = self._moments.get(digest(state))
        if known is not None:
            return known
        self._trainer.load_state(state)
        self._moment = self._moment_of(state)
        return self._moment

    def evaluate(self, x: Tensor, samples: int | None = None) -> Evaluation:
        """Loss and metric at x on the held-out split."""
        return self._trainer.evaluate(samples, x)

    def _moment_of(self, state: bytes) -> Moment:
        """The moment at which the trainer stands, the one that others hold if there is one."""
        return self._moments.setdefault(digest(state), Moment(self._trainer.parameters(), state))

    def _go(self, moment: Moment) -> None:
        if self._moment is not moment:
            self._trainer.load_state(moment.state)
            self._moment = moment

    def _flipped(self, batch: Batch) -> Batch:
        inputs, targets = batch
        return inputs, flipped_labels(targets, self._source)


def flipped_labels(targets: Tensor, source: Source) -> Tensor:
    """Class y becomes classes - 1 - y, a token the next one of the vocabulary; other targets change their sign."""
    if source.classes is not None:
        return source.classes - 1 - targets
    if source.vocabulary is not None:
        return torch.remainder(targets + 1, source.vocabulary)
    return -targets


class PeerLearner:
    """One peer's place in the shared learning."""

    def __init__(self, shared: SharedLearning) -> None:
        self._shared, self._moment = shared, shared.first

    def parameters(self) -> Tensor:
        """x, float32 [d]; shared, not to be changed in place."""
        return self._moment.x

    def gradient(self, x: Tensor, batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
        """The gradient at x on the minibatch of a seed, float32 [d]; shared, not to be changed in place."""
        return self._shared.gradient(x, batch_seed, flip_labels)

    def apply(self, update: Tensor, step: int) -> None:
        """Step the optimizer."""
        self._moment = self._shared.step(self._moment, update, step)

    def state_bytes(self) -> bytes:
        """Parameters and optimizer state, canonical."""
        return self._moment.state

    def is_close(self, own: bytes, other: bytes, tolerance: float) -> bool:
        """Whether two states are the same but for rounding."""
        return states_close(own, other, tolerance)

    def load_state(self, data: bytes) -> None:
        """Replace both."""
        self._moment = self._shared.at(data)
