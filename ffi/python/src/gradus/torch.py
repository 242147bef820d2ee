"""Differentiable ops for torch: autograd, torch.compile, DDP, on CPU and CUDA.

    from gradus import torch as gt
    logp = gt.logprob(logits, targets, temperature=0.7).logp          [..., V] and [...]
    preset = gradus.policy_preset("trl/dapo", length=logp.shape[1])
    weight = torch.from_numpy(preset.weights(mask.sum(1)))
    loss = gt.policy_loss(logp, advantage, seq_weight=weight, settings=preset.settings, mask=mask).loss
    loss.backward()

The functions here are thin: they flatten leading dimensions, give i64 targets the library's i32, and
call operators `torch.ops.gradus.*`, which torch.compile and opcheck see. Gradients are operators too.
Every argument is checked by the library; errors are gradus.Error.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from gradus._call import call
from gradus._torch_common import (
    autocast,
    integers,
    none,
    operator,
    per_token,
    tensor,
    transform,
    unit_rows,
    widened,
)
from gradus._torch_matmul import nf4_matmul
from gradus._torch_policy import PolicyLoss, group_advantage, policy_loss, settings_text

IGNORE = -100


# ---- logprob ------------------------------------------------------------------------------------


@operator("logprob")
def _logprob(
    logits: Tensor,
    targets: Tensor,
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out = call(
        "logprob",
        logits=logits,
        targets=targets,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        lse=True,
        entropy=entropy,
    )
    return out.logp, out.lse, out.entropy if entropy else none(logits)


@_logprob.register_fake
def _(logits, targets, vocab, temperature, scale, softcap, entropy):
    logp, lse, h = per_token(logits, 3)
    return logp, lse, h if entropy else none(logits)


@operator("logprob_bwd")
def _logprob_bwd(
    logits: Tensor,
    targets: Tensor,
    dlogp: Tensor,
    dlse: Tensor,
    dentropy: Optional[Tensor],
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
) -> Tensor:
    return call(
        "logprob_bwd",
        logits=logits,
        targets=targets,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        dlogp=dlogp,
        dlse=dlse,
        dentropy=dentropy,
    ).dlogits


@_logprob_bwd.register_fake
def _(logits, targets, dlogp, dlse, dentropy, vocab, temperature, scale, softcap):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _logprob_setup(ctx, inputs, output):
    logits, targets, *ctx.settings, ctx.entropy = inputs
    ctx.save_for_backward(logits, targets)


def _logprob_backward(ctx, dlogp, dlse, dentropy):
    logits, targets = ctx.saved_tensors
    dlogits = _logprob_bwd(logits, targets, dlogp, dlse, dentropy if ctx.entropy else None, *ctx.settings)
    return dlogits, None, None, None, None, None, None


_logprob.register_autograd(_logprob_backward, setup_context=_logprob_setup)


class LogProb(NamedTuple):
    """f32, with the leading shape of the logits. `entropy` is None unless asked for."""

    logp: Tensor
    lse: Tensor
    entropy: Optional[Tensor]


def logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    vocab: Optional[int] = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: Optional[float] = None,
    entropy: bool = False,
) -> LogProb:
    """Log-probs of targets under logits; all three outputs are differentiable.

    logits F [..., V], any strides of rows; targets int [...], `IGNORE` gives 0 and no gradient. The entropy
    is that of z = softcap(scale logits) / temperature, in nats.
    """
    tensor("logprob", logits=logits, targets=targets)
    lead = targets.shape
    rows = unit_rows(logits.reshape(-1, logits.shape[-1]))
    out = _logprob(
        rows,
        integers("logprob", "targets", targets, torch.int32).reshape(-1),
        rows.shape[-1] if vocab is None else vocab,
        temperature,
        scale,
        softcap,
        entropy,
    )
    shaped = [x.reshape(lead) for x in out[: 3 if entropy else 2]]
    return LogProb(*shaped, *([] if entropy else [None]))


# ---- linear_logprob -----------------------------------------------------------------------------


@operator("linear_logprob")
def _linear_logprob(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    entropy: bool,
    score: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = call(
        "linear_logprob",
        hidden=hidden,
        head=head,
        targets=targets,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        lse=True,
        entropy=entropy,
        score=score,
    )
    return (
        out.logp,
        out.lse,
        out.entropy if entropy else none(hidden),
        out.score if score else none(hidden, hidden.dtype),
    )


@_linear_logprob.register_fake
def _(hidden, head, targets, vocab, temperature, scale, softcap, entropy, score):
    logp, lse, h = per_token(hidden, 3)
    kept = torch.empty_like(hidden, memory_format=torch.contiguous_format) if score else none(hidden, hidden.dtype)
    return logp, lse, h if entropy else none(hidden), kept


@operator("linear_logprob_bwd")
def _linear_logprob_bwd(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    dlogp: Tensor,
    dentropy: Optional[Tensor],
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    weight: bool,
) -> tuple[Tensor, Tensor]:
    out = call(
        "linear_logprob_bwd",
        hidden=hidden,
        head=head,
        targets=targets,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        dlogp=dlogp,
        dentropy=dentropy,
        dweight=weight,
    )
    return out.dhidden, out.dweight.to(head.dtype) if weight else none(head, head.dtype)


@_linear_logprob_bwd.register_fake
def _(hidden, head, targets, dlogp, dentropy, vocab, temperature, scale, softcap, weight):
    contiguous = torch.contiguous_format
    dweight = torch.empty_like(head, memory_format=contiguous) if weight else none(head, head.dtype)
    return torch.empty_like(hidden, memory_format=contiguous), dweight


@operator("score_scale")
def _score_scale(score: Tensor, dlogp: Tensor) -> Tensor:
    return call("score_scale", score=score, dlogp=dlogp).dhidden


@_score_scale.register_fake
def _(score, dlogp):
    return torch.empty_like(score)


def _linear_setup(ctx, inputs, output):
    hidden, head, targets, *ctx.settings, ctx.entropy, ctx.score = inputs
    # The score is all that a frozen head's backward needs: hidden and head are not kept for it.
    ctx.save_for_backward(*([output[3]] if ctx.score else [hidden, head, targets]))
    ctx.mark_non_differentiable(output[1], output[3])
    ctx.set_materialize_grads(False)


def _linear_backward(ctx, dlogp, dlse, dentropy, dscore):
    if ctx.score:
        (score,) = ctx.saved_tensors
        return (None if dlogp is None else _score_scale(score, dlogp.contiguous()), *[None] * 8)
    hidden, head, targets = ctx.saved_tensors
    if not ctx.entropy:
        dentropy = None
    if dlogp is None:
        dlogp = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
    dhidden, dweight = _linear_logprob_bwd(
        hidden, head, targets, dlogp, dentropy, *ctx.settings, ctx.needs_input_grad[1]
    )
    return (dhidden, dweight if ctx.needs_input_grad[1] else None, *[None] * 7)


_linear_logprob.register_autograd(_linear_backward, setup_context=_linear_setup)


def linear_logprob(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    vocab: Optional[int] = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: Optional[float] = None,
    entropy: bool = False,
    score: Optional[bool] = None,
) -> LogProb:
    """logprob of hidden head^T without storing the logits. hidden F [..., H], head F [V, H], targets int [...].

    With a frozen head the forward pass computes the score dlogp/dhidden, so that the backward pass is one
    product per row; that is the default where hidden requires grad, head does not, and the entropy is not asked
    for. Under autocast both are cast as those of torch.nn.functional.linear; without, the product of two dtypes
    is formed in the wider one. Gradients have the dtypes of hidden and head. With `entropy=True` and `score=True` the entropy has no gradient. `lse` has none.
    """
    tensor("linear_logprob", hidden=hidden, head=head, targets=targets)
    lead = targets.shape
    hidden, head = widened(*autocast(hidden, head))
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    if score is None:
        score = rows.requires_grad and not head.requires_grad and not entropy and torch.is_grad_enabled()
    elif score and head.requires_grad:
        raise ValueError("linear_logprob: `score`: got True with a head that requires grad, expected a frozen head")
    out = _linear_logprob(
        rows,
        unit_rows(head),
        integers("linear_logprob", "targets", targets, torch.int32).reshape(-1),
        head.shape[0] if vocab is None else vocab,
        temperature,
        scale,
        softcap,
        entropy,
        score,
    )
    h = out[2].reshape(lead) if entropy else None
    return LogProb(out[0].reshape(lead), out[1].reshape(lead), h.detach() if entropy and score else h)


# ---- gather_k -----------------------------------------------------------------------------------


@operator("gather_k")
def _gather_k(
    logits: Tensor,
    ids: Tensor,
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    renormalize: bool,
) -> tuple[Tensor, Tensor]:
    out = call(
        "gather_k",
        logits=logits,
        ids=ids,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        renormalize=int(renormalize),
        mass=True,
    )
    return out.logp, out.mass


@_gather_k.register_fake
def _(logits, ids, vocab, temperature, scale, softcap, renormalize):
    return logits.new_empty(ids.shape, dtype=torch.float32), *per_token(logits)


@operator("gather_k_bwd")
def _gather_k_bwd(
    logits: Tensor,
    ids: Tensor,
    dlogp: Tensor,
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    renormalize: bool,
) -> Tensor:
    return call(
        "gather_k_bwd",
        logits=logits,
        ids=ids,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        renormalize=int(renormalize),
        dlogp=dlogp,
    ).dlogits


@_gather_k_bwd.register_fake
def _(logits, ids, dlogp, vocab, temperature, scale, softcap, renormalize):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _gather_setup(ctx, inputs, output):
    logits, ids, *ctx.settings = inputs
    ctx.save_for_backward(logits, ids)
    ctx.mark_non_differentiable(output[1])


def _gather_backward(ctx, dlogp, dmass):
    return _gather_k_bwd(*ctx.saved_tensors, dlogp.contiguous(), *ctx.settings), *[None] * 6


_gather_k.register_autograd(_gather_backward, setup_context=_gather_setup)


class GatherK(NamedTuple):
    """logp f32 [..., K] and the share of the vocabulary's mass that the ids hold, f32 [...], without gradient."""

    logp: Tensor
    mass: Tensor


