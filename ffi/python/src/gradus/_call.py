"""One call of any op: fields by name in, outputs out.

Outputs that are not given are made like the inputs; optional ones are made when asked for with `True`.
Everything that is wrong with an argument is for the library to say. Only what it could never see (a
name that no field has, a number that no field holds, an output whose shape follows from nothing) is refused here.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, NamedTuple

from gradus import _device, _error, _sys, _tensor
from gradus._fields import Field, Op, assign, members, op_of
from gradus._library import LIBRARY, Fork, done
from gradus._threads import Threads, set_threads

__all__ = ["Binding", "bind", "call", "plain", "workspace_size"]

ADDRESS, COUNT = struct.Struct("P"), struct.Struct("q")
RESULTS: dict[str, Any] = {"double": ctypes.c_double, "int64_t": ctypes.c_int64} | _sys.STRUCTS


class Weight(NamedTuple):
    """The C struct of a 4-bit weight, what it was made of and what it borrows."""

    token: tuple[Any, ...] | None
    block: Any
    owners: list[Any]
    place: str | None


class Binding:
    """The C struct of one call, what it borrows, and the extents its tensors give."""

    def __init__(self, op: Op) -> None:
        self.op, self.args = op, op.init()
        self.keep: list[Any] = []
        self.extents: dict[str, Any] = {}
        self.dtypes: dict[str, int] = {}
        self.ranks: dict[str, tuple[int, ...]] = {}
        self.place: str | None = None
        self.like: Any = None
        self.like_torch = False
        self.results: dict[str, Any] = {}

    # -- inputs

    def array(self, name: str, value: Any, written: bool, into: Any, offset: int) -> _tensor.Array:
        """Writes a tensor's struct, and keeps what it borrows."""
        try:
            found = _tensor.view(value, name, written)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.op.name}: argument {error}") from None
        _tensor.PACKED.pack_into(into, offset, *found.packed)
        self.keep.append(found.owner)
        self.lies_on(found.device)
        # The most specific kind decides what outputs are made of: a torch call may have numpy offsets.
        if self.like is None or (found.is_torch and not self.like_torch):
            self.like, self.like_torch = found.like, found.is_torch
        return found

    def tensor(self, field: Field, value: Any) -> None:
        found = self.array(field.name, value, field.direction != "in", self.args, field.offset)
        if field.dtype in ("F", "R"):
            self.dtypes.setdefault(field.dtype, found.packed[1])
        self.extend(field, found.shape)

    def extend(self, field: Field, shape: tuple[int, ...]) -> None:
        """Learns the extents that a tensor's shape spells: `[B + 1]` gives B."""
        self.ranks[field.name] = shape
        teaches = field.teaches
        if teaches is None:
            if field.shapes == ("*",):
                self.extents.setdefault("*", shape)
        elif len(teaches) == len(shape):
            for part, extent in zip(teaches, shape):
                if part is not None:
                    self.extents.setdefault(part[0], extent - part[1])

    def pointer(self, field: Field, value: Any) -> None:
        """A struct or several: 4-bit weights, adapters, tensors of an optimizer."""
        if field.kind == "pointer" and field.type == "nf4" and hasattr(value, "token"):
            self.weight(field, value)
            return
        many = list(value) if isinstance(value, (list, tuple)) and not isinstance(value, _tensor.Bf16) else [value]
        kind = _sys.STRUCTS[field.type]
        block = (kind * max(len(many), 1))()
        for i, item in enumerate(many):
            label = field.name if field.kind == "pointer" else f"{field.name}[{i}]"
            shapes = self.fill(field, kind, block, i * ctypes.sizeof(kind), label, item)
            if i == 0:
                self.learn(field, block[0], shapes)
        self.keep.append(block)
        ADDRESS.pack_into(self.args, field.offset, ctypes.addressof(block))
        if field.kind == "list":
            COUNT.pack_into(self.args, getattr(self.op.struct, f"{field.name}_count").offset, len(many))

    def weight(self, field: Field, item: Any) -> None:
        """A 4-bit weight: a struct of many parts, which the weight keeps between calls as long as they are the
        same."""
        token, known = item.token(), vars(item).get("_struct")
        if token is None or known is None or known.token != token:
            kind, kept, place = _sys.STRUCTS["nf4"], self.keep, self.place
            block, self.keep, self.place = (kind * 1)(), [], None
            self.fill(field, kind, block, 0, field.name, item)
            known = Weight(token, block, self.keep, self.place)
            self.keep, self.place = kept, place
            if token is not None:
                vars(item)["_struct"] = known
        self.keep += (known.block, known.owners)
        self.lies_on(known.place)
        if self.like is None or not self.like_torch and token is not None:
            self.like, self.like_torch = item.packed, token is not None
        self.learn(field, known.block[0], {})
        ADDRESS.pack_into(self.args, field.offset, ctypes.addressof(known.block))

    def lies_on(self, place: str | None) -> None:
        """Of several GPUs the library names the tensors that are not on the call's."""
        if place is not None and place != "cpu" and (self.place is None or place < self.place):
            self.place = place

    def fill(self, field: Field, kind: Any, into: Any, base: int, label: str, item: Any) -> dict[str, Any]:
        """One struct of a block, from an object that lists its parts, a dict of arrays, or an array. Returns the
        shapes of its tensors."""
        if kind is _sys.tensor:
            return {"": self.array(label, item, False, into, base).shape}
        if hasattr(item, "struct_parts"):
            arrays, numbers = item.struct_parts()
        elif isinstance(item, dict):
            arrays, numbers = item, {}
        else:
            raise TypeError(f"{self.op.name}: argument `{label}`: got {type(item).__name__}, which is no {field.type}")
        shapes = {}
        reads = field.type in ("nf4", "lora")
        for key, value in arrays.items():
            place = getattr(kind, key, None)
            if place is None or key in members(kind):
                raise TypeError(f"{self.op.name}: argument `{label}` has no field `{key}`")
            if value is not None:
                written = not reads and key not in ("grad", "mask")
                shapes[key] = self.array(f"{label}.{key}", value, written, into, base + place.offset).shape
        known = members(kind)
        for key, value in numbers.items():
            assign(self.op.name, field.type, known[key], into, base, f"{label}.{key}", value)
        return shapes

    def learn(self, field: Field, first: Any, shapes: dict[str, Any]) -> None:
        """Extents of the first of a block."""
        if field.type == "nf4":
            self.extend(field, (first.n, first.k))
            self.dtypes.setdefault("w", first.dtype)
        elif field.type == "lora" and len(shapes.get("a", ())) == 2:
            self.extents.setdefault("r", shapes["a"][0])
            self.extents.setdefault("K", shapes["a"][1])

    # -- outputs

    def output(self, field: Field, value: Any) -> None:
        """A tensor that is written: the caller's, or a new one."""
        if value is True or value is None:
            value = self.fresh(field)
        self.tensor(field, value)
        self.results[field.name] = value

    def fresh(self, field: Field) -> Any:
        shape, dtype = self.shape(field), field.code
        if dtype is None:
            dtype = self.dtypes.get(field.dtype, self.dtypes.get("w"))
        if shape is None or dtype is None:
            raise self.underived(field)
        return _tensor.make(self.like, dtype, shape, field.added)

    def underived(self, field: Field) -> _error.InvalidArgument:
        """The operand whose rank is not the header's, else the output that follows from nothing."""
        for name, shape in self.ranks.items():
            ranks = self.op.fields[name].ranks()
            if ranks is not None and len(shape) not in ranks:
                spelled = " or ".join(f"[{text}]" for text in self.op.fields[name].shapes)
                return _error.invalid(self.op.name, name, f"rank {len(shape)}: {list(shape)}", spelled)
        expected = f"one ({field.comment}): its shape or dtype does not follow from the other arguments"
        return _error.invalid(self.op.name, field.name, "no tensor", expected)

    def shape(self, field: Field) -> tuple[int, ...] | None:
        """The first of the header's shapes, the last first, that the known extents spell out."""
        for extents in field.wanted:
            if extents is None:
                return self.extents.get("*")
            found = [extent(self.extents, self.args) for extent in extents]
            if None not in found:
                return tuple(found)  # type: ignore[arg-type]
        return None

    def host(self, field: Field, count: int | None) -> None:
        """Room for a result that the library writes to the host: a number, a struct, or several."""
        kind = RESULTS[field.type]
        room = (kind * (1 if count is None else max(count, 1)))()
        self.keep.append(room)
        ADDRESS.pack_into(self.args, field.offset, ctypes.addressof(room))
        self.results[field.name] = (
            (lambda: plain(room[0])) if count is None else (lambda: [plain(x) for x in room[:count]])
        )

    # -- the call

    def device(self, given: Any) -> _device.Device:
        """The given one, or the one the tensors lie on."""
        if given is not None:
            return _device.named(self.op.name, given)
        for item in self.keep:
            if isinstance(item, _device.DeviceArray):
                return item.device
        return _device.shared(self.place or "cpu")

    def stream(self, given: Any, device: _device.Device) -> int | None:
        """torch's current stream where torch's CUDA tensors are. torch's streams are taken as they are."""
        if given is not None:
            return getattr(given, "cuda_stream", given)
        if not self.like_torch or not self.like.is_cuda:
            return None
        return _tensor.torch_of(self.like).cuda.current_stream(self.like.device).cuda_stream

    def inputs(self, given: dict[str, Any]) -> None:
        for field in self.op.inputs:
            value = given.get(field.name)
            if value is None:
                continue
            if field.kind == "tensor":
                self.tensor(field, value)
                if field.direction == "inout":
                    self.results[field.name] = value
            elif field.member is not None:
                assign(self.op.name, self.op.name, field.member, self.args, 0, field.name, value)
            else:
                self.pointer(field, value)
        if self.op.has_vocab and given.get("vocab") is None:
            self.args.vocab = self.extents.get("V_alloc", 0)  # type: ignore[attr-defined]

    def outputs(self, given: dict[str, Any]) -> None:
        for field in self.op.outputs:
            value = given.get(field.name)
            if value is False or (value is None and field.optional):
                continue
            if field.kind == "result":
                self.host(field, self.extents.get(field.shapes[0], 0) if field.shapes else None)
            else:
                self.output(field, value)


