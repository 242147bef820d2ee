"""What the operators of gradus.torch share."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor


def operator(name: str) -> Any:
    """Registers torch.ops.gradus.NAME. What it returns is new memory, and it writes none of its operands."""
    return torch.library.custom_op(f"gradus::{name}", mutates_args=())


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
