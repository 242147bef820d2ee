"""gradus.torch.nf4_matmul: a product with a frozen 4-bit weight and a trained adapter."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradus import _error
from gradus._call import call
from gradus._nf4 import Lora, Nf4Weight
from gradus._torch_common import autocast, eager, none, operator, tensor, unit_rows, widest

__all__ = ["flat", "nf4_matmul", "weight"]


def weight(
    packed: Tensor,
    absmax: Tensor,
    quant_map: Tensor,
    nested_absmax: Optional[Tensor],
    nested_quant_map: Optional[Tensor],
    sizes: list[int],
    offset: float,
    dtype: str,
) -> Nf4Weight:
    """Of an operator's flat arguments; `sizes` are n, k, blocksize, nested_blocksize."""
    n, k, blocksize, nested_blocksize = sizes
    return Nf4Weight(
        packed, absmax, quant_map, n, k, blocksize, dtype, nested_absmax, nested_quant_map, nested_blocksize, offset
    )


def flat(w: Nf4Weight) -> tuple[Any, ...]:
    """The other way."""
    return (
        w.packed,
        w.absmax,
        w.quant_map,
        w.nested_absmax,
        w.nested_quant_map,
        [w.n, w.k, w.blocksize, w.nested_blocksize],
        w.offset,
        w.dtype,
    )


def adapters(a: Optional[Tensor], b: Optional[Tensor], scale: float) -> Optional[list[Lora]]:
    return None if a is None else [Lora(a, b, scale)]


