"""verl's policy losses and advantage estimators on gradus' ops, in verl's registries.

    import gradus.verl            registers
    actor.policy_loss.loss_mode=gradus_vanilla algorithm.adv_estimator=gradus_grpo

Losses: gradus_ with vanilla, gspo, gpg, geo_mean, cispo, sapo, dppo_tv, dppo_kl, dro, clip_cov, kl_cov.
Estimators: gradus_ with grpo, grpo_passk, rloo, opo, gpg, reinforce_plus_plus,
reinforce_plus_plus_baseline, remax, gae. Settings, outputs and metrics are verl's of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos

from gradus import _objective
from gradus import torch as gt
from gradus._call import call

__all__ = ["ESTIMATORS", "LOSSES"]

LOSSES = ("vanilla", "gspo", "gpg", "geo_mean", "cispo", "sapo", "dppo_tv", "dppo_kl", "dro", "clip_cov", "kl_cov")

# ---- losses -------------------------------------------------------------------------------------


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / (mask.sum() + 1e-8)


def settings_of(name: str, config: Any) -> Any:
    """gradus_policy_settings of verl's actor config."""
    s = _objective.policy_preset(f"verl/{name}").settings
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    if name in ("vanilla", "gspo", "cispo", "clip_cov"):
        s.lo, s.hi = 1 - low, 1 + high
    elif name in ("geo_mean", "dppo_tv", "dppo_kl"):
        s.lo, s.hi = low, high
    if name == "vanilla":
        s.dual = config.get("clip_ratio_c", 3.0)
    elif name in ("dppo_tv", "dppo_kl"):
        s.cap = config.get("clip_ratio_c", 20.0)
    elif name == "sapo":
        s.tau_pos, s.tau_neg = config.tau_pos, config.tau_neg
    elif name == "dro":
        s.dro_beta = dro_beta(config)
    elif name == "kl_cov":
        coef = config.policy_loss.ppo_kl_coef
        s.kappa = 1.0 if coef is None else coef
    return s


def dro_beta(config: Any) -> float:
    beta = config.policy_loss.dro_beta
    if beta is None or beta <= 0:
        raise ValueError(f"policy_loss.dro_beta: got {beta}, expected a positive value")
    return beta


def seq_weight(
    mask: Tensor,
    mode: str,
    dp_size: int = 1,
    batch_num_tokens: float | None = None,
    global_batch_size: float | None = None,
    loss_scale_factor: float | None = None,
) -> Tensor:
    """f64 [B]: verl's agg_loss as weights of sequences."""
    if dp_size > 1 and None is (
        batch_num_tokens if mode == "token-mean" else 0 if mode == "token-sum" else global_batch_size
    ):
        raise ValueError(f"{mode} with dp_size {dp_size} needs the size of the global batch")
    lengths = mask.sum(-1).double()
    if mode == "token-mean":
        return (dp_size / (lengths.sum() if batch_num_tokens is None else batch_num_tokens)) * torch.ones_like(lengths)
    if mode == "token-sum":
        return torch.full_like(lengths, dp_size)
    count = (lengths > 0).sum() if global_batch_size is None else global_batch_size
    each = torch.ones_like(lengths) * dp_size / count
    if mode == "seq-mean-token-sum":
        return each
    if mode == "seq-mean-token-sum-norm":
        return each / (mask.shape[-1] if loss_scale_factor is None else loss_scale_factor)
    if mode == "seq-mean-token-mean":
        return each / (lengths + 1e-8)
    raise ValueError(f"Invalid loss_agg_mode: {mode}")


def covariance(advantages: Tensor, logp: Tensor, mask: Tensor) -> Tensor:
    """Of every token's advantage with its log-prob, centered over the batch."""
    return (advantages - masked_mean(advantages, mask)) * (logp - masked_mean(logp, mask))


