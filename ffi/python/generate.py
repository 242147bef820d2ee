#!/usr/bin/env python3
"""Python declarations of the C ABI, generated from the header.

    python3 generate.py            writes _sys.py, _table.py and the stubs __init__.pyi and _sys.pyi of src/gradus
    python3 generate.py --check    exit status 1 if a committed file differs

The header is the document of record and has one regular style, so a few regular expressions read
it. Whatever they do not understand is an error here, never a guess.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
INCLUDE = HERE.parent / "include"
PACKAGE = HERE / "src" / "gradus"

SCALARS = {
    "int32_t": "c_int32",
    "int64_t": "c_int64",
    "uint8_t": "c_uint8",
    "double": "c_double",
    "float": "c_float",
    "size_t": "c_size_t",
    "void": "None",
    "char": "c_char",
    "gradus_status": "c_int32",
    "gradus_context": "c_uint64",
    "gradus_team": "c_void_p",
}


@dataclasses.dataclass
class Field:
    """A field of a struct: `const type *name[count]`, with the comment on its line."""

    name: str
    type: str
    pointer: bool
    count: int
    comment: str
    constant: bool = False


@dataclasses.dataclass
class Struct:
    name: str
    doc: str
    fields: list[Field]


@dataclasses.dataclass
class Function:
    """An export; arguments are (type, pointer depth, name)."""

    name: str
    doc: str
    result: tuple[str, int]
    arguments: list[tuple[str, int, str]]


@dataclasses.dataclass
class Header:
    version: tuple[int, int, int]
    constants: dict[str, int]
    enums: dict[str, list[str]]  # enumerators, by the name of the enum
    structs: list[Struct]
    functions: list[Function]


def source(include: pathlib.Path = INCLUDE) -> str:
    """The header with its parts in place of their #include."""
    text = (include / "gradus.h").read_text()
    part = re.compile(r'^#include "(gradus/\w+\.h)".*$', re.MULTILINE)
    return part.sub(lambda m: (include / m[1]).read_text(), text)


def prose(comment: str | None) -> str:
    """A comment's text on one line."""
    return re.sub(r"\s*\n\s*\*?\s*", " ", comment or "").strip()


def parse(text: str) -> Header:
    constants = {
        name: int(value.strip("()"))
        for name, value in re.findall(r"^#define (GRADUS_\w+) (\(?-?\d+\)?)$", text, re.MULTILINE)
    }
    enums = {}
    for enum, body in re.findall(r"^enum (gradus_\w+ )?\{(.*?)\};", text, re.MULTILINE | re.DOTALL):
        items = re.findall(r"(GRADUS_\w+) = (-?\d+)", body)
        constants.update((name, int(value)) for name, value in items)
        # The numbers of statuses have no field and no name.
        if enum:
            enums[enum.strip()] = [name for name, _ in items]
    version = tuple(constants[f"GRADUS_VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH"))
    return Header(version, constants, enums, parse_structs(text), parse_functions(text))


def parse_structs(text: str) -> list[Struct]:
    pattern = r"(?:/\* ((?:(?!\*/).)*?) \*/\n)?typedef struct gradus_(\w+) \{\n(.*?)\n\} gradus_\2;"
    found = re.findall(pattern, text, re.DOTALL)
    if len(found) != len(re.findall(r"^typedef struct", text, re.MULTILINE)):
        raise ValueError("a struct of the header is not understood")
    return [Struct(name, prose(doc), parse_fields(name, body)) for doc, name, body in found]


def parse_fields(struct: str, body: str) -> list[Field]:
    fields = []
    for line in body.split("\n"):
        m = re.fullmatch(r"\s*(const )?(\w+) ([^;]+);(?:\s*/\* (.*?) \*/)?", line)
        if m is None:
            raise ValueError(f"{struct}: `{line}` is not understood")
        for name in m[3].split(","):
            part = re.fullmatch(r"\s*(\*?)(\w+)(?:\[(\d+)\])?", name)
            if part is None:
                raise ValueError(f"{struct}: `{name}` is not understood")
            fields.append(Field(part[2], m[2], bool(part[1]), int(part[3] or 0), m[4] or "", bool(m[1])))
    return fields


def parse_functions(text: str) -> list[Function]:
    pattern = r"(?:/\* ((?:(?!\*/).)*?) \*/\n)?GRADUS_API ([\w ]+?) (\**)(gradus_\w+)\((.*?)\);"
    functions = []
    for doc, kind, stars, name, arguments in re.findall(pattern, text, re.DOTALL):
        parsed = []
        for argument in re.sub(r"\s+", " ", arguments).split(","):
            if argument.strip() == "void":
                continue
            m = re.fullmatch(r"\s*(?:const )?(\w+) (\**)(\w+)", argument)
            if m is None:
                raise ValueError(f"{name}: `{argument}` is not understood")
            parsed.append((m[1], len(m[2]), m[3]))
        result = (kind.replace("const ", ""), len(stars))
        functions.append(Function(name, prose(doc), result, parsed))
    return functions


