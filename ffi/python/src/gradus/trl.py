"""GRPO of TRL 1.16 on gradus' ops: log-probs, advantages, loss.

    from gradus.trl import GradusGRPOMixin
    class Trainer(GradusGRPOMixin, GRPOTrainer): ...

    from gradus.trl import patch
    trainer = patch(GRPOTrainer(...))

The trainer's arguments keep their meaning and its metrics their names. What the ops do not do raises
NotImplementedError when the loss is first formed: adaptive entropy control, and VESPO with vLLM's
correction.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from torch import Tensor

from gradus import _objective, _sys
from gradus import torch as gt

__all__ = ["GradusGRPOMixin", "patch"]

if version("trl").split(".")[:2] != ["1", "16"]:
    raise ImportError(f"gradus.trl replaces methods of TRL 1.16, this is {version('trl')}")

MODEL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
BY_TOKENS = ("cispo", "dapo", "vespo")  # averaged over the tokens of the whole accumulation window
SCALES = {"group": "group_std", "batch": "batch_std", "none": "none"}

# ---- log-probs ----------------------------------------------------------------------------------

# Whether the head that runs in this context is gradus', and if so whether its entropy needs a gradient.
_head: contextvars.ContextVar[bool | None] = contextvars.ContextVar("gradus_head", default=None)
_trl_head, _trl_compact = trl_utils._ChunkedLogProbFunction, trl_utils._use_triton


class Head:
    """Stands in for TRL's fused head: its own outside a gradus trainer."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        """Log-probs and entropies f32 [N] of hidden [N, H] and weight [V, H]; TRL's other outputs are not there."""
        entropy_grad = _head.get()
        if entropy_grad is None:
            return _trl_head.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
        if extra := set(outputs) - {"log_probs", "entropy"}:
            raise NotImplementedError(f"gradus.trl has no `{min(extra)}` of the fused head")
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        weight, entropy = weight.to(hidden.dtype), "entropy" in outputs
        settings = dict(temperature=temperature, scale=scale, softcap=softcap, entropy=entropy)
        if bias is not None:
            out = gt.logprob(torch.nn.functional.linear(hidden, weight, bias.to(hidden.dtype)), targets, **settings)
        else:
            frozen = hidden.requires_grad and not weight.requires_grad and not entropy_grad and torch.is_grad_enabled()
            out = gt.linear_logprob(hidden, weight, targets, score=frozen, **settings)
        return out.logp, out.entropy, None, None, None


def _compact(device: torch.device) -> bool:
    """TRL's choice to score completion tokens only, which it makes on Triton devices: here always."""
    return True if _head.get() is not None else _trl_compact(device)


trl_utils._ChunkedLogProbFunction, trl_utils._use_triton = Head, _compact


@contextlib.contextmanager
def head(entropy_grad: bool) -> Iterator[None]:
    """TRL's fused head is gradus' in this context."""
    token = _head.set(entropy_grad)
    try:
        yield
    finally:
        _head.reset(token)


# ---- the trainer --------------------------------------------------------------------------------


def settings_of(trainer: Any) -> str:
    """The trainer's loss as settings of the policy loss."""
    args = trainer.args
    if trainer.use_adaptive_entropy:
        raise NotImplementedError("gradus.trl: adaptive entropy control")
    s = _objective.policy_preset(f"trl/{trainer.loss_type}", trainer.max_completion_length).settings
    if trainer.loss_type in CLIPPED:
        s.lo, s.hi = 1 - trainer.epsilon_low, 1 + trainer.epsilon_high
        s.dual = float("inf") if args.delta is None else args.delta
    elif trainer.loss_type == "cispo":
        s.hi = trainer.epsilon_high
    elif trainer.loss_type == "sapo":
        # TRL builds the temperatures as an f32 tensor.
        s.tau_pos, s.tau_neg = torch.tensor([args.sapo_temperature_pos, args.sapo_temperature_neg]).tolist()
    elif trainer.loss_type == "vespo":
        s.kappa_pos, s.lambda_pos = args.vespo_k_pos, args.vespo_lambda_pos
        s.kappa_neg, s.lambda_neg = args.vespo_k_neg, args.vespo_lambda_neg
    levels = {"token": _sys.RATIO_TOKEN, "sequence": _sys.RATIO_SEQUENCE_MEAN}
    s.ratio = levels[trainer.importance_sampling_level]
    if trainer.beta != 0.0:
        s.use_kl, s.kl_coef = 1, trainer.beta
        s.kl_weight = _sys.KL_WEIGHT_RATIO if args.use_bias_correction_kl else _sys.KL_WEIGHT_ONE
    if trainer.off_policy_mask_threshold is not None:
        s.opsm = trainer.off_policy_mask_threshold
    return gt.settings_text(s)


