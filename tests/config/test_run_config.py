"""run.yaml: what is accepted, what every refusal says, and the contract's canonical form."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from btrain.config import Override, RunConfig, contract_difference, defaults, load, loads
from btrain.errors import ConfigError
from btrain.identity import SigningKey, peer_id_text
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.templates import template, template_names

RUN_YAML = """\
run: small-gpt
model: {builtin: gpt, layers: 2, width: 64, heads: 4, context: 32}
data: {builtin: stdlib_text}
optimizer:
  name: AdamW
  lr: 1e-2
  weight_decay: 0.1
  clip_grad_norm: 1.0
  schedule:
    name: cosine
    warmup: 20
batch_size: 32
rounds: 400
seed: 0
precision: fp32
eval:
  every: 20
  samples: 1024
group:
  start_when: 3
  admission: open
  byzantine_max: 1
verification:
  audits_per_round: 1
aggregation:
  rule: centered_clip
  tau: auto
deadlines:
  message: 1s
  compute: auto
  transfer: auto
local:
  listen: /ip4/0.0.0.0/tcp/0
  device: auto
  run_dir: runs/small-gpt
"""
IDS = [peer_id_text(SigningKey.from_seed(bytes([seed]) * 32).public_key) for seed in range(5)]


def refusal(text: str, overrides: tuple[str, ...] = (), **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loads(text, "run.yaml", overrides, **options)
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert RUN_YAML.count(old) == 1
    return RUN_YAML.replace(old, new)


def test_a_valid_file() -> None:
    config = loads(RUN_YAML)
    assert config.model_options() == {"builtin": "gpt", "layers": 2, "width": 64, "heads": 4, "context": 32}
    assert config.data_options() == {"builtin": "stdlib_text"}
    assert config.aggregation.options() == {"tau": "auto", "c": 1.0}
    assert (config.deadlines.message_s, config.deadlines.compute_s, config.deadlines.transfer_s) == (1.0, None, None)
    assert config.local.run_dir == Path("runs/small-gpt")
    assert config.local.identity_path == Path("runs/small-gpt/identity.key")
    assert (config.verification.custody_rounds, config.state_sync_every) == (16, 16)


@pytest.mark.parametrize("name", template_names())
def test_templates_are_valid_and_complete(name: str) -> None:
    config = loads(template(name))
    config.require("model", "data", "optimizer")
    assert config.run in str(config.local.run_dir)


def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean digits"):
        template("digit")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("start_when", "start_wen", "run.yaml:20: group.start_wen: unknown key; did you mean start_when?"),
        ("seed: 0", "run_dir: x", "run.yaml:14: run_dir: unknown key; it belongs under local"),
        ("  every: 20", "  rounds: 1", "run.yaml:17: eval.rounds: unknown key; it belongs to the top level"),
        ("  every: 20", "  zzz: 1", "run.yaml:17: eval.zzz: unknown key; the keys here are every and samples"),
        ("builtin: gpt", "builtin: gtp", "run.yaml:2: model.builtin: expected logreg, mlp, cnn or gpt, got 'gtp'; did"),
        ("builtin: gpt", "builtin: 5", "run.yaml:2: model.builtin: expected logreg, mlp, cnn or gpt, got 5"),
        ("builtin: gpt", "bultin: gpt", "run.yaml:2: model.bultin: unknown key; did you mean builtin?"),
        ("layers: 2", "layer: 2", "run.yaml:2: model.layer: unknown key; did you mean layers?"),
        ("layers: 2", "layers: two", "run.yaml:2: model.layers: expected a whole number, got 'two'"),
        ("heads: 4", "heads: 5", "run.yaml:2: model.heads: expected a divisor of model.width, which is 64, got 5"),
        ("data: {", "data: {text: x, ", "run.yaml:3: data: expected only the key builtin, text, tokens or entry_poin"),
        ("{builtin: stdlib_text}", "digits", "run.yaml:3: data: expected a mapping with the key builtin, text, token"),
        ("stdlib_text", "digits", "run.yaml:3: data.builtin: digits holds images, but the model gpt reads text"),
        ("stdlib_text", "stdlib_text, context: 16", "run.yaml:3: data.context: expected nothing or model.context, "),
        ("name: AdamW", "name: adamw", "run.yaml:5: optimizer.name: expected SGD, Adam or AdamW, got 'adamw'; did yo"),
        ("  lr: 1e-2\n", "", "run.yaml:4: optimizer.lr: missing; this key is required"),
        ("lr: 1e-2", "lr: 0", "run.yaml:6: optimizer.lr: expected a number above 0"),
        ("lr: 1e-2", "lr: yes", "run.yaml:6: optimizer.lr: expected a number, got 'yes'"),
        ("lr: 1e-2", "lr: true", "run.yaml:6: optimizer.lr: expected a number, got true"),
        ("warmup: 20", "warmup: 400", "run.yaml:11: optimizer.schedule.warmup: expected fewer steps than rounds"),
        ("batch_size: 32", "batch_size: 32.0", "run.yaml:12: batch_size: expected a whole number, got 32.0"),
        ("rounds: 400", "rounds:", "run.yaml:13: rounds: expected a whole number, got nothing"),
        ("rounds: 400", "rounds: -1", "run.yaml:13: rounds: expected at least 1, got -1"),
        ("seed: 0", "local_steps: 50", "run.yaml:14: local_steps: several local steps a round are not supported yet"),
        ("precision: fp32", "precision: fp8", "run.yaml:15: precision: expected fp32 or bf16, got 'fp8'"),

        ("admission: open", "admission: allowlist", "run.yaml:21: group.admission: allowlist needs the peer ids"),
        ("byzantine_max: 1", "byzantine_max: 2", "run.yaml:22: group.byzantine_max: expected at most 1 for 3 members"),
        ("byzantine_max: 1", "byzantine_max: one", "run.yaml:22: group.byzantine_max: expected a whole number, got '"),
        ("byzantine_max: 1", "members: [x]", "run.yaml:22: group.members[0]: expected a peer id: 52 characters"),
        ("byzantine_max: 1", f"members: [{IDS[0]}]", "run.yaml:20: group.start_when: expected at most 1, as many as"),
        ("audits_per_round: 1", "audits_per_round: -1", "run.yaml:24: verification.audits_per_round: expected at lea"),
        ("rule: centered_clip", "rule: center_clip", "run.yaml:26: aggregation.rule: expected mean, centered_clip, "),
        ("tau: auto", "tau: -1", "run.yaml:27: aggregation.tau: expected auto or a number above 0, got -1"),
        ("rule: centered_clip", "rule: mean", "run.yaml:27: aggregation.tau: unknown key; the keys here are rule"),
        ("message: 1s", "message: 1", "run.yaml:29: deadlines.message: expected a duration such as 500ms, 1s or 2min"),
        ("message: 1s", "message: 1ms", "run.yaml:29: deadlines.message: expected a duration between 10ms and 24h"),
        ("compute: auto", "compute: 3", "run.yaml:30: deadlines.compute: expected auto or a duration such as"),
        ("compute: auto", "compute: 500ms", "run.yaml:30: deadlines.compute: expected auto or no less than"),
        ("listen: /ip4/0.0.0.0/tcp/0", "listen: 0.0.0.0:4001", "run.yaml:33: local.listen: expected an address such"),
        ("listen: /ip4/0.0.0.0/tcp/0", "listen: /ip4/0.0.0/tcp/0", "run.yaml:33: local.listen: expected an ip4 addre"),
        ("device: auto", "device: gpu", "run.yaml:34: local.device: expected auto, cpu, mps, cuda or cuda:0, got 'gp"),
        ("device: auto", "metrics: 127.0.0.1:9464", "run.yaml:34: local.metrics: nothing is served to Prometheus yet"),
        ("device: auto", "join: /ip4/10.0.0.1/tcp/4001", "run.yaml:34: local.join[0]: expected an address such as"),
        ("run_dir: runs/small-gpt", "run_dir: [a]", "run.yaml:35: local.run_dir: expected a path, got a list"),
        ("run: small-gpt", "run: ../x", "run.yaml:1: run: expected a name of up to 64 letters, digits, dots and dash"),
        ("run: small-gpt\n", "", "run.yaml: run: missing; this key is required"),
    ],
)  # fmt: skip
def test_an_error_names_line_key_and_what_was_expected(old: str, new: str, message: str) -> None:
    assert refusal(changed(old, new)).startswith(message)


def test_all_errors_of_a_file_are_reported_up_to_ten() -> None:
    text = RUN_YAML + "".join(f"unknown_{number}: 1\n" for number in range(11))
    lines = refusal(text.replace("seed: 0", "seed: x")).splitlines()
    assert lines[0] == "run.yaml:14: seed: expected a whole number, got 'x'"
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more"


def test_the_bound_on_byzantine_members_follows_the_table() -> None:
    for members, most in {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 2, 7: 2, 8: 3, 16: 7}.items():
        config = loads(RUN_YAML, peers=members)
        assert (config.group.start_when, config.group.byzantine_max, config.byzantine_limit) == (members, most, most)
        wrong = refusal(RUN_YAML, (f"group.byzantine_max={most + 1}",), peers=members)
        assert wrong.startswith(f"--set group.byzantine_max={most + 1}: group.byzantine_max: expected at most {most} ")


def test_validators_must_leave_workers() -> None:
    assert "leave none of 4 members" in refusal(RUN_YAML, ("verification.audits_per_round=4",), peers=4)
    assert loads(RUN_YAML, overrides=["verification.audits_per_round=3.5"], peers=8).validators == 4


def test_a_seat_of_an_open_run_takes_longer_to_earn_than_a_ban_can_undo() -> None:
    rollback = "verification.rollback=proven_round"
    assert loads(RUN_YAML, overrides=[rollback]).verification.rollback == "proven_round"
    assert "more than 17, the rounds" in refusal(RUN_YAML, (rollback, "group.probation_rounds=17"))
    assert loads(RUN_YAML, overrides=[rollback, "group.probation_rounds=6", "verification.custody_rounds=4"])
    assert loads(RUN_YAML, overrides=["group.probation_rounds=6"])


def test_the_last_rounds_are_swept_only_where_anything_is() -> None:
    last = "verification.final_sweep=3"
    assert loads(RUN_YAML, overrides=[last]).verification.final_sweep == 3
    assert "needs verification.sweep" in refusal(RUN_YAML, (last, "verification.sweep=false"))
    assert "needs verification.sweep" in refusal(RUN_YAML, (last, "verification.audits_per_round=0"))
    assert "expected at most 4" in refusal(RUN_YAML, ("verification.final_sweep=5",))


def test_members_as_list_or_by_name_are_one_contract() -> None:
    members = changed("  byzantine_max: 1\n", f"  members: [{', '.join(IDS[:3])}]\n")
    by_name = changed("  byzantine_max: 1\n", f"  members: {{z: {IDS[2]}, a: {IDS[1]}, m: {IDS[0]}}}\n")
    config, other = loads(members.replace("  start_when: 3\n", "")), loads(by_name)
    assert config.group.start_when == 3
    assert config.contract_hash() == other.contract_hash()
    assert [peer_id_text(key) for key in config.members] == sorted(IDS[:3])
    assert "stands here twice" in refusal(members.replace(IDS[1], IDS[0]))


def test_local_peers_need_no_list_of_members() -> None:
    text = changed("  byzantine_max: 1\n", f"  members: [{', '.join(IDS[:3])}]\n").replace("open", "allowlist")
    config = loads(text, peers=8)
    assert (config.group.members, config.group.admission, config.group.byzantine_max) == ((), "open", 3)


def test_overrides_report_their_own_origin() -> None:
    assert refusal(RUN_YAML, ("group.start_wen=3",)) == (
        "--set group.start_wen=3: group.start_wen: unknown key; did you mean start_when?"
    )
    config = loads(RUN_YAML, overrides=["optimizer.lr=3e-4", Override("local.join", (), "--join")])
    assert config.optimizer is not None
    assert config.optimizer.lr == 3e-4


def test_errors_that_turn_out_later_name_the_line_too() -> None:
    config = loads(RUN_YAML)
    assert str(config.error("data.builtin", "no sources here")) == "run.yaml:3: data.builtin: no sources here"
    with pytest.raises(ConfigError, match=r"^run.yaml: model: missing; this key is required$"):
        loads("run: x").require("model")


def test_the_defaults_are_a_run_of_one() -> None:
    config = defaults()
    assert (config.group.start_when, config.group.byzantine_max, config.model) == (1, 0, None)


def test_equal_values_written_differently_are_one_contract() -> None:
    text = (
        RUN_YAML.replace("lr: 1e-2", "lr: 0.01")
        .replace("message: 1s", "message: 1000ms")
        .replace("seed: 0", "seed: 0x0")
    )
    text = text.replace("audits_per_round: 1", "audits_per_round: 1.0").replace("runs/small-gpt", "elsewhere")
    assert loads(text).contract_bytes() == loads(RUN_YAML).contract_bytes()
    assert "local" not in loads(text).contract()


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("optimizer.lr=2e-2", "optimizer.lr: 0.01 here, 0.02 there"),
        ("deadlines.message=2s", 'deadlines.message: "1s" here, "2s" there'),
        ("model.layers=3", "model.layers: 2 here, 3 there"),
        ("model={entry_point: a:b}", "model.args: nothing here, {} there"),
        ("local.device=cpu", ""),
    ],
)
def test_a_difference_names_the_first_field(override: str, difference: str) -> None:
    mine, theirs = loads(RUN_YAML).contract_bytes(), loads(RUN_YAML, overrides=[override]).contract_bytes()
    assert contract_difference(mine, theirs) == difference


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ).map(lambda data: json.dumps(data).encode())
)
def test_any_foreign_contract_gets_a_short_answer(theirs: bytes) -> None:
    answer = contract_difference(loads("run: x").contract_bytes(), theirs)
    assert 0 < len(answer) < 300
    assert answer.isprintable()


def test_a_hostile_contract_is_no_recursion() -> None:
    mine = loads("run: x").contract_bytes()
    assert "cannot be read" in contract_difference(mine, b'{"a":' * 5000)
    assert "cannot be read" in contract_difference(mine, b" " * 100_000 + b"{}")


def test_the_contract_is_bounded() -> None:
    text = RUN_YAML.replace(
        "{builtin: gpt, layers: 2, width: 64, heads: 4, context: 32}", "{entry_point: a:b, args: {x: %s}}"
    )
    assert "a contract of" in refusal(text % ("y" * 40_000))


def test_arguments_keep_their_types_and_nothing() -> None:
    config = loads("run: x\nmodel: {entry_point: a:b, args: {one: 1, real: 1.0, none: ~, list: [1, {k: ~}]}}")
    assert config.model_options()["args"] == {"one": 1, "real": 1.0, "none": None, "list": (1, {"k": None})}
    assert config.contract()["model"]["args"] == {"one": 1, "real": 1.0, "none": None, "list": [1, {"k": None}]}
    assert loads(config.to_yaml()).contract_hash() == config.contract_hash()


def test_the_fingerprint_becomes_part_of_the_contract() -> None:
    config = loads(RUN_YAML)
    named = config.with_fingerprint("a" * 64)
    assert named.contract()["data"]["fingerprint"] == "a" * 64
    assert named.contract_hash() != config.contract_hash()
    with pytest.raises(ConfigError, match="expected aaa"):
        named.with_fingerprint("b" * 64)


def test_this_machines_data_path_takes_the_place_of_the_named_one() -> None:
    gpt = changed("{builtin: stdlib_text}", "{text: corpus.txt}")
    assert loads(gpt).data_options() == {"text": "corpus.txt"}
    assert loads(gpt, overrides=["local.data_path=/data/c"]).data_options() == {"text": "/data/c"}
    assert loads(template("fashion")).data_options()["path"] == "/usr/share/datasets/fashion-mnist"


def test_unreadable_files(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "none.yaml", "no such file; `btrain init gpt` writes one"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "x\0", "cannot be read: "),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: {message}")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"run: x\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2: not UTF-8"):
        load(latin)
    latin.write_text(RUN_YAML)
    assert load(latin).contract_hash() == loads(RUN_YAML).contract_hash()


LINES = RUN_YAML.splitlines(keepends=True)
KEYED = [number for number, line in enumerate(LINES) if ":" in line]
WRONG_VALUES = ["{}", "[]", "[1, 2]", "-7", "true", "x y", "'", "{", "&a 1", "*a", "!!int 3", ".inf", "- 1"]
# A path may be any text, and a rule may be left to its default.
FREE = {"  run_dir"}


@given(st.sampled_from(KEYED), st.data())
def test_a_wrong_edit_is_a_config_error_that_names_the_line(number: int, data: st.DataObject) -> None:
    line = LINES[number]
    key, _, value = line.partition(":")
    nested = not value.strip()
    edit = data.draw(st.sampled_from(["key", "duplicate", "indent"] if nested else ["key", "value", "duplicate"]))
    assume(not (edit == "value" and key in FREE))
    lines = list(LINES)
    if edit == "key":
        lines[number] = f"{key}_{data.draw(st.text('abc', min_size=1, max_size=3))}:{value}"
    elif edit == "value":
        lines[number] = f"{key}: {data.draw(st.sampled_from(WRONG_VALUES))}\n"
    elif edit == "indent":
        lines[number] = " " + line
    else:
        lines.insert(number + 1, line)
    message = refusal("".join(lines))
    place = {f"run.yaml:{number + offset}:" for offset in range(1, 3)}
    assert any(part in message for part in place), message


@given(st.integers(0, len(RUN_YAML)), st.integers(0, 3), st.text("ab:-[]{}&*!|>'\"\\#%@,? \n\t01.~é\0", max_size=4))
def test_any_edit_is_valid_or_a_config_error(at: int, cut: int, insert: str) -> None:
    text = RUN_YAML[:at] + insert + RUN_YAML[at + cut :]
    try:
        config: RunConfig | None = loads(text)
    except ConfigError:
        config = None
    if config is None:
        assert refusal(text).startswith("run.yaml")
    else:
        assert loads(config.to_yaml()).contract_hash() == config.contract_hash()


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"), min_size=1, max_size=40)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    members=st.integers(1, 64),
    audits=st.floats(0, 3),
    lr=st.floats(1e-30, 1e3),
    message_ms=st.integers(10, 86_400_000),
    text=TEXT,
    args=st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), PLAIN, max_size=3),
)
def test_what_is_written_reads_back_as_the_same_contract(
    members: int, audits: float, lr: float, message_ms: int, text: str, args: dict[str, Any]
) -> None:
    assume(byzantine_limit(members, validators_max(members, audits)) > 0 or members < 3)
    values = {
        "group.start_when": members,
        "verification.audits_per_round": audits,
        "optimizer": {"name": "SGD", "lr": lr},
        "deadlines.message": f"{message_ms}ms",
        "model": {"entry_point": "a.b:c", "args": args},
        "data": {"text": text, "context": 8},
        "local.run_dir": text,
    }
    config = loads("run: x", overrides=[Override(key, value, key) for key, value in values.items()])
    again = loads(config.to_yaml())
    assert again.contract_bytes() == config.contract_bytes()
    assert again.contract_hash() == config.contract_hash()
    assert again.local == config.local
