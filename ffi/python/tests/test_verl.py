"""gradus.verl against verl's own functions, in f64: losses, gradients, metrics, advantages."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")

from verl.trainer.config import AlgoConfig
from verl.workers.config import ActorConfig, PolicyLossConfig

import gradus.verl as gv

B, T = 12, 17
MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (B,), generator=g)
    mask = (torch.arange(T)[None] < lengths[:, None]).double()
    mask[0, 2:5] = 0  # an observation between actions
    logp = -normal(B, T).abs() - 0.1
    return dict(
        old_log_prob=logp + 0.3 * normal(B, T),
        log_prob=logp.requires_grad_(),
        advantages=normal(B, 1).expand(B, T).clone(),
        response_mask=mask,
    ), g


def config(**changes):
    policy = PolicyLossConfig(dro_beta=0.2, kl_cov_ratio=0.05, clip_cov_ratio=0.05, clip_cov_lb=0.01, clip_cov_ub=5.0)
    fields = dict(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.2,
        clip_ratio_low=0.1,
        clip_ratio_high=0.25,
        policy_loss=policy,
        tau_pos=1.0,
        tau_neg=1.05,
    )
    return ActorConfig(**fields | changes)


def compare(name, mode, rollout=None, **info):
    arguments, _ = batch(len(name))
    settings = config(global_batch_info=info)
    found = []
    for fn in (name, f"gradus_{name}"):
        torch.manual_seed(0)  # clip_cov draws its tokens
        loss, metrics = core_algos.get_policy_loss_fn(fn)(
            **arguments, loss_agg_mode=mode, config=settings, rollout_is_weights=rollout
        )
        found.append((loss, torch.autograd.grad(loss, arguments["log_prob"])[0], metrics))
    (want, slope, metrics), (loss, gradient, ours) = found
    assert slope.abs().max() > 0
    # 1e-8: verl adds as much to counts.
    assert abs(loss - want) <= 1e-7 * max(1, abs(want)), f"{loss} against {want}"
    assert (gradient - slope).abs().max() <= 1e-7 * slope.abs().max()
    assert ours.keys() == metrics.keys()
    for key in metrics:
        assert ours[key] == pytest.approx(metrics[key], abs=1e-6), key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", gv.LOSSES)
def test_losses_are_verls(name, mode):
    compare(name, mode)


@pytest.mark.parametrize("name", gv.LOSSES)
def test_losses_know_the_global_batch(name):
    for mode in MODES:
        compare(name, mode, dp_size=2, batch_num_tokens=300, global_batch_size=40, loss_scale_factor=100)


@pytest.mark.parametrize("name", gv.LOSSES)
def test_losses_take_rollout_weights(name):
    rollout = torch.rand(B, T, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2
    if name in ("dro", "kl_cov"):
        with pytest.raises(NotImplementedError, match="rollout_is_weights"):
            compare(name, "token-mean", rollout)
    else:
        compare(name, "seq-mean-token-mean", rollout)


def test_losses_say_what_is_wrong():
    arguments, _ = batch(0)
    with pytest.raises(ValueError, match="dro_beta"):
        gv.loss_of("dro")(**arguments, config=config(policy_loss=PolicyLossConfig()))
    with pytest.raises(ValueError, match="loss_agg_mode"):
        gv.loss_of("vanilla")(**arguments, loss_agg_mode="mean", config=config())
    with pytest.raises(ValueError, match="global batch"):
        gv.loss_of("vanilla")(**arguments, config=config(global_batch_info={"dp_size": 2}))


@pytest.mark.parametrize("name", [e.__name__ for e in gv.ESTIMATORS])
@pytest.mark.parametrize("scaled", [True, False])
def test_advantages_are_verls(name, scaled):
    arguments, g = batch(3)
    mask = arguments["response_mask"]
    rewards = torch.zeros(B, T, dtype=torch.float64)
    last = (mask * torch.arange(T)).argmax(-1)
    # Eight of twelve are not zero: verl's gpg divides the two in f32.
    rewards[torch.arange(B), last] = (1 + torch.rand(B, generator=g, dtype=torch.float64)) * (torch.arange(B) % 3 != 0)
    # Out of order; the group "d" has one member, which pass@k refuses and whose deviation is an f32 in verl's grpo.
    alone = name != "grpo_passk" and not (name == "grpo" and scaled)
    index = np.array(list("abcabcabcab") + ["d" if alone else "c"], dtype=object)
    given = dict(token_level_rewards=rewards, response_mask=mask)
    if name == "gae":
        given |= dict(values=torch.randn(B, T, generator=g, dtype=torch.float64), gamma=0.99, lam=0.95)
    else:
        given |= dict(index=index, config=AlgoConfig(gamma=0.99, norm_adv_by_std_in_grpo=scaled))
    if name == "remax":
        given["reward_baselines"] = torch.randn(B, generator=g, dtype=torch.float64)
    if name == "reinforce_plus_plus" or name == "remax":
        given.pop("index")
    theirs = dict(given)
    if name == "grpo":
        theirs |= dict(norm_adv_by_std_in_grpo=scaled)
    want = core_algos.get_adv_estimator_fn(name)(**theirs)
    got = core_algos.get_adv_estimator_fn(f"gradus_{name}")(**given)
    for a, b in zip(got, want):
        assert ((a - b) * mask).abs().max() <= 1e-12 * max(1.0, float(b.abs().max())) and (a * mask).abs().max() > 0
