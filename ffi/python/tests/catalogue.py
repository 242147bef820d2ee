"""Reads ffi/tests/catalogue.json into calls. Its `about` says what the entries mean."""

from __future__ import annotations

import copy
import ctypes
import json
import pathlib
from typing import Any

import numpy as np

import gradus
from gradus import _sys
from gradus._library import LIBRARY, done

CATALOGUE = json.loads((pathlib.Path(__file__).resolve().parents[2] / "tests" / "catalogue.json").read_text())
NUMPY = {
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "bf16": "uint16",
    "f32": "float32",
    "f64": "float64",
}
CODES = {name: getattr(_sys, name.upper()) for name in NUMPY}
RESULTS = {"double": ctypes.c_double, "int64_t": ctypes.c_int64}


def number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def changed(args: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with the case's fields in place."""
    args = copy.deepcopy(args)
    for path, value in changes.items():
        at, *rest = path.split(".")
        holder: Any = args
        for part in rest:
            holder = holder[int(at)] if isinstance(holder, list) else holder.setdefault(at, {})
            at = part
        holder[at] = value
    return args


class Call:
    """The C struct of an entry, and the memory behind it."""

    def __init__(self, op: str, fields: dict[str, Any]) -> None:
        self.op, self.fields = op, fields
        self.memory: dict[str, np.ndarray] = {}
        self.keep: list[Any] = []
        self.args = _sys.STRUCTS[f"{op}_args"]()
        done(LIBRARY.gradus_init(op.encode(), ctypes.byref(self.args), ctypes.sizeof(self.args)))
        # What others alias comes first.
        order = sorted(fields, key=lambda name: isinstance(fields[name], dict) and "alias" in fields[name])
        for name in order:
            self.put(self.args, name, fields[name], name)

    def put(self, struct: Any, name: str, value: Any, label: str) -> None:
        kind = dict(struct._fields_)[name]
        if value is None:
            return
        if kind is _sys.tensor:
            setattr(struct, name, self.tensor(value, label))
        elif isinstance(kind, type) and issubclass(kind, ctypes.Structure):
            self.fill(getattr(struct, name), value, label)
        elif isinstance(value, dict) and "result" in value:
            self.point(struct, name, (RESULTS.get(value["result"]) or _sys.STRUCTS[value["result"]])())
        elif isinstance(value, (dict, list)):
            many = value if isinstance(value, list) else [value]
            block = (kind._type_ * max(len(many), 1))()
            for i, item in enumerate(many):
                self.element(block, i, item, f"{label}[{i}]")
            self.point(struct, name, block)
            if isinstance(value, list):
                setattr(struct, f"{name}_count", len(many))
        else:
            setattr(struct, name, number(value))

    def point(self, struct: Any, name: str, target: Any) -> None:
        self.keep.append(target)
        setattr(struct, name, ctypes.cast(ctypes.byref(target), dict(struct._fields_)[name]))

    def element(self, block: Any, i: int, item: dict[str, Any], label: str) -> None:
        if block._type_ is _sys.tensor:
            block[i] = self.tensor(item, label)
        else:
            self.fill(block[i], item, label)

    def fill(self, struct: Any, item: dict[str, Any], label: str) -> None:
        for key, value in item.items():
            if key == "dtype" and isinstance(value, str):
                value = CODES[value.lower()]
            self.put(struct, key, value, f"{label}.{key}")

    def tensor(self, spec: dict[str, Any], label: str) -> _sys.tensor:
        if "alias" in spec:
            return getattr(self.args, spec["alias"])
        shape, strides, dtype = spec["shape"], spec.get("strides"), spec["dtype"]
        t = _sys.tensor(dtype=CODES.get(dtype, dtype), memory=spec.get("memory", 0), rank=spec.get("rank", len(shape)))
        t.shape[: len(shape)] = shape
        t.strides[: len(shape)] = strides or [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        if "data" not in spec:
            self.memory[label] = array = self.array(spec, t)
            t.data = array.ctypes.data + spec.get("offset", 0)
        return t

    def array(self, spec: dict[str, Any], t: _sys.tensor) -> np.ndarray:
        """Room for every element that the strides reach; extents that no memory can have get none."""
        shape = [n if 0 < n < 1 << 20 else 0 for n in spec["shape"]]
        span = 1 + sum((n - 1) * abs(s) for n, s in zip(shape, t.strides)) if all(shape) else 0
        array = np.zeros(span + 2, NUMPY.get(spec["dtype"], "float32"))
        if "values" in spec:
            array[: len(spec["values"])] = [number(value) for value in spec["values"]]
        else:
            array[:] = number(spec["fill"])
        return array

    def run(self, context: int) -> None:
        """Raises what the library answers."""
        done(getattr(LIBRARY, f"gradus_{self.op}")(context, None, ctypes.byref(self.args)))


def function(name: str, arguments: dict[str, Any], context: int) -> None:
    """gradus_NAME with the arguments of the header, where given."""
    get, number_ = arguments.get, ctypes.c_int32()
    text = lambda key: None if get(key) is None else get(key).encode()
    byref, room = ctypes.byref, (ctypes.c_float * 256)()
    lengths = (ctypes.c_int64 * 8)(*get("lengths", []))
    state = (get("quant_state") or "").encode()
    calls = {
        "create": lambda: LIBRARY.gradus_create(text("device"), byref(ctypes.c_uint64())),
        "init": lambda: LIBRARY.gradus_init(text("name"), byref(_sys.logprob_args()), ctypes.sizeof(_sys.logprob_args)),
        "policy_preset": lambda: LIBRARY.gradus_policy_preset(
            text("name"), 0.0, byref(_sys.policy_settings()), byref(number_), byref(number_), byref(ctypes.c_double())
        ),
        "nf4_parse": lambda: LIBRARY.gradus_nf4_parse(
            (ctypes.c_uint8 * len(state))(*state), len(state), byref(_sys.nf4())
        ),
        "nf4_code": lambda: LIBRARY.gradus_nf4_code(get("quant_type"), room),
        "seq_weights": lambda: LIBRARY.gradus_seq_weights(
            get("aggregation"), 1, get("value", 1.0), lengths, len(get("lengths")), (ctypes.c_double * 8)()
        ),
        "synchronize": lambda: LIBRARY.gradus_synchronize(get("context", context), get("stream")),
    }
    done(calls[name]())


def error_class(status: str) -> type:
    return gradus._error.CLASSES[status]