def kl_cov_tokens(advantages: Tensor, logp: Tensor, mask: Tensor, config: Any) -> Tensor:
    """u8 [B, T]: the share of tokens with the largest covariance, which take the penalty."""
    share = config.policy_loss.kl_cov_ratio
    share, valid = 0.0002 if share is None else share, (mask > 0).reshape(-1).nonzero()[:, 0]
    a, l = advantages.reshape(-1)[valid], logp.reshape(-1)[valid]
    largest = torch.topk((a - a.mean()) * (l - l.mean()), max(1, int(len(valid) * share))).indices
    selected = torch.zeros(mask.numel(), dtype=torch.uint8, device=mask.device)
    selected[valid[largest]] = 1
    return selected.view(mask.shape)


def clip_cov_tokens(advantages: Tensor, logp: Tensor, old: Tensor, mask: Tensor, config: Any, s: Any) -> Tensor:
    """[B, T] 0 for tokens that are left out: a random share of those with a covariance within the bounds."""
    p = config.policy_loss
    share, low, high = (
        d if v is None else v for v, d in ((p.clip_cov_ratio, 0.0002), (p.clip_cov_lb, 1.0), (p.clip_cov_ub, 5.0))
    )
    ratio = (logp - old).exp()
    clipped = -advantages * ratio.clamp(s.lo, s.hi) > -advantages * ratio
    cov = covariance(advantages, logp, mask)
    found = ((cov > low) & (cov < high) & (mask > 0) & ~clipped).nonzero()
    count, weight = max(int(share * mask.sum().item()), 1), torch.ones_like(advantages)
    chosen = found[torch.randperm(len(found))[:count]] if len(found) else found
    weight[chosen[:, 0], chosen[:, 1]] = 0
    return weight


def metrics_of(
    name: str, out: gt.PolicyLoss, delta: Tensor, mask: Tensor, s: Any, weight: Tensor | None
) -> dict[str, float]:
    """verl's metrics of the loss."""
    if name == "gpg":
        return {}
    figures, tokens = out.figures(), float(mask.sum()) + 1e-8
    clamped = delta if s.log_ratio_clamp == float("inf") else delta.clamp(-s.log_ratio_clamp, s.log_ratio_clamp)
    kl = masked_mean(delta.abs() if name == "kl_cov" else -clamped, mask).item()
    found = {"actor/ppo_kl": kl}
    if name in ("dro", "kl_cov"):
        return found
    found["actor/pg_clipfrac"] = (figures["n_clip_lo"] + figures["n_clip_hi"]) / tokens
    if name == "clip_cov":
        return found | {"actor/pg_clipfrac": masked_mean((weight == 0).float(), mask).item()}
    found["actor/pg_clipfrac_lower"] = figures["n_dual"] / tokens if name == "vanilla" else 0.0
    return found | special_metrics(name, clamped, out, mask, s)


def special_metrics(name: str, delta: Tensor, out: gt.PolicyLoss, mask: Tensor, s: Any) -> dict[str, float]:
    """Where verl counts something else than tokens whose gradient is clipped."""
    if name == "sapo":
        return {"actor/pg_clipfrac": 0.0}
    if name == "cispo":
        ratio = delta.exp()
        return {"actor/pg_clipfrac": masked_mean((ratio != ratio.clamp(s.lo, s.hi)).float(), mask).item()}
    return {}


def geo_mean_metrics(delta: Tensor, advantages: Tensor, mask: Tensor, s: Any) -> dict[str, float]:
    """verl splits geo_mean's clipped tokens by the sign of the advantage."""
    clipped = delta != delta.clamp(-s.lo, s.hi)
    share = lambda chosen: masked_mean((clipped & chosen).float(), mask).item()
    return {"actor/pg_clipfrac": share(advantages > 0), "actor/pg_clipfrac_lower": share(advantages < 0)}


def dppo_metrics(
    out: gt.PolicyLoss, advantages: Tensor, logp: Tensor, delta: Tensor, mask: Tensor, s: Any
) -> dict[str, float]:
    """Tokens that the divergence masks, and of the others those beyond the cap."""
    valid = (out.token_loss != 0) | (advantages == 0)
    return {
        "actor/pg_clipfrac": masked_mean((~valid).float(), mask).item(),
        "actor/pg_clipfrac_lower": masked_mean((delta.exp() > s.cap).float() * valid, mask).item(),
    }


