"""vocabulary.h against numpy. Logits are f64; log-probs are stored as f32."""

from __future__ import annotations

import numpy as np

from plain.abi import Abi, nans
from plain.oracle import gradient, log_softmax, near, normals

ULP = 1.2e-7  # of a stored f32
T, V, H = 5, 17, 12
SETTINGS = {"temperature": 0.7, "scale": 1.3, "softcap": 4.0}


def transformed(x: np.ndarray) -> np.ndarray:
    return 4.0 * np.tanh(1.3 * x / 4.0) / 0.7


def operands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits with three columns that do not exist, and targets, one of them left out."""
    logits = np.concatenate([normals(seed, T, V) * 2, np.full((T, 3), np.nan)], 1)
    return logits, np.array([0, 16, -100, 5, 9], np.int32)


def statistics(x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logp, lse and entropy of rows."""
    z = transformed(x)
    p = log_softmax(z)
    logp = np.where(targets < 0, 0, p[np.arange(len(z)), np.maximum(targets, 0)])
    return logp, z[:, 0] - p[:, 0], -(np.exp(p) * p).sum(1)


def check_logprob(abi: Abi) -> str:
    x, targets = operands(1)
    common = dict(logits=x, targets=targets, vocab=V, transform=SETTINGS)
    out = {name: nans(T, np.float32) for name in ("logp", "lse", "entropy", "log_sum_sq")}
    top1 = nans(T, np.uint8)
    abi.run("logprob", **common, **out, top1=top1)
    p, on = log_softmax(transformed(x[:, :V])), targets >= 0
    logp, lse, entropy = statistics(x[:, :V], targets)
    near("lse", out["lse"][on], lse[on], ULP)
    assert all((values[~on] == 0).all() for values in (*out.values(), top1))
    near("entropy", out["entropy"][on], entropy[on], ULP)
    near("log_sum_sq", out["log_sum_sq"][on], np.log((np.exp(p) ** 2).sum(1))[on], ULP)
    assert (top1[on] == (p.argmax(1) == targets)[on]).all()
    dlogp, dentropy, dlse = (normals(i, T).astype("f4") for i in (2, 3, 4))
    dentropy[~on] = dlse[~on] = 0
    dx = nans(x.shape)
    abi.run("logprob_bwd", **common, dlogp=dlogp, dentropy=dentropy, dlse=dlse, dlogits=dx)
    f = lambda x: sum((g * s).sum() for g, s in zip((dlogp, dlse, dentropy), statistics(x, targets)))
    assert (dx[:, V:] == 0).all()
    off = near("dlogits", dx[:, :V], gradient(f, x[:, :V]), 1e-7)
    return f"{near('logp', out['logp'], logp, ULP):.1e}, dlogits {off:.1e}"


def check_logprob_fused(abi: Abi) -> str:
    x, targets = operands(5)
    dlogp, logp, dx, own = normals(6, T).astype("f4"), nans(T, np.float32), nans(x.shape), x.copy()
    common = dict(targets=targets, vocab=V, transform=SETTINGS, dlogp=dlogp)
    abi.run("logprob_bwd", logits=x, dlogits=dx, **common)
    abi.run("logprob_fused", logits=own, logp=logp, **common)
    near("logits", own, dx, 1e-15)
    return f"{near('logp', logp, statistics(x[:, :V], targets)[0], ULP):.1e}"


def check_linear_logprob(abi: Abi) -> str:
    hidden, head, targets = normals(7, T, H), normals(8, V + 3, H), operands(1)[1]
    a, b = normals(9, 2, H), normals(10, V + 3, 2)
    common = dict(
        hidden=hidden,
        head=head,
        lora=[abi.struct("lora", a=a, b=b, scale=0.5)],
        targets=targets,
        vocab=V,
        transform=SETTINGS,
    )
    logp, lse, score = nans(T, np.float32), nans(T, np.float32), nans((T, H))
    abi.run("linear_logprob", **common, logp=logp, lse=lse, score=score)
    full = head + 0.5 * b @ a
    f = lambda hidden, full: statistics(hidden @ full[:V].T, targets)
    dlogp = normals(11, T).astype("f4")
    dhidden, scaled, dweight = nans((T, H)), nans((T, H)), np.zeros((V + 3, H), np.float32)
    abi.run("score_scale", score=score, dlogp=dlogp, dhidden=scaled)
    abi.run("linear_logprob_bwd", **common, dlogp=dlogp, dhidden=dhidden, dweight=dweight)
    want = gradient(lambda h: (dlogp * f(h, full)[0]).sum(), hidden)
    near("score_scale", scaled, want, 1e-6)
    near("dhidden", dhidden, want, 1e-6)
    near("dweight", dweight, gradient(lambda w: (dlogp * f(hidden, w)[0]).sum(), full), 1e-6)
    on = targets >= 0
    near("lse", lse[on], f(hidden, full)[1][on], 1e-6)
    return f"{near('logp', logp, f(hidden, full)[0], 1e-6):.1e}"


