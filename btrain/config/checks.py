"""What must hold between the fields of run.yaml."""

from __future__ import annotations

from collections.abc import Iterator

from btrain.config.document import KeyPath
from btrain.config.schema import BuiltinData, DataEntryPoint, Fields, Gpt, ModelEntryPoint, Sequences, Sgd
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.protocol.trajectory import ROLLBACK_ROUNDS_MAX

Problem = tuple[KeyPath, str]


def cross_checks(config: Fields) -> Iterator[Problem]:
    """Every rule that the values of `config` break together, with the key to change."""
    yield from _group(config)
    yield from _task(config)
    yield from _start(config)
    yield from _optimizer(config)
    yield from _rollback(config)
    yield from _final_sweep(config)
    yield from _deadlines(config)
    yield from _not_yet(config)


def _group(config: Fields) -> Iterator[Problem]:
    group, audits = config.group, config.verification.audits_per_round
    if len(set(group.members)) < len(group.members):
        yield ("group", "members"), "a peer id stands here twice"
    if group.admission == "allowlist" and not group.members:
        yield ("group", "admission"), "allowlist needs the peer ids of those who may take part under group.members"
    if group.admission == "invite" and group.invitations > group.start_when:
        yield (
            ("group", "invitations"),
            f"expected at most {group.start_when}, the number of founders, got {group.invitations}",
        )
    if group.members and group.start_when > len(group.members):
        yield (
            ("group", "start_when"),
            f"expected at most {len(group.members)}, as many as group.members lists, got {group.start_when}",
        )
    validators = validators_max(group.start_when, audits)
    if validators and validators >= group.start_when:
        yield (
            ("verification", "audits_per_round"),
            f"{validators} validators leave none of {group.start_when} members to compute",
        )
        return
    limit = byzantine_limit(group.start_when, validators)
    if group.byzantine_max > limit:
        whole = f"{_count(group.start_when, 'member')}, {_count(validators, 'validator')} among them"
        reason = "members - validators must be more than 2 * byzantine_max"
        yield (
            ("group", "byzantine_max"),
            f"expected at most {limit} for {whole} ({reason}), got {group.byzantine_max}",
        )


def _task(config: Fields) -> Iterator[Problem]:
    model, data = config.model, config.data
    if isinstance(model, Gpt) and model.width % model.heads:
        yield ("model", "heads"), f"expected a divisor of model.width, which is {model.width}, got {model.heads}"
    if model is None or data is None or isinstance(model, ModelEntryPoint) or isinstance(data, DataEntryPoint):
        return
    if isinstance(model, Gpt) and isinstance(data, BuiltinData):
        yield ("data", "builtin"), f"{data.builtin} holds images, but the model gpt reads text or tokens"
    elif isinstance(model, Gpt) and isinstance(data, Sequences) and data.context not in {None, model.context}:
        yield ("data", "context"), f"expected nothing or model.context, which is {model.context}, got {data.context}"
    elif not isinstance(model, Gpt) and isinstance(data, Sequences):
        yield ("data",), f"holds text or tokens, but the model {model.builtin} reads images"


def _start(config: Fields) -> Iterator[Problem]:
    forks = config.fork_from is not None or config.local.fork_from is not None
    model = config.model
    if forks and model is not None and (model.start is not None or model.fingerprint is not None):
        key = "fingerprint" if model.start is None else "from"
        yield ("model", key), "a run that goes on from another one (fork_from) starts from the state of that one"


def _optimizer(config: Fields) -> Iterator[Problem]:
    optimizer = config.optimizer
    if optimizer is None:
        return
    if isinstance(optimizer, Sgd) and optimizer.nesterov and not optimizer.momentum:
        yield ("optimizer", "nesterov"), "needs optimizer.momentum above 0"
    if optimizer.schedule.name != "constant" and optimizer.schedule.warmup >= config.rounds:
        yield (
            ("optimizer", "schedule", "warmup"),
            f"expected fewer steps than rounds, which is {config.rounds}, got {optimizer.schedule.warmup}",
        )


def _rollback(config: Fields) -> Iterator[Problem]:
    """A seat of an open run takes longer to earn than its holder can undo, or the run might never get anywhere."""
    group, verification = config.group, config.verification
    undone = min(verification.custody_rounds, ROLLBACK_ROUNDS_MAX) + 1
    if verification.rollback != "none" and group.admission == "open" and group.probation_rounds <= undone:
        yield (
            ("group", "probation_rounds"),
            f"expected more than {undone}, the rounds that one ban can undo, got {group.probation_rounds}",
        )


def _final_sweep(config: Fields) -> Iterator[Problem]:
    verification = config.verification
    if verification.final_sweep and not (verification.sweep and verification.audits_per_round):
        yield ("verification", "final_sweep"), "needs verification.sweep and audits, expected 0"


def _not_yet(config: Fields) -> Iterator[Problem]:
    if config.local_steps != 1:
        yield (
            ("local_steps",),
            f"several local steps a round are not supported yet: expected 1, got {config.local_steps}",
        )
    if config.local.metrics is not None:
        yield (
            ("local", "metrics"),
            "nothing is served to Prometheus yet; metrics.jsonl in the run directory holds it all",
        )


def _deadlines(config: Fields) -> Iterator[Problem]:
    for name in ("compute", "transfer"):
        deadline_s = getattr(config.deadlines, f"{name}_s")
        if deadline_s is not None and deadline_s < config.deadlines.message_s:
            yield ("deadlines", name), "expected auto or no less than deadlines.message"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}" + ("" if number == 1 else "s")
