"""The generated table, prepared for calls: where every field lies in its C struct, how it is written, and
which extents a tensor's shape spells."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import functools
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from gradus import _error, _sys, _tensor
from gradus._library import LIBRARY, done
from gradus._table import CHOICES, OPS

__all__ = ["Field", "Member", "Op", "assign", "constant", "members", "op_of"]

FORMATS = {
    ctypes.c_int32: "i",
    ctypes.c_int64: "q",
    ctypes.c_uint8: "B",
    ctypes.c_double: "d",
    ctypes.c_size_t: "N",
    ctypes.c_float: "f",
}
WHOLE = {"i": "a whole number of 32 bits", "q": "a whole number of 64 bits", "B": "a whole number from 0 to 255"}

Extent = Callable[[dict[str, Any], Any], Optional[int]]


# ---- structs ------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A field of a C struct that holds numbers: one, `count` of them, or a struct of such fields."""

    name: str
    offset: int
    packer: struct.Struct | None
    count: int
    struct: type[ctypes.Structure] | None


@functools.cache
def members(kind: type[ctypes.Structure]) -> dict[str, Member]:
    """By name. Tensors and pointers are none of them."""
    found = {}
    for name, spelled in kind._fields_:  # type: ignore[misc]
        offset, count = getattr(kind, name).offset, 0
        if isinstance(spelled, type) and issubclass(spelled, ctypes.Array):
            spelled, count = spelled._type_, spelled._length_
        if spelled in FORMATS:
            found[name] = Member(name, offset, struct.Struct(FORMATS[spelled]), count, None)
        elif isinstance(spelled, type) and issubclass(spelled, ctypes.Structure) and spelled is not _sys.tensor:
            found[name] = Member(name, offset, None, count, spelled)
    return found


def constant(owner: str, name: str, text: str, op: str | None = None, label: str | None = None) -> int:
    """An enumerator of field `name` by its name in the header, in any case; the prefixes GRADUS_ and that
    of the field may be left out: "SCALE_GROUP_STD" and "group_std" are one."""
    upper = text.upper().removeprefix("GRADUS_")
    known = CHOICES.get((owner, name), "").split(", ")
    last = name.split("_")[-1].upper()
    for spelled in (upper, f"{name.upper()}_{upper}", f"{last}_{upper}"):
        if spelled in known:
            return getattr(_sys, spelled)
    expected = f"a number or one of {', '.join(known)}" if known[0] else "a number"
    raise _error.invalid(op or owner, label or name, repr(text), expected)


def number(op: str, label: str, packer: struct.Struct, into: Any, offset: int, value: Any) -> None:
    """Writes a number. What the field cannot hold is refused, where ctypes would keep its low bits."""
    try:
        packer.pack_into(into, offset, value)
    except (struct.error, OverflowError, TypeError, ValueError):
        expected = WHOLE.get(packer.format, "a number")
        if isinstance(value, int):
            raise _error.invalid(op, label, value, expected) from None
        raise TypeError(f"{op}: argument `{label}`: got {value!r}, expected {expected}") from None


def assign(op: str, owner: str, member: Member, into: Any, base: int, label: str, value: Any) -> None:
    """A field of a struct: a number, an enumerator's name, as many numbers as it holds, or a struct. `into` is
    the memory of the outermost struct, `base` where the field's own begins in it."""
    at = base + member.offset
    if member.struct is not None:
        nested(op, member.struct, into, at, label, value)
    elif member.count:
        values = list(value) if hasattr(value, "__len__") else value
        if not isinstance(values, list) or len(values) != member.count:
            got = f"{len(values)}" if isinstance(values, list) else repr(value)
            raise _error.invalid(op, label, got, f"{member.count} numbers")
        for i, one in enumerate(values):
            number(op, f"{label}[{i}]", member.packer, into, at + i * member.packer.size, one)
    else:
        found = constant(owner, member.name, value, op, label) if isinstance(value, str) else value
        number(op, label, member.packer, into, at, found)


def nested(op: str, kind: type[ctypes.Structure], into: Any, at: int, label: str, value: Any) -> None:
    if isinstance(value, kind):
        memoryview(into).cast("B")[at : at + ctypes.sizeof(kind)] = memoryview(value).cast("B")
        return
    if not isinstance(value, dict):
        got = type(value).__name__
        raise TypeError(f"{op}: argument `{label}`: got {got}, expected a dict or {kind.__name__}")
    known = members(kind)
    for key, item in value.items():
        if key not in known or key == "reserved":
            names = ", ".join(sorted(name for name in known if name != "reserved"))
            raise TypeError(f"{op}: argument `{label}` has no field `{key}`; its fields are {names}")
        assign(op, kind.__name__, known[key], into, at, f"{label}.{key}", item)


