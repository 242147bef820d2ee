"""4-bit weights in the layout of bitsandbytes, and adapters."""

from __future__ import annotations

import ctypes
import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradus import _call, _error, _sys, _tensor
from gradus._library import LIBRARY, done

__all__ = ["Lora", "Nf4Weight", "code_book", "dynamic_map", "parse_state", "quantize_4bit"]

TYPES = {"nf4": _sys.NF4, "fp4": _sys.FP4}


def code_book(quant_type: str = "nf4") -> np.ndarray:
    """The 16 f32 values of "nf4" or "fp4"."""
    values = np.empty(16, np.float32)
    kind = TYPES.get(quant_type)
    if kind is None:
        raise _error.invalid("code_book", "quant_type", repr(quant_type), '"nf4" or "fp4"')
    done(LIBRARY.gradus_nf4_code(kind, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))))
    return values


def dynamic_map(signed: bool = True) -> np.ndarray:
    """The 256 f32 values of bitsandbytes' dynamic map."""
    values = np.empty(256, np.float32)
    done(LIBRARY.gradus_dynamic_map(int(signed), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))))
    return values


@dataclasses.dataclass
class Nf4Weight:
    """A 4-bit matrix [n, k]. Fields are those of gradus_nf4:

    packed u8 [ceil(n k / 2)] (any shape of that many elements), absmax f32 [blocks] or u8 [blocks] with double
    quantization, quant_map f32 [16], nested_absmax f32 [ceil(blocks / nested_blocksize)], nested_quant_map f32
    [256]. `dtype` is what was quantized and what weights are rounded to: "float32", "bfloat16" or "float16".
    """

    packed: Any
    absmax: Any
    quant_map: Any
    n: int
    k: int
    blocksize: int = 64
    dtype: str = "float32"
    nested_absmax: Any = None
    nested_quant_map: Any = None
    nested_blocksize: int = 256
    offset: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Without the C struct that calls keep here, whose addresses are this object's own."""
        return {name: value for name, value in vars(self).items() if name != "_struct"}

    def token(self) -> tuple[Any, ...] | None:
        """All that the C struct is made of, to know it again; None where the arrays are not torch's."""
        arrays = (self.packed, self.absmax, self.quant_map, self.nested_absmax, self.nested_quant_map)
        found: list[Any] = [self.n, self.k, self.blocksize, self.nested_blocksize, self.offset, self.dtype]
        for x in arrays:
            if x is None:
                found.append(None)
            elif _tensor.torch_of(x) is None:
                return None
            else:
                found += (id(x), x.data_ptr(), x.dtype, x.shape, x.stride())
        return tuple(found)

    def struct_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of the C struct: arrays and numbers."""
        # bitsandbytes stores packed codes as a column.
        packed = self.packed.reshape(-1) if hasattr(self.packed, "reshape") else self.packed
        arrays = {
            "packed": packed,
            "absmax": self.absmax,
            "quant_map": self.quant_map,
            "nested_absmax": self.nested_absmax,
            "nested_quant_map": self.nested_quant_map,
        }
        numbers = {
            "n": self.n,
            "k": self.k,
            "blocksize": self.blocksize,
            "nested_blocksize": self.nested_blocksize,
            "offset": self.offset,
            "dtype": _tensor.DTYPES.get(self.dtype, self.dtype),
        }
        return arrays, numbers

    @classmethod
    def quantize(
        cls, x: Any, quant_type: str = "nf4", blocksize: int = 64, double_quant: bool = False, device: Any = None
    ) -> Nf4Weight:
        """Codes and maxima of f32, bf16 or f16 [N, K], with the bits of bitsandbytes."""
        codes = _call.call("nf4_quantize", device, x=x, quant_type=quant_type, blocksize=blocksize)
        like = lambda values: to_kind(values, codes.packed)
        n, k = x.bits.shape if isinstance(x, _tensor.Bf16) else x.shape
        dtype = _tensor.NAMES[_tensor.view(x, "x").packed[1]]
        weight = cls(codes.packed, codes.absmax, like(code_book(quant_type)), n, k, blocksize, dtype)
        if double_quant:
            table = like(dynamic_map())
            nested = _call.call("nf4_quantize_absmax", device, absmax=codes.absmax, nested_quant_map=table)
            weight.absmax, weight.nested_absmax = nested.codes, nested.nested_absmax
            weight.nested_quant_map, weight.offset = table, nested.offset
        return weight

    @classmethod
    def from_quant_state(cls, packed: Any, state: Any) -> Nf4Weight:
        """Of a bitsandbytes `Params4bit.data` and its `QuantState`."""
        nested = state.state2 if state.nested else None
        dtype = str(state.dtype).removeprefix("torch.")
        n, k = state.shape
        weight = cls(packed, state.absmax, state.code, n, k, state.blocksize, dtype)
        if nested is not None:
            weight.nested_absmax, weight.nested_quant_map = nested.absmax, nested.code
            weight.nested_blocksize, weight.offset = nested.blocksize, float(state.offset)
        return weight

    @classmethod
    def from_checkpoint(cls, tensors: Mapping[str, Any], name: str) -> Nf4Weight:
        """Of the entries `<name>`, `<name>.absmax`, ..., `<name>.quant_state.bitsandbytes__nf4` of a checkpoint.

        KeyError for an entry that is missing, FormatError for a state that is not understood.
        """
        key = next(
            (
                f"{name}.quant_state.bitsandbytes__{kind}"
                for kind in TYPES
                if f"{name}.quant_state.bitsandbytes__{kind}" in tensors
            ),
            None,
        )
        if key is None:
            raise KeyError(f"{name}.quant_state.bitsandbytes__nf4")
        state = parse_state(np.asarray(tensors[key], np.uint8).tobytes())
        get = lambda part: tensors[f"{name}.{part}"]
        weight = cls(
            tensors[name],
            get("absmax"),
            get("quant_map"),
            state.n,
            state.k,
            state.blocksize,
            _tensor.NAMES[state.dtype],
            nested_blocksize=state.nested_blocksize,
            offset=state.offset,
        )
        if f"{name}.nested_absmax" in tensors:
            weight.nested_absmax, weight.nested_quant_map = get("nested_absmax"), get("nested_quant_map")
        return weight

    def dequantize(self, dtype: str | None = None, y: Any = None, device: Any = None) -> Any:
        """[n, k] of `dtype`, by default the weight's own."""
        if y is None:
            like = _tensor.view(self.packed, "packed").like
            y = _tensor.make(
                like, _tensor.code_of("nf4_dequantize", dtype or self.dtype), (self.size("n"), self.size("k")), False
            )
        return _call.call("nf4_dequantize", device, w=self, y=y).y

    def size(self, name: str) -> int:
        """n or k, which have to be whole numbers."""
        try:
            return operator.index(getattr(self, name))
        except TypeError:
            raise _error.invalid("Nf4Weight", name, repr(getattr(self, name)), "a whole number") from None

    def matmul(self, x: Any, device: Any = None, **fields: Any) -> Any:
        """Y = X W^T of F [M, k]; `fields` are those of nf4_matmul (bias, lora, residual, ...)."""
        return _call.call("nf4_matmul", device, x=x, w=self, **fields).y


def to_kind(values: np.ndarray, like: Any) -> Any:
    """A numpy table as an array of the kind of `like`."""
    if (torch := _tensor.torch_of(like)) is not None:
        return torch.from_numpy(values).to(like.device)
    return like.device.array(values) if hasattr(like, "gradus_tensor") else values


def parse_state(state: bytes) -> _sys.nf4:
    """The sizes and the dtype in bitsandbytes' JSON."""
    parsed = _sys.nf4()
    block = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    done(LIBRARY.gradus_nf4_parse(block, len(state), ctypes.byref(parsed)))
    return parsed


def quantize_4bit(
    x: Any, quant_type: str = "nf4", blocksize: int = 64, double_quant: bool = False, device: Any = None
) -> Nf4Weight:
    """`Nf4Weight.quantize`."""
    return Nf4Weight.quantize(x, quant_type, blocksize, double_quant, device)


@dataclasses.dataclass
class Lora:
    """An adapter: scale (X A^T) B^T is added to a product. a F [r, K], b F [N, r]; scale is usually alpha / r."""

    a: Any
    b: Any
    scale: float = 1.0

    def struct_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of the C struct: arrays and numbers."""
        return {"a": self.a, "b": self.b}, {"scale": self.scale}
