"""policy.h against numpy, in f64."""

from __future__ import annotations

import ctypes

import numpy as np

from plain.abi import Abi, nans
from plain.oracle import gradient, log_softmax, near, normals, sigmoid

EXACT = 1e-13
CU = np.array([0, 4, 4, 9, 11], np.int64)
T, B = 11, 4
MASK = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1], np.uint8)
SEQ = np.repeat(np.arange(B), np.diff(CU))


def kept(i: int) -> np.ndarray:
    """Tokens of sequence i that count."""
    return np.flatnonzero((SEQ == i) & (MASK != 0))


def check_policy_loss(abi: Abi) -> str:
    """Clipped PPO with a k3 penalty and an entropy bonus, ratios of tokens; gradients by central differences."""
    logp, old, ref, entropy = (normals(i, T) for i in range(4))
    advantage, weight = normals(4, B), np.abs(normals(5, B))
    tokens = np.flatnonzero(MASK)
    a, w = advantage[SEQ], weight[SEQ]

    def loss(x: np.ndarray, h: np.ndarray) -> float:
        r, k = np.exp(x - old), ref - x
        each = -np.minimum(r * a, np.clip(r, 0.8, 1.2) * a) + 0.1 * (np.exp(k) - k - 1) - 0.01 * h
        return float((w * each)[tokens].sum())

    out = dict(loss=ctypes.c_double(np.nan), dlogp=nans(T), dentropy=nans(T), stats=abi.structs["policy_stats"]())
    abi.run(
        "policy_loss",
        logp=logp,
        old_logp=old,
        ref_logp=ref,
        advantage=advantage,
        mask=MASK,
        entropy=entropy,
        cu_seqlens=CU,
        seq_weight=weight,
        settings={"use_kl": 1, "kl_coef": 0.1, "entropy_coef": 0.01},
        **out,
    )
    near("loss", np.array(out["loss"].value), np.array(loss(logp, entropy)), EXACT)
    near("dentropy", out["dentropy"], gradient(lambda h: loss(logp, h), entropy), 1e-8)
    assert out["stats"].n_tokens == len(tokens) and out["stats"].n_empty == 1
    return f"dlogp {near('dlogp', out['dlogp'], gradient(lambda x: loss(x, entropy), logp), 1e-8):.1e}"


def check_group_advantage(abi: Abi) -> str:
    reward, offsets, out = normals(6, 9), np.array([0, 4, 8, 9], np.int64), nans(9)
    reward[2] = np.nan
    groups = (abi.structs["group_stats"] * 3)()
    abi.run("group_advantage", reward=reward, offsets=offsets, advantage=out, groups=groups)
    want = np.zeros(9)
    for low, high in ((0, 4), (4, 8)):
        r = reward[low:high]
        want[low:high] = np.nan_to_num((r - np.nanmean(r)) / (np.nanstd(r, ddof=1) + 1e-4))
    assert [g.scorable for g in groups] == [3, 4, 1] and groups[2].degenerate == 1
    return f"{near('advantage', out, want, EXACT):.1e}"


def check_gae(abi: Abi) -> str:
    reward, value, bootstrap = normals(7, T), normals(8, T), normals(9, B)
    advantage, returns = nans(T), nans(T)
    abi.run(
        "gae",
        reward=reward,
        value=value,
        mask=MASK,
        cu_seqlens=CU,
        bootstrap=bootstrap,
        gamma=0.9,
        gae_lambda=0.8,
        advantage=advantage,
        returns=returns,
    )
    want = np.zeros(T)
    for i in range(B):
        following, running = bootstrap[i], 0.0
        for t in kept(i)[::-1]:
            running = reward[t] + 0.9 * following - value[t] + 0.9 * 0.8 * running
            want[t], following = running, value[t]
    near("returns", returns, np.where(MASK, want + value, 0), EXACT)
    return f"{near('advantage', advantage, want, EXACT):.1e}"


