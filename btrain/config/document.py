"""run.yaml as plain data in which every key still knows the line it stands on.

YAML 1.2 without the parts that surprise: no anchors, tags or second documents, no duplicate keys, finite numbers only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode

from btrain.errors import ConfigError

FILE_BYTES_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 16
NUMBER_CHARACTERS_MAX: Final = 40

KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """`("local", "join", 0)` as it is written to people: `local.join[0]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def shown(value: object) -> str:
    """A value as an error message shows it, short whatever it is."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Override:
    """One value given outside the file; `origin` is what errors name in place of file and line."""

    key: str
    value: object
    origin: str


@dataclass
class Document:
    """Nested dicts, tuples and scalars, and for every key path where it came from (`run.yaml:12`)."""

    name: str
    data: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where `path` stands, or the nearest key around it if it stands nowhere."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name

    def error(self, path: KeyPath, message: str) -> str:
        """One line: origin, key path, message."""
        place = f"{self.origin(path)}: {dotted(path)}" if path else self.name
        return f"{place}: {message}"

    def value(self, path: KeyPath) -> object:
        """The value at `path`, None where there is none."""
        value: Any = self.data
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return cast(object, value)

    def overridden(self, override: Override) -> Document:
        """A copy in which `override.key` has its value; mappings around it are made where they are missing."""
        *parents, last = path = tuple(override.key.split("."))
        if not all(path):
            raise ConfigError(f"{override.origin}: expected a key such as group.start_when, got {override.key!r}")
        data = copy.deepcopy(self.data)
        inner, made = data, {path: override.origin}
        for depth, key in enumerate(parents, 1):
            if inner.get(key) is None:
                inner[key] = {}
                made[path[:depth]] = override.origin
            inner = inner[key]
            if not isinstance(inner, dict):
                raise ConfigError(f"{override.origin}: {dotted(path[:depth])} holds no keys, it is {shown(inner)}")
        inner[last] = override.value
        origins = {known: place for known, place in self.origins.items() if known[: len(path)] != path}
        return Document(self.name, data, origins | made)


def parse_document(text: str, name: str) -> Document:
    """The mapping in `text`. Raises ConfigError with the line for whatever is no plain YAML 1.2 mapping."""
    if len(text.encode(errors="replace")) > FILE_BYTES_MAX:
        raise ConfigError(
            f"{name}: larger than {FILE_BYTES_MAX // 1024} KiB; a configuration is not where data belongs"
        )
    builder = _Builder(name)
    data = builder.build(text)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: expected keys and values such as `rounds: 400`, got {shown(data)}")
    return Document(name, data, builder.origins)


def parse_override(text: str) -> Override:
    """`group.start_when=3`, the value being YAML as in the file."""
    origin = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{origin}: expected KEY=VALUE such as group.start_when=3")
    return Override(key.strip(), _Builder(origin, numbered=False).build(value), origin)


class _Builder:
    """Turns YAML events into plain data without recursion, so that no nesting can exhaust the stack."""

    def __init__(self, name: str, *, numbered: bool = True) -> None:
        self.name = name
        self.numbered = numbered
        self.origins: dict[KeyPath, str] = {}
        self._yaml = YAML(typ="safe", pure=True)
        self._open: list[tuple[dict[str, Any] | list[Any], KeyPath]] = []
        self._key: list[str | None] = []
        self._documents = 0
        self._root: Any = None

    def build(self, text: str) -> Any:
        line = 1
        try:
            for event in self._yaml.parse(text):
                line = event.start_mark.line + 1
                self._take(event, line)
        except MarkedYAMLError as error:
            raise self._not_yaml(error, line) from None
        except (YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
            # The parser lets exceptions of its own code out for some malformed texts, such as an escape beyond Unicode.
            raise self._error(line, f"not YAML: {' '.join(str(error).split())[:200]}") from None
        return self._root

    def _error(self, line: int, message: str) -> ConfigError:
        return ConfigError(f"{self._place(line)}: {message}")

    def _not_yaml(self, error: MarkedYAMLError, line: int) -> ConfigError:
        """An open quote or bracket is noticed lines later; the error names the line that it stands in."""
        found_line = error.problem_mark.line + 1 if error.problem_mark else line
        message = f"not YAML: {error.problem or error.context}"
        if error.context_mark and error.context_mark.line + 1 < found_line and _opens(error.context or ""):
            return self._error(error.context_mark.line + 1, f"{message} in line {found_line}, {error.context}")
        return self._error(found_line, message)

    def _place(self, line: int) -> str:
        return f"{self.name}:{line}" if self.numbered else self.name

    def _take(self, event: Event, line: int) -> None:
        if isinstance(event, NodeEvent) and event.anchor is not None:
            what = "alias" if isinstance(event, AliasEvent) else "anchor"
            raise self._error(
                line, f"the {what} {event.anchor[:60]!r}: write the value out, references are not supported"
            )
        match event:
            case DocumentStartEvent():
                self._documents += 1
                if self._documents > 1 or event.version or event.tags:
                    raise self._error(line, "expected one YAML document without directives")
            case ScalarEvent():
                self._refuse_tag(event, line)
                self._scalar(event, line)
            case MappingStartEvent() | SequenceStartEvent():
                self._refuse_tag(event, line)
                self._begin({} if isinstance(event, MappingStartEvent) else [], line)
            case MappingEndEvent() | SequenceEndEvent():
                container, _path = self._open.pop()
                self._key.pop()
                self._place_value(tuple(container) if isinstance(container, list) else container)

    def _refuse_tag(self, event: Any, line: int) -> None:
        if event.tag is not None:
            raise self._error(line, f"the tag {str(event.tag)[:60]}: tags are not supported")

    def _begin(self, container: dict[str, Any] | list[Any], line: int) -> None:
        if self._open and isinstance(self._open[-1][0], dict) and self._key[-1] is None:
            raise self._error(line, f"expected a name as key, got {shown(container)}")
        if len(self._open) >= DEPTH_MAX:
            raise self._error(line, f"nested deeper than {DEPTH_MAX} levels")
        path = self._path(line)
        self._open.append((container, path))
        self._key.append(None)

    def _path(self, line: int) -> KeyPath:
        """The path of the value that begins now; list elements get their line here, mapping values with their key."""
        if not self._open:
            return ()
        container, path = self._open[-1]
        if isinstance(container, dict):
            key = self._key[-1]
            assert key is not None
            return (*path, key)
        path = (*path, len(container))
        self.origins[path] = self._place(line)
        return path

    def _scalar(self, event: ScalarEvent, line: int) -> None:
        text = event.value
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise self._error(line, "text with half a surrogate pair")
        if self._open and isinstance(self._open[-1][0], dict) and self._key[-1] is None:
            self._begin_key(text, line)
            return
        self._path(line)
        self._place_value(self._resolved(event, line))

    def _begin_key(self, key: str, line: int) -> None:
        container, parent = self._open[-1]
        path = (*parent, key)
        if not key:
            raise self._error(line, "expected a name before the colon")
        if key in container:
            raise self._error(
                line, f"{dotted(path)}: the key stands here for the second time, first at {self.origins[path]}"
            )
        self.origins[path] = self._place(line)
        self._key[-1] = key

    def _place_value(self, value: Any) -> None:
        if not self._open:
            self._root = value
            return
        container, _path = self._open[-1]
        if isinstance(container, list):
            container.append(value)
            return
        key = self._key[-1]
        assert key is not None
        container[key] = value
        self._key[-1] = None

    def _resolved(self, event: ScalarEvent, line: int) -> object:
        text: str = event.value
        if not event.implicit[0]:  # quoted
            return text
        kind = str(self._yaml.resolver.resolve(ScalarNode, text, event.implicit)).rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in {"int", "float"}:
            return self._number(text, kind, line)
        return text

    def _number(self, text: str, kind: str, line: int) -> int | float:
        digits = text.replace("_", "")
        if len(digits) > NUMBER_CHARACTERS_MAX:
            raise self._error(line, f"a number of {len(digits)} characters; at most {NUMBER_CHARACTERS_MAX} are read")
        if kind == "int":
            return int(digits, 0 if digits.lstrip("+-")[:2] in {"0b", "0o", "0x"} else 10)
        number = float(digits.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise self._error(line, f"expected a finite number, got {text}")
        return number


def _opens(context: str) -> bool:
    return "flow" in context or "quoted" in context
