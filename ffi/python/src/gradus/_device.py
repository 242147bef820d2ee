"""Devices: contexts of the library, and memory on them."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from typing import Any

import numpy as np

from gradus import _error, _sys, _tensor
from gradus._library import LIBRARY, Fork, done

__all__ = ["Device", "DeviceArray", "named", "shared"]


class Device:
    """A device with its loaded kernels: "cpu", "cuda" (the first), "cuda:N", "auto" (the first CUDA device
    that can run the kernels, else the CPU), or in libraries built for tests "emu:sm80" and "emu:sm90a".

    Close it with `close()` or `with`; one that is forgotten is closed when it is collected. Every method may be
    called from any thread. Raises NoDriver, InvalidArgument, Unsupported.
    """

    def __init__(self, name: str = "auto") -> None:
        Fork.check()
        context = ctypes.c_uint64()
        done(LIBRARY.gradus_create(_error.text("Device", "name", name), ctypes.byref(context)))
        self.key = name
        self.context = context.value
        Fork.used = True
        # gradus_destroy of a number takes no reference to self, so that it can be collected.
        self._release = weakref.finalize(self, LIBRARY.gradus_destroy, context.value)

    @property
    def name(self) -> str:
        """Product name."""
        text = ctypes.create_string_buffer(256)
        done(LIBRARY.gradus_device_name(self.context, text, len(text)))
        return text.value.decode()

    def close(self) -> None:
        """Waits for the device's work and releases it. Later calls on it raise BadHandle."""
        self._release()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"gradus.Device({self.key!r})"

    def synchronize(self, stream: int | None = None) -> None:
        """Waits until all work of the stream is done."""
        done(LIBRARY.gradus_synchronize(self.context, stream))

    def reserve(self, size: int, stream: int | None = None) -> None:
        """Makes `size` bytes ready on a stream, so that no op that takes at most as many allocates there."""
        done(LIBRARY.gradus_reserve(self.context, stream, size))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Zeros in the device's memory."""
        size = _tensor.SIZES[_tensor.code_of("Device.zeros", dtype)]
        return self.array(np.zeros(math.prod(shape) * size, np.uint8), shape, dtype)

    def array(self, values: Any, shape: tuple[int, ...] | None = None, dtype: str | None = None) -> DeviceArray:
        """A copy of a numpy array (or of `Bf16`) in the device's memory."""
        host = values.bits if isinstance(values, _tensor.Bf16) else values
        named = dtype or ("bfloat16" if isinstance(values, _tensor.Bf16) else host.dtype.name)
        return DeviceArray(self, np.ascontiguousarray(host), shape or host.shape, named)


class DeviceArray:
    """Contiguous memory of a device, for programs that have no torch. Made by `Device.array`."""

    def __init__(self, device: Device, host: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
        self.device, self.shape, self.dtype, self.nbytes = device, tuple(shape), dtype, host.nbytes
        memory = ctypes.c_void_p()
        done(LIBRARY.gradus_alloc(device.context, max(self.nbytes, 1), ctypes.byref(memory)))
        self.pointer = memory.value
        self._release = weakref.finalize(self, LIBRARY.gradus_free, device.context, self.pointer)
        # The library must not read `host` after this returns, so the copy is waited for.
        done(LIBRARY.gradus_upload(device.context, None, self.pointer, host.ctypes.data, self.nbytes))
        device.synchronize()

    def gradus_tensor(self) -> tuple[int, ...]:
        """The values of its C struct."""
        memory = _sys.HOST if self.device.key == "cpu" else _sys.DEVICE
        code, strides = _tensor.DTYPES[self.dtype], _tensor.contiguous(self.shape)
        return _tensor.pack(self.pointer, code, self.shape, strides, memory)

    def numpy(self) -> Any:
        """A copy in host memory; `Bf16` for bfloat16."""
        bits = self.dtype == "bfloat16"
        host = np.empty(self.shape, np.uint16 if bits else self.dtype)
        done(LIBRARY.gradus_download(self.device.context, None, host.ctypes.data, self.pointer, self.nbytes))
        return _tensor.Bf16(host) if bits else host


def named(op: str, device: object) -> Device:
    """A device, or the process's one of that name."""
    if isinstance(device, Device):
        return device
    if isinstance(device, str):
        return shared(device)
    raise TypeError(f"{op}: argument `device`: got {device!r}, expected a gradus.Device or its name")


_shared: dict[str, Device] = {}
_lock = threading.Lock()


def shared(key: str) -> Device:
    """The process's device of that name, made when it is first asked for."""
    if (known := _shared.get(key)) is not None:
        return known
    with _lock:
        if key not in _shared:
            _shared[key] = Device(key)
        return _shared[key]
