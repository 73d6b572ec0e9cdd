"""Attackers by name, as the command line names them: NAME[:key=value,...], or several of them joined by `+`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from btrain.adversary import aggregator, gradient, history, numeric, omniscient, sender, signer, sybil, table, validator
from btrain.adversary.adversary import Adversary
from btrain.adversary.mixed import Mixed
from btrain.errors import ConfigError
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId

RESTART_MID_ROUND = "restart_mid_round"
KILL = "kill"
BROKEN_LINK = "broken_link"
HONEST = (RESTART_MID_ROUND, KILL, BROKEN_LINK)
"""No behaviours: honest peers that the harness kills and starts again, kills for good, or cuts off from one other."""

_CLASSES: tuple[type[Adversary], ...] = (
    gradient.SignFlip,
    gradient.RandomDirection,
    gradient.LabelFlip,
    gradient.FreeRider,
    gradient.Delayed,
    omniscient.InnerProduct,
    omniscient.LittleIsEnough,
    omniscient.MinMax,
    omniscient.RelocatedOrthogonal,
    omniscient.Mimic,
    omniscient.JustInsideTolerance,
    numeric.NanScale,
    numeric.InfiniteScale,
    numeric.Huge,
    numeric.ForgedScale,
    numeric.MinusOneTwentyEight,
    numeric.DenormalScale,
    aggregator.WrongReduce,
    aggregator.ComplaintFlood,
    aggregator.DropContributor,
    aggregator.DirectedRounding,
    aggregator.WrongTau,
    aggregator.JustInsideSketch,
    table.LieTable,
    table.ColludeTable,
    table.DenyRow,
    table.WithholdTable,
    table.FalseDispute,
    signer.Equivocate,
    signer.DoubleVote,
    signer.BadProposal,
    sender.EdgeLate,
    sender.SelectiveSend,
    sender.AbortLink,
    sender.AbortDraw,
    sender.WithholdPart,
    sender.Freeze,
    sender.Flap,
    sender.SlowDrip,
    sender.Garbage,
    sender.Oversize,
    sender.Flood,
    sender.Replay,
    history.StatePoison,
    history.ForgedHistory,
    sybil.SybilJoin,
    validator.FalseAccuse,
    validator.RubberStamp,
    validator.Lie,
    validator.AccuseFlood,
    validator.CustodyLoss,
)
_BY_NAME = {adversary.name: adversary for adversary in _CLASSES}
_FROM = "from"  # the command line's word for attack_from
_JOINT = re.compile(r"\+(?=\s*[a-z_])")  # the + of 1e+5 joins nothing


def adversary_names() -> tuple[str, ...]:
    """Every name that `get_adversary` knows."""
    return (*_BY_NAME, *HONEST)


def adversary_variants() -> tuple[str, ...]:
    """Every attack with every value of those of its options that have few: NAME:key=value."""
    found = []
    for name, adversary in _BY_NAME.items():
        for option in filter(_is_option, dataclasses.fields(adversary)):
            choices = option.metadata.get("choices", ("true",) if isinstance(option.default, bool) else ())
            found += [f"{name}:{option.name}={choice}" for choice in choices if choice != option.default]
    return tuple(found)


def adversary_class(name: str) -> type[Adversary] | None:
    """The class of a name, None for an honest peer with a fate."""
    return _BY_NAME.get(name)


def attack_name(spec: str) -> str:
    """The attack's name without its options, joined names for a mixture. Raises ConfigError for an unknown one."""
    names = [part.partition(":")[0].strip() for part in _JOINT.split(spec)]
    for name in names:
        if name not in adversary_names():
            raise ConfigError(f"attack {name!r}: unknown; {_nearest(name, adversary_names())}")
        if name in HONEST and len(names) > 1:
            raise ConfigError(f"attack {spec!r}: {name} is what happens to an honest peer, it mixes with nothing")
    return "+".join(names)


def get_adversary(
    spec: str, *, coalition: frozenset[PeerId] = frozenset(), attack_from: int = 0, seed: int = 0
) -> Behaviour:
    """The behaviour of an attacker given as NAME[:key=value,...], or as several of them joined by `+`.

    coalition: all attackers, by peer id. attack_from: the first round of the attack, unless the option `from` says
    otherwise. seed: what the attackers share. Every attack has the options `from`, `every` and `on` (attack in the
    first `on` of every so many rounds). Raises ConfigError naming the nearest valid name or key.
    """
    attack_name(spec)
    behaviours = [_single(part, coalition, attack_from, seed) for part in _JOINT.split(spec)]
    adversaries = [behaviour for behaviour in behaviours if isinstance(behaviour, Adversary)]
    return behaviours[0] if len(behaviours) == 1 else Mixed(adversaries)


def _single(spec: str, coalition: frozenset[PeerId], attack_from: int, seed: int) -> Behaviour:
    name, _, text = spec.partition(":")
    name = attack_name(name)
    if name in HONEST:
        _options(name, text, {})
        return Behaviour()
    adversary = _BY_NAME[name]
    known = {_FROM if f.name == "attack_from" else f.name: f for f in dataclasses.fields(adversary) if _is_option(f)}
    options = _options(name, text, known)
    options.setdefault("attack_from", options.pop(_FROM, attack_from))
    return adversary(coalition=coalition, seed=seed, **options)


def first_round(spec: str, attack_from: int) -> int:
    """The first round of the attack: what its option `from` says, else `attack_from`. Raises ConfigError."""
    behaviour = get_adversary(spec, attack_from=attack_from)
    return behaviour.attack_from if isinstance(behaviour, Adversary) else attack_from


def _is_option(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.name not in ("coalition", "seed")


def _options(name: str, text: str, known: dict[str, dataclasses.Field[Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in text.split(",") if text else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise ConfigError(f"attack {name}: no option {key!r}; {_nearest(key, list(known))}")
        if not equals or key in options:
            raise ConfigError(f"attack {name}: option {key!r} {'is given twice' if equals else 'needs =VALUE'}")
        options[key] = _value(f"attack {name}: {key}", value, known[key])
    return options


def _value(place: str, text: str, field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata.get("choices")
    if choices is not None:
        if text not in choices:
            raise ConfigError(f"{place}: {text!r} is unknown; {_nearest(text, choices)}")
        return text
    if isinstance(field.default, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"{place}: expected true or false, got {text!r}")
        return text == "true"
    whole = isinstance(field.default, int)
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    least = 1 if field.name in ("every", "on") else 0
    if not math.isfinite(number) or (whole and number < least):
        raise ConfigError(
            f"{place}: expected {f'a whole number from {least} on' if whole else 'a finite number'}, got {text!r}"
        )
    return number


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are: {', '.join(words)}" if words else "it has none"