@operator("nf4_matmul")
def _nf4_matmul(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    quant_map: Tensor,
    nested_absmax: Optional[Tensor],
    nested_quant_map: Optional[Tensor],
    sizes: list[int],
    offset: float,
    dtype: str,
    bias: Optional[Tensor],
    a: Optional[Tensor],
    b: Optional[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    w = weight(packed, absmax, quant_map, nested_absmax, nested_quant_map, sizes, offset, dtype)
    out = call("nf4_matmul", x=x, w=w, bias=bias, lora=adapters(a, b, scale), s=a is not None)
    return out.y, none(x) if out.s is None else out.s


@_nf4_matmul.register_fake
def _(x, packed, absmax, quant_map, nested_absmax, nested_quant_map, sizes, offset, dtype, bias, a, b, scale):
    s = none(x) if a is None else x.new_empty((x.shape[0], a.shape[0]), dtype=torch.float32)
    return x.new_empty((x.shape[0], sizes[0])), s


@operator("nf4_matmul_dx")
def _nf4_matmul_dx(
    dy: Tensor,
    packed: Tensor,
    absmax: Tensor,
    quant_map: Tensor,
    nested_absmax: Optional[Tensor],
    nested_quant_map: Optional[Tensor],
    sizes: list[int],
    offset: float,
    dtype: str,
    a: Optional[Tensor],
    b: Optional[Tensor],
    scale: float,
) -> Tensor:
    w = weight(packed, absmax, quant_map, nested_absmax, nested_quant_map, sizes, offset, dtype)
    return call("nf4_matmul_dx", dy=dy, w=w, lora=adapters(a, b, scale)).dx


@_nf4_matmul_dx.register_fake
def _(dy, packed, absmax, quant_map, nested_absmax, nested_quant_map, sizes, offset, dtype, a, b, scale):
    return dy.new_empty((dy.shape[0], sizes[1]))


@operator("lora_grad")
def _lora_grad(x: Tensor, dy: Tensor, s: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out = call("lora_grad", x=x, dy=dy, s=s, lora=Lora(a, b, scale))
    return out.da.to(a.dtype), out.db.to(b.dtype)


@_lora_grad.register_fake
def _(x, dy, s, a, b, scale):
    contiguous = torch.contiguous_format
    return torch.empty_like(a, memory_format=contiguous), torch.empty_like(b, memory_format=contiguous)


def _setup(ctx, inputs, output):
    x, *w, bias, a, b, ctx.scale = inputs
    *tensors, ctx.sizes, ctx.offset, ctx.dtype = w
    ctx.save_for_backward(x, output[1], a, b, *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, ds):
    x, s, a, b, *tensors = ctx.saved_tensors
    dy, needs = dy.contiguous(), ctx.needs_input_grad
    dx = da = db = None
    if needs[0]:
        dx = _nf4_matmul_dx(dy, *tensors, ctx.sizes, ctx.offset, ctx.dtype, a, b, ctx.scale)
    if needs[10] or needs[11]:
        da, db = _lora_grad(x, dy, s, a, b, ctx.scale)
    dbias = dy.sum(0) if needs[9] else None
    return dx, *[None] * 8, dbias, da if needs[10] else None, db if needs[11] else None, None


_nf4_matmul.register_autograd(_backward, setup_context=_setup)


class Product(torch.autograd.Function):
    """The operator without its dispatch, for eager calls: the same ops on the same operands."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Nf4Weight,
        bias: Optional[Tensor],
        a: Optional[Tensor],
        b: Optional[Tensor],
        scale: float,
    ) -> Tensor:
        kept = a is not None and any(ctx.needs_input_grad)
        out = call("nf4_matmul", x=x, w=w, bias=bias, lora=adapters(a, b, scale), s=kept)
        ctx.w, ctx.scale = w, scale
        ctx.save_for_backward(x, out.s, a, b)
        return out.y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Optional[Tensor], ...]:
        x, s, a, b = ctx.saved_tensors
        by_x, _, by_bias, by_a, by_b, _ = ctx.needs_input_grad
        dy, dx, da, db = dy.contiguous(), None, None, None
        if by_x:
            dx = call("nf4_matmul_dx", dy=dy, w=ctx.w, lora=adapters(a, b, ctx.scale)).dx
        if by_a or by_b:
            out = call("lora_grad", x=x, dy=dy, s=s, lora=Lora(a, b, ctx.scale))
            da, db = out.da.to(a.dtype) if by_a else None, out.db.to(b.dtype) if by_b else None
        return dx, None, dy.sum(0) if by_bias else None, da, db, None


def product(
    x: Tensor, w: Nf4Weight, bias: Optional[Tensor], a: Optional[Tensor], b: Optional[Tensor], scale: float
) -> Tensor:
    if eager(x, w.packed, bias, a, b):
        return Product.apply(x, w, bias, a, b, scale)
    return _nf4_matmul(x, *flat(w), bias, a, b, scale)[0]


def nf4_matmul(
    x: Tensor,
    w: Nf4Weight,
    *,
    bias: Optional[Tensor] = None,
    a: Optional[Tensor] = None,
    b: Optional[Tensor] = None,
    scale: float = 1.0,
) -> Tensor:
    """Y = X W^T + bias + scale (X A^T) B^T: x F [..., K], w a frozen [N, K], bias F [N], a F [r, K], b F [N, r].

    Differentiable by x, bias, a and b, whose gradients have their dtypes. The values are those of dequantizing W
    and multiplying, bit for bit. Under autocast all operands are cast as those of torch.nn.functional.linear;
    without, y has the dtype of x, and an adapter of a wider one (PEFT's f32 beside bf16) is multiplied in its own.
    """
    tensor("nf4_matmul", x=x)
    if not isinstance(w, Nf4Weight):
        raise TypeError(f"nf4_matmul: argument `w`: got {type(w).__name__}, expected a gradus.Nf4Weight")
    check_adapter(w, a, b)
    x, bias, a, b = autocast(x, bias, a, b)
    bias = None if bias is None else bias.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    wide = None if a is None else widest(x, a, b)
    if wide is None or wide == x.dtype:
        a, b = (None, None) if a is None else (unit_rows(a.to(x.dtype)), unit_rows(b.to(x.dtype)))
        y = product(rows, w, bias, a, b, scale)
    else:
        y = product(rows, w, bias, None, None, 1.0)
        low = torch.nn.functional.linear(rows.to(wide), a.to(wide))
        y = y + (torch.nn.functional.linear(low, b.to(wide)) * scale).to(y.dtype)
    return y.reshape(*x.shape[:-1], w.n)


def check_adapter(w: Nf4Weight, a: Optional[Tensor], b: Optional[Tensor]) -> None:
    """The library calls an adapter's halves `lora[0].a` and `.b`: these are the names that the caller knows."""
    if a is None and b is None:
        return
    if a is None or b is None:
        raise _error.invalid("nf4_matmul", "b" if b is None else "a", "none", "both `a` and `b`, or none of them")
    if a.dim() != 2 or a.shape[1] != w.k or not a.is_floating_point():
        raise _error.invalid("nf4_matmul", "a", described(a), f"floats [r, {w.k}]")
    if b.dim() != 2 or b.shape[0] != w.n or b.shape[1] != a.shape[0] or not b.is_floating_point():
        raise _error.invalid("nf4_matmul", "b", described(b), f"floats [{w.n}, {a.shape[0]}]")


def described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
