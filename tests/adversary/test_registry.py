from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from btrain.adversary import Adversary, adversary_names, adversary_variants, attack_name, get_adversary
from btrain.adversary.numeric import NanScale
from btrain.adversary.registry import adversary_class
from btrain.adversary.signer import Equivocate
from btrain.errors import ConfigError
from btrain.protocol.behaviour import Behaviour

NEEDED = {
    "sign_flip", "random_direction", "ipm", "alie", "label_flip", "free_rider", "nan", "inf", "huge", "forged_scale",
    "minus_128", "denormal", "wrong_reduce", "equivocate", "edge_late", "false_accuse", "freeze", "restart_mid_round",
    "delayed", "rop", "min_max", "mimic", "just_inside_tolerance", "withhold_part", "selective_send", "rubber_stamp",
    "abort_link", "garbage", "flood", "replay", "double_vote", "lie", "drop_contributor", "oversize", "bad_proposal",
    "kill", "broken_link", "state_poison", "forged_history", "lie_table", "collude_table", "wrong_tau",
    "directed_rounding", "just_inside_sketch", "deny_row", "withhold_table", "false_dispute",
    "abort_draw", "sybil_join", "accuse_flood", "custody_loss", "complaint_flood", "slow_drip", "flap",
}  # fmt: skip


def test_every_attack_is_there_under_its_own_name() -> None:
    assert set(adversary_names()) >= NEEDED
    for name in adversary_names():
        behaviour = get_adversary(name)
        assert behaviour.name == (name if isinstance(behaviour, Adversary) else "honest")


def test_what_attackers_share_reaches_them() -> None:
    coalition = frozenset({b"a" * 32, b"b" * 32})
    adversary = get_adversary("alie", coalition=coalition, attack_from=7, seed=3)
    assert isinstance(adversary, Adversary)
    assert (adversary.coalition, adversary.attack_from, adversary.seed) == (coalition, 7, 3)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("sign_flip:scale=3.5", {"scale": 3.5, "attack_from": 2}),
        ("ipm: epsilon = 100 , from = 50", {"epsilon": 100.0, "attack_from": 50}),
        ("delayed:delay=4,every=3", {"delay": 4, "every": 3}),
        ("false_accuse:charge=true", {"charge": True}),
        ("equivocate:kind=vote", {"kind": "vote"}),
    ],
)
def test_options_are_read(spec: str, options: dict[str, Any]) -> None:
    adversary = get_adversary(spec, attack_from=2)
    assert isinstance(adversary, Adversary)
    found = {field.name: getattr(adversary, field.name) for field in dataclasses.fields(adversary)}
    assert options.items() <= found.items()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sgin_flip", "did you mean sign_flip?"),
        ("zzz", "there are: sign_flip"),
        ("", "there are: sign_flip"),
        ("sign_flip:sclae=3", "did you mean scale?"),
        ("sign_flip:coalition=3", "no option 'coalition'"),
        ("sign_flip:seed=3", "no option 'seed'"),
        ("sign_flip:scale", "needs =VALUE"),
        ("sign_flip:", None),
        ("sign_flip:scale=1,scale=2", "given twice"),
        ("sign_flip:scale=nan", "expected a finite number, got 'nan'"),
        ("sign_flip:scale=abc", "expected a finite number, got 'abc'"),
        ("delayed:delay=1.5", "expected a whole number"),
        ("delayed:delay=-1", "expected a whole number from 0 on"),
        ("sign_flip:every=0", "every: expected a whole number from 1 on"),
        ("sign_flip:on=0", "on: expected a whole number from 1 on"),
        ("equivocate:kind=comit", "did you mean commit?"),
        ("double_vote:kind=commit", "no option 'kind'"),
        ("false_accuse:charge=yes", "expected true or false"),
        ("restart_mid_round:from=3", "it has none"),
    ],
)
def test_wrong_words_are_named_with_the_nearest_right_one(spec: str, words: str | None) -> None:
    if words is None:
        assert isinstance(get_adversary(spec), Adversary)
        return
    with pytest.raises(ConfigError) as error:
        get_adversary(spec)
    assert words in str(error.value)
    assert "attack" in str(error.value)


def test_attack_name_drops_the_options() -> None:
    assert attack_name("sign_flip:scale=3") == "sign_flip"
    with pytest.raises(ConfigError):
        attack_name("sign-flip")


@pytest.mark.parametrize("fate", ["restart_mid_round", "kill", "broken_link"])
def test_a_peer_with_a_fate_is_honest(fate: str) -> None:
    assert type(get_adversary(fate)) is Behaviour
    assert adversary_class(fate) is None


def test_variants_are_all_values_of_options_that_have_few() -> None:
    variants = adversary_variants()
    assert {"equivocate:kind=table", "bad_proposal:kind=void", "false_accuse:charge=true"} <= set(variants)
    assert "equivocate:kind=commit" not in variants, "the default is the name alone"
    for variant in variants:
        assert isinstance(get_adversary(variant), Adversary)


def test_an_attack_keeps_its_schedule() -> None:
    adversary = NanScale(attack_from=5, every=4)
    assert [round for round in range(20) if adversary.attacks(round)] == [5, 9, 13, 17]
    assert Equivocate().attacks(0)
    adversary = NanScale(attack_from=5, every=6, on=2)
    assert [round for round in range(20) if adversary.attacks(round)] == [5, 6, 11, 12, 17, 18]
