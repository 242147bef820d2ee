"""One call of any op: fields by name in, outputs out.

Outputs that are not given are made like the inputs; optional ones are made when asked for with `True`.
Everything that is wrong with an argument is for the library to say. Only what it could never see (a
name that no field has, an output whose shape follows from nothing) is refused here.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import re
from typing import Any, NamedTuple

from gradus import _device, _error, _sys, _tensor
from gradus._library import LIBRARY, Fork, done
from gradus._table import CHOICES, OPS


class Field(NamedTuple):
    """A row of `_table.OPS`."""

    name: str
    kind: str
    type: str
    direction: str
    dtype: str
    shapes: tuple[str, ...]
    optional: bool
    comment: str

    @property
    def written(self) -> bool:
        return self.kind == "result" or self.direction == "out" or (self.direction == "inout" and self.added)

    @property
    def added(self) -> bool:
        """Written by adding: a fresh one starts at zero."""
        return "added to" in self.comment


class Op(NamedTuple):
    name: str
    doc: str
    fields: dict[str, Field]
    result: type
    struct: type


@functools.cache
def op_of(name: str) -> Op:
    """The op of a name; ValueError for others."""
    if name not in OPS:
        raise ValueError(f"gradus has no op `{name}`")
    doc, rows = OPS[name]
    fields = {row[0]: Field(*row) for row in rows}
    outputs = [f.name for f in fields.values() if f.written]
    title = "".join(part.capitalize() for part in name.split("_")) + "Result"
    # rope and its like write over an operand and return it.
    result = collections.namedtuple(title, outputs or [f.name for f in fields.values() if f.direction == "inout"])
    return Op(name, doc, fields, result, _sys.STRUCTS[f"{name}_args"])


def init(op: Op) -> ctypes.Structure:
    """The op's struct with its defaults."""
    args = op.struct()
    done(LIBRARY.gradus_init(op.name.encode(), ctypes.byref(args), ctypes.sizeof(args)))
    return args


