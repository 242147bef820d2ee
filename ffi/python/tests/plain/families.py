"""Golden files of bitsandbytes, torch, TRL and verl: every setting is read from the file."""

from __future__ import annotations

import ctypes
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from plain.abi import Abi, Bf16, Tensors, max_rel, nans, to_bf16, ulps, widen
from plain.oracle import log_softmax

U32 = 2.0**-24  # unit roundoff of f32


def files(folder: pathlib.Path) -> Iterator[Tensors]:
    return (Tensors(path) for path in sorted(folder.glob("*.safetensors")))


def dtype_of(array: np.ndarray) -> Any:
    return "bf16" if isinstance(array, Bf16) else array.dtype


# ---- nf4 ----------------------------------------------------------------------------------------


def same(name: str, got: np.ndarray, want: np.ndarray) -> None:
    """Equal bit for bit."""
    got, want = np.ascontiguousarray(got).ravel(), np.ascontiguousarray(want).ravel()
    assert got.dtype == want.dtype and got.tobytes() == want.tobytes(), (
        f"{name}: {np.sum(got != want)} of {want.size} differ"
    )


def nf4(abi: Abi, f: Tensors) -> str:
    """Codes, maxima, nested maxima and tables have the bits of bitsandbytes; dequantized values those of the
    layout's rule, and of bitsandbytes wherever rows are whole blocks (docs/LOG.md says why only there)."""
    f.only("weight", "packed", "absmax", "code", "dequantized", "nested_absmax", "nested_code", "offset")
    f.settled("quant_type", "blocksize", "compress_statistics", "nested_blocksize")
    weight, blocksize, quant_type = f["weight"], f.settings["blocksize"], f.settings["quant_type"]
    n, k = weight.shape
    blocks = -(-n * k // blocksize)
    packed, absmax = nans(-(-n * k // 2), np.uint8), nans(blocks, np.float32)
    abi.run("nf4_quantize", x=weight, quant_type=quant_type.upper(), blocksize=blocksize, packed=packed, absmax=absmax)
    same(f"{f.name} packed", packed, f["packed"])
    same(f"{f.name} code", abi.code_book(quant_type), f["code"])
    w = abi.struct(
        "nf4",
        packed=packed,
        quant_map=f["code"],
        n=n,
        k=k,
        blocksize=blocksize,
        nested_blocksize=256,
        dtype=abi.names[
            {"bf16": "GRADUS_BF16", np.dtype("f4"): "GRADUS_F32", np.dtype("f2"): "GRADUS_F16"}[dtype_of(weight)]
        ],
    )
    if "nested_absmax" in f:
        decoded = nested(abi, f, w, absmax)
    else:
        same(f"{f.name} absmax", absmax, f["absmax"])
        w.absmax, decoded = abi.tensor(absmax), absmax
    y = nans((n, k), dtype_of(weight))
    abi.run("nf4_dequantize", w=w, y=y)
    same(
        f"{f.name} dequantized by the rule", y.view(np.ndarray), by_rule(f["code"], packed, decoded, blocksize, weight)
    )
    whole = k % blocksize == 0
    if whole:
        same(f"{f.name} dequantized", y.view(np.ndarray), f["dequantized"].view(np.ndarray))
    return "bits" if whole else "bits; rows are not whole blocks: dequantized by the rule only"


def nested(abi: Abi, f: Tensors, w: Any, absmax: np.ndarray) -> np.ndarray:
    """Double quantization; returns the decoded maxima."""
    group = f.settings["nested_blocksize"]
    assert group == 256, f"{f.name}: bitsandbytes nests 256 maxima, not {group}"
    table, offset = abi.dynamic_map(), ctypes.c_double()
    codes, outer = nans(absmax.size, np.uint8), nans(-(-absmax.size // group), np.float32)
    abi.run(
        "nf4_quantize_absmax", absmax=absmax, nested_quant_map=table, codes=codes, nested_absmax=outer, offset=offset
    )
    same(f"{f.name} offset", np.float32(offset.value), f["offset"][0])
    same(f"{f.name} nested_absmax", outer, f["nested_absmax"])
    same(f"{f.name} nested_code", table, f["nested_code"])
    same(f"{f.name} absmax codes", codes, f["absmax"])
    # `keep` holds what the struct borrows.
    w.keep = (codes, outer, table)
    w.absmax, w.nested_absmax, w.nested_quant_map = map(abi.tensor, w.keep)
    w.offset, w.nested_blocksize = offset.value, group
    return table[codes] * np.repeat(outer, group)[: codes.size] + np.float32(offset.value)


def by_rule(code: np.ndarray, packed: np.ndarray, absmax: np.ndarray, blocksize: int, like: np.ndarray) -> np.ndarray:
    """round(code[nibble] * absmax[block]), one f32 product a value."""
    nibbles = np.stack([packed >> 4, packed & 15], 1).ravel()[: like.size]
    values = code[nibbles] * np.repeat(absmax, blocksize)[: like.size]
    if isinstance(like, Bf16):
        return to_bf16(values).view(np.ndarray).reshape(like.shape)
    return values.astype(like.dtype).reshape(like.shape)


# ---- logprob, divergence ------------------------------------------------------------------------


def logprob(abi: Abi, f: Tensors) -> str:
    f.only("logits", "target", "logprob", "entropy", "grad_logprob", "grad_logits")
    f.settled("temperature", "ignore_index", "scale", "softcap")
    logits, (t, v) = f["logits"], f["logits"].shape
    ignored = f["target"] == f.settings.get("ignore_index", -100)
    targets = np.where(ignored, -100, f["target"]).astype(np.int32)
    common = dict(logits=logits, targets=targets, vocab=v, transform=f.transform())
    logp, lse, entropy = nans(t, np.float32), nans(t, np.float32), nans(t, np.float32)
    abi.run("logprob", **common, logp=logp, lse=lse, entropy=entropy)
    dlogits = nans((t, v), dtype_of(logits))
    abi.run("logprob_bwd", **common, dlogp=f.f64("grad_logprob").astype(np.float32), dlogits=dlogits)
    assert (logp[ignored] == 0).all() and (widen(dlogits)[ignored] == 0).all(), f"{f.name}: ignored targets"
    kept, want = ~ignored, f.f64("logprob")
    scale = np.maximum(np.abs(want), np.abs(lse))[kept]
    off = [ulps(logp[kept], want[kept], scale), ulps(entropy[kept], f.f64("entropy")[kept], scale)]
    assert max(off) <= 4.0, f"{f.name}: logp and entropy are off by {off} ulp"
    gradient_close(
        f, widen(dlogits)[kept], f.f64("grad_logits")[kept], isinstance(logits, Bf16), logits.dtype == np.float16
    )
    return f"logp {off[0]:.2f} ulp, entropy {off[1]:.2f} ulp"


def gradient_close(f: Tensors, got: np.ndarray, want: np.ndarray, is_bf16: bool, is_f16: bool) -> None:
    """The peer's own gradient is f32, ours is rounded to the logits' dtype: a unit of it for each."""
    unit = 2.0**-8 if is_bf16 else 2.0**-11 if is_f16 else 4 * U32
    largest = np.abs(want).max(axis=1, keepdims=True)
    bound = np.maximum(unit * np.maximum(np.abs(want), largest * 2.0**-16), 4 * U32 * largest)
    if is_f16:
        bound = np.maximum(bound, 2.0**-24)  # the smallest subnormal
    assert (np.abs(got - want) <= bound).all(), f"{f.name}: gradient off by {np.max(np.abs(got - want) / bound)} bounds"


def divergence(abi: Abi, f: Tensors) -> str:
    f.only("policy_logits", "ref_logits", "divergence", "grad_policy_logits")
    f.settled("kind", "beta", "temperature", "scale", "softcap")
    name, beta = re.fullmatch(r"(forward_kl|reverse_kl|jsd|total_variation)(?:_([\d.]+))?", f.settings["kind"]).groups()
    v, rows = f["policy_logits"].shape[1], f["policy_logits"].shape[0]
    common = dict(
        vocab=v,
        divergence=name.upper(),
        beta=float(f.settings.get("beta", beta or 0.5)),
        transform=f.transform(),
    )
    worst = [0.0, 0.0]
    for read in (f.__getitem__, f.f64) if abi.device == "cpu" else (f.__getitem__,):
        common |= dict(policy=read("policy_logits"), reference=read("ref_logits"))
        value, gradient = nans(rows, np.float32), nans((rows, v), dtype_of(common["policy"]))
        abi.run("vocab_kl", **common, value=value)
        abi.run("vocab_kl_bwd", **common, dvalue=np.ones(rows, np.float32), dpolicy=gradient)
        want, slope = f.f64("divergence"), f.f64("grad_policy_logits")
        off = ulps(value, want, want)
        assert off <= 4.0, f"{f.name}: {off} ulp"
        error, steep = np.abs(widen(gradient) - slope), float(np.max(np.abs(slope)))
        # The peer's gradient is stored in f32.
        limit = 4 * U32 * steep if abi.device == "cpu" else gpu_limit(f, want)
        assert (error < limit).all(), f"{f.name}: gradient off by {error.max() / steep}"
        steep = float(error.max() / steep)
        worst = [max(worst[0], off), max(worst[1], steep)]
    return f"{worst[0]:.2f} ulp, gradient {worst[1]:.1e}"


def gpu_limit(f: Tensors, value: np.ndarray) -> np.ndarray:
    """GPU kernels compute rows in f32: gradients within 2^-20 of what they are a difference of."""
    t = f.settings.get("temperature", 1.0)
    q, p = log_softmax(f.f64("policy_logits") / t), log_softmax(f.f64("ref_logits") / t)
    return 2.0**-20 / t * (np.exp(q) + np.exp(p)) * (1 + np.abs(q - p) + np.abs(value)[:, None])


# ---- trl, verl ----------------------------------------------------------------------------------


class Batch:
    """[B, T] padded rows as packed sequences of full width, the mask left in place."""

    def __init__(self, abi: Abi, f: Tensors) -> None:
        self.abi, self.f = abi, f
        self.b, self.t = f["logprob"].shape
        self.mask = (f.f64("mask") != 0).astype(np.uint8)
        self.lengths = self.mask.sum(1).astype(np.int64)

    def column(self, name: str) -> np.ndarray | None:
        return self.f.f64(name).ravel() if name in self.f else None

    def run(self, settings: Any, weights: np.ndarray) -> dict[str, Any]:
        n = self.b * self.t
        advantage = self.column("advantage")
        out = dict(
            loss=ctypes.c_double(np.nan), dlogp=nans(n), token_loss=nans(n), stats=self.abi.structs["policy_stats"]()
        )
        old = self.column("old_logprob")
        self.abi.run(
            "policy_loss",
            logp=self.column("logprob"),
            old_logp=self.column("logprob") if old is None else old,
            ref_logp=self.column("ref_logprob"),
            sampler_logp=self.column("sampling_logprob"),
            advantage=np.zeros(n) if advantage is None else advantage,
            advantage_level="PER_SEQUENCE" if advantage is not None and advantage.size == self.b < n else "PER_TOKEN",
            mask=self.mask.ravel(),
            cu_seqlens=np.arange(self.b + 1, dtype=np.int64) * self.t,
            seq_weight=weights,
            settings=settings,
            **out,
        )
        assert out["stats"].n_tokens == self.lengths.sum(), f"{self.f.name}: {out['stats'].n_tokens} tokens"
        return out

    def matches(self, out: dict[str, Any]) -> str:
        want = float(self.f.f64("loss").ravel()[0])
        off = abs(out["loss"].value - want) / max(abs(want), 1e-3)
        assert off < 1e-6, f"{self.f.name}: loss {out['loss'].value} against {want}"
        want = self.f.f64("grad_logprob").ravel()
        rel = max_rel(out["dlogp"], want, 1e-4 * np.abs(want).max())
        assert rel < 1e-6, f"{self.f.name}: gradient off by {rel}"
        return f"loss {off:.1e}, gradient {rel:.1e}"


ARRAYS = ("advantage", "grad_logprob", "logprob", "loss", "mask", "old_logprob", "ref_logprob", "sampling_logprob")


def trl(abi: Abi, f: Tensors) -> str:
    s = f.settings
    f.only(*ARRAYS)
    f.settled(
        "loss_type",
        "importance_sampling_level",
        "beta",
        "delta",
        "use_bias_correction_kl",
        "off_policy_mask_threshold",
        "epsilon_low",
        "epsilon_high",
        "max_completion_length",
        "sapo_temperature_pos",
        "sapo_temperature_neg",
        "vespo",
    )
    settings, aggregation, empty, value = abi.preset(f"trl/{s['loss_type']}", s["max_completion_length"])
    loss = settings.loss
    if loss == abi.names["GRADUS_PPO_CLIP"]:
        settings.lo, settings.hi = 1 - s["epsilon_low"], 1 + s["epsilon_high"]
        settings.dual = dual_of(s)
    elif loss == abi.names["GRADUS_CISPO"]:
        settings.hi = s["epsilon_high"]
    elif loss == abi.names["GRADUS_SAPO"]:
        # TRL builds the temperatures as an f32 tensor.
        settings.tau_pos, settings.tau_neg = (
            float(np.float32(s[f"sapo_temperature_{sign}"])) for sign in ("pos", "neg")
        )
    elif loss == abi.names["GRADUS_VESPO"]:
        vespo = s["vespo"]
        settings.kappa_pos, settings.lambda_pos = vespo["k_pos"], vespo["lambda_pos"]
        settings.kappa_neg, settings.lambda_neg = vespo["k_neg"], vespo["lambda_neg"]
    if s["importance_sampling_level"] == "sequence":
        settings.ratio = abi.names["GRADUS_RATIO_SEQUENCE_MEAN"]
    if s["beta"] > 0:
        settings.use_kl, settings.kl_coef = 1, s["beta"]
        settings.kl_weight = abi.names[
            "GRADUS_KL_WEIGHT_RATIO" if s["use_bias_correction_kl"] else "GRADUS_KL_WEIGHT_ONE"
        ]
    if s["off_policy_mask_threshold"] is not None:
        settings.opsm = s["off_policy_mask_threshold"]
    batch = Batch(abi, f)
    return batch.matches(batch.run(settings, abi.weights(aggregation, empty, value, batch.lengths)))


def dual_of(s: dict[str, Any]) -> float:
    return np.inf if s["delta"] is None else s["delta"]


AGGREGATIONS = {
    "token-mean": "TOKEN_MEAN",
    "token-sum": "TOKEN_SUM",
    "seq-mean-token-sum": "SEQUENCE_MEAN_TOKEN_SUM",
    "seq-mean-token-mean": "SEQUENCE_MEAN_TOKEN_MEAN",
    "seq-mean-token-sum-norm": "CONSTANT",
}


def verl(abi: Abi, f: Tensors) -> str:
    s = f.settings
    f.only(*ARRAYS)
    f.settled(
        "loss",
        "loss_agg_mode",
        "clip_ratio_low",
        "clip_ratio_high",
        "clip_ratio_c",
        "tau_pos",
        "tau_neg",
        "dro_beta",
        "loss_scale_factor",
    )
    batch = Batch(abi, f)
    settings, aggregation, empty, value = abi.preset(f"verl/{s['loss']}", batch.t)
    low, high, loss = s["clip_ratio_low"], s["clip_ratio_high"], settings.loss
    is_ = lambda *names: loss in [abi.names[f"GRADUS_{name}"] for name in names]
    if is_("PPO_CLIP", "CISPO"):
        settings.lo, settings.hi = 1 - low, 1 + high
    elif is_("GMPO", "DPPO_TV", "DPPO_KL"):
        settings.lo, settings.hi = low, high
    if s["loss"] == "vanilla":
        settings.dual = s["clip_ratio_c"]
    elif is_("DPPO_TV", "DPPO_KL"):
        settings.cap = s["clip_ratio_c"]
    elif is_("SAPO"):
        settings.tau_pos, settings.tau_neg = s["tau_pos"], s["tau_neg"]
    elif is_("DRO") and "dro_beta" in s:
        settings.dro_beta = s["dro_beta"]
    # geo_mean and sapo fix their aggregation, whatever the setting says.
    if s["loss"] not in ("geo_mean", "sapo"):
        aggregation, empty = abi.names[f"GRADUS_{AGGREGATIONS[s['loss_agg_mode']]}"], 0
        value = s.get("loss_scale_factor") or batch.t
    return batch.matches(batch.run(settings, abi.weights(aggregation, empty, value, batch.lengths)))


KINDS = {"kl": "K1", "k1": "K1", "abs": "KL_ABS", "mse": "K2", "k2": "K2", "low_var_kl": "K3", "k3": "K3"}


def verl_kl(abi: Abi, f: Tensors) -> str:
    """verl's k3 clamps k to +-20 and the value to +-10; a trailing + takes k2's gradient."""
    f.only("grad_logprob", "kl", "logprob", "mask", "ref_logprob")
    f.settled("kind")
    kind = f.settings["kind"]
    estimator = KINDS[kind.rstrip("+")]
    clamp = {"kl_clamp_in": 20.0, "kl_clamp_out": 10.0} if estimator == "K3" else {}
    settings = {
        "use_kl": 1,
        "kl_estimator": estimator,
        "kl_coef": 1.0,
        **clamp,
        "kl_gradient": "KL_GRADIENT_K2" if kind.endswith("+") else "KL_GRADIENT_SAME",
    }
    batch = Batch(abi, f)
    out = batch.run(settings, abi.weights(abi.names["GRADUS_TOKEN_SUM"], 0, 0.0, batch.lengths))
    off = [
        max_rel(out[got], f.f64(want).ravel() * batch.mask.ravel(), 1e-9)
        for got, want in (("token_loss", "kl"), ("dlogp", "grad_logprob"))
    ]
    assert max(off) < 1e-6, f"{f.name}: values and gradients off by {off}"
    return f"value {off[0]:.1e}, gradient {off[1]:.1e}"


# ---- verl_adv -----------------------------------------------------------------------------------


class Advantages:
    """verl's padded [rows, cols] as packed sequences, so that its padding becomes masked tokens."""

    def __init__(self, abi: Abi, f: Tensors) -> None:
        self.abi, self.f = abi, f
        self.rows, self.cols = f["mask"].shape
        self.mask = (f.f64("mask") != 0).astype(np.uint8)
        self.packed = dict(mask=self.mask.ravel(), cu_seqlens=np.arange(self.rows + 1, dtype=np.int64) * self.cols)

    def group(self, **settings: Any) -> np.ndarray:
        """Advantages of the file's scores, in its order: groups are brought together and taken apart."""
        ids = self.f["group"]
        order = np.argsort(ids, kind="stable")
        sizes = np.unique(ids, return_counts=True)[1]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        out, length = nans(self.rows), self.mask.sum(1).astype(np.int64)[order]
        self.abi.run(
            "group_advantage",
            reward=self.f.f64("score")[order],
            offsets=offsets,
            length=length,
            advantage=out,
            eps=self.f.settings.get("epsilon", 1e-6),
            on_single="SINGLE_RAW",
            ddof=self.f.settings.get("ddof", 1),
            **settings,
        )
        back = np.empty(self.rows)
        back[order] = out
        return back

    def on_tokens(self, value: np.ndarray) -> np.ndarray:
        return value[:, None] * self.mask

    def returns(self, gamma: float, baseline: np.ndarray | None = None) -> np.ndarray:
        """Tokens outside the mask are passed over, as verl 0.9.1 does."""
        out = nans(self.rows * self.cols)
        self.abi.run(
            "discounted_return",
            reward=self.f.f64("token_reward").ravel(),
            gamma=gamma,
            baseline=baseline,
            returns=out,
            **self.packed,
        )
        return out.reshape(self.rows, self.cols)

    def whiten(self, x: np.ndarray) -> np.ndarray:
        out = nans(x.size)
        self.abi.run("whiten", x=np.ascontiguousarray(x).ravel(), mask=self.packed["mask"], count_eps=1e-8, y=out)
        return out.reshape(x.shape)

    def gae(self) -> tuple[np.ndarray, np.ndarray]:
        s, shape = self.f.settings, (self.rows, self.cols)
        advantage, returns = nans(self.mask.size), nans(self.mask.size)
        self.abi.run(
            "gae",
            reward=self.f.f64("token_reward").ravel(),
            value=self.f.f64("value").ravel(),
            gamma=s["gamma"],
            gae_lambda=s["lam"],
            advantage=advantage,
            returns=returns,
            **self.packed,
        )
        advantage = advantage.reshape(shape)
        return (self.whiten(advantage) if s.get("whitened", True) else advantage), returns.reshape(shape)


def verl_adv(abi: Abi, f: Tensors) -> str:
    f.only("advantage", "returns", "mask", "group", "score", "token_reward", "value", "baseline")
    f.settled("gamma", "lam", "whitened", "group_size", "epsilon", "ddof", "norm_adv_by_std_in_grpo")
    name = re.search(r"'(\w+)'", f.call)[1]
    a, gamma = Advantages(abi, f), f.settings.get("gamma", 1.0)
    scaled = f.settings.get("norm_adv_by_std_in_grpo", True)
    groups = {
        "grpo": dict(scale="SCALE_GROUP_STD" if scaled else "SCALE_NONE"),
        "grpo_nostd": dict(scale="SCALE_NONE"),
        "rloo": dict(scale="SCALE_NONE", baseline="BASELINE_LEAVE_ONE_OUT"),
        "opo": dict(scale="SCALE_NONE", baseline="BASELINE_LENGTH_WEIGHTED"),
        "gpg": dict(scale="SCALE_NONZERO_SHARE"),
        "grpo_passk": dict(scale="SCALE_GROUP_STD" if scaled else "SCALE_NONE", baseline="BASELINE_MAX2"),
    }
    if name in groups:
        advantage = returns = a.on_tokens(a.group(**groups[name]))
    elif name == "reinforce_plus_plus":
        returns = a.returns(gamma)
        advantage = a.whiten(returns)
    elif name == "reinforce_plus_plus_baseline":
        advantage = returns = a.whiten(a.on_tokens(a.group(scale="SCALE_NONE")))
    elif name == "remax":
        returns, advantage = a.returns(1.0), a.returns(1.0, f.f64("baseline"))
    elif name == "gae":
        advantage, returns = a.gae()
    else:
        raise AssertionError(f"{f.path}: estimator {name} is not understood")
    kept, off = a.mask != 0, []
    for got, want in ((advantage, "advantage"), (returns, "returns")):
        # Outside the mask we write 0; verl leaves what its formula happens to give.
        assert (got[~kept] == 0).all(), f"{f.name} {want}: not 0 outside the mask"
        off.append(max_rel(got[kept], f.f64(want)[kept], 1e-3))
    limit = 2.0**-23 if rounded_by_peer(name, f) else 1e-12
    assert max(off) < limit, f"{f.name}: off by {off}"
    return f"advantage {off[0]:.1e}, returns {off[1]:.1e}"


def rounded_by_peer(name: str, f: Tensors) -> bool:
    """Whether verl has an f32 in its f64: gpg's share of rewards that are not zero where it is no binary
    fraction, grpo's deviation of 1 + epsilon of a group of one."""
    share = len(f["group"]) / max(np.count_nonzero(f.f64("score")), 1)
    return (name == "gpg" and share != np.float32(share)) or (
        name == "grpo" and 1 in np.unique(f["group"], return_counts=True)[1]
    )


FAMILIES = {
    "nf4": nf4,
    "logprob": logprob,
    "divergence": divergence,
    "trl": trl,
    "verl": verl,
    "verl_kl": verl_kl,
    "verl_adv": verl_adv,
}
