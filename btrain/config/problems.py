"""What is wrong with a configuration, in words: what was expected, what was found, and the nearest valid name."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, Discriminator, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from btrain.config.document import Document, KeyPath, dotted, shown
from btrain.config.schema import Choice, Fields
from btrain.config.values import EXPECTED
from btrain.errors import ConfigError

PROBLEMS_SHOWN_MAX: Final = 10

_KINDS: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list such as [a, b]",
    "model_type": "a mapping of keys and values",
    "model_attributes_type": "a mapping of keys and values",
    "dict_type": "a mapping of keys and values",
}
_BOUNDS: Final = {
    "greater_than": ("gt", "a number above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "a number below"),
    "less_than_equal": ("le", "at most"),
}


def config_error(problems: Sequence[str]) -> ConfigError:
    """All problems of a file in one error, a line each, the first ten of them."""
    lines = list(problems[:PROBLEMS_SHOWN_MAX])
    if len(problems) > PROBLEMS_SHOWN_MAX:
        lines.append(f"... and {len(problems) - PROBLEMS_SHOWN_MAX} more")
    return ConfigError("\n".join(lines))


def problems_of(error: ValidationError, document: Document, root: type[BaseModel] = Fields) -> Iterator[str]:
    """One line for each of pydantic's errors; `root` is the section that the whole file is."""
    for detail in error.errors(include_url=False):
        path, message = _described(detail, document, root)
        yield document.error(path, message)


def _described(detail: ErrorDetails, document: Document, root: type[BaseModel]) -> tuple[KeyPath, str]:
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _wrong_choice(detail["loc"], document, root)
    path, section = _walk(detail["loc"], root)
    value = detail["input"]
    if kind == "extra_forbidden":
        return path, _unknown_key(path, section, root)
    if kind == "missing":
        return path, "missing; this key is required"
    if kind == "literal_error":
        return path, _not_one_of(value, _literals(section, str(path[-1])))
    if kind == EXPECTED:
        return path, f"expected {context['what']}, got {shown(value)}"
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return path, f"expected {words} {context[limit]}, got {shown(value)}"
    if kind in {"too_long", "too_short"}:
        bound = f"at most {context['max_length']}" if kind == "too_long" else f"at least {context['min_length']}"
        return path, f"expected {bound} elements, got {context['actual_length']}"
    if kind in _KINDS:
        return path, f"expected {_KINDS[kind]}, got {shown(value)}"
    return path, f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {shown(value)}"


def _unknown_key(path: KeyPath, section: type[BaseModel], root: type[BaseModel]) -> str:
    key, known = str(path[-1]), _keys(section)
    elsewhere = [place[:-1] for place in _places_of(key, root, ()) if place[:-1] != path[:-1]]
    if elsewhere:
        return f"unknown key; it belongs {f'under {dotted(elsewhere[0])}' if elsewhere[0] else 'to the top level'}"
    return f"unknown key{_nearest(key, known) or f'; the keys here are {_listed(known)}'}"


def _not_one_of(value: object, names: Sequence[object]) -> str:
    words = [str(name) for name in names]
    return f"expected {_listed(words, 'or')}, got {shown(value)}{_nearest(value, words)}"


def _nearest(word: object, known: Sequence[str]) -> str:
    """`; did you mean x?`, or nothing where no known word is near."""
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1) if isinstance(word, str) else []
    return f"; did you mean {lowered[close[0]]}?" if close else ""


def _listed(words: Sequence[str], conjunction: str = "and") -> str:
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _wrong_choice(location: tuple[str | int, ...], document: Document, root: type[BaseModel]) -> tuple[KeyPath, str]:
    """A mapping of which it is not clear, or not known, which section it is."""
    path, section = _walk(location, root)
    choice, sections = _choices(section.model_fields[str(path[-1])])
    assert choice is not None
    value = document.value(path)
    listed = f"the key {_listed(choice.selectors, 'or')}"
    if not isinstance(value, Mapping):
        return path, f"expected a mapping with {listed}, got {shown(value)}"
    present = [key for key in choice.selectors if key in value]
    if len(present) == 1:
        names = [name for name in sections if name not in choice.keys]
        return (*path, present[0]), _not_one_of(value[present[0]], names)
    if present:
        return path, f"expected only {listed}, got {_listed(present)}"
    for key in value:
        if suggestion := _nearest(key, choice.selectors):
            return (*path, key), f"unknown key{suggestion}"
    return path, f"expected {listed}, got {_listed([*value] or ['nothing'])}"


def _walk(location: tuple[str | int, ...], root: type[BaseModel]) -> tuple[KeyPath, type[BaseModel]]:
    """The key path of pydantic's location, which holds names of chosen sections as well, and the section around it."""
    path: list[str | int] = []
    section = root
    choices: dict[str, type[BaseModel]] = {}
    for position, key in enumerate(location):
        if isinstance(key, str) and key in choices:
            section, choices = choices[key], {}
            continue
        path.append(key)
        if position == len(location) - 1 or not isinstance(key, str):
            continue
        field = _field(section, key)
        if field is None:
            continue
        choice, sections = _choices(field)
        if choice is not None:
            choices = sections
        elif sections:
            section = next(iter(sections.values()))
    return tuple(path), section


def _field(section: type[BaseModel], key: str) -> FieldInfo | None:
    for name, field in section.model_fields.items():
        if key == (field.alias or name):
            return field
    return None


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _choices(field: FieldInfo) -> tuple[Choice | None, dict[str, type[BaseModel]]]:
    """The sections that a field may hold by name, and what chooses between them if there are several."""
    choice: Choice | None = None
    sections: dict[str, type[BaseModel]] = {}
    todo: list[tuple[Any, Sequence[Any]]] = [(field.annotation, field.metadata)]
    while todo:
        annotation, notes = todo.pop(0)
        if typing.get_origin(annotation) is Annotated:
            inner, *outer_notes = typing.get_args(annotation)
            todo.insert(0, (inner, outer_notes))
            continue
        for note in notes:
            if isinstance(note, Discriminator) and isinstance(note.discriminator, Choice):
                choice = note.discriminator
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            tags = [note.tag for note in notes if isinstance(note, Tag)]
            sections[tags[0] if tags else annotation.__name__] = annotation
        else:
            todo += [(argument, ()) for argument in typing.get_args(annotation)]
    return choice, sections


def _literals(section: type[BaseModel], key: str) -> Sequence[object]:
    field = _field(section, key)
    assert field is not None
    return typing.get_args(field.annotation)


def _places_of(key: str, section: type[BaseModel], path: KeyPath) -> Iterator[KeyPath]:
    """Where a key of this name is valid."""
    for name, field in section.model_fields.items():
        here = (*path, field.alias or name)
        if here[-1] == key:
            yield here
        for inner in _choices(field)[1].values():
            yield from _places_of(key, inner, here)
