"""gradus.torch.policy_loss and group_advantage."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from gradus import _error, _objective
from gradus._call import call, plain
from gradus._torch_common import integers, marks, none, operator, tensor, unit_rows

__all__ = ["STATS", "PolicyLoss", "group_advantage", "policy_loss", "settings_text"]

STATS = (
    "n_tokens",
    "n_sequences",
    "n_empty",
    "n_clip_lo",
    "n_clip_hi",
    "n_dual",
    "n_opsm",
    "n_nonfinite",
    "sum_ratio",
    "sum_ratio2",
    "min_ratio",
    "max_ratio",
    "max_abs_log_ratio",
    "sum_kl_k1",
    "sum_kl_k2",
    "sum_kl_k3",
    "sum_entropy",
)


@functools.lru_cache(maxsize=256)
def settings_of(text: str) -> Any:
    """The C struct of an operator's settings."""
    pairs = (item.partition("=") for item in text.split(";") if item)
    fields = {name: value_of(value) for name, _, value in pairs}
    return _objective.filled("policy_loss", "policy_settings", fields)


def value_of(text: str) -> Any:
    """A number, an enumerator's name, or a list of numbers."""
    if "," in text:
        return [value_of(part) for part in text.split(",") if part]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def settings_text(settings: Any) -> str:
    """Settings as an operator takes them, "lo=0.8;hi=1.28": a constant that torch.compile can hold. Dicts can be
    given inside a compiled function, structs such as gradus.policy_preset's only become text outside."""
    if isinstance(settings, str):
        return settings
    items = settings if isinstance(settings, dict) else plain(settings)
    if not isinstance(items, dict):
        raise TypeError(f"policy_loss: argument `settings`: got {settings!r}, expected a dict, struct or text")
    return ";".join([f"{name}={item_text(items[name])}" for name in items])


def item_text(value: Any) -> str:
    return "".join([f"{x}," for x in value]) if isinstance(value, (list, tuple)) else f"{value}"


@operator("policy_loss")
def _policy_loss(
    logp: Tensor,
    advantage: Tensor,
    cu_seqlens: Tensor,
    seq_weight: Tensor,
    old_logp: Optional[Tensor],
    sampler_logp: Optional[Tensor],
    ref_logp: Optional[Tensor],
    ref2_logp: Optional[Tensor],
    mask: Optional[Tensor],
    class_ids: Optional[Tensor],
    token_weight: Optional[Tensor],
    selected: Optional[Tensor],
    is_weight: Optional[Tensor],
    entropy: Optional[Tensor],
    settings: str,
    per_token: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    out = call(
        "policy_loss",
        logp=logp,
        advantage=advantage,
        cu_seqlens=cu_seqlens,
        seq_weight=seq_weight,
        old_logp=old_logp,
        sampler_logp=sampler_logp,
        ref_logp=ref_logp,
        ref2_logp=ref2_logp,
        mask=mask,
        class_ids=class_ids,
        token_weight=token_weight,
        selected=selected,
        is_weight=is_weight,
        entropy=entropy,
        settings=settings_of(settings),
        advantage_level=int(per_token),
        token_loss=True,
        dentropy=entropy is not None,
        stats=True,
    )
    s = out.stats
    row = [s[name] for name in STATS[:13]] + s["sum_kl"] + [s["sum_entropy"]]
    # The loss and the statistics are host results; they go where the loss is used.
    loss = torch.tensor(out.loss, dtype=logp.dtype, device=logp.device)
    stats = torch.tensor(row, dtype=torch.float64)
    return loss, out.dlogp, none(logp, logp.dtype) if entropy is None else out.dentropy, out.token_loss, stats


@_policy_loss.register_fake
def _(
    logp,
    advantage,
    cu_seqlens,
    seq_weight,
    old_logp,
    sampler_logp,
    ref_logp,
    ref2_logp,
    mask,
    class_ids,
    token_weight,
    selected,
    is_weight,
    entropy,
    settings,
    per_token,
):
    dentropy = none(logp, logp.dtype) if entropy is None else logp.new_empty(logp.shape)
    stats = torch.empty(len(STATS), dtype=torch.float64, device="cpu")
    return logp.new_empty(()), logp.new_empty(logp.shape), dentropy, logp.new_empty(logp.shape), stats


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output[1], output[2])
    ctx.has_entropy = inputs[13] is not None
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, dloss, *_):
    dlogp, dentropy = ctx.saved_tensors
    needs = ctx.needs_input_grad
    for i, name in enumerate(("logp", "advantage", "cu_seqlens", "seq_weight", "old_logp", "sampler_logp", "ref_logp")):
        if i and needs[i]:
            raise RuntimeError(f"policy_loss has gradients for `logp` and `entropy` only: detach() `{name}`")
    by_entropy = dloss * dentropy if ctx.has_entropy and needs[13] else None
    return dloss * dlogp, *[None] * 12, by_entropy, None, None


