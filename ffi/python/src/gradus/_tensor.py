"""Other libraries' arrays as the library's tensors, without a copy.

An array is anything of: numpy arrays, torch tensors (CPU or CUDA), `Bf16`, `DeviceArray`, objects with
`__dlpack__` (JAX, CuPy), objects with `__array_interface__`.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from typing import Any, NamedTuple

import numpy as np

from gradus import _error, _sys

__all__ = ["DTYPES", "NAMES", "PACKED", "SHORT", "SIZES", "Array", "Bf16", "make", "torch_of", "view"]

# gradus_tensor: data, dtype, memory, rank, reserved, shape, strides.
PACKED = struct.Struct("P4i8q")
DTYPES = {
    "uint8": _sys.U8,
    "int32": _sys.I32,
    "int64": _sys.I64,
    "float16": _sys.F16,
    "bfloat16": _sys.BF16,
    "float32": _sys.F32,
    "float64": _sys.F64,
}
# bool has the bytes of u8, where the library reads masks.
READ_AS = {**DTYPES, "bool": _sys.U8}
NAMES = {code: name for name, code in DTYPES.items()}
SIZES = {_sys.U8: 1, _sys.I32: 4, _sys.I64: 8, _sys.F16: 2, _sys.BF16: 2, _sys.F32: 4, _sys.F64: 8}
SHORT = {
    "u8": _sys.U8,
    "i32": _sys.I32,
    "i64": _sys.I64,
    "f16": _sys.F16,
    "bf16": _sys.BF16,
    "f32": _sys.F32,
    "f64": _sys.F64,
}


class Bf16(NamedTuple):
    """A numpy array of uint16 whose bits are bfloat16: for machines without ml_dtypes."""

    bits: np.ndarray

    @staticmethod
    def of(values: np.ndarray) -> Bf16:
        """Rounds float32 to nearest, ties to even. NaN stays NaN."""
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return Bf16(np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16))

    def float(self) -> np.ndarray:
        """As float32, exactly."""
        return (self.bits.astype(np.uint32) << 16).view(np.float32)


class Array(NamedTuple):
    """Where an array lies: the values of its gradus_tensor in the order of `PACKED`. `device` is "cpu" or "cuda:N"
    as the array says it, None if any will do; `owner` is kept until the call is done."""

    packed: tuple[int, ...]
    shape: tuple[int, ...]
    device: str | None
    owner: Any
    like: Any  # what outputs are made like
    is_torch: bool = False


def pack(data: int, dtype: int, shape: tuple[int, ...], strides: tuple[int, ...], memory: int) -> tuple[int, ...]:
    """Values of the C struct; more than 4 dimensions are a TypeError, since the struct has no room for them."""
    rank = len(shape)
    if rank == 2:
        return (data, dtype, memory, 2, 0, *shape, 0, 0, *strides, 0, 0)
    if rank > 4:
        raise TypeError(f"got {rank} dimensions, expected at most 4")
    # A scalar of rank 0 is a vector of one.
    shape, strides, rank = (shape, strides, rank) if rank else ((1,), (1,), 1)
    rest = (0,) * (4 - rank)
    return (data, dtype, memory, rank, 0, *shape, *rest, *strides, *rest)


# By type: the module torch for those of its tensors, None for others. isinstance is slow for torch's.
KINDS: dict[type, Any] = {}


def torch_of(value: Any) -> Any | None:
    """The module torch if `value` is one of its tensors."""
    kind = type(value)
    if kind not in KINDS:
        torch = sys.modules.get("torch")
        KINDS[kind] = torch if torch is not None and isinstance(value, torch.Tensor) else None
    return KINDS[kind]


def view(value: Any, name: str, written: bool = False) -> Array:
    """The array `value` of argument `name`. TypeError for what is no array of a known dtype,
    ValueError for a read-only array that would be written."""
    if (torch := torch_of(value)) is not None:
        return view_torch(torch, value, name)
    if isinstance(value, Bf16):
        return view_numpy(value.bits, "bfloat16", name, written, value)
    if isinstance(value, np.ndarray):
        return view_numpy(value, value.dtype.name, name, written, value)
    if hasattr(value, "gradus_tensor"):
        return Array(value.gradus_tensor(), value.shape, value.device.key, value, value)
    if hasattr(value, "__dlpack__"):
        return view_dlpack(value, name)
    if hasattr(value, "__array_interface__"):
        array = np.asarray(value)
        return view_numpy(array, array.dtype.name, name, written, array)
    raise TypeError(f"`{name}`: got {type(value).__name__}, expected an array (numpy, torch, DLPack, ...)")


def dtype_code(name: str, dtype: str) -> int:
    code = READ_AS.get(dtype)
    if code is None:
        raise TypeError(f"`{name}`: got dtype {dtype}, expected one of {', '.join(READ_AS)}")
    return code


def code_of(op: str, dtype: str) -> int:
    """The number of a dtype that a caller names."""
    code = DTYPES.get(dtype)
    if code is None:
        raise _error.invalid(op, "dtype", repr(dtype), f"one of {', '.join(DTYPES)}")
    return code


def view_numpy(array: np.ndarray, dtype: str, name: str, written: bool, like: Any) -> Array:
    code = dtype_code(name, dtype)
    if written and not array.flags.writeable:
        raise ValueError(f"`{name}`: got a read-only array, expected one that can be written")
    size = array.itemsize
    if any(stride % size for stride in array.strides):
        raise ValueError(f"`{name}`: got strides of {array.strides} bytes, expected multiples of {size}")
    if not array.dtype.isnative:
        raise TypeError(f"`{name}`: got byte order {array.dtype.byteorder}, expected the machine's")
    strides = tuple(stride // size for stride in array.strides)
    packed = pack_named(name, array.ctypes.data, code, array.shape, strides, _sys.HOST)
    return Array(packed, array.shape or (1,), "cpu", array, like)


def pack_named(name: str, *values: Any) -> tuple[int, ...]:
    try:
        return pack(*values)
    except TypeError as error:
        raise TypeError(f"`{name}`: {error}") from None


# By torch.dtype: filled as dtypes are met, as their names are slow to form.
TORCH_CODES: dict[Any, int] = {}


def view_torch(torch: Any, value: Any, name: str) -> Array:
    if value.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"`{name}`: got a tensor that requires grad, which this function would not pass on: use "
            "gradus.torch, or detach()"
        )
    if value.layout is not torch.strided or value.is_conj() or value.is_neg():
        raise TypeError(f"`{name}`: got a {value.layout} tensor or a lazy view, expected plain memory")
    code = TORCH_CODES.get(value.dtype)
    if code is None:
        code = TORCH_CODES[value.dtype] = dtype_code(name, str(value.dtype).removeprefix("torch."))
    shape = tuple(value.shape)
    if value.is_cpu:
        memory, device = _sys.HOST, "cpu"
    elif value.is_cuda:
        memory, device = _sys.DEVICE, f"cuda:{value.device.index}"
    else:
        raise TypeError(f"`{name}`: got a tensor on {value.device}, expected cpu or cuda")
    packed = pack_named(name, value.data_ptr(), code, shape, value.stride(), memory)
    return Array(packed, shape or (1,), device, value, value, True)


# ---- DLPack -------------------------------------------------------------------------------------


class DlTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DL_CPU, DL_CUDA, DL_CUDA_HOST, DL_CUDA_MANAGED = 1, 2, 3, 13
DL_CODES = {
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
}


def view_dlpack(value: Any, name: str) -> Array:
    """The tensor is only looked at: the capsule keeps its name, so that it still frees what it holds."""
    kind, index = value.__dlpack_device__()
    # Producers order their work before stream 1, the legacy default stream; on the CPU there is none.
    capsule = value.__dlpack__(stream=1) if kind in (DL_CUDA, DL_CUDA_MANAGED) else value.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    dl = DlTensor.from_address(get(capsule, b"dltensor"))
    dtype = DL_CODES.get((dl.code, dl.bits), f"code {dl.code} of {dl.bits} bits")
    code = dtype_code(name, dtype if dl.lanes == 1 else f"{dtype} x {dl.lanes}")
    shape = tuple(dl.shape[: dl.ndim])
    strides = tuple(dl.strides[: dl.ndim]) if dl.strides else contiguous(shape)
    if kind not in (DL_CPU, DL_CUDA_HOST, DL_CUDA, DL_CUDA_MANAGED):
        raise TypeError(f"`{name}`: got DLPack device type {kind}, expected CPU or CUDA")
    on_gpu = kind in (DL_CUDA, DL_CUDA_MANAGED)
    memory = _sys.DEVICE if on_gpu else _sys.HOST
    packed = pack_named(name, (dl.data or 0) + dl.byte_offset, code, shape, strides, memory)
    return Array(packed, shape or (1,), f"cuda:{index}" if on_gpu else "cpu", (value, capsule), value)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of rows one after another."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# ---- outputs ------------------------------------------------------------------------------------


def make(like: Any, dtype: int, shape: tuple[int, ...], zeros: bool) -> Any:
    """A new array of the kind of `like`: torch for torch, on its device; numpy for host memory of others."""
    if (torch := torch_of(like)) is not None:
        if like.is_cpu and not zeros:
            return torch.empty(shape, dtype=getattr(torch, NAMES[dtype]))
        build = torch.zeros if zeros else torch.empty
        return build(shape, dtype=getattr(torch, NAMES[dtype]), device=like.device)
    if hasattr(like, "gradus_tensor"):
        return like.device.zeros(shape, NAMES[dtype])
    build = np.zeros if zeros else np.empty
    if dtype != _sys.BF16:
        return build(shape, NAMES[dtype])
    if isinstance(like, np.ndarray) and (named := ml_bfloat16()) is not None:
        return build(shape, named)
    return Bf16(build(shape, np.uint16))


def ml_bfloat16() -> Any | None:
    """numpy's bfloat16, if some library registered it."""
    module = sys.modules.get("ml_dtypes")
    return getattr(module, "bfloat16", None)