def loss_of(name: str) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """verl's policy loss `name`, [B, T] padded tensors in, (loss [], metrics) out."""

    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ):
        if config is None:
            raise ValueError(f"gradus_{name}: got no config, expected an ActorConfig")
        s, weights = settings_of(name, config), weights_of(name, response_mask, loss_agg_mode, config)
        logp, advantages, extra = log_prob.detach(), advantages.detach(), {}
        if name == "kl_cov":
            extra["selected"] = kl_cov_tokens(advantages, logp, response_mask, config)
        elif name == "clip_cov":
            extra["token_weight"] = clip_cov_tokens(advantages, logp, old_log_prob, response_mask, config, s)
        if rollout_is_weights is not None:
            if name in ("dro", "kl_cov"):
                raise NotImplementedError(f"gradus_{name}: rollout_is_weights, which verl also puts on the penalty")
            weights, extra = with_rollout(name, weights, rollout_is_weights, response_mask, extra)
        out = gt.policy_loss(
            log_prob, advantages, seq_weight=weights, settings=s, mask=response_mask, old_logp=old_log_prob, **extra
        )
        delta = logp - old_log_prob
        found = metrics_of(name, out, delta, response_mask, s, extra.get("token_weight"))
        if name == "geo_mean":
            found |= geo_mean_metrics(delta, advantages, response_mask, s)
        elif name in ("dppo_tv", "dppo_kl"):
            found |= dppo_metrics(out, advantages, logp, delta.clamp(-20, 20), response_mask, s)
        return out.loss, found

    policy_loss.__name__ = f"gradus_{name}"
    policy_loss.__doc__ = f"verl's `{name}` in one pass of gradus.policy_loss."
    return policy_loss


def weights_of(name: str, mask: Tensor, mode: str, config: Any) -> Tensor:
    if name == "geo_mean":  # the mean over all sequences, whatever the mode says
        return 1 / (mask.sum(-1).double() + 1e-8) / len(mask)
    return seq_weight(mask, "seq-mean-token-mean" if name == "sapo" else mode, **config.global_batch_info)