def gather_k(
    logits: Tensor,
    ids: Tensor,
    *,
    vocab: Optional[int] = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: Optional[float] = None,
    renormalize: bool = False,
) -> GatherK:
    """Log-probs of K ids a row: logits F [..., V], ids int [..., K], different within a row, or `IGNORE`."""
    tensor("gather_k", logits=logits, ids=ids)
    rows, k = unit_rows(logits.reshape(-1, logits.shape[-1])), ids.shape[-1]
    logp, mass = _gather_k(
        rows,
        integers("gather_k", "ids", ids, torch.int32).reshape(-1, k).contiguous(),
        rows.shape[-1] if vocab is None else vocab,
        temperature,
        scale,
        softcap,
        renormalize,
    )
    return GatherK(logp.reshape(ids.shape), mass.reshape(ids.shape[:-1]))


# ---- vocab_kl -----------------------------------------------------------------------------------


@operator("vocab_kl")
def _vocab_kl(
    policy: Tensor,
    reference: Tensor,
    guidance: Optional[Tensor],
    gamma: float,
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    divergence: str,
    beta: float,
) -> Tensor:
    return call(
        "vocab_kl",
        policy=policy,
        reference=reference,
        guidance=guidance,
        gamma=gamma,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        divergence=divergence,
        beta=beta,
    ).value