def normalizer_of(trainer: Any, mode: str) -> float:
    """Micro-batches that an optimizer step adds up."""
    return trainer.current_gradient_accumulation_steps if mode == "train" else 1.0


def weights_of(trainer: Any, inputs: dict[str, Any], mask: Tensor, mode: str) -> Tensor:
    """Weights of sequences [B]: how TRL averages the loss type."""
    lengths = mask.sum(1).long().cpu()
    if trainer.loss_type in BY_TOKENS:
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        if mode == "train":
            tokens = tokens * trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation
        weights = _objective.seq_weights(_sys.TOKEN_MEAN_OF, lengths, True, float(tokens))
    else:
        preset = _objective.policy_preset(f"trl/{trainer.loss_type}", trainer.max_completion_length)
        weights = preset.weights(lengths) / normalizer_of(trainer, mode)
    return torch.from_numpy(weights).to(mask.device)


class GradusGRPOMixin:
    """Goes before GRPOTrainer in a class's bases."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with head(self._entropy_bonus_enabled):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Rewards [N, functions] of all processes; kept for the advantages."""
        self._gradus_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._gradus_rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        advantages = self._gradus_advantages(self._gradus_rewards)
        local = len(output["advantages"])
        start = self.accelerator.process_index * local
        output["advantages"] = advantages[start : start + local].to(output["advantages"].dtype)
        return output

    def _gradus_advantages(self, rewards: Tensor) -> Tensor:
        """[N] of rewards [N, functions]; a completion that no function scored gets 0."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        scale, weights = SCALES[self.scale_rewards], self.reward_weights.to(rewards.device)
        unscored = torch.isnan(rewards).all(1)
        if self.multi_objective_aggregation == "sum_then_normalize":
            total = (rewards * weights).nansum(1).masked_fill(unscored, torch.nan)
            return gt.group_advantage(total, group=size, scale=scale)
        each = [gt.group_advantage(column.contiguous(), group=size) for column in rewards.T]
        total = (torch.stack(each, 1) * weights).sum(1).masked_fill(unscored, torch.nan)
        return gt.group_advantage(total, group=len(total))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        mask = inputs["completion_mask"]
        mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
        logp, entropies, aux_loss = self._gradus_logps(model, inputs)
        weight = None
        if self.top_entropy_quantile < 1.0:
            weight = self.get_high_entropy_mask(entropies, mask, 1 - self.top_entropy_quantile)
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        if corrected and self.loss_type == "vespo":
            raise NotImplementedError("gradus.trl: VESPO with vLLM's importance sampling correction")
        if not hasattr(self, "_gradus_settings"):
            self._gradus_settings = settings_of(self)
        out = gt.policy_loss(
            logp,
            inputs["advantages"],
            seq_weight=weights_of(self, inputs, mask, mode),
            settings=self._gradus_settings,
            mask=mask,
            old_logp=inputs.get("old_per_token_logps"),
            sampler_logp=sampler_of(inputs, logp),
            ref_logp=inputs["ref_per_token_logps"] if self.beta != 0.0 else None,
            token_weight=weight,
            is_weight=inputs["importance_sampling_ratio"] if corrected else None,
        )
        loss = out.loss
        if self._entropy_bonus_enabled:
            loss = self._gradus_bonus(loss, entropies, mask if weight is None else mask * weight, mode)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / normalizer_of(self, mode)
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        self._gradus_metrics(mode, inputs, mask, logp.detach(), entropies.detach())
        return loss

    def _gradus_logps(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Log-probs and entropies [B, T] of completions, and the routers' loss."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        return self._get_per_token_logps_and_entropies(
            model,
            ids,
            mask,
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in MODEL_INPUTS},
        )

    def _gradus_bonus(self, loss: Tensor, entropies: Tensor, mask: Tensor, mode: str) -> Tensor:
        """The entropy bonus: a mean over the tokens of the mask, whatever averages the loss."""
        steps = normalizer_of(self, mode)
        undone = 1.0 if self.loss_type in BY_TOKENS else steps
        self._metrics[mode]["policy_loss"].append(self.accelerator.gather(loss.detach() * undone).nanmean().item())
        if mode == "train" and self.accelerator.sync_gradients:
            self._metrics[mode]["entropy_coef"].append(self.entropy_coef)
        return loss - self.entropy_coef * (entropies * mask).sum() / mask.sum().clamp(min=1.0) / steps

    @torch.no_grad()
    def _gradus_metrics(self, mode: str, inputs: dict[str, Any], mask: Tensor, logp: Tensor, entropies: Tensor) -> None:
        """TRL's metrics, by its formulas and names."""
        metrics, advantages = self._metrics[mode], inputs["advantages"]
        advantages = advantages[:, None] if advantages.dim() == 1 else advantages
        old = inputs.get("old_per_token_logps")
        delta = torch.zeros_like(logp) if old is None else logp - old
        if self.importance_sampling_level == "sequence":
            delta = ((delta * mask).sum(-1) / mask.sum(-1).clamp(min=1.0))[:, None]
        ratio = delta.exp()
        if self.beta != 0.0:
            k = inputs["ref_per_token_logps"] - logp
            kl = torch.expm1(k) - k
            metrics["kl"].append(self._gradus_mean(kl * ratio if self.args.use_bias_correction_kl else kl, mask))
        metrics["entropy"].append(self._gradus_mean(entropies, mask))
        if self.loss_type in CLIPPED:
            capped = ratio if self.args.delta is None else ratio.clamp(max=self.args.delta)
            low = ((capped < 1 - self.epsilon_low) & (advantages < 0)).float()
            high = ((capped > 1 + self.epsilon_high) & (advantages > 0)).float()
            for name, clipped in (("low_mean", low), ("high_mean", high), ("region_mean", low + high)):
                metrics[f"clip_ratio/{name}"].append(self._gradus_mean(clipped, mask))
            metrics["clip_ratio/low_min"].append(trl_utils.nanmin(self._gradus_by_sequence(low, mask)).item())
            metrics["clip_ratio/high_max"].append(trl_utils.nanmax(self._gradus_by_sequence(high, mask)).item())
        elif self.loss_type == "cispo":
            clipped = ((ratio > self.epsilon_high) & (advantages > 0)).float()
            metrics["cispo_clip_ratio"].append(self._gradus_mean(clipped, mask))
        elif self.loss_type == "vespo":
            args = self.args
            phi = self.get_gamma_weights(
                advantages,
                delta,
                mask,
                None,
                args.vespo_k_pos,
                args.vespo_lambda_pos,
                args.vespo_k_neg,
                args.vespo_lambda_neg,
            )
            metrics["vespo/phi_seq_mean"].append(self._gradus_mean(phi, mask))

    def _gradus_mean(self, x: Tensor, mask: Tensor) -> float:
        """Over the tokens of all processes, or over sequences for [B, 1]."""
        mask = torch.ones_like(x) if x.shape[1] == 1 else mask
        totals = torch.stack([(x * mask).sum(), mask.sum().float()])
        totals = self.accelerator.reduce(totals, reduction="sum")
        return (totals[0] / totals[1].clamp(min=1.0)).item()

    def _gradus_by_sequence(self, x: Tensor, mask: Tensor) -> Tensor:
        means = x[:, 0] if x.shape[1] == 1 else (x * mask).sum(-1) / mask.sum(-1)
        return self.accelerator.gather(means)


def sampler_of(inputs: dict[str, Any], logp: Tensor) -> Tensor | None:
    """Log-probs of the sampler, for off-policy masking; a token it could not score shows no divergence."""
    sampler = inputs.get("sampling_per_token_logps")
    return None if sampler is None else torch.where(torch.isnan(sampler), logp.detach(), sampler)


def patch(trainer: Any) -> Any:
    """Makes an existing GRPOTrainer one with GradusGRPOMixin, and returns it."""
    if not isinstance(trainer, GradusGRPOMixin):
        cls = type(trainer)
        trainer.__class__ = type(f"Gradus{cls.__name__}", (GradusGRPOMixin, cls), {})
    return trainer