def check_discounted_return(abi: Abi) -> str:
    reward, baseline, out = normals(10, T), normals(11, B), nans(T)
    abi.run("discounted_return", reward=reward, mask=MASK, cu_seqlens=CU, gamma=0.9, baseline=baseline, returns=out)
    want = np.zeros(T)
    for i in range(B):
        running = 0.0
        for t in kept(i)[::-1]:
            running = reward[t] + 0.9 * running
            want[t] = running - baseline[i]
    return f"{near('returns', out, want, EXACT):.1e}"


def check_whiten(abi: Abi) -> str:
    x, y, stats = normals(12, T), nans(T), abi.structs["whiten_stats"]()
    abi.run("whiten", x=x, mask=MASK, shift_mean=0, y=y, stats=stats)
    values = x[MASK != 0]
    want = np.where(MASK, (x - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8) + values.mean(), 0)
    assert stats.count == len(values)
    return f"{near('y', y, want, EXACT):.1e}"


def check_kl_reward(abi: Abi) -> str:
    score, logp, reference, out = normals(13, B), normals(14, T), normals(15, T), nans(T)
    abi.run(
        "kl_reward",
        score=score,
        logp=logp,
        reference=reference,
        mask=MASK,
        cu_seqlens=CU,
        beta=0.2,
        clamp=0.7,
        reward=out,
    )
    want = np.where(MASK, -0.2 * np.clip(logp - reference, -0.7, 0.7), 0)
    for i in range(B):
        if len(kept(i)):
            want[kept(i)[-1]] += score[i]
    return f"{near('reward', out, want, EXACT):.1e}"


def check_offpolicy_weight(abi: Abi) -> str:
    """TRL's sequence mask with a cap, and statistics of the ratios."""
    old, sampler, out = normals(16, T), normals(17, T), nans(T)
    stats = abi.structs["offpolicy_stats"]()
    abi.run(
        "offpolicy_weight",
        old_logp=old,
        sampler_logp=sampler,
        mask=MASK,
        cu_seqlens=CU,
        max=2.0,
        weight=out,
        stats=stats,
    )
    want, ratios = np.zeros(T), []
    for i in range(B):
        ratio = np.exp((old - sampler)[kept(i)].sum())
        want[kept(i)] = ratio if ratio <= 2.0 else 0.0
        ratios += [ratio] * len(kept(i))
    near("mean", np.array(stats.mean), np.array(np.mean(ratios)), EXACT)
    assert stats.tokens == len(ratios) and stats.dropped == sum(r > 2.0 for r in ratios)
    return f"{near('weight', out, want, EXACT):.1e}"


def check_value_loss(abi: Abi) -> str:
    value, returns, old = normals(18, T), normals(19, T), normals(20, T)
    loss, dvalue = ctypes.c_double(np.nan), nans(T)
    abi.run(
        "value_loss",
        value=value,
        returns=returns,
        old_value=old,
        mask=MASK,
        clip=0.3,
        weight=0.25,
        loss=loss,
        dvalue=dvalue,
    )
    f = lambda v: (
        0.25 * (MASK * 0.5 * np.maximum((v - returns) ** 2, (old + np.clip(v - old, -0.3, 0.3) - returns) ** 2)).sum()
    )
    near("loss", np.array(loss.value), np.array(f(value)), EXACT)
    return f"{near('dvalue', dvalue, gradient(f, value), 1e-8):.1e}"


