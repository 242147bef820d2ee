"""gradus.torch.policy_loss and group_advantage."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from gradus import _objective
from gradus._call import call, plain
from gradus._torch_common import none, operator

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
    pairs = (item.split("=") for item in text.split(";") if item)
    return _objective.struct("policy_settings", **{name: value_of(value) for name, value in pairs})


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


def policy_loss(
    logp: Tensor,
    advantage: Tensor,
    *,
    seq_weight: Tensor,
    settings: Any = None,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    **operands: Optional[Tensor],
) -> PolicyLoss:
    """loss = sum_i seq_weight_i sum_t L_t with its gradient, in one pass.

    logp R [B, T] of padded sequences with `mask` [B, T], or R [T] of packed ones with `cu_seqlens` i64 [B + 1];
    advantage R [B] or like logp; seq_weight R [B], see gradus.seq_weights; settings a dict or struct of
    gradus_policy_settings, as gradus.policy_preset gives, or `settings_text` of one. `operands`: old_logp, sampler_logp, ref_logp, ref2_logp,
    token_weight, is_weight, entropy like logp in R; class_ids, selected u8. Those of another dtype are converted
    to that of logp.
    """
    shape = logp.shape
    if cu_seqlens is None:
        if logp.dim() != 2:
            raise ValueError(f"policy_loss: `logp`: got rank {logp.dim()} without `cu_seqlens`, expected [B, T]")
        cu_seqlens = torch.arange(shape[0] + 1, dtype=torch.int64, device=logp.device) * shape[1]
    known = (
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
    if unknown := set(operands) - set(known):
        raise TypeError(f"policy_loss() has no argument `{min(unknown)}`")
    real = lambda x: None if x is None else x.to(logp.dtype).expand(shape).reshape(-1)
    byte = lambda x: None if x is None else x.to(torch.uint8).expand(shape).reshape(-1)
    get = operands.get
    per_token = advantage.dim() == logp.dim() and advantage.shape != seq_weight.shape
    flat = real(advantage) if per_token else advantage.to(logp.dtype).contiguous()
    out = _policy_loss(
        logp.reshape(-1),
        flat,
        cu_seqlens,
        seq_weight.to(logp.dtype),
        real(get("old_logp")),
        real(get("sampler_logp")),
        real(get("ref_logp")),
        real(get("ref2_logp")),
        byte(mask),
        byte(get("class_ids")),
        real(get("token_weight")),
        byte(get("selected")),
        real(get("is_weight")),
        real(get("entropy")),
        settings_text(settings or {}),
        per_token,
    )
    return PolicyLoss(out[0], out[3].reshape(shape), out[4])


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
    """(R - baseline) / scale, R [B], without gradient. Groups lie one after another: by `offsets` i64 [G + 1], or
    `group` rewards each. NaN rewards abstain: advantage 0. The names are the enumerators of gradus.h."""
    if (offsets is None) == (group is None):
        raise ValueError("group_advantage: got both or none of `offsets` and `group`, expected one")
    if offsets is None:
        offsets = torch.arange(0, reward.numel() + group, group, dtype=torch.int64, device=reward.device)
    return _group_advantage(reward.detach(), offsets, length, baseline, scale, ddof, eps, eps_form, on_single)