def plain(value: Any) -> Any:
    """A ctypes value as Python's: structs as dicts."""
    if isinstance(value, ctypes.Structure):
        return {name: plain(getattr(value, name)) for name, *_ in value._fields_ if name != "reserved"}
    return list(value) if isinstance(value, ctypes.Array) else value


def bind(name: str, given: dict[str, Any]) -> Binding:
    op = op_of(name)
    for field in given:
        if field not in op.fields:
            raise TypeError(f"{name}() has no argument `{field}`; it has {', '.join(op.fields)}")
    binding = Binding(op)
    binding.inputs(given)
    binding.outputs(given)
    return binding


def call(name: str, device: Any = None, stream: Any = None, **fields: Any) -> Any:
    """Runs op `name` and returns its outputs, a named tuple in the header's order; optional outputs that
    nobody asked for are None. `device` is a Device or its name. `stream` is a CUstream as a number or a stream
    of torch; without, torch's current stream for torch's CUDA tensors, else the legacy default stream."""
    Fork.check()
    binding = bind(name, fields)
    where = binding.device(device)
    if binding.like_torch and Threads.chosen is None:
        set_threads("torch")
    done(binding.op.export(where.context, binding.stream(stream, where), ctypes.byref(binding.args)))
    results = binding.results
    values = [results.get(key) for key in binding.op.returned]
    return binding.op.result(*[value() if callable(value) else value for value in values])


def workspace_size(name: str, device: Any, **fields: Any) -> int:
    """Bytes of device memory that op `name` takes beside its operands; 0 on the CPU device."""
    binding = bind(name, fields)
    context, size = _device.named(name, device).context, ctypes.c_size_t()
    done(LIBRARY.gradus_workspace_size(context, name.encode(), ctypes.byref(binding.args), ctypes.byref(size)))
    return size.value