def with_rollout(
    name: str, weights: Tensor, rollout: Tensor, mask: Tensor, extra: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Importance weights of the rollout: geo_mean takes their geometric mean over the sequence."""
    if name != "geo_mean":
        return weights, extra | {"is_weight": rollout}
    mean = ((rollout + 1e-10).log() * mask).sum(-1) / (mask.sum(-1) + 1e-8)
    return weights * mean.exp(), extra


# ---- advantages ---------------------------------------------------------------------------------


def by_group(rewards: Tensor, mask: Tensor, index: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    """Sequence advantages on the tokens of the mask, of groups with equal `index`."""
    score = rewards.sum(-1)
    _, inverse, sizes = np.unique(np.asarray(index), return_inverse=True, return_counts=True)
    order = torch.from_numpy(np.argsort(inverse, kind="stable")).to(score.device)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)])).to(score.device)
    length = (mask > 0).sum(-1).to(torch.int64)[order] if settings.get("baseline") == "length_weighted" else None
    # verl gives a group of one its raw reward.
    out = gt.group_advantage(score[order], offsets, length=length, on_single="raw", **{"eps": 1e-6} | settings)
    advantage = torch.empty_like(out)
    advantage[order] = out
    tokens = advantage[:, None] * mask
    return tokens, tokens


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    y = call("whiten", x=x.contiguous().view(-1), mask=flat_mask(mask), count_eps=1e-8).y
    return y.view(x.shape)


def flat_mask(mask: Tensor) -> Tensor:
    return (mask > 0).to(torch.uint8).reshape(-1)


def offsets_of(mask: Tensor) -> Tensor:
    """Rows as packed sequences of full width."""
    return torch.arange(len(mask) + 1, device=mask.device) * mask.shape[1]


def discounted(rewards: Tensor, mask: Tensor, gamma: float, baseline: Tensor | None = None) -> Tensor:
    """Tokens outside the mask are passed over."""
    returns = call(
        "discounted_return",
        reward=rewards.contiguous().view(-1),
        mask=flat_mask(mask),
        cu_seqlens=offsets_of(mask),
        gamma=float(gamma),
        baseline=None if baseline is None else baseline.to(rewards.dtype),
    ).returns
    return returns.view(rewards.shape)


def scale_of(config: Any) -> str:
    return "group_std" if config is None or config.get("norm_adv_by_std_in_grpo", True) else "none"


@torch.no_grad()
def grpo(token_level_rewards, response_mask, index, epsilon=1e-6, norm_adv_by_std_in_grpo=True, config=None, **_):
    """GRPO; without the standard deviation, Dr. GRPO."""
    scale = scale_of(config) if norm_adv_by_std_in_grpo else "none"
    return by_group(token_level_rewards, response_mask, index, scale=scale, eps=epsilon)


@torch.no_grad()
def grpo_passk(token_level_rewards, response_mask, index, epsilon=1e-6, config=None, **_):
    """Pass@k: the best of a group gets best - second best."""
    return by_group(token_level_rewards, response_mask, index, scale=scale_of(config), eps=epsilon, baseline="max2")


@torch.no_grad()
def rloo(token_level_rewards, response_mask, index, **_):
    """The mean of the others as baseline."""
    return by_group(token_level_rewards, response_mask, index, scale="none", baseline="leave_one_out")


@torch.no_grad()
def opo(token_level_rewards, response_mask, index, **_):
    """The length-weighted mean as baseline."""
    return by_group(token_level_rewards, response_mask, index, scale="none", baseline="length_weighted")


@torch.no_grad()
def gpg(token_level_rewards, response_mask, index, f_norm=1.0, **_):
    """Scaled by the share of rewards that are not zero."""
    advantage, _ = by_group(token_level_rewards, response_mask, index, scale="nonzero_share")
    return advantage / f_norm, advantage / f_norm


@torch.no_grad()
def reinforce_plus_plus(token_level_rewards, response_mask, config=None, **_):
    """Discounted returns, whitened over the batch."""
    if config is None:
        raise ValueError("gradus_reinforce_plus_plus: got no config, expected an AlgoConfig with gamma")
    returns = discounted(token_level_rewards, response_mask, config.gamma)
    return whitened(returns, response_mask), returns


@torch.no_grad()
def reinforce_plus_plus_baseline(token_level_rewards, response_mask, index, **_):
    """Group-centered scores, whitened over the batch's tokens."""
    centered, _ = by_group(token_level_rewards, response_mask, index, scale="none")
    advantage = whitened(centered, response_mask)
    return advantage, advantage


@torch.no_grad()
def remax(token_level_rewards, reward_baselines, response_mask, **_):
    """Returns less the greedy completion's reward."""
    rewards = token_level_rewards * response_mask
    return discounted(rewards, response_mask, 1.0, reward_baselines), discounted(rewards, response_mask, 1.0)


@torch.no_grad()
def gae(token_level_rewards, values, response_mask, gamma, lam, **_):
    """Generalized advantages, whitened, and returns. verl's trainer hands values to its own `gae` only."""
    out = call(
        "gae",
        reward=token_level_rewards.contiguous().view(-1),
        value=values.contiguous().view(-1),
        mask=flat_mask(response_mask),
        cu_seqlens=offsets_of(response_mask),
        gamma=float(gamma),
        gae_lambda=float(lam),
        returns=True,
    )
    shape = values.shape
    return whitened(out.advantage.view(shape), response_mask), out.returns.view(shape)


ESTIMATORS = (grpo, grpo_passk, rloo, opo, gpg, reinforce_plus_plus, reinforce_plus_plus_baseline, remax, gae)

for _name in LOSSES:
    core_algos.register_policy_loss(f"gradus_{_name}")(loss_of(_name))
for _estimator in ESTIMATORS:
    core_algos.register_adv_est(f"gradus_{_estimator.__name__}")(_estimator)
