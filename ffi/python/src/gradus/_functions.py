"""One function per op, made from the generated table: signature, documentation, call."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

from gradus import _call, _fields
from gradus._table import CHOICES, OPS, STRUCT_FIELDS

__all__ = ["FUNCTIONS"]

PYTHON = {"nf4": "Nf4Weight", "lora": "Lora", "tensor": "tensor"}


def default(args: ctypes.Structure, field: _fields.Field) -> Any:
    """The library's own default of a scalar; None where an argument is optional; else required."""
    if field.kind == "scalar":
        return None if field.name == "vocab" else getattr(args, field.name)
    if field.kind == "struct" or field.optional or field.written:
        return None
    return inspect.Parameter.empty


def signature(op: _fields.Op) -> inspect.Signature:
    """Operands come first and by position, the rest by name."""
    args = op.defaults
    rows = list(op.fields.values())
    required = [f for f in rows if default(args, f) is inspect.Parameter.empty]
    others = [f for f in rows if f not in required]
    parameter = inspect.Parameter
    parts = [parameter(f.name, parameter.POSITIONAL_OR_KEYWORD, annotation=annotation(f)) for f in required]
    parts += [
        parameter(f.name, parameter.KEYWORD_ONLY, default=default(args, f), annotation=annotation(f)) for f in others
    ]
    parts += [
        parameter("device", parameter.KEYWORD_ONLY, default=None, annotation="Device | None"),
        parameter("stream", parameter.KEYWORD_ONLY, default=None, annotation="int | None"),
    ]
    return inspect.Signature(parts, return_annotation=op.result.__name__)


def annotation(field: _fields.Field) -> str:
    if field.kind == "scalar":
        return {"double": "float"}.get(field.type, "int")
    if field.kind == "struct":
        return "dict"
    kind = PYTHON.get(field.type, "dict")
    return f"list[{kind}]" if field.kind == "list" else kind


def describe(op: str, field: _fields.Field) -> list[str]:
    comment = field.comment or {"vocab": "columns that exist; default all", "transform": "from stored logits to z"}.get(
        field.name, ""
    )
    lines = [f"    {field.name}: {comment}".rstrip(": ")]
    if (op, field.name) in CHOICES:
        lines.append(f"        one of {CHOICES[op, field.name]}")
    if field.kind == "struct" or field.type.endswith("_tensor"):
        lines += members(field.type)
    return lines


def members(struct: str) -> list[str]:
    """What a struct's fields are, for arguments that take one as a dict."""
    lines = []
    for name, comment in STRUCT_FIELDS.get(struct, {}).items():
        lines.append(f"        {name}: {comment}".rstrip(": "))
        if (struct, name) in CHOICES:
            lines.append(f"            one of {CHOICES[struct, name]}")
    return lines


def documentation(op: _fields.Op) -> str:
    """The header's comments, by field."""
    inputs = [f for f in op.fields.values() if not f.written]
    outputs = [f for f in op.fields.values() if f.written]
    lines = [op.doc, "", "Arguments:"]
    for field in inputs:
        lines += describe(op.name, field)
    if outputs:
        lines += ["", "Returns a named tuple; outputs that are not given are made, optional ones with NAME=True:"]
        for field in outputs:
            lines += describe(op.name, field)
    lines += ["", "F: one of f32, bf16, f16, f64, the same for all; R: f32 or f64. Raises gradus.Error."]
    return "\n".join(lines)


def function(name: str) -> Callable[..., Any]:
    """gradus.NAME."""
    op = _fields.op_of(name)
    spelled = signature(op)
    positional = [p.name for p in spelled.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def run(*operands: Any, device: Any = None, stream: int | None = None, **fields: Any) -> Any:
        if len(operands) > len(positional):
            raise TypeError(f"{name}() takes {len(positional)} operands by position, {len(operands)} were given")
        for key, value in zip(positional, operands):
            if key in fields:
                raise TypeError(f"{name}() got `{key}` twice")
            fields[key] = value
        return _call.call(name, device, stream, **fields)

    run.__name__ = run.__qualname__ = name
    run.__module__ = "gradus"
    run.__doc__ = documentation(op)
    run.__signature__ = spelled
    return run


FUNCTIONS = {name: function(name) for name in OPS}