class Binding:
    """The C struct of one call, what it borrows, and the extents its tensors give."""

    def __init__(self, op: Op) -> None:
        self.op, self.args = op, init(op)
        self.keep: list[Any] = []
        self.extents: dict[str, int] = {}
        self.dtypes: dict[str, int] = {}
        self.devices: set[str] = set()
        self.like: Any = None
        self.results: dict[str, Any] = {}

    # -- inputs

    def array(self, name: str, value: Any, written: bool = False) -> _sys.tensor:
        try:
            found = _tensor.view(value, name, written)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.op.name}: {error}") from None
        self.keep.append(found.owner)
        self.devices.add(found.device)
        # The most specific kind decides what outputs are made of: a torch call may have numpy offsets.
        if self.like is None or (_tensor.torch_of(found.like) and not _tensor.torch_of(self.like)):
            self.like = found.like
        return found.tensor

    def tensor(self, field: Field, value: Any) -> None:
        t = self.array(field.name, value, field.direction != "in")
        setattr(self.args, field.name, t)
        if field.dtype in ("F", "R"):
            self.dtypes.setdefault(field.dtype, t.dtype)
        self.extend(field, t.shape[: t.rank])

    def extend(self, field: Field, shape: list[int]) -> None:
        """Learns the extents that a tensor's shape spells: `[B + 1]` gives B."""
        if field.shapes == ("*",):
            self.extents.setdefault("*", tuple(shape))
            return
        spelled = field.shapes[0].split(", ") if len(field.shapes) == 1 else []
        if len(spelled) != len(shape):
            return
        for text, extent in zip(spelled, shape):
            m = re.fullmatch(r"([A-Za-z_]\w*)( \+ 1)?", text)
            if m:
                self.extents.setdefault(m[1], extent - (1 if m[2] else 0))

    def scalar(self, name: str, value: Any) -> None:
        self.assign(self.args, name, value)

    def assign(self, struct: ctypes.Structure, name: str, value: Any) -> None:
        """A field of a struct: a number, an enumerator's name, an array of numbers, or a struct."""
        target = getattr(struct, name, None)
        if isinstance(target, ctypes.Structure):
            self.struct(target, name, value)
        elif isinstance(target, ctypes.Array):
            target[: len(value)] = list(value)
        elif isinstance(value, str):
            owner = type(struct).__name__.removesuffix("_args")
            setattr(struct, name, constant(owner, name, value))
        else:
            try:
                setattr(struct, name, value if isinstance(value, (int, float)) else value.item())
            except (TypeError, AttributeError):
                raise TypeError(f"{self.op.name}: `{name}`: got {value!r}, expected a number") from None

    def struct(self, target: ctypes.Structure, name: str, value: Any) -> None:
        if isinstance(value, type(target)):
            ctypes.pointer(target)[0] = value
            return
        if not isinstance(value, dict):
            raise TypeError(
                f"{self.op.name}: `{name}`: got {type(value).__name__}, expected a dict or {type(target).__name__}"
            )
        known = {field for field, _ in type(target)._fields_}
        for key, item in value.items():
            if key not in known:
                raise TypeError(
                    f"{self.op.name}: `{name}` has no field `{key}`; its fields are {', '.join(sorted(known))}"
                )
            self.assign(target, key, item)

    def pointer(self, field: Field, value: Any) -> None:
        """A struct or several: 4-bit weights, adapters, tensors of an optimiser."""
        many = list(value) if isinstance(value, (list, tuple)) and not isinstance(value, _tensor.Bf16) else [value]
        kind = _sys.STRUCTS[field.type]
        block = (kind * max(len(many), 1))()
        for i, item in enumerate(many):
            self.fill(field, block, i, item)
        self.keep.append(block)
        setattr(self.args, field.name, ctypes.cast(block, ctypes.POINTER(kind)))
        if field.kind == "list":
            setattr(self.args, f"{field.name}_count", len(many))

    def fill(self, field: Field, block: Any, i: int, item: Any) -> None:
        if hasattr(item, "fill_struct"):
            item.fill_struct(block[i], self.array, field.name)
        elif field.type == "tensor":
            block[i] = self.array(f"{field.name}[{i}]", item)
        elif isinstance(item, dict):
            for key, array in item.items():
                if key not in dict(block[i]._fields_):
                    raise TypeError(f"{self.op.name}: `{field.name}[{i}]` has no field `{key}`")
                setattr(block[i], key, self.array(f"{field.name}[{i}].{key}", array, key not in ("grad", "mask")))
        else:
            raise TypeError(f"{self.op.name}: `{field.name}`: got {type(item).__name__}, which is no {field.type}")
        if field.type == "nf4" and i == 0:
            self.extend(field, [block[0].n, block[0].k])
            self.dtypes.setdefault("w", block[0].dtype)
        elif field.type == "lora" and i == 0 and block[0].a.rank == 2:
            self.extents.setdefault("r", block[0].a.shape[0])
            self.extents.setdefault("K", block[0].a.shape[1])

    # -- outputs

    def output(self, field: Field, value: Any) -> None:
        """A tensor that is written: the caller's, or a new one."""
        if value is True or value is None:
            value = self.fresh(field)
        self.tensor(field, value)
        self.results[field.name] = value

    def fresh(self, field: Field) -> Any:
        shape = self.shape(field)
        dtype = _tensor.SHORT.get(field.dtype, self.dtypes.get(field.dtype, self.dtypes.get("w")))
        if shape is None or dtype is None:
            raise _error.invalid(
                self.op.name,
                field.name,
                "no tensor",
                f"one ({field.comment}): its shape or dtype does not follow from the other arguments, or one of them has another rank",
            )
        return _tensor.make(self.like, dtype, shape, field.added)

    def shape(self, field: Field) -> tuple[int, ...] | None:
        """The first of the header's shapes, the last first, that the known extents spell out."""
        for text in reversed(field.shapes):
            if text == "*":
                return self.extents.get("*")
            extents = [self.extent(part) for part in text.split(", ")]
            if None not in extents:
                return tuple(extents)
        return None

    def extent(self, text: str) -> int | None:
        """`T`, `B + 1`, `256`, `ceil(N K / 2)` of the known extents and the struct's scalars."""
        ceil = re.fullmatch(r"ceil\((.*) / (.*)\)", text)
        if ceil:
            above, below = self.product(ceil[1]), self.product(ceil[2])
            return None if above is None or not below or below < 0 else -(-above // below)
        plus = re.fullmatch(r"(\w+) \+ (\d+)", text)
        base = self.product(plus[1] if plus else text)
        return None if base is None else base + (int(plus[2]) if plus else 0)

    def product(self, text: str) -> int | None:
        value = 1
        for word in text.split():
            known = int(word) if word.isdigit() else self.extents.get(word, getattr(self.args, word, None))
            if not isinstance(known, int):
                return None
            value *= known
        return value

    def host(self, field: Field, count: int | None) -> None:
        """Room for a result that the library writes to the host: a number, a struct, or several."""
        kind = (
            getattr(_sys, f"c_{field.type}") if field.type == "double" else _sys.STRUCTS.get(field.type, ctypes.c_int64)
        )
        room = (kind * (1 if count is None else max(count, 1)))()
        self.keep.append(room)
        setattr(self.args, field.name, ctypes.cast(room, ctypes.POINTER(kind)))
        self.results[field.name] = (
            (lambda: plain(room[0])) if count is None else (lambda: [plain(x) for x in room[:count]])
        )

    # -- the call

    def device(self, given: _device.Device | None) -> _device.Device:
        """The given one, or the one the tensors lie on."""
        if given is not None:
            return given
        for item in self.keep:
            if isinstance(item, _device.DeviceArray):
                return item.device
        gpus = sorted(key for key in self.devices if key not in (None, "cpu"))
        return _device.shared(gpus[0] if gpus else "cpu")

    def stream(self, given: int | None, device: _device.Device) -> int | None:
        """torch's current stream where torch's CUDA tensors are."""
        torch = _tensor.torch_of(self.like)
        if given is not None or torch is None or self.like.device.type != "cuda":
            return given
        return torch.cuda.current_stream(self.like.device).cuda_stream

    def inputs(self, given: dict[str, Any]) -> None:
        for field in self.op.fields.values():
            value = given.get(field.name)
            if value is None or field.written:
                continue
            if field.kind == "tensor":
                self.tensor(field, value)
                if field.direction == "inout":
                    self.results[field.name] = value
            elif field.kind in ("pointer", "list"):
                self.pointer(field, value)
            else:
                self.scalar(field.name, value)
        if given.get("vocab") is None and "vocab" in self.op.fields:
            self.args.vocab = self.extents.get("V_alloc", 0)

    def outputs(self, given: dict[str, Any]) -> None:
        for field in (f for f in self.op.fields.values() if f.written):
            value = given.get(field.name)
            if value is False or (value is None and field.optional):
                continue
            if field.kind == "result":
                self.host(field, self.extents.get(field.shapes[0], 0) if field.shapes else None)
            else:
                self.output(field, value)


def constant(owner: str, name: str, text: str) -> int:
    """An enumerator of field `name` by its name in the header, in any case; the prefixes GRADUS_ and that
    of the field may be left out: "SCALE_GROUP_STD" and "group_std" are one."""
    upper = text.upper().removeprefix("GRADUS_")
    known = CHOICES.get((owner, name), "").split(", ")
    last = name.split("_")[-1].upper()
    for spelled in (upper, f"{name.upper()}_{upper}", f"{last}_{upper}"):
        if spelled in known:
            return getattr(_sys, spelled)
    raise _error.invalid(owner, name, repr(text), f"a number or one of {', '.join(known)}")


def plain(value: Any) -> Any:
    """A ctypes value as Python's: structs as dicts."""
    if isinstance(value, ctypes.Structure):
        return {name: plain(getattr(value, name)) for name, _ in value._fields_ if name != "reserved"}
    return list(value) if isinstance(value, ctypes.Array) else value


def bind(name: str, given: dict[str, Any]) -> Binding:
    op = op_of(name)
    unknown = [field for field in given if field not in op.fields]
    if unknown:
        raise TypeError(f"{name}() has no argument `{unknown[0]}`; it has {', '.join(op.fields)}")
    binding = Binding(op)
    binding.inputs(given)
    binding.outputs(given)
    return binding


def call(name: str, device: _device.Device | None = None, stream: int | None = None, **fields: Any) -> Any:
    """Runs op `name` and returns its outputs, a named tuple in the header's order; optional outputs that
    nobody asked for are None. `stream` is a CUstream as a number; without, torch's current stream for
    torch's CUDA tensors, else the legacy default stream."""
    Fork.check()
    binding = bind(name, fields)
    where = binding.device(device)
    function = getattr(LIBRARY, f"gradus_{name}")
    done(function(where.context, binding.stream(stream, where), ctypes.byref(binding.args)))
    values = {key: value() if callable(value) else value for key, value in binding.results.items()}
    return binding.op.result(**{key: values.get(key) for key in binding.op.result._fields})


def workspace_size(name: str, device: _device.Device, **fields: Any) -> int:
    """Bytes of device memory that op `name` takes beside its operands; 0 on the CPU device."""
    binding = bind(name, fields)
    size = ctypes.c_size_t()
    done(LIBRARY.gradus_workspace_size(device.context, name.encode(), ctypes.byref(binding.args), ctypes.byref(size)))
    return size.value