def check_gather_k(abi: Abi) -> str:
    x, ids = operands(12)[0], np.array([[0, 3, 16], [1, 2, 3], [-100, 5, 7], [9, -100, -100], [4, 8, 12]], np.int32)
    on, rows, worst = ids >= 0, np.arange(T)[:, None], 0.0
    for renormalize in (0, 1):

        def f(x: np.ndarray) -> np.ndarray:
            p = np.where(on, log_softmax(transformed(x))[rows, np.maximum(ids, 0)], -np.inf)
            p = p - np.log(np.exp(p).sum(1, keepdims=True)) if renormalize else p
            return np.where(on, p, 0)

        common = dict(logits=x, ids=ids, vocab=V, transform=SETTINGS, renormalize=renormalize)
        logp, mass, dlogp, dx = (
            nans((T, 3), np.float32),
            nans(T, np.float32),
            normals(13, T, 3).astype("f4"),
            nans(x.shape),
        )
        abi.run("gather_k", **common, logp=logp, mass=mass)
        abi.run("gather_k_bwd", **common, dlogp=dlogp, dlogits=dx)
        full = log_softmax(transformed(x[:, :V]))[rows, np.maximum(ids, 0)]
        near("mass", mass, np.where(on, np.exp(full), 0).sum(1), ULP)
        near("dlogits", dx[:, :V], gradient(lambda x: (dlogp * f(x)).sum(), x[:, :V]), 1e-7)
        worst = max(worst, near("logp", logp, f(x[:, :V]), ULP))
    return f"{worst:.1e}"


def check_top_k(abi: Abi) -> str:
    x = operands(14)[0]
    x[0, 3:9] = x[0, :V].max()  # ties go to the lower ids
    ids = np.full((T, 4), -7, np.int32)
    abi.run("top_k", logits=x, vocab=V, ids=ids)
    want = np.sort(np.argsort(-x[:, :V], axis=1, kind="stable")[:, :4], axis=1)
    assert (ids == want).all(), f"{ids} {want}"
    return "equal"


def check_vocab_kl(abi: Abi) -> str:
    """Every divergence, towards a guided reference."""
    policy, reference, guidance = (operands(20 + i)[0] for i in range(3))
    common = dict(
        policy=policy, reference=reference, guidance=guidance, gamma=1.5, vocab=V, transform=SETTINGS, beta=0.3
    )
    u, r = transformed(guidance[:, :V]), transformed(reference[:, :V])
    p, worst = log_softmax(u + 1.5 * (r - u)), 0.0

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (np.exp(a) * (a - b)).sum(1)

    def mixed(q: np.ndarray) -> np.ndarray:
        m = np.log(0.3 * np.exp(p) + 0.7 * np.exp(q))
        return 0.3 * kl(p, m) + 0.7 * kl(q, m)

    kinds = {
        "FORWARD_KL": lambda q: kl(p, q),
        "REVERSE_KL": lambda q: kl(q, p),
        "JSD": mixed,
        "TOTAL_VARIATION": lambda q: 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(1),
    }
    for kind, f in kinds.items():
        value, dvalue, dx = nans(T, np.float32), normals(23, T).astype("f4"), nans(policy.shape)
        abi.run("vocab_kl", **common, divergence=kind, value=value)
        abi.run("vocab_kl_bwd", **common, divergence=kind, dvalue=dvalue, dpolicy=dx)
        loss = lambda x: (dvalue * f(log_softmax(transformed(x)))).sum()
        near(f"{kind} gradient", dx[:, :V], gradient(loss, policy[:, :V]), 1e-7)
        worst = max(worst, near(kind, value, f(log_softmax(transformed(policy[:, :V]))), 2 * ULP))
    return f"{worst:.1e}"


def check_sample(abi: Abi) -> str:
    """The inverse of the cumulative distribution of what top-k, top-p and min-p keep."""
    x, n = operands(30)[0], 200
    rows, uniform = np.repeat(x[:1], n, 0), np.linspace(0, 1, n, endpoint=False)
    p = np.exp(log_softmax(transformed(x[0, :V])))
    order = np.argsort(-p, kind="stable")
    kept = order[:9]
    share = np.cumsum(p[kept]) / p[kept].sum()
    kept = kept[: np.searchsorted(share, 0.9) + 1]
    kept = np.sort(kept[p[kept] >= 0.05 * p.max()])
    token, logp, logp_kept, mass = nans(n, np.int32), *(nans(n, np.float32) for _ in range(3))
    abi.run(
        "sample",
        logits=rows,
        vocab=V,
        transform=SETTINGS,
        top_k=9,
        top_p=0.9,
        min_p=0.05,
        uniform=uniform,
        token=token,
        logp=logp,
        logp_kept=logp_kept,
        kept_mass=mass,
    )
    cumulated = np.cumsum(p[kept])
    want = kept[np.searchsorted(cumulated, uniform * cumulated[-1], side="right")]
    assert (token == want).all(), "other tokens"
    near("kept_mass", mass, np.full(n, cumulated[-1]), ULP)
    near("logp_kept", logp_kept, np.log(p[want] / cumulated[-1]), 4 * ULP)
    return f"{near('logp', logp, np.log(p[want]), ULP):.1e}, {len(kept)} tokens kept"