# ---- _sys.py ------------------------------------------------------------------------------------


def bare(name: str) -> str:
    return name.removeprefix("gradus_")


def ctype(kind: str, pointers: int = 0) -> str:
    """The ctypes spelling of a C type."""
    if pointers == 0:
        return SCALARS.get(kind) or bare(kind)
    if kind == "char" and pointers == 1:
        return "c_char_p"
    if kind == "void":
        return "c_void_p" if pointers == 1 else "POINTER(c_void_p)"
    inner = ctype(kind, pointers - 1)
    return f"POINTER({inner})"


def field_ctype(field: Field) -> str:
    spelled = ctype(field.type, int(field.pointer))
    return f"{spelled} * {field.count}" if field.count else spelled


def banner(what: str) -> str:
    return f'"""{what} Generated by generate.py from gradus.h: do not edit."""\n\n'


BASE = '''class Struct(Structure):
    """A struct whose fields cannot be misspelled, and whose whole numbers are not cut to the field's width."""

    __slots__ = ()

    def __setattr__(self, name, value):
        before = getattr(self, name)
        super().__setattr__(name, value)
        if isinstance(before, int) and isinstance(value, int) and getattr(self, name) != value:
            super().__setattr__(name, before)
            raise OverflowError(f"{type(self).__name__}: field `{name}`: got {value}, which it cannot hold")


'''


def render_sys(header: Header) -> str:
    out = [banner("Constants, structs and exports of the C ABI.")]
    out.append("from ctypes import (\n    POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int32,")
    out.append(" c_int64, c_size_t, c_uint8,\n    c_uint64, c_void_p,\n)\n\n")
    out.append(BASE)
    out.append(f"VERSION = {header.version}\n\n")
    out += [f"{name.removeprefix('GRADUS_')} = {value}\n" for name, value in header.constants.items()]
    for struct in header.structs:
        out.append(f"\n\nclass {struct.name}(Struct):\n    __slots__ = ()\n")
        fields = [f'("{f.name}", {field_ctype(f)})' for f in struct.fields]
        out.append("    _fields_ = [\n" + wrapped(fields, 8) + "    ]\n")
    out.append("\n\nSTRUCTS = {\n" + wrapped([f'"{s.name}": {s.name}' for s in header.structs], 4) + "}\n")
    out.append("\n# name: (result, arguments)\nFUNCTIONS = {\n")
    for function in header.functions:
        arguments = ", ".join(ctype(kind, stars) for kind, stars, _ in function.arguments)
        out.append(f'    "{bare(function.name)}": ({ctype(*function.result)}, [{arguments}]),\n')
    out.append("}\n")
    names = [*(name.removeprefix("GRADUS_") for name in header.constants), *(s.name for s in header.structs)]
    listed = [f'"{name}"' for name in ["FUNCTIONS", "STRUCTS", "VERSION", "Struct", *names]]
    out.append("\n__all__ = [\n" + wrapped(listed, 4) + "]\n")
    return "".join(out)


def wrapped(items: list[str], indent: int, width: int = 110) -> str:
    """Items of a literal, as many a line as fit."""
    lines, line = [], ""
    for item in items:
        if line and indent + len(line) + len(item) + 2 > width:
            lines.append(line)
            line = ""
        line += f" {item}," if line else f"{item},"
    return "".join(" " * indent + text + "\n" for text in [*lines, line])


# ---- _table.py ----------------------------------------------------------------------------------

SPEC = re.compile(
    r"(?P<direction>or in|inout|in|out)\b(?: (?P<dtype>F|R|any|[a-z]+\d+(?:, [a-z]+\d+)*(?: or [a-z]+\d+)?)(?=[\s,;:]|$))?"
    r"(?: \[(?P<shape>[^\]]*)\](?: or \[(?P<other>[^\]]*)\])?)?"
)


def spec(field: Field) -> tuple[str, str, list[str], bool]:
    """(direction, dtype, shapes, optional) of a tensor's or result's comment."""
    m = SPEC.match(field.comment)
    if m is None:
        return "", "", [], False
    optional = bool(re.search(r"\boptional\b|may be NULL", field.comment)) or m["direction"] == "or in"
    shapes = [s for s in (m["shape"], m["other"]) if s]
    if not shapes and (re.search(r"any shape|the same shape", field.comment) or field.comment == "out F"):
        shapes = ["*"]
    dtype = "" if m["dtype"] == "any" else m["dtype"] or ""
    return m["direction"].removeprefix("or "), dtype, shapes, optional


def kind_of(field: Field, fields: list[Field]) -> str:
    """How the caller gives a field: see the docstring of _table.py."""
    if field.name in ("struct_size", "reserved"):
        return "hidden"
    if field.name.endswith("_count") and any(f.name == field.name[:-6] for f in fields):
        return "hidden"
    if field.type == "gradus_tensor" and not field.pointer:
        return "tensor"
    many = any(f.name == field.name + "_count" for f in fields)
    if field.pointer:
        return ("list" if many else "pointer") if field.constant else "result"
    return "struct" if field.type.startswith("gradus_") else "scalar"


