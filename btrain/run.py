"""A run as a training loop sees it: batches come when it is this peer's turn, steps go through the group.

    run = btrain.Run("run.yaml", task=task)
    opt = btrain.Optimizer(torch.optim.AdamW(run.model.parameters(), lr=3e-4), run)
    for batch in run.batches():
        task.loss(run.model, batch).backward(); opt.step(); opt.zero_grad()

Rounds in which this peer audits, or only follows, are handled inside `batches`. `btrain peer` is such a loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from btrain.charter import charter_of
from btrain.config import RunConfig, load
from btrain.data import Batch, Source
from btrain.errors import BtrainError, ConfigError
from btrain.identity import KeyFile, SigningKey, peer_id_bytes
from btrain.peer.learning import ComputeHere, Learning, LoadHere, Stop
from btrain.peer.options import PeerOptions
from btrain.peer.origin import Origin, load_start
from btrain.peer.store import Store
from btrain.progress import StatusFile, logged_events
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.effects import Apply
from btrain.protocol.encoding import digest
from btrain.protocol.errors import InvalidInvitation
from btrain.protocol.invitations import invitation_bytes
from btrain.storage.durable import StorageError
from btrain.storage.run_directory import RunDirectory, run_was_founded
from btrain.training import (
    Evaluation,
    Evaluator,
    GradientOracle,
    Schedule,
    Task,
    Trainer,
    build_oracle,
    build_training,
    choose_device,
    flatten,
)  # fmt: skip

if TYPE_CHECKING:
    from btrain.verify.parent import Fork

logger = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


class LoopError(BtrainError):
    """The training loop does not use the run as it must be used; the message says how."""


class GradientMismatch(BtrainError):
    """The loop's own gradient is not what its task gives: others would find it guilty."""


