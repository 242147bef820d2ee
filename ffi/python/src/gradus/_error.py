"""Failures of the library as exceptions."""

from __future__ import annotations

from typing import SupportsFloat

from gradus import _sys

__all__ = [
    "CLASSES",
    "BadHandle",
    "ConfigError",
    "DeviceLost",
    "DriverError",
    "Error",
    "FormatError",
    "InvalidArgument",
    "IoFailure",
    "NoDriver",
    "NonFinite",
    "OutOfMemory",
    "Panic",
    "Unsupported",
    "invalid",
    "number",
    "of",
    "text",
]


class Error(Exception):
    """A call of the library failed.

    `status` is the number of gradus.h, `name` its name without the prefix, `message` the library's
    text: which argument, what it got, what was expected.
    """

    status: int = -1
    name: str = "unknown status"

    def __init__(self, message: str, status: int | None = None, name: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status
        if name is not None:
            self.name = name

    def __str__(self) -> str:
        return self.message


class InvalidArgument(Error, ValueError):
    """An argument is outside its contract; nothing was computed."""


class NonFinite(Error, ArithmeticError):
    """A value that must be finite is NaN or infinite."""


class OutOfMemory(Error, MemoryError):
    """Memory, of the device or the host."""


class NoDriver(Error, RuntimeError):
    """No usable GPU driver, or no such device."""


class DeviceLost(Error, RuntimeError):
    """The device failed in a way that ends its CUDA context."""


class IoFailure(Error, OSError):
    """Reading or writing failed."""


class FormatError(Error, ValueError):
    """Data that was read does not hold what it should."""


class ConfigError(Error, ValueError):
    """No such preset."""


class DriverError(Error, RuntimeError):
    """A driver call failed; the device can go on."""


class Unsupported(Error, NotImplementedError):
    """The op cannot run there."""


class BadHandle(Error, RuntimeError):
    """The device was closed."""


class Panic(Error, RuntimeError):
    """A bug in gradus; the text says where. The process is unharmed."""


CLASSES = {
    "INVALID_ARGUMENT": InvalidArgument,
    "NON_FINITE": NonFinite,
    "OUT_OF_MEMORY": OutOfMemory,
    "NO_DRIVER": NoDriver,
    "DEVICE_LOST": DeviceLost,
    "IO": IoFailure,
    "FORMAT": FormatError,
    "CONFIG": ConfigError,
    "DRIVER": DriverError,
    "UNSUPPORTED": Unsupported,
    "BAD_HANDLE": BadHandle,
    "PANIC": Panic,
}
for _name, _class in CLASSES.items():
    _class.status, _class.name = getattr(_sys, _name), _name


def of(status: int, message: str) -> Error:
    """The exception of a status."""
    for cls in CLASSES.values():
        if cls.status == status:
            return cls(message)
    return Error(message, status)


def text(op: str, argument: str, value: object) -> bytes:
    """A text as the library takes it."""
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(f"{op}: argument `{argument}`: got {value!r}, expected a text")
    return value.encode()


def number(op: str, argument: str, value: object) -> float:
    """A number that C is given as a double."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{op}: argument `{argument}`: got {value!r}, expected a number")
    return float(value)


def invalid(op: str, argument: str, got: object, expected: str) -> InvalidArgument:
    """What the library would say of an argument that Python has to refuse before the call."""
    return InvalidArgument(f"{op}: argument `{argument}`: got {got}, expected {expected}")