# ---- extents ------------------------------------------------------------------------------------


def product_of(text: str) -> Extent:
    """`T`, `N K`, `256`: of known extents and the struct's scalars."""
    words = [int(word) if word.isdigit() else word for word in text.split()]
    if len(words) == 1 and isinstance(words[0], str):
        (name,) = words
        return lambda extents, args: whole(extents[name] if name in extents else getattr(args, name, None))

    def product(extents: dict[str, Any], args: Any) -> int | None:
        value = 1
        for word in words:
            known = word if isinstance(word, int) else whole(extents.get(word, getattr(args, word, None)))
            if known is None:
                return None
            value *= known
        return value

    return product


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def extent_of(text: str) -> Extent:
    """`B + 1`, `ceil(N K / 2)`, or a product."""
    if m := re.fullmatch(r"ceil\((.*) / (.*)\)", text):
        above, below = product_of(m[1]), product_of(m[2])

        def ceil(extents: dict[str, Any], args: Any) -> int | None:
            a, b = above(extents, args), below(extents, args)
            return None if a is None or not b or b < 0 else -(-a // b)

        return ceil
    if m := re.fullmatch(r"(\w+) \+ (\d+)", text):
        base, more = product_of(m[1]), int(m[2])

        def plus(extents: dict[str, Any], args: Any) -> int | None:
            value = base(extents, args)
            return None if value is None else value + more

        return plus
    return product_of(text)


def learned(shapes: tuple[str, ...]) -> tuple[tuple[str, int] | None, ...] | None:
    """What a tensor of this one spelling teaches: `[B + 1, 2]` that its first extent is B + 1."""
    if len(shapes) != 1 or shapes == ("*",):
        return None
    found: list[tuple[str, int] | None] = []
    for text in shapes[0].split(", "):
        m = re.fullmatch(r"([A-Za-z_]\w*)( \+ 1)?", text)
        found.append((m[1], 1 if m[2] else 0) if m else None)
    return tuple(found)


# ---- ops ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Field:
    """A row of `_table.OPS`, and what follows from it."""

    name: str
    kind: str
    type: str
    direction: str
    dtype: str
    shapes: tuple[str, ...]
    optional: bool
    comment: str
    offset: int
    member: Member | None

    @functools.cached_property
    def written(self) -> bool:
        return self.kind == "result" or self.direction == "out" or (self.direction == "inout" and self.added)

    @functools.cached_property
    def added(self) -> bool:
        """Written by adding: a fresh one starts at zero."""
        return "added to" in self.comment

    @functools.cached_property
    def teaches(self) -> tuple[tuple[str, int] | None, ...] | None:
        return learned(self.shapes)

    @functools.cached_property
    def wanted(self) -> list[list[Extent] | None]:
        """Shapes that an output may have, the last of the header's first; None is "any"."""
        return [None if s == "*" else [extent_of(part) for part in s.split(", ")] for s in reversed(self.shapes)]

    @functools.cached_property
    def code(self) -> int | None:
        """The dtype, where the header names one."""
        return _tensor.SHORT.get(self.dtype)

    def ranks(self) -> set[int] | None:
        """Those the header spells; None for any."""
        return None if "*" in self.shapes or not self.shapes else {len(s.split(", ")) for s in self.shapes}


class Op:
    """An op's fields, its C struct with the defaults, its export, and the type of its result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.doc, rows = OPS[name]
        self.struct = _sys.STRUCTS[f"{name}_args"]
        known = members(self.struct)
        self.fields = {
            row[0]: Field(*row, getattr(self.struct, row[0]).offset, known.get(row[0]))  # type: ignore[arg-type]
            for row in rows
        }
        self.inputs = tuple(f for f in self.fields.values() if not f.written)
        self.outputs = tuple(f for f in self.fields.values() if f.written)
        title = "".join(part.capitalize() for part in name.split("_")) + "Result"
        # rope and its like write over an operand and return it.
        given = self.outputs or [f for f in self.inputs if f.direction == "inout"]
        self.returned = tuple(f.name for f in given)
        self.result = collections.namedtuple(title, self.returned)  # type: ignore[misc]
        self.has_vocab = "vocab" in self.fields
        args = self.struct()
        done(LIBRARY.gradus_init(name.encode(), ctypes.byref(args), ctypes.sizeof(args)))
        self.defaults = args
        self.template = bytes(args)
        self.export = getattr(LIBRARY, f"gradus_{name}")

    def init(self) -> ctypes.Structure:
        """The op's struct with its defaults."""
        return self.struct.from_buffer_copy(self.template)


@functools.cache
def op_of(name: str) -> Op:
    """The op of a name; ValueError for others."""
    if name not in OPS:
        raise ValueError(f"gradus has no op `{name}`")
    return Op(name)