class Parameters(nn.Module):
    """The parameters of an optimizer as a module, for loops that give no model."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(listed):
            self.register_parameter(f"p{index:05}", parameter)


class Run:
    """One peer's part in a run. The network starts when an `Optimizer` is attached; leaving the `with` block ends it.

    config: run.yaml or a RunConfig. model: the model that the loop trains; without one it is built from the contract
    and found as `run.model`. task: `loss(model, batch)`; with it (or with a model of the contract) others can recompute
    gradients. Without a task, and without batches of the run, a loop is as any torch loop: each `step` is one round.
    """

    def __init__(
        self,
        config: RunConfig | str | Path,
        *,
        task: Task | None = None,
        model: nn.Module | None = None,
        options: PeerOptions | None = None,
        on_event: Listener | None = None,
    ) -> None:
        self.options = options or PeerOptions()
        loaded = config if isinstance(config, RunConfig) else load(config)
        if self.options.device is not None:
            local = loaded.local.model_copy(update={"device": self.options.device})
            loaded = loaded.model_copy(update={"local": local})
        self._behaviour = _behaviour(self.options, loaded.seed)
        base = None if isinstance(config, RunConfig) else Path(config).resolve().parent
        self.task, self._listener = task, on_event
        opaque = loaded.data is None or isinstance(model, Parameters)
        loaded, self._fork = _going_on(loaded, self.options)
        built = None if opaque else build_training(loaded, model=model, task=task, base=base)
        self.source: Source | None = built.source if built else None
        self.config = built.config if built else loaded
        self.default_trainer = built.trainer if built else None
        self._model = built.trainer.model if built else model
        self._sampler: GradientOracle | None = built.oracle if built else None
        self.oracle = self._sampler if task is not None or model is None else None
        self.final: Evaluation | None = None
        self.stopped: Stop | None = None
        self._resources = ExitStack()
        self._learning: Learning | None = None
        self._open: ComputeHere | None = None
        self._gradient: Tensor | None = None
        self._drawing = ExitStack()
        self._waiting: list[Any] = []
        self._computing_since = 0.0
        self._checked_own_gradient = self._warned_of_rate = False
        self._evaluations = ThreadPoolExecutor(1, "btrain-evaluation")
        self._evaluating: Future[Evaluation | None] | None = None
        self._directory: RunDirectory | None = None
        self._origin: Origin
        self._status: StatusFile | None = None
        self._shell: Any = None
        self._leave_asked = False
        self._thread: threading.Thread | None = None

    @property
    def model(self) -> nn.Module:
        """The model that the loop trains."""
        if self._model is None:
            raise ConfigError("the run has no model: give Run(model=...) or a `model:` section")
        return self._model

    # --- starting and ending ---

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Start the peer with this optimizer: open the run directory, listen, join. Called by `btrain.Optimizer`."""
        if self._learning is not None:
            raise LoopError("this run has an optimizer already")
        trainer = self._trainer(optimizer)
        try:
            self._start(trainer)
        except BaseException:
            self._resources.close()
            raise

    def _trainer(self, optimizer: torch.optim.Optimizer) -> Trainer:
        default = self.default_trainer
        if default is not None and default.optimizer is optimizer:
            return default
        contract = self.config.optimizer
        if contract is not None and type(optimizer).__name__ != contract.name:
            raise ConfigError(
                f"optimizer: the contract says {contract.name}, the loop wraps {type(optimizer).__name__}; all peers "
                "must step alike"
            )
        schedule = Schedule(**contract.schedule.model_dump(), steps=self.config.rounds) if contract else None
        model = self._model if self._model is not None else Parameters(optimizer)
        evaluator = None
        if self.source is not None:
            evaluator = Evaluator(model, self.source.split("eval"), self.task, device=choose_device("cpu"))
        if self.oracle is None and self.task is not None and self.source is not None:
            self.oracle = build_oracle(self.config, model, self.source, task=self.task)
        return Trainer(model, optimizer, schedule, evaluator)

    def _start(self, trainer: Trainer) -> None:
        from btrain.peer.setting import Setting, begin
        from btrain.peer.shell import Shell

        config, options, behaviour = self.config, self.options, self._behaviour
        run_dir, joins = options.run_dir or Path(config.local.run_dir), options.join or tuple(config.local.join)
        founded, prepared = run_was_founded(run_dir), self._prepare(trainer)
        if config.start_fingerprint is not None and not (prepared or founded or joins):
            raise ConfigError(
                "this peer founds the run, so it needs the state that the run starts from: name it by --fork-from or "
                "model.from, or --join a run that is founded"
            )
        invitations = _invitations(config)
        key, self._directory = self._open_directory(run_dir)
        self._status = StatusFile(self._directory, logged_events(self._directory.events.path))
        store = Store(self._directory, charter_of(config))
        self._origin = Origin(config, trainer, self.oracle, store.initial, prepared)
        start = self._origin.begin(founded=founded)
        if config.start_fingerprint is not None:
            self._tell(self._origin.event(start))
        learning = Learning(trainer, self.oracle, behaviour, here=start.x0 is not None)
        if self.oracle is None:
            self._warn(
                "no task: others cannot recompute this run's gradients, so only the aggregation and the protocol's "
                "checks protect it"
            )
        announce = options.announce or config.local.announce
        setting = Setting(
            config=config, key=key, store=store, learning=learning, behaviour=behaviour, start=start,
            numel=trainer.numel, listen=options.listen or config.local.listen, announce=_as_tuple(announce),
            join=joins, invitations=invitations, on_event=self._tell,
        )  # fmt: skip
        self._shell = Shell(setting, begin(setting))
        if self._leave_asked:
            self._shell.leave()
        self._learning = learning
        self._thread = threading.Thread(target=self._shell.serve, name="btrain-protocol", daemon=True)
        self._thread.start()

    def _open_directory(self, run_dir: Path) -> tuple[SigningKey, RunDirectory]:
        """The key and the run directory, both locked until the end."""
        config = self.config
        identity = self.options.identity or config.local.identity or RunDirectory.identity_path(run_dir)
        key = self._resources.enter_context(KeyFile.open_or_create(identity)).key
        if key.public_key in config.banned:
            raise ConfigError(f"the identity in {identity} was banned in the run that this one goes on from")
        directory = self._resources.enter_context(
            RunDirectory.open(run_dir, contract=config.contract_hash(), identity=key.public_key)
        )
        directory.save_config(config.to_yaml())
        if self._fork is not None:
            self._fork.keep_record(run_dir)
        return key, directory

    def _prepare(self, trainer: Trainer) -> bool:
        """Whether the trainer is at x[0] where no seed gives it: by a file, or now by what a parent run has left."""
        if self._fork is not None:
            load_start(trainer, self.oracle, self._fork.state)
        return self._fork is not None or (self.config.model is not None and self.config.model.start is not None)

    def leave(self) -> None:
        """Ask to leave in order; `batches` ends soon after. From any thread, also from a signal's handler."""
        self._leave_asked = True
        if self._shell is not None:
            self._shell.leave()

    def close(self, *, at_once: bool = False) -> None:
        """End the peer's part: leave if still running (`at_once`: without giving the seat up in order), stop the
        threads, release directory and key."""
        self._drawing.close()
        if self._thread is not None:
            if self.stopped is None:
                (self._shell.stop if at_once else self._shell.leave)()
            if self._open is not None:
                self._waiting.insert(0, self._open)
            while self.stopped is None:
                command = self._next()
                if isinstance(command, ComputeHere):  # the loop is gone; who commits to nothing delays nobody
                    self._shell.computed(command.effect.round, None, 0.0)
                else:
                    self._handle(command)
            self._thread.join()
        self._evaluations.shutdown(wait=not at_once, cancel_futures=True)
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._tell({"event": "failed", "error": type(error).__name__, "text": str(error)})
        self.close(at_once=isinstance(error, KeyboardInterrupt))

    # --- the training loop ---

    @property
    def ended(self) -> bool:
        """Whether the run is over for this peer; `step` must not be called any more."""
        return self.stopped is not None

    def batches(self) -> Iterator[Batch]:
        """This peer's minibatch of every round in which it computes, until the run ends.

        Raises:
            BtrainError: what ended the run, if it did not end by itself.
        """
        if self._sampler is None:
            raise LoopError("batches need a `data:` section; without one call opt.step() once for every gradient")
        for turn in self.turns():
            seed = turn.effect.batch_seed
            batch = self._sampler.batch(seed)
            self._drawing.enter_context(self._sampler.generator(seed))
            try:
                yield batch
            finally:
                self._drawing.close()

    def turns(self) -> Iterator[ComputeHere]:
        """The rounds in which this peer computes; each must be answered by one `step`. Raises as `batches` does."""
        if self._learning is None:
            raise LoopError("attach an optimizer first: btrain.Optimizer(wrapped, run)")
        while self.stopped is None:
            command = self._next()
            if not isinstance(command, ComputeHere):
                self._handle(command)
                continue
            self._open, self._computing_since = command, time.perf_counter()
            yield command
            if self._open is not None:
                raise LoopError("call opt.step() once for every batch")
        if self.stopped.error is not None:
            raise self.stopped.error

    def compute(self) -> float:
        """Compute the open turn's gradient as the contract says (samples, device, precision), for the next `step`.

        Returns the loss. Raises TaskError.
        """
        learning, turn = self._learning, self._open
        if learning is None or turn is None or self.oracle is None:
            raise LoopError("run.compute() belongs to a turn of run.turns()")
        x = learning.x(turn.effect.round)
        assert x is not None, "a turn begins at the parameters of its round"
        loss, self._gradient = self.oracle.loss_and_gradient(x, turn.effect.batch_seed)
        return loss

    def step(self) -> None:
        """Commit the gradients that lie in the parameters' .grad, and wait until the group's update is applied."""
        self._drawing.close()
        learning = self._learning
        if learning is None:
            raise LoopError("attach an optimizer first: btrain.Optimizer(wrapped, run)")
        if self.stopped is not None:
            if self.stopped.error is not None:
                raise self.stopped.error
            raise LoopError(f"the run has ended ({self.stopped.reason}): leave the loop when run.ended is true")
        before = learning.x_round
        if self._open is None:
            if self._sampler is not None:
                raise LoopError("opt.step() belongs to a batch of run.batches(), once for every batch")
            self._await_turn(before)
        if self._open is not None:
            self._commit(self._open)
            self._open = None
        while not self.ended and learning.x_round <= before:
            following = self._next()
            if isinstance(following, ComputeHere):  # our round is over without us: the next turn comes first
                self._waiting.insert(0, following)
                return
            self._handle(following)

    def _await_turn(self, before: int) -> None:
        """In a loop without batches: until the round asks for a gradient, or has gone by without this peer's."""
        assert self._learning is not None
        while self.stopped is None and self._learning.x_round <= before and self._open is None:
            command = self._next()
            if isinstance(command, ComputeHere):
                self._open, self._computing_since = command, time.perf_counter()
            else:
                self._handle(command)

    def _commit(self, turn: ComputeHere) -> None:
        assert self._learning is not None
        own, self._gradient = self._gradient, None
        if own is None:
            own = self._own_gradient(self._learning.trainer)
            self._check_own_gradient(own, turn)
        gradient = self._learning.behave(own, turn)
        self._shell.computed(turn.effect.round, gradient, time.perf_counter() - self._computing_since)

    def _own_gradient(self, trainer: Trainer) -> Tensor:
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        flat = flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        return self.oracle.clip(flat) if self.oracle is not None else flat

    def _check_own_gradient(self, own: Tensor, command: ComputeHere) -> None:
        """Once, before the first Commit: what we commit to must be what others recompute."""
        if self._checked_own_gradient or self.oracle is None or self._learning is None:
            return
        self._checked_own_gradient = True
        x = self._learning.x(command.effect.round)
        if x is None:
            return
        recomputed = self.oracle.gradient(x, command.effect.batch_seed)
        error = float((own - recomputed).norm() / recomputed.norm().clamp(min=1e-30))
        if error > charter_of(self.config).tolerance:
            raise GradientMismatch(
                f"this loop's gradient differs from what its task gives by {error:.1e} of its length, so others would "
                "find it guilty. Likely causes: gradients clipped or scaled in the loop (put clip_grad_norm into the "
                "contract), several backward passes or none, gradients not cleared by zero_grad, a loss other than "
                "task.loss, another precision than the contract's"
            )

    def _next(self) -> Any:
        assert self._learning is not None
        return self._waiting.pop(0) if self._waiting else self._learning.commands.get()

    def _handle(self, command: Any) -> None:
        learning = self._learning
        assert learning is not None
        match command:
            case Apply():
                self._check_rate(learning.trainer)
                self._shell.applied(command, learning.apply(command))
                self._evaluate(command.round + 1)
            case LoadHere(round, state, later_holds):
                given = learning.x_round < 0
                learning.restart_at(round, state, later_holds=later_holds)
                if given:
                    self._origin.given(state, self._shell.member.state.genesis)
                self._shell.state_loaded(round)
            case Stop():
                self.stopped = command

    def _check_rate(self, trainer: Trainer) -> None:
        """A learning rate that the loop sets is put back: it would be another one on every peer."""
        if trainer.schedule is not None and trainer.rates_changed() and not self._warned_of_rate:
            self._warned_of_rate = True
            self._warn("the loop changes the learning rate; in a run the contract's optimizer.schedule decides")

    # --- evaluation and events ---

    def _evaluate(self, round: int) -> None:
        """Every `eval.every` rounds, on a copy, in the background; not while the last evaluation is still running."""
        learning = self._learning
        assert learning is not None
        busy = self._evaluating is not None and not self._evaluating.done()
        if learning.trainer.evaluator is None or round % self.config.eval.every or busy:
            return
        x = learning.trainer.parameters()
        self._evaluating = self._evaluations.submit(self._evaluate_at, round, x, self.config.eval.samples)

    def _evaluate_at(self, round: int, x: Tensor, samples: int | None) -> Evaluation | None:
        assert self._learning is not None
        torch.set_num_threads(1)
        try:
            result = self._learning.trainer.evaluate(samples, x)
        except Exception as error:
            logger.exception("evaluation of round %d", round)
            self._warn(f"evaluation of round {round}: {type(error).__name__}: {error}")
            return None
        self._tell({"event": "evaluated", "round": round, "loss": result.loss, "metric": result.metric,
                    "samples": samples})  # fmt: skip
        return result

    def finish(self) -> dict[str, Any]:
        """After `batches` has ended: keep the last parameters and evaluate the whole held-out split, unless this peer
        left before the end. Returns and logs the `finished` event."""
        learning = self._learning
        assert learning is not None and self.stopped is not None and self._directory is not None
        x = learning.trainer.parameters()
        if self.stopped.reason == "finished":
            keep = self.config.local.checkpoints.keep
            self._shell.store.save_last(learning.x_round, learning.trainer.state_bytes(), keep)
            if learning.trainer.evaluator is not None:
                self.final = self._evaluations.submit(self._evaluate_at, learning.x_round, x, None).result()
        event = {
            "event": "finished", "reason": self.stopped.reason, "round": learning.x_round,
            "digest": digest(x.numpy().tobytes()).hex(), "loss": self.final.loss if self.final else None,
            "metric": self.final.metric if self.final else None, "bytes_sent": self._shell.bytes_sent,
            "numel": learning.trainer.numel,
        }  # fmt: skip
        self._tell(event)
        return event

    def _warn(self, text: str) -> None:
        self._tell({"event": "warning", "text": text})

    def _tell(self, event: dict[str, Any]) -> None:
        """Log an event and hand it on. Neither a full disk nor a listener's error ends the run here: what must be
        durable is written elsewhere, and fails there."""
        directory = self._directory
        try:
            if directory is not None:
                directory.events.write(event)
                if self._status is not None:
                    self._status.take(event)
                if event["event"] == "block":
                    directory.metrics.write({key: event[key] for key in _METRICS} | {"round": event["round"]})
        except StorageError as error:
            logger.warning("%s", error)
        if self._listener is not None:
            try:
                self._listener(event)
            except Exception:
                logger.exception("the listener failed on %s", event["event"])


_METRICS = ("step", "void", "contributors", "clipped_share", "losses_left", "heals", "seconds")


def _going_on(config: RunConfig, options: PeerOptions) -> tuple[RunConfig, Fork | None]:
    """The configuration with the run named that it goes on from, and that run's record until the new one is founded."""
    if config.local.fork_from is None:
        return config, None
    from btrain.verify.parent import going_on

    return going_on(config, config.local.fork_from, options.run_dir or config.local.run_dir)


def _invitations(config: RunConfig) -> tuple[bytes, ...]:
    try:
        return tuple(map(invitation_bytes, config.local.invitations))
    except InvalidInvitation as error:
        raise config.error("local.invitations", str(error)) from None


def _behaviour(options: PeerOptions, seed: int) -> Behaviour:
    if options.adversary is None:
        return Behaviour()
    from btrain.adversary import get_adversary

    coalition = frozenset(peer_id_bytes(text) for text in options.coalition)
    return get_adversary(options.adversary, coalition=coalition, attack_from=options.attack_from, seed=seed)


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if not value else (value,) if isinstance(value, str) else tuple(value)
