"""How much a member keeps in memory, counted entry by entry: what a flood must not make grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import msgspec
from torch import Tensor

from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.ledger import Block, Charter, Genesis, LedgerState
from btrain.protocol.member import Member
from btrain.protocol.messages import Verifier
from btrain.protocol.randomness import HashChain
from btrain.simulation.disk import Disk

# What does not grow with what others send, or has a limit of its own: the last blocks are 64.
FIXED = (SigningKey, Behaviour, Block, Charter, Genesis, LedgerState, Verifier, HashChain, Disk)


@dataclass(frozen=True)
class Retained:
    """Entries of all tables of a member, and the bytes of all byte strings and tensors in them."""

    entries: int
    bytes: int


def retained(member: Member) -> Retained:
    """What a member holds on to, each object counted once."""
    entries = size = 0
    seen: set[int] = set()
    todo: list[object] = [member]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, FIXED):
            continue
        seen.add(id(one))
        match one:
            case bytes():
                size += len(one)
            case Tensor():
                size += one.numel() * one.element_size()
            case Mapping() | Set() | list() | tuple():
                entries += len(one)
                todo += _inside(one)
            case _:
                todo += _fields(one)
    return Retained(entries, size)


def _inside(table: Mapping[object, object] | Set[object] | list[object] | tuple[object, ...]) -> Iterator[object]:
    if isinstance(table, Mapping):
        yield from table.keys()
        yield from table.values()
    else:
        yield from table


def _fields(one: object) -> Iterator[object]:
    """The attributes of an object of btrain's own."""
    if isinstance(one, msgspec.Struct):
        yield from (getattr(one, name) for name in one.__struct_fields__)
    elif type(one).__module__.startswith("btrain."):
        yield from getattr(one, "__dict__", {}).values()
        yield from (getattr(one, name, None) for name in getattr(type(one), "__slots__", ()))
