"""A torch loop of one's own in a run: with a task, without one, and everything that a loop can do wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import btrain
from btrain.config import loads
from btrain.data import Batch
from btrain.errors import ConfigError
from btrain.peer import PeerOptions
from btrain.run import GradientMismatch, LoopError, Run
from btrain.status import read_status_of

BARE = """\
run: loops
rounds: 8
deadlines: {message: 1s}
local: {listen: /ip4/127.0.0.1/tcp/0}
"""
FULL = (
    BARE
    + """\
model: {builtin: logreg}
data: {builtin: digits}
optimizer: {name: SGD, lr: 0.1}
batch_size: 8
eval: {every: 4, samples: 32}
"""
)


PATIENT = FULL.replace("message: 1s", "message: 10s")  # nobody is late, however busy the machine is


class SmoothedTask:
    """A task of the user's own."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return functional.cross_entropy(model(inputs), targets, label_smoothing=0.1)


def own_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def make(directory: Path, text: str = FULL, peers: int = 1, **options: Any) -> Run:
    events: list[dict[str, Any]] = []
    peer = PeerOptions(run_dir=directory, join=options.pop("join", ()))
    run = Run(loads(text, peers=peers), options=peer, on_event=events.append, **options)
    run.events = events  # type: ignore[attr-defined]
    return run


def happened(run: Run, name: str) -> list[dict[str, Any]]:
    return [event for event in run.events if event["event"] == name]  # type: ignore[attr-defined]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)


def loop(run: Run, model: nn.Module, task: Any) -> None:
    with run:
        optimizer = btrain.Optimizer(sgd(model), run)
        for batch in run.batches():
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
        run.finish()


def in_threads(town: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in town]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_three_loops_with_a_model_and_a_task_of_their_own(tmp_path: Path) -> None:
    task = SmoothedTask()
    listening = threading.Event()
    first = make(tmp_path / "0", PATIENT, peers=3, task=task, model=own_model())
    first._listener = lambda event: (first.events.append(event), event["event"] == "started" and listening.set())  # type: ignore[attr-defined,assignment,func-returns-value]
    runs = [first]
    models = [own_model() for _ in range(3)]  # not in the threads: torch's generator belongs to all of them

    def join(index: int) -> None:
        assert listening.wait(60)
        address = happened(first, "started")[0]["addresses"][0]
        run = make(tmp_path / str(index), PATIENT, peers=3, task=task, model=models[index], join=(address,))
        runs.append(run)
        loop(run, run.model, task)

    in_threads([lambda: loop(first, first.model, task), lambda: join(1), lambda: join(2)])
    assert len({happened(run, "finished")[0]["digest"] for run in runs}) == 1
    assert not torch.equal(first.model[1].weight, own_model()[1].weight)  # type: ignore[index]
    assert not any(happened(run, "banned") or happened(run, "warning") for run in runs)
    assert happened(first, "block")[-1]["contributors"] == 3


