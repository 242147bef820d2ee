"""The C ABI as a foreign program sees it: the header, ctypes, numpy. The package gradus is not used."""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve()
PYTHON = HERE.parents[2]


def generator() -> Any:
    """generate.py, for its reading of the header."""
    spec = importlib.util.spec_from_file_location("generate", PYTHON / "generate.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    import sys

    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


class Bf16(np.ndarray):
    """uint16 whose bits are bfloat16."""


def bf16(bits: np.ndarray) -> Bf16:
    return np.ascontiguousarray(bits, np.uint16).view(Bf16)


def to_bf16(values: np.ndarray) -> Bf16:
    """f32 rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return bf16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def widen(values: np.ndarray) -> np.ndarray:
    """Any float array in f64, exactly."""
    if isinstance(values, Bf16):
        return (values.view(np.ndarray).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.asarray(values, np.float64)


class Abi:
    """The library behind the header, on one device. `called` collects the ops that ran."""

    def __init__(self, library: pathlib.Path, device: str) -> None:
        self.header = generator().parse(generator().source())
        self.names = self.header.constants
        self.structs: dict[str, type] = {}
        for struct in self.header.structs:
            fields = [(f.name, self.ctype(f)) for f in struct.fields]
            self.structs[struct.name] = type(struct.name, (ctypes.Structure,), {"_fields_": fields})
        self.ops = {name.removesuffix("_args") for name in self.structs if name.endswith("_args")}
        try:
            self.library = ctypes.CDLL(str(library))
        except OSError as error:
            raise SystemExit(f"{error}\nbuild it with `cargo build --release -p gradus-c`, or name another one") from error
        self.library.gradus_last_error.restype = ctypes.c_char_p
        self.library.gradus_sizeof.restype = ctypes.c_size_t
        for name, struct in self.structs.items():
            size = self.library.gradus_sizeof(name.removesuffix("_args").encode())
            assert size == ctypes.sizeof(struct), f"{name}: {size} bytes in the library, {ctypes.sizeof(struct)} here"
        self.context = ctypes.c_uint64()
        self.check(self.library.gradus_create(device.encode(), ctypes.byref(self.context)))
        self.device, self.called = device, set()

    def ctype(self, field: Any) -> Any:
        scalars = {
            "int32_t": ctypes.c_int32,
            "int64_t": ctypes.c_int64,
            "double": ctypes.c_double,
            "size_t": ctypes.c_size_t,
            "void": None,
        }
        base = scalars.get(field.type) if field.type in scalars else self.structs[field.type.removeprefix("gradus_")]
        kind = (ctypes.c_void_p if base is None else ctypes.POINTER(base)) if field.pointer else base
        return kind * field.count if field.count else kind

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"status {status}: {self.library.gradus_last_error().decode()}")

    def tensor(self, array: np.ndarray) -> Any:
        """Borrows an array; the caller keeps it."""
        codes = {"uint8": "U8", "int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64"}
        code = "BF16" if isinstance(array, Bf16) else codes[array.dtype.name]
        t = self.structs["tensor"](data=array.ctypes.data, dtype=self.names[f"GRADUS_{code}"], rank=array.ndim)
        t.shape[: array.ndim] = array.shape
        t.strides[: array.ndim] = [s // array.itemsize for s in array.strides]
        return t

    def struct(self, name: str, **fields: Any) -> Any:
        made = self.structs[name]()
        for key, value in fields.items():
            setattr(made, key, self.value(value))
        return made

    def value(self, value: Any) -> Any:
        return self.tensor(value) if isinstance(value, np.ndarray) else value

    def init(self, op: str) -> Any:
        args = self.structs[f"{op}_args"]()
        self.check(self.library.gradus_init(op.encode(), ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args))))
        return args

    def run(self, op: str, **fields: Any) -> None:
        """gradus_NAME: arrays become tensors, dicts fill nested structs, structs are pointed to, lists of
        structs get their count; `None` is left out."""
        args, keep = self.init(op), []
        for name, value in fields.items():
            self.put(args, name, value, keep)
        function = getattr(self.library, f"gradus_{op}")
        self.check(function(self.context, None, ctypes.byref(args)))
        self.called.add(op)

    def put(self, args: Any, name: str, value: Any, keep: list[Any]) -> None:
        kind = dict(args._fields_)[name]
        if value is None:
            return
        if isinstance(value, dict):
            for key, item in value.items():
                self.put(getattr(args, name), key, item, keep)
        elif isinstance(value, list):
            block = (kind._type_ * max(len(value), 1))(*[self.value(item) for item in value])
            keep.append(block)
            setattr(args, name, ctypes.cast(block, kind))
            setattr(args, f"{name}_count", len(value))
        elif isinstance(kind, type) and issubclass(kind, ctypes._Pointer):
            setattr(
                args,
                name,
                ctypes.cast(ctypes.byref(value), kind)
                if not isinstance(value, ctypes.Array)
                else ctypes.cast(value, kind),
            )
        elif isinstance(kind, type) and issubclass(kind, ctypes.Array):
            getattr(args, name)[: len(value)] = value
        else:
            setattr(args, name, self.names[f"GRADUS_{value}"] if isinstance(value, str) else self.value(value))

    def dynamic_map(self, signed: int = 1) -> np.ndarray:
        values = np.empty(256, np.float32)
        self.check(self.library.gradus_dynamic_map(signed, values.ctypes.data_as(ctypes.c_void_p)))
        return values

    def code_book(self, quant_type: str) -> np.ndarray:
        values = np.empty(16, np.float32)
        self.check(
            self.library.gradus_nf4_code(
                self.names[f"GRADUS_{quant_type.upper()}"], values.ctypes.data_as(ctypes.c_void_p)
            )
        )
        return values

    def preset(self, name: str, length: float) -> tuple[Any, int, int, float]:
        """Settings, aggregation, count_empty, value."""
        settings = self.init("policy_loss").settings
        aggregation, empty, value = ctypes.c_int32(), ctypes.c_int32(), ctypes.c_double()
        self.check(
            self.library.gradus_policy_preset(
                name.encode(),
                ctypes.c_double(length),
                ctypes.byref(settings),
                ctypes.byref(aggregation),
                ctypes.byref(empty),
                ctypes.byref(value),
            )
        )
        return settings, aggregation.value, empty.value, value.value

    def weights(self, aggregation: int, count_empty: int, value: float, lengths: np.ndarray) -> np.ndarray:
        lengths, out = np.ascontiguousarray(lengths, np.int64), np.empty(len(lengths))
        self.check(
            self.library.gradus_seq_weights(
                aggregation,
                count_empty,
                ctypes.c_double(value),
                lengths.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int64(len(lengths)),
                out.ctypes.data_as(ctypes.c_void_p),
            )
        )
        return out


# ---- safetensors --------------------------------------------------------------------------------

STORED = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.uint8,
}


class Tensors(dict):
    """A safetensors file: arrays by name, BF16 as `Bf16`, and its metadata's JSON values."""

    def __init__(self, path: pathlib.Path) -> None:
        import json

        super().__init__()
        self.path, self.name = path, path.stem
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        raw = header.pop("__metadata__", {})
        self.settings: dict[str, Any] = json.loads(raw.get("settings", "{}"))
        self.call: str = raw.get("call", "")
        for name, entry in header.items():
            low, high = entry["data_offsets"]
            block = np.frombuffer(
                data[start + low : start + high], np.uint16 if entry["dtype"] == "BF16" else STORED[entry["dtype"]]
            )
            block = block.reshape(entry["shape"]).copy()
            self[name] = bf16(block) if entry["dtype"] == "BF16" else block

    def f64(self, name: str) -> np.ndarray:
        return widen(self[name])

    def transform(self) -> dict[str, float]:
        """gradus_logit_transform of the settings."""
        return {
            name: self.settings[name]
            for name in ("temperature", "scale", "softcap")
            if self.settings.get(name) is not None
        }

    def only(self, *names: str) -> None:
        """Refuses a file with tensors that the reader would ignore."""
        unknown = set(self) - set(names)
        assert not unknown, f"{self.path}: tensors {sorted(unknown)} are not understood"

    def settled(self, *names: str) -> None:
        unknown = set(self.settings) - set(names)
        assert not unknown, f"{self.path}: settings {sorted(unknown)} are not understood"


# ---- errors -------------------------------------------------------------------------------------


def ulps(got: np.ndarray, want: np.ndarray, scale: np.ndarray) -> float:
    """Largest distance in units in the last place of f32 at the size of `scale`."""
    size = np.maximum(np.abs(np.asarray(scale, np.float64)), np.finfo(np.float32).tiny).astype(np.float32)
    return float(np.max(np.abs(np.asarray(got, np.float64) - want) / np.spacing(size).astype(np.float64), initial=0.0))


def max_rel(got: np.ndarray, want: np.ndarray, floor: float) -> float:
    """Largest |got - want| / max(|want|, floor); both must be finite at the same places."""
    got, want = np.asarray(got, np.float64).ravel(), np.asarray(want, np.float64).ravel()
    assert got.shape == want.shape, f"{got.shape} against {want.shape}"
    finite = np.isfinite(want)
    assert (np.isfinite(got) == finite).all(), "not finite at other places"
    return float(np.max(np.abs(got - want)[finite] / np.maximum(np.abs(want[finite]), floor), initial=0.0))


def nans(shape: Any, dtype: Any = np.float64) -> np.ndarray:
    """An output that shows what was not written."""
    if dtype == "bf16":
        return bf16(np.full(shape, 0x7FC0, np.uint16))
    fill = np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    return np.full(shape, fill, dtype)