def check_preference_loss(abi: Abi) -> str:
    p, beta = 5, 0.3
    chosen, rejected, ref_c, ref_r = (normals(21 + i, p) * 3 for i in range(4))
    weight = np.abs(normals(25, p))
    d = lambda c: beta * ((c - ref_c) - (rejected - ref_r))
    kinds = {
        "DPO": lambda c: -np.log(sigmoid(d(c))),
        "HINGE": lambda c: np.maximum(0, 1 - d(c)),
        "IPO": lambda c: (d(c) / beta - 1 / (2 * beta)) ** 2,
        "APO_ZERO": lambda c: 1 - sigmoid(beta * (c - ref_c)) + sigmoid(beta * (rejected - ref_r)),
    }
    worst = 0.0
    for kind, f in kinds.items():
        loss, dc, dr, total = nans(p), nans(p), nans(p), nans(1)
        abi.run(
            "preference_loss",
            logp_chosen=chosen,
            logp_rejected=rejected,
            reference_chosen=ref_c,
            reference_rejected=ref_r,
            kind=kind,
            beta=beta,
            weight=weight,
            loss=loss,
            dlogp_chosen=dc,
            dlogp_rejected=dr,
            total=total,
        )
        near(f"{kind} total", total, np.array([(weight * f(chosen)).sum()]), EXACT)
        near(f"{kind} dlogp", dc, gradient(lambda c: (weight * f(c)).sum(), chosen), 1e-7)
        worst = max(worst, near(kind, loss, f(chosen), EXACT))
    return f"{worst:.1e}"


def check_kto_loss(abi: Abi) -> str:
    logp, reference, good = normals(30, 6), normals(31, 6), np.array([1, 0, 1, 1, 0, 0], np.uint8)
    loss, dlogp, total = nans(6), nans(6), nans(1)
    abi.run(
        "kto_loss",
        logp=logp,
        reference=reference,
        desirable=good,
        beta=0.3,
        kl=0.2,
        desirable_weight=1.5,
        loss=loss,
        dlogp=dlogp,
        total=total,
    )
    z = lambda x: 0.3 * (x - reference - 0.2)
    f = lambda x: np.where(good, 1.5 * (1 - sigmoid(z(x))), 1 - sigmoid(-z(x)))
    near("total", total, np.array([f(logp).mean()]), EXACT)
    near("dlogp", dlogp, gradient(lambda x: f(x).mean(), logp), 1e-8)
    return f"{near('loss', loss, f(logp), EXACT):.1e}"


def check_copg_loss(abi: Abi) -> str:
    logp, reference, reward, offsets = normals(32, 7), normals(33, 7), normals(34, 7), np.array([0, 4, 7], np.int64)
    loss, dlogp = nans(2), nans(7)
    abi.run(
        "copg_loss", logp=logp, reference=reference, reward=reward, offsets=offsets, beta=0.4, loss=loss, dlogp=dlogp
    )

    def f(x: np.ndarray) -> np.ndarray:
        r, out = reward - 0.4 * (x - reference), []
        for low, high in zip(offsets, offsets[1:]):
            pairs = [(r[i] - r[j]) ** 2 / 0.8 for i in range(low, high) for j in range(low, high) if i != j]
            out.append(np.mean(pairs))
        return np.array(out)

    near("dlogp", dlogp, gradient(lambda x: f(x).mean(), logp), 1e-8)
    return f"{near('loss', loss, f(logp), 1e-12):.1e}"


def check_beta_mml_loss(abi: Abi) -> str:
    logp, offsets, loss, dlogp = normals(35, 7), np.array([0, 4, 7], np.int64), nans(2), nans(7)
    abi.run("beta_mml_loss", logp=logp, offsets=offsets, beta=0.5, loss=loss, dlogp=dlogp)
    f = lambda x: np.array([-2 * np.log(np.exp(0.5 * x[a:b]).sum()) for a, b in zip(offsets, offsets[1:])])
    near("dlogp", dlogp, gradient(lambda x: f(x).mean(), logp), 1e-8)
    return f"{near('loss', loss, f(logp), EXACT):.1e}"


def check_info_nce_loss(abi: Abi) -> str:
    logp, length, loss, dlogp = normals(36, 4, 4), np.array([2, 1, 3, 5], np.int64), nans(1), nans((4, 4))
    abi.run("info_nce_loss", logp=logp, length=length, loss=loss, dlogp=dlogp)
    f = lambda x: -(np.trace(log_softmax(x / length)) + np.trace(log_softmax((x / length).T))) / 8
    near("dlogp", dlogp, gradient(f, logp), 1e-8)
    return f"{near('loss', loss, np.array([f(logp)]), EXACT):.1e}"