def choices(field: Field, header: Header) -> str:
    """Enumerators of a number: its comment begins with the enum's name, and an argument of a function has it."""
    enum = re.match(r"gradus_\w+", field.comment) if field.type == "int32_t" else None
    if enum is None:
        return ""
    if enum[0] not in header.enums:
        raise ValueError(f"{field.name}: the header has no enum {enum[0]}")
    return shown(header.enums[enum[0]])


def shown(names: list[str]) -> str:
    return ", ".join(name.removeprefix("GRADUS_") for name in names)


TABLE_DOC = """What every op takes and gives.

    OPS[op] = (what it computes, fields)
    field = (name, kind, C type, direction, dtype, shapes, optional, comment)

Kinds: tensor, scalar, struct (nested by value), pointer (one struct that is read), list (a pointer with a
count), result (written to the host). Directions: in, out, inout. dtype F or R: the call's float type.
Shapes are as the header spells them, alternatives in order, "*" any.
"""


def given_structs(header: Header) -> set[str]:
    """Structs that a caller fills, rather than the library: those that arguments hold or point to as constant."""
    held = [f for s in header.structs for f in s.fields if f.type.startswith("gradus_")]
    return {bare(f.type) for f in held if f.constant or not f.pointer}


def op_rows(header: Header) -> dict[str, tuple[str, list[tuple]]]:
    """Of every op what it computes and its fields, as in the docstring of _table.py."""
    ops = {s.name.removesuffix("_args") for s in header.structs if s.name.endswith("_args")}
    found = {}
    for struct in header.structs:
        op = struct.name.removesuffix("_args")
        if op not in ops or op == struct.name:
            continue
        if not struct.doc:
            raise ValueError(f"{struct.name}: no comment above it says what the op computes")
        rows = []
        for field, after in zip(struct.fields, [*struct.fields[1:], None]):
            kind = kind_of(field, struct.fields)
            if kind != "hidden":
                direction, dtype, shapes, optional = spec(field) if kind != "scalar" else ("in", "", [], True)
                # Of two that exclude each other the second says so.
                optional = optional or (after is not None and after.comment.startswith("or "))
                # Adapters may be none.
                optional = optional or (kind == "list" and "may be NULL" in field.comment)
                where, type_ = direction or "in", bare(field.type)
                rows.append((field.name, kind, type_, where, dtype, tuple(shapes), optional, field.comment))
        found[op] = (struct.doc, rows)
    return found


def all_choices(header: Header) -> dict[tuple[str, str], str]:
    """Enumerators that scalars take, by struct or function and field."""
    seen = {}
    for struct in header.structs:
        for field in struct.fields:
            names = choices(field, header)
            if names:
                seen[(bare(struct.name).removesuffix("_args"), field.name)] = names
    for function in header.functions:
        for kind, stars, name in function.arguments:
            enum = f"gradus_{name}" if f"gradus_{name}" in header.enums and not stars else ""
            names = choices(Field(name, kind, False, 0, enum), header)
            if names:
                seen[(bare(function.name), name)] = names
    return seen


def render_table(header: Header) -> str:
    out = [banner(TABLE_DOC), "OPS = {\n"]
    for op, (doc, rows) in op_rows(header).items():
        out.append(f'    "{op}": ({doc!r}, (\n')
        out += [f"        {row!r},\n" for row in rows]
        out.append("    )),\n")
    out.append(
        "}\n\n# Fields of structs that are passed by value or by pointer: {struct: {field: comment}}.\nSTRUCT_FIELDS = {\n"
    )
    for struct in header.structs:
        if not struct.name.endswith("_args") and struct.name != "tensor":
            rows = {f.name: f.comment for f in struct.fields if f.name != "reserved"}
            out.append(f"    {struct.name!r}: {{\n")
            out += [f"        {name!r}: {comment!r},\n" for name, comment in rows.items()]
            out.append("    },\n")
    out.append("}\n\n# Enumerators that a scalar takes, by field.\nCHOICES = {\n")
    out += [f"    {key!r}: {names!r},\n" for key, names in all_choices(header).items()]
    out.append('}\n\n__all__ = ["CHOICES", "OPS", "STRUCT_FIELDS"]\n')
    return "".join(out)


def main() -> int:
    # Beside this file; those who load it from elsewhere only parse the header.
    import stubs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the committed files")
    options = parser.parse_args()
    header = parse(source())
    written = {
        "_sys.py": render_sys(header),
        "_table.py": render_table(header),
        "_sys.pyi": stubs.render_sys(header),
        "__init__.pyi": stubs.render_package(header, op_rows(header), all_choices(header), given_structs(header)),
    }
    stale = []
    for path, text in ((PACKAGE / name, text) for name, text in written.items()):
        if options.check:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        print(f"{', '.join(stale)}: not what generate.py makes of gradus.h; run python3 ffi/python/generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
