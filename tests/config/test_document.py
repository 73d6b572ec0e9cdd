"""YAML as btrain reads it: lines, limits, and nothing but ConfigError for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.config.document import DEPTH_MAX, FILE_BYTES_MAX, Document, Override, parse_document, parse_override, shown
from btrain.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        ("0x1f", 31),
        ("0o17", 15),
        ("017", 17),
        ("1_000", 1000),
        ("-2", -2),
        ("off", "off"),
        ("yes", "yes"),
        ("22:22", "22:22"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("[1, [a], {b: 2}]", (1, ("a",), {"b": 2})),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text: str, value: object) -> None:
    found = parse_document(f"key: {text}\n", "run.yaml").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_knows_its_line() -> None:
    document = parse_document("a: 1\nb:\n  c: 2\n  d:\n    - 3\n    - e: 4\n", "run.yaml")
    assert document.data == {"a": 1, "b": {"c": 2, "d": (3, {"e": 4})}}
    assert {path: int(place.partition(":")[2]) for path, place in document.origins.items()} == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "d"): 4,
        ("b", "d", 0): 5,
        ("b", "d", 1): 6,
        ("b", "d", 1, "e"): 6,
    }
    assert document.error(("b", "d", 1, "x"), "wrong") == "run.yaml:6: b.d[1].x: wrong"
    assert document.error((), "wrong") == "run.yaml: wrong"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3: a: the key stands here for the second time, first at run.yaml:1"),
        ("a: &x 1\nb: *x", "run.yaml:1: the anchor 'x'"),
        ("a: 1\nb: *x", "run.yaml:2: the alias 'x'"),
        ("a: !!python/name:os.system 1", "run.yaml:1: the tag"),
        ("a: 1\n---\nb: 2", "run.yaml:2: expected one YAML document"),
        ("%YAML 1.1\n---\na: off", "run.yaml:2: expected one YAML document without directives"),
        ("a: 1\n b: 2", "run.yaml:2: not YAML"),
        (
            "a: [1,\n2",
            "run.yaml:1: not YAML: expected ',' or ']', but got '<stream end>' in line 2, while parsing a flow",
        ),
        ("a: 'x\nb: 1", "run.yaml:1: not YAML: found unexpected end of stream in line 2, while scanning a quoted"),
        ("a: .nan", "run.yaml:1: expected a finite number"),
        ("a: 1e999", "run.yaml:1: expected a finite number"),
        ("a: " + "9" * 41, "run.yaml:1: a number of 41 characters"),
        ("- a", "run.yaml:1: expected keys and values"),
        ("[a]: 1", "run.yaml:1: expected a name as key"),
        (": 1", "run.yaml:1: expected a name before the colon"),
        ('a: "\\uD800"', "run.yaml:1: "),
        ("a: " + "[" * (DEPTH_MAX + 1), "run.yaml:1: nested deeper"),
        ("#" * (FILE_BYTES_MAX + 1), "run.yaml: larger than 64 KiB"),
    ],
)
def test_refusals_name_the_line(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_a_deep_file_exhausts_no_stack() -> None:
    assert "nested deeper" in refusal("[" * 60_000)


@given(st.text(max_size=200) | st.text("ab:-[]{}&*!|>'\"\\#%@`,? \n\t0123.exX~", max_size=60))
def test_any_text_is_a_mapping_or_a_config_error(text: str) -> None:
    message = ""
    try:
        document = parse_document(text, "run.yaml")
    except ConfigError as error:
        message = str(error)
    assert message.startswith("run.yaml") if message else isinstance(document.data, dict)


def test_overrides_say_where_they_come_from() -> None:
    document = parse_document("a: {b: 1}\nc: 2", "run.yaml")
    changed = document.overridden(parse_override("a.b=[x, 3e-1]")).overridden(parse_override("d.e.f="))
    assert changed.data == {"a": {"b": ("x", 0.3)}, "c": 2, "d": {"e": {"f": None}}}
    assert document.data == {"a": {"b": 1}, "c": 2}
    assert changed.origin(("a", "b", 0)) == "--set a.b=[x, 3e-1]"
    assert changed.origin(("c",)) == "run.yaml:2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "--set a.b: expected KEY=VALUE"),
        ("=3", "--set =3: expected a key"),
        ("a..b=3", "--set a..b=3: expected a key"),
        ("a.b=[1", "--set a.b=[1: not YAML"),
        ("c.d=1", "--set c.d=1: c holds no keys, it is 2"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document("a: {b: 1}\nc: 2", "run.yaml").overridden(parse_override(override))
    assert str(caught.value).startswith(message)


def test_override_with_plain_data() -> None:
    document = Document("run.yaml", {}).overridden(Override("local.join", ("x",), "--join x"))
    assert document.error(("local", "join", 0), "wrong") == "--join x: local.join[0]: wrong"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_values_are_shown_short(value: object) -> None:
    assert len(shown(value)) <= 60