def test_a_damaged_log_keeps_nobody_from_going_on(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"v":1,"event":"bl\0\0\0\0\n{"v":1,"event":"halted"}\n')
    model = own_model()
    run = make(tmp_path, model=model, task=SmoothedTask())
    loop(run, model, SmoothedTask())
    assert happened(run, "finished")[0]["reason"] == "finished"


def test_status_says_of_what_a_loop_died(tmp_path: Path) -> None:
    run = make(tmp_path, model=own_model(), task=SmoothedTask())

    def train() -> None:
        with run:
            btrain.Optimizer(sgd(run.model), run)
            for _ in run.batches():
                raise ZeroDivisionError("the loss of no samples")

    with pytest.raises(ZeroDivisionError):
        train()
    assert run.stopped is not None and run.stopped.reason == "left"
    assert [event["error"] for event in happened(run, "failed")] == ["ZeroDivisionError"]
    (peer,) = read_status_of(tmp_path)["peers"]
    assert peer["state"] == "failed: the loss of no samples"


def test_a_plain_loop_without_data_or_task(tmp_path: Path) -> None:
    """Each step is one round; the run says what it does not protect."""
    model = own_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with make(tmp_path, BARE, model=model) as run:
        optimizer = btrain.Optimizer(sgd(model), run)
        steps = 0
        while not run.ended:
            optimizer.zero_grad()
            model(torch.ones(2, 64)).square().mean().backward()
            optimizer.step()
            steps += 1
        with pytest.raises(LoopError, match="has ended"):
            optimizer.step()
        run.finish()
    assert 8 <= steps <= 9  # the last may find that the run is over
    assert "no task" in happened(run, "warning")[0]["text"]
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_variable_names_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text(BARE.replace("tcp/0}", f"tcp/0, run_dir: {tmp_path / 'peer'}}}"))
    monkeypatch.setenv("BTRAIN_CONFIG", str(tmp_path / "run.yaml"))
    model = own_model()
    optimizer = btrain.Optimizer(sgd(model))
    assert optimizer.run is not None
    with optimizer.run as run:
        while not run.ended:
            optimizer.zero_grad()
            model(torch.ones(2, 64)).square().mean().backward()
            optimizer.step()
    assert (tmp_path / "peer" / "ledger").exists()


def test_a_learning_rate_set_in_the_loop_is_put_back_and_told(tmp_path: Path) -> None:
    with make(tmp_path, task=SmoothedTask(), model=own_model()) as run:
        optimizer = btrain.Optimizer(sgd(run.model), run)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
        for batch in run.batches():
            optimizer.zero_grad()
            SmoothedTask().loss(run.model, batch).backward()
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == 0.1
            scheduler.step()
    assert "learning rate" in happened(run, "warning")[0]["text"]


def scaled(optimizer: btrain.Optimizer, run: Run, batch: Batch) -> None:
    optimizer.zero_grad()
    (2 * SmoothedTask().loss(run.model, batch)).backward()
    optimizer.step()


def unstepped(optimizer: btrain.Optimizer, run: Run, batch: Batch) -> None:
    SmoothedTask().loss(run.model, batch).backward()


def twice(optimizer: btrain.Optimizer, run: Run, batch: Batch) -> None:
    optimizer.zero_grad()
    SmoothedTask().loss(run.model, batch).backward()
    optimizer.step()
    optimizer.step()


def no_gradient(optimizer: btrain.Optimizer, run: Run, batch: Batch) -> None:
    optimizer.step()


@pytest.mark.parametrize(
    ("mistake", "error", "word"),
    [
        (scaled, GradientMismatch, "scaled"),
        (no_gradient, GradientMismatch, "none"),
        (unstepped, LoopError, "once for every batch"),
        (twice, LoopError, "once for every batch"),
    ],
)
def test_mistakes_of_a_loop(tmp_path: Path, mistake: Callable[..., None], error: type[Exception], word: str) -> None:
    def train() -> None:
        with make(tmp_path, task=SmoothedTask(), model=own_model()) as run:
            optimizer = btrain.Optimizer(sgd(run.model), run)
            for batch in run.batches():
                mistake(optimizer, run, batch)

    with pytest.raises(error, match=word):
        train()


def test_wrong_uses_of_a_run(tmp_path: Path) -> None:
    with make(tmp_path / "a") as run:
        with pytest.raises(LoopError, match="attach an optimizer"):
            next(iter(run.batches()))
        with pytest.raises(ConfigError, match="the contract says SGD"):
            btrain.Optimizer(torch.optim.AdamW(run.model.parameters()), run)
        optimizer = btrain.Optimizer(sgd(run.model), run)
        with pytest.raises(LoopError, match="an optimizer already"):
            btrain.Optimizer(sgd(run.model), run)
        with pytest.raises(LoopError, match="certifies"):
            optimizer.load_state_dict(optimizer.state_dict())
        with pytest.raises(LoopError, match="fixed"):
            optimizer.add_param_group({"params": []})
    with make(tmp_path / "b", BARE, model=own_model()) as run, pytest.raises(LoopError, match="data"):
        next(iter(run.batches()))
    modelless = make(tmp_path / "c", BARE)
    with pytest.raises(ConfigError, match="no model"):
        _ = modelless.model