@_vocab_kl.register_fake
def _(policy, reference, guidance, gamma, vocab, temperature, scale, softcap, divergence, beta):
    return per_token(policy)[0]


@operator("vocab_kl_bwd")
def _vocab_kl_bwd(
    policy: Tensor,
    reference: Tensor,
    guidance: Optional[Tensor],
    dvalue: Tensor,
    gamma: float,
    vocab: int,
    temperature: float,
    scale: float,
    softcap: Optional[float],
    divergence: str,
    beta: float,
) -> Tensor:
    return call(
        "vocab_kl_bwd",
        policy=policy,
        reference=reference,
        guidance=guidance,
        gamma=gamma,
        vocab=vocab,
        transform=transform(temperature, scale, softcap),
        divergence=divergence,
        beta=beta,
        dvalue=dvalue,
    ).dpolicy


@_vocab_kl_bwd.register_fake
def _(policy, reference, guidance, dvalue, gamma, vocab, temperature, scale, softcap, divergence, beta):
    return torch.empty_like(policy, memory_format=torch.contiguous_format)


def _vocab_kl_setup(ctx, inputs, output):
    policy, reference, guidance, *ctx.settings = inputs
    ctx.save_for_backward(policy, reference, guidance)


def _vocab_kl_backward(ctx, dvalue):
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        raise RuntimeError("vocab_kl has a gradient for `policy` only: detach() the reference and the guidance")
    return _vocab_kl_bwd(*ctx.saved_tensors, dvalue.contiguous(), *ctx.settings), *[None] * 9


_vocab_kl.register_autograd(_vocab_kl_backward, setup_context=_vocab_kl_setup)


def vocab_kl(
    policy: Tensor,
    reference: Tensor,
    divergence: str = "forward_kl",
    *,
    beta: float = 0.5,
    guidance: Optional[Tensor] = None,
    gamma: float = 1.0,
    vocab: Optional[int] = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: Optional[float] = None,
) -> Tensor:
    """A divergence over the whole vocabulary, f32 [...], of logits F [..., V]; differentiable by `policy`.

    divergence: "forward_kl" KL(p|q), "reverse_kl" KL(q|p), "jsd" (with beta), "total_variation"; q is the policy's,
    p the reference's distribution, or that of guidance + gamma (reference - guidance). Logits of several dtypes
    are read in the widest.
    """
    tensor("vocab_kl", policy=policy, reference=reference)
    of = widened(policy, reference, guidance)
    flat = [None if x is None else unit_rows(x.reshape(-1, x.shape[-1])) for x in of]
    value = _vocab_kl(
        *flat, gamma, policy.shape[-1] if vocab is None else vocab, temperature, scale, softcap, divergence, beta
    )
    return value.reshape(policy.shape[:-1])


__all__ = [
    "IGNORE",
    "GatherK",
    "LogProb",
    "PolicyLoss",
    "gather_k",
    "group_advantage",
    "linear_logprob",
    "logprob",
    "nf4_matmul",
    "policy_loss",
    "settings_text",
    "vocab_kl",
]


def __dir__() -> list[str]:
    """The names of this module, without those that it imports."""
    return sorted(__all__)
