"""gradus: kernels for reinforcement fine-tuning of quantized language models.

    import numpy, gradus
    logits = numpy.random.randn(4, 32000).astype("float32")
    targets = numpy.array([1, 2, 3, 4], "int32")
    logp = gradus.logprob(logits, targets).logp
    out = gradus.logprob(logits, targets, lse=True, entropy=True, transform={"temperature": 0.7})

Every op of gradus.h is a function of this module, with the header's names; `help(gradus.logprob)` gives
shapes and dtypes. Arrays are numpy's, torch's (CPU or CUDA) or anyone's with DLPack, and are not copied.
Outputs that are not given are made like the inputs and returned in a named tuple; optional ones are made
when asked for by `name=True`. Constants have the header's names without GRADUS_, and may be given as
strings. The device is that of the arrays unless `device=` says another.

`gradus.torch` has the differentiable ops, `gradus.trl` and `gradus.verl` their use in those trainers.
"""

from __future__ import annotations

from gradus import _sys
from gradus._call import call, workspace_size
from gradus._device import Device, DeviceArray
from gradus._error import (
    BadHandle,
    ConfigError,
    DeviceLost,
    DriverError,
    Error,
    FormatError,
    InvalidArgument,
    IoFailure,
    NoDriver,
    NonFinite,
    OutOfMemory,
    Panic,
    Unsupported,
)
from gradus._functions import FUNCTIONS
from gradus._library import LIBRARY as _LIBRARY
from gradus._nf4 import Lora, Nf4Weight, code_book, dynamic_map, quantize_4bit
from gradus._objective import Preset, policy_preset, seq_weights, struct
from gradus._tensor import Bf16
from gradus._threads import set_threads

__version__ = ".".join(map(str, _sys.VERSION))
CONSTANTS = {name: value for name, value in vars(_sys).items() if name.isupper() and isinstance(value, int)}

globals().update(CONSTANTS)
globals().update(FUNCTIONS)


def build_info() -> str:
    """One line: version, features, kernel sets, compilers of the kernels."""
    return _LIBRARY.gradus_build_info().decode()


__all__ = [
    "BadHandle",
    "Bf16",
    "ConfigError",
    "Device",
    "DeviceArray",
    "DeviceLost",
    "DriverError",
    "Error",
    "FormatError",
    "InvalidArgument",
    "IoFailure",
    "Lora",
    "Nf4Weight",
    "NoDriver",
    "NonFinite",
    "OutOfMemory",
    "Panic",
    "Preset",
    "Unsupported",
    "build_info",
    "call",
    "code_book",
    "dynamic_map",
    "policy_preset",
    "quantize_4bit",
    "seq_weights",
    "set_threads",
    "struct",
    "workspace_size",
    *FUNCTIONS,
    *CONSTANTS,
]


def __dir__() -> list[str]:
    """The names of this module, without those that it imports."""
    return sorted([*__all__, "__doc__", "__file__", "__path__", "__version__"])