_policy_loss.register_autograd(_backward, setup_context=_setup)


class PolicyLoss(NamedTuple):
    """loss [], differentiable by logp and entropy; token_loss [...] without the sequence's weight; stats f64 of
    `STATS`, on the CPU."""

    loss: Tensor
    token_loss: Tensor
    stats: Tensor

    def figures(self) -> dict[str, float]:
        return dict(zip(STATS, self.stats.tolist()))


OPERANDS = (
    "old_logp",
    "sampler_logp",
    "ref_logp",
    "ref2_logp",
    "class_ids",
    "token_weight",
    "selected",
    "is_weight",
    "entropy",
)


def policy_loss(
    logp: Tensor,
    advantage: Tensor,
    *,
    seq_weight: Tensor,
    settings: Any = None,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    per_token: Optional[bool] = None,
    **operands: Optional[Tensor],
) -> PolicyLoss:
    """loss = sum_i seq_weight_i sum_t L_t with its gradient, in one pass.

    logp [B, T] of padded sequences with `mask` [B, T], or [T] of packed ones with `cu_seqlens` int [B + 1];
    advantage [B] or like logp; seq_weight [B], see gradus.seq_weights; settings a dict or struct of
    gradus_policy_settings, as gradus.policy_preset gives, or `settings_text` of one. `operands`: old_logp,
    sampler_logp, ref_logp, ref2_logp, token_weight, is_weight, entropy like logp; class_ids int, selected a mask.

    All is computed in f64 where logp is f64 and in f32 else, also of bf16 and f16; gradients have the dtypes of
    logp and entropy. `per_token` says which of both shapes the advantages have; without it they are taken as [B]
    where they may be either.
    """
    tensor("policy_loss", logp=logp, advantage=advantage, seq_weight=seq_weight)
    shape, dtype = logp.shape, torch.float64 if logp.dtype == torch.float64 else torch.float32
    if not logp.is_floating_point():
        raise TypeError(f"policy_loss: argument `logp`: got {logp.dtype}, expected floats")
    if cu_seqlens is None:
        if logp.dim() != 2:
            raise _error.invalid("policy_loss", "logp", f"rank {logp.dim()} without `cu_seqlens`", "[B, T]")
        cu_seqlens = torch.arange(shape[0] + 1, dtype=torch.int64, device=logp.device) * shape[1]
    if unknown := set(operands) - set(OPERANDS):
        raise TypeError(f"policy_loss() has no argument `{min(unknown)}`; it has {', '.join(OPERANDS)}")
    real = lambda name: spread(name, operands.get(name), shape, dtype)
    if per_token is None:
        per_token = advantage.dim() == logp.dim() and advantage.shape != seq_weight.shape
    out = _policy_loss(
        logp.reshape(-1).to(dtype),
        spread("advantage", advantage, shape, dtype) if per_token else advantage.to(dtype).contiguous(),
        integers("policy_loss", "cu_seqlens", cu_seqlens, torch.int64),
        seq_weight.to(dtype),
        real("old_logp"),
        real("sampler_logp"),
        real("ref_logp"),
        real("ref2_logp"),
        None if mask is None else spread("mask", marks("policy_loss", "mask", mask), shape, torch.uint8),
        classes_of(operands.get("class_ids"), shape),
        real("token_weight"),
        selected_of(operands.get("selected"), shape),
        real("is_weight"),
        real("entropy"),
        settings_text(settings or {}),
        per_token,
    )
    return PolicyLoss(out[0], out[3].reshape(shape), out[4])


def spread(name: str, x: Optional[Tensor], shape: torch.Size, dtype: torch.dtype) -> Optional[Tensor]:
    """An operand of every token, flat."""
    if x is None:
        return None
    if x.dim() > len(shape) or any(n not in (1, want) for n, want in zip(reversed(x.shape), reversed(shape))):
        raise _error.invalid("policy_loss", name, list(x.shape), f"{list(shape)}, as `logp`")
    return x.to(dtype).expand(shape).reshape(-1)


