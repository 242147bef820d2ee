"""What the operators of gradus.torch share."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

__all__ = [
    "autocast",
    "eager",
    "integers",
    "marks",
    "none",
    "operator",
    "per_token",
    "tensor",
    "transform",
    "unit_rows",
    "widened",
    "widest",
]


def operator(name: str) -> Any:
    """Registers torch.ops.gradus.NAME. What it returns is new memory, and it writes none of its operands."""
    return torch.library.custom_op(f"gradus::{name}", mutates_args=())


PLAIN = (Tensor, torch.nn.Parameter, type(None))


def eager(*operands: Optional[Tensor]) -> bool:
    """Whether nobody looks at the operators of a call: no compiler, tracer, mode or transform, no subclass of
    Tensor. Then an op may be called without torch's dispatcher, which takes longer than a small product. Where
    torch does not say, the dispatcher is asked."""
    if torch.compiler.is_compiling() or any(type(x) not in PLAIN for x in operands) or torch.jit.is_tracing():
        return False
    modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
    level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", None)
    return modes is not None and modes() == 0 and level is not None and level() is None


def transform(temperature: float, scale: float, softcap: Optional[float]) -> dict[str, float]:
    """gradus_logit_transform of an operator's scalars, where None is no cap: schemas have no infinity."""
    return {"temperature": temperature, "scale": scale, "softcap": math.inf if softcap is None else softcap}


def per_token(rows: Tensor, count: int = 1) -> tuple[Tensor, ...]:
    """Fake outputs f32 [T]."""
    return tuple(rows.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(count))


def none(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An output that was not asked for: an operator returns the same number of tensors each time."""
    return like.new_empty(0, dtype=dtype)


def unit_rows(x: Tensor) -> Tensor:
    """With a contiguous last dimension, as the library asks."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


# ---- dtypes -------------------------------------------------------------------------------------


def autocast(*operands: Optional[Tensor]) -> list[Optional[Tensor]]:
    """What torch.nn.functional.linear makes of its operands: in the dtype of autocast where that is on for their
    device. f64 and integers stay. Gradients come back in the dtype that an operand had."""
    cast: list[Optional[Tensor]] = []
    for x in operands:
        if x is not None and x.is_floating_point() and x.dtype != torch.float64:
            device = x.device.type
            x = x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
        cast.append(x)
    return cast


def widest(*operands: Optional[Tensor]) -> torch.dtype:
    """The dtype that loses nothing of any floating operand."""
    dtypes = [x.dtype for x in operands if x is not None and x.is_floating_point()]
    found = dtypes[0] if dtypes else torch.float32
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


def widened(*operands: Optional[Tensor]) -> list[Optional[Tensor]]:
    """Floating operands in their widest dtype; others stay, for the library to refuse."""
    dtype = widest(*operands)
    return [x if x is None or not x.is_floating_point() else x.to(dtype) for x in operands]


def tensor(op: str, **operands: Any) -> None:
    """TypeError for an operand that is no tensor of torch."""
    for name, x in operands.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: argument `{name}`: got {type(x).__name__}, expected a torch.Tensor")


def integers(op: str, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers in the dtype that the library reads. Those that it cannot hold become its largest or smallest,
    which the library refuses as it would refuse them, and are never wrapped into its range."""
    tensor(op, **{name: x})
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{op}: argument `{name}`: got {x.dtype}, expected integers")
    if x.dtype == dtype:
        return x
    if torch.iinfo(x.dtype).max > torch.iinfo(dtype).max:
        x = x.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return x.to(dtype)


def marks(op: str, name: str, x: Tensor) -> Tensor:
    """u8: 1 where a mask is not 0."""
    if x.is_complex():
        raise TypeError(f"{op}: argument `{name}`: got {x.dtype}, expected a mask")
    return x if x.dtype == torch.uint8 else (x != 0).to(torch.uint8)