def check_prdp_loss(abi: Abi) -> str:
    logp, old, reference, reward = normals(37, T), normals(38, T), normals(39, T), normals(40, B)
    pairs, loss, dlogp = np.array([[0, 2], [3, 0], [2, 3]], np.int64), nans(3), nans(T)
    abi.run(
        "prdp_loss",
        logp=logp,
        old=old,
        reference=reference,
        mask=MASK,
        cu_seqlens=CU,
        reward=reward,
        pairs=pairs,
        beta=0.5,
        clip=0.6,
        loss=loss,
        dlogp=dlogp,
    )

    def f(x: np.ndarray) -> np.ndarray:
        free = np.array([(x - reference)[kept(i)].sum() for i in range(B)])
        bound = np.array([(np.clip(x, old - 0.6, old + 0.6) - reference)[kept(i)].sum() for i in range(B)])
        gap = [(reward[i] - reward[j]) / 0.5 for i, j in pairs]
        return np.array([max((s[i] - s[j] - g) ** 2 for s in (free, bound)) for (i, j), g in zip(pairs, gap)])

    near("dlogp", dlogp, gradient(lambda x: f(x).mean(), logp), 1e-7)
    return f"{near('loss', loss, f(logp), 1e-12):.1e}"


def check_seq_reduce(abi: Abi) -> str:
    x, worst = normals(41, T), 0.0
    for reduction, f, empty in (
        ("SUM", np.sum, 0),
        ("MEAN", np.mean, 0),
        ("MAX", np.max, -np.inf),
        ("MIN", np.min, np.inf),
    ):
        y, count = nans(B), nans(B, np.int64)
        abi.run("seq_reduce", x=x, mask=MASK, cu_seqlens=CU, reduction=reduction, y=y, count=count)
        want = np.array([f(x[kept(i)]) if len(kept(i)) else empty for i in range(B)])
        finite = np.isfinite(want)
        assert (y[~finite] == want[~finite]).all() and (count == [len(kept(i)) for i in range(B)]).all()
        worst = max(worst, near(reduction, y[finite], want[finite], EXACT))
    return f"{worst:.1e}"


def check_seq_broadcast(abi: Abi) -> str:
    x, y = normals(42, B), nans(T)
    abi.run("seq_broadcast", x=x, mask=MASK, cu_seqlens=CU, mean=1, y=y)
    want = np.where(MASK, [x[i] / max(len(kept(i)), 1) for i in SEQ], 0)
    return f"{near('y', y, want, EXACT):.1e}"


def check_quantile(abi: Abi) -> str:
    x, y, one = normals(43, T), nans(B), nans(1)
    abi.run("quantile", x=x, mask=MASK, cu_seqlens=CU, q=0.3, y=y)
    abi.run("quantile", x=x, q=0.8, method="LOWER", y=one)
    near("all", one, np.array([np.quantile(x, 0.8, method="lower")]), 0)
    want = np.array([np.quantile(x[kept(i)], 0.3) if len(kept(i)) else np.nan for i in range(B)])
    return f"{near('y', y, want, EXACT):.1e}"


def check_top_fraction(abi: Abi) -> str:
    """x >= threshold, the threshold being the quantile of 1 - fraction."""
    x, keep, threshold = normals(44, T), nans(T, np.uint8), nans(1)
    abi.run("top_fraction", x=x, fraction=0.25, keep=keep, threshold=threshold)
    want = (x >= threshold[0]).astype(np.uint8)
    assert (keep == want).all() and abs(keep.sum() - 0.25 * T) < 1, keep
    classes, own = (np.arange(T) % 3).astype(np.uint8), nans(T, np.uint8)
    abi.run("top_fraction", x=x, class_ids=classes, ranked=1, others=1, fraction=0.5, keep=own)
    assert (own[classes != 1] == 1).all() and 0 < own[classes == 1].sum() < (classes == 1).sum()
    return f"{int(keep.sum())} of {T} kept"