def classes_of(x: Optional[Tensor], shape: torch.Size) -> Optional[Tensor]:
    """u8; what u8 cannot hold becomes 255, which the library refuses."""
    if x is None or x.dtype == torch.uint8:
        return spread("class_ids", x, shape, torch.uint8)
    wide = integers("policy_loss", "class_ids", x, torch.int64)
    return spread("class_ids", torch.where((wide < 0) | (wide > 255), 255, wide), shape, torch.uint8)


def selected_of(x: Optional[Tensor], shape: torch.Size) -> Optional[Tensor]:
    return None if x is None else spread("selected", marks("policy_loss", "selected", x), shape, torch.uint8)


# ---- group_advantage ----------------------------------------------------------------------------


@operator("group_advantage")
def _group_advantage(
    reward: Tensor,
    offsets: Tensor,
    length: Optional[Tensor],
    baseline: str,
    scale: str,
    ddof: int,
    eps: float,
    eps_form: str,
    on_single: str,
) -> Tensor:
    return call(
        "group_advantage",
        reward=reward,
        offsets=offsets,
        length=length,
        baseline=baseline,
        scale=scale,
        ddof=ddof,
        eps=eps,
        eps_form=eps_form,
        on_single=on_single,
    ).advantage


@_group_advantage.register_fake
def _(reward, offsets, length, baseline, scale, ddof, eps, eps_form, on_single):
    return torch.empty_like(reward, memory_format=torch.contiguous_format)


def group_advantage(
    reward: Tensor,
    offsets: Optional[Tensor] = None,
    *,
    group: Optional[int] = None,
    length: Optional[Tensor] = None,
    baseline: str = "mean",
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
    eps_form: str = "add_to_std",
    on_single: str = "zero",
) -> Tensor:
    """(R - baseline) / scale, without gradient, in the shape of the rewards.

    reward [B], groups one after another: by `offsets` int [G + 1], or `group` rewards each; or reward
    [G, samples], one group per row. Computed in f64 of f64 and integers and in f32 of other floats; advantages of
    integers have torch's default dtype, those of bf16 and f16 are f32. NaN rewards abstain: advantage 0. `length`
    int, like the rewards. The names are the enumerators of gradus.h.
    """
    tensor("group_advantage", reward=reward)
    rewards, kind = rewards_of(reward.detach())
    offsets = offsets_of(reward, offsets, group)
    if length is not None:
        tensor("group_advantage", length=length)
        if length.shape != reward.shape:
            raise _error.invalid("group_advantage", "length", list(length.shape), f"{list(reward.shape)}, as `reward`")
        length = integers("group_advantage", "length", length, torch.int64).reshape(-1)
    out = _group_advantage(rewards, offsets, length, baseline, scale, ddof, eps, eps_form, on_single)
    return out.to(kind).reshape(reward.shape)


def rewards_of(reward: Tensor) -> tuple[Tensor, torch.dtype]:
    """The rewards, flat, in a dtype that holds each of them, and the dtype of their advantages."""
    if reward.is_complex():
        raise TypeError(f"group_advantage: argument `reward`: got {reward.dtype}, expected real numbers")
    flat = unit_rows(reward.reshape(-1))
    if not reward.is_floating_point():
        return flat.to(torch.float64), torch.get_default_dtype()
    kind = torch.float64 if reward.dtype == torch.float64 else torch.float32
    return flat.to(kind), kind


def offsets_of(reward: Tensor, offsets: Optional[Tensor], group: Optional[int]) -> Tensor:
    """Where groups begin and end, by whichever way the caller says it."""
    refuse = lambda name, got, expected: _error.invalid("group_advantage", name, got, expected)
    if reward.dim() not in (1, 2):
        raise refuse("reward", f"rank {reward.dim()}", "[B] or [groups, samples]")
    if offsets is not None:
        if group is not None:
            raise refuse("group", f"{group} beside `offsets`", "one of both")
        if reward.dim() == 2:
            raise refuse("reward", f"{list(reward.shape)} beside `offsets`", "[B]")
        return integers("group_advantage", "offsets", offsets, torch.int64)
    if reward.dim() == 2:
        if group not in (None, reward.shape[1]):
            raise refuse("group", f"{group} beside rewards {list(reward.shape)}", f"{reward.shape[1]} or none")
        group = reward.shape[1]
    if group is None:
        raise refuse("group", "none", "`group`, `offsets`, or rewards [groups, samples]")
    if group < 1 or reward.numel() % group:
        raise refuse("group", f"{group} beside {reward.numel()} rewards", "a number that divides theirs")
    return torch.arange(0, reward.numel() + 1, group, dtype=torch.int64, device=reward.device)
