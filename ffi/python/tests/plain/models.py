"""A decoder of the library's ops, written in numpy, against transformers and PEFT."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from plain.abi import Abi, Tensors, nans, to_bf16, widen

F32 = np.float32
LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def config_of(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


class Linear:
    """Y = X W^T + b, dense or 4-bit, with its adapter. Backward keeps what PEFT trains: A and B.

    `as_bnb`: with the roundings of bitsandbytes' inference kernel for CPUs with AVX-512 bf16, whatever its
    compute dtype says: codes, maxima, inputs and outputs are bf16, sums f32.
    """

    def __init__(
        self, abi: Abi, weights: Tensors, adapter: Tensors | None, name: str, scale: float, as_bnb: bool
    ) -> None:
        self.abi, self.name, self.bias, self.as_bnb = abi, name, weights.get(f"{name}.bias"), as_bnb
        self.packed = next((key for key in weights if key.startswith(f"{name}.weight.quant_state.")), None) is not None
        self.w = quantized(abi, weights, f"{name}.weight") if self.packed else weights[f"{name}.weight"]
        self.n, self.k = (self.w.n, self.w.k) if self.packed else self.w.shape
        if as_bnb and self.packed:
            self.w = rounded_parts(abi, self.w)
        self.lora: Any = None
        key = f"base_model.model.{name}.lora_{{}}.weight"
        if adapter is not None and key.format("A") in adapter:
            self.a, self.b = adapter[key.format("A")], adapter[key.format("B")]
            self.lora = [abi.struct("lora", a=self.a, b=self.b, scale=scale)]
            self.da, self.db = np.zeros_like(self.a), np.zeros_like(self.b)

    def forward(self, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        if self.as_bnb and self.packed:
            return self.forward_as_bnb(x, residual)
        self.x, y = x, nans((len(x), self.n), F32)
        self.s = nans((len(x), len(self.a)), F32) if self.lora else None
        op = "nf4_matmul" if self.packed else "matmul"
        self.abi.run(op, x=x, w=self.w, bias=self.bias, lora=self.lora, s=self.s, residual=residual, y=y)
        return y

    def forward_as_bnb(self, x: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
        y = nans((len(x), self.n), F32)
        self.abi.run("nf4_matmul", x=round_bf16(x), w=self.w, y=y)
        y = round_bf16(y)
        y = y if self.bias is None else y + self.bias
        return y if residual is None else y + residual

    def backward(self, dy: np.ndarray, dx: np.ndarray | None = None) -> np.ndarray:
        """Adds the adapter's gradients to da and db; adds to dx, or makes it."""
        accumulate = int(dx is not None)
        dx = nans((len(dy), self.k), F32) if dx is None else dx
        op = "nf4_matmul_dx" if self.packed else "matmul_dx"
        self.abi.run(op, dy=dy, w=self.w, lora=self.lora, accumulate=accumulate, dx=dx)
        if self.lora:
            self.abi.run("lora_grad", x=self.x, dy=dy, s=self.s, lora=self.lora[0], da=self.da, db=self.db)
        return dx


def quantized(abi: Abi, weights: Tensors, name: str) -> Any:
    """gradus_nf4 of a checkpoint's entries."""
    import ctypes

    key = next(k for k in weights if k.startswith(f"{name}.quant_state.bitsandbytes__"))
    w, state = abi.structs["nf4"](), weights[key].tobytes()
    abi.check(abi.library.gradus_nf4_parse(state, ctypes.c_size_t(len(state)), ctypes.byref(w)))
    w.keep = {
        part: weights[f"{name}.{part}"]
        for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        if f"{name}.{part}" in weights
    }
    w.packed, w.keep["packed"] = abi.tensor(flat := weights[name].reshape(-1)), flat
    for part in w.keep:
        if part != "packed":
            setattr(w, part, abi.tensor(w.keep[part]))
    return w


def round_bf16(x: np.ndarray) -> np.ndarray:
    return widen(to_bf16(x)).astype(F32)


def rounded_parts(abi: Abi, w: Any) -> Any:
    """The weight with decoded maxima and code book rounded to bf16."""
    keep = {"packed": w.keep["packed"], "absmax": round_bf16(maxima(w)), "quant_map": round_bf16(w.keep["quant_map"])}
    rounded = abi.struct(
        "nf4", **keep, n=w.n, k=w.k, blocksize=w.blocksize, nested_blocksize=w.nested_blocksize, dtype=w.dtype
    )
    rounded.keep = keep
    return rounded


class Norm:
    def __init__(self, abi: Abi, weight: np.ndarray, eps: float) -> None:
        self.abi, self.weight, self.eps = abi, weight, eps

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x, y = x, nans(x.shape, F32)
        self.abi.run("rmsnorm", x=x, weight=self.weight, eps=self.eps, y=y)
        return y

    def backward(self, dy: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        dx = nans(dy.shape, F32)
        self.abi.run("rmsnorm_bwd", x=self.x, weight=self.weight, eps=self.eps, dy=dy, residual=residual, dx=dx)
        return dx


class Decoder:
    """Llama, Qwen2 or Qwen3 of a folder in the format of transformers, f32."""

    def __init__(
        self, abi: Abi, folder: pathlib.Path, adapter: pathlib.Path | None = None, as_bnb: bool = False
    ) -> None:
        self.abi, self.config, self.as_bnb = abi, config_of(folder), as_bnb
        c, self.weights = self.config, Tensors(folder / "model.safetensors")
        tuned = Tensors(adapter / "adapter_model.safetensors") if adapter else None
        scale = lora_scale(adapter, folder) if adapter else 0.0
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.layers = [Layer(self, i, tuned, scale) for i in range(c["num_hidden_layers"])]
        self.norm = Norm(abi, self.weights["model.norm.weight"], c["rms_norm_eps"])
        self.head = self.weights["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
        self.cos, self.sin = self.rotation()
        used = {entry for layer in self.layers for entry in layer.used} | {
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
        }
        assert set(self.weights) <= used, f"{folder}: {sorted(set(self.weights) - used)} are not understood"

    def rotation(self) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin [P, D / 2]."""
        rope = self.config.get("rope_parameters") or {"rope_theta": self.config["rope_theta"], "rope_type": "default"}
        assert rope["rope_type"] == "default", f"rope_type {rope['rope_type']} is not understood"
        half = np.arange(0, self.head_dim, 2) / self.head_dim
        angle = np.arange(self.config["max_position_embeddings"])[:, None] * rope["rope_theta"] ** -half
        return np.cos(angle).astype(F32), np.sin(angle).astype(F32)

    def forward(self, ids: np.ndarray) -> np.ndarray:
        """Hidden states [T, D] of sequences [B, S]."""
        b, s = ids.shape
        self.cu = np.arange(b + 1, dtype=np.int64) * s
        self.positions = np.tile(np.arange(s, dtype=np.int32), b)
        h = nans((b * s, self.config["hidden_size"]), F32)
        self.abi.run(
            "embedding", ids=ids.astype(np.int32).ravel(), table=self.weights["model.embed_tokens.weight"], y=h
        )
        for layer in self.layers:
            h = layer.forward(h)
        return self.norm.forward(h)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        y = nans((len(hidden), len(self.head)), F32)
        self.abi.run("matmul", x=hidden, w=self.head, y=y)
        return y

    def backward(self, dhidden: np.ndarray) -> None:
        dh = self.norm.backward(dhidden)
        for layer in reversed(self.layers):
            dh = layer.backward(dh)

    def gradients(self) -> dict[str, np.ndarray]:
        found = {}
        for linear in (x for layer in self.layers for x in layer.linear.values() if x.lora):
            found[f"{linear.name}.lora_A.weight"], found[f"{linear.name}.lora_B.weight"] = linear.da, linear.db
        return found


class Layer:
    def __init__(self, model: Decoder, i: int, tuned: Tensors | None, scale: float) -> None:
        self.model, self.abi = model, model.abi
        self.prefix, w, eps = f"model.layers.{i}", model.weights, model.config["rms_norm_eps"]
        norm = lambda name: (
            Norm(self.abi, w[f"{self.prefix}.{name}.weight"], eps) if f"{self.prefix}.{name}.weight" in w else None
        )
        self.linear = {
            name: Linear(self.abi, w, tuned, f"{self.prefix}.{name}", scale, model.as_bnb) for name in LINEAR
        }
        self.norms = {
            name: norm(name)
            for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        }
        names = [*LINEAR, *self.norms]
        self.used = {key for key in w if any(key.startswith(f"{self.prefix}.{name}.") for name in names)}

    def forward(self, h: np.ndarray) -> np.ndarray:
        lin, m = self.linear, self.model
        x = self.norms["input_layernorm"].forward(h)
        q, k, v = (lin[f"self_attn.{p}_proj"].forward(x) for p in "qkv")
        self.q, self.k = self.turn(self.headed(q, "q")), self.turn(self.headed(k, "k"))
        self.v = v.reshape(len(h), m.kv_heads, m.head_dim)
        o = nans(self.q.shape, F32)
        self.abi.run("attention", q=self.q, k=self.k, v=self.v, o=o, **self.spans())
        h = lin["self_attn.o_proj"].forward(o.reshape(len(h), -1), residual=h)
        x = self.norms["post_attention_layernorm"].forward(h)
        self.gate, self.up = lin["mlp.gate_proj"].forward(x), lin["mlp.up_proj"].forward(x)
        y = nans(self.gate.shape, F32)
        self.abi.run("swiglu", gate=self.gate, up=self.up, y=y)
        return lin["mlp.down_proj"].forward(y, residual=h)

    def headed(self, x: np.ndarray, name: str) -> np.ndarray:
        """[T, H D] as [T, H, D], each head normed in Qwen3."""
        norm, d = self.norms[f"self_attn.{name}_norm"], self.model.head_dim
        flat = norm.forward(x.reshape(-1, d)) if norm else x
        return flat.reshape(len(x), -1, d)

    def turn(self, x: np.ndarray, inverse: int = 0) -> np.ndarray:
        x = x.copy()
        m = self.model
        self.abi.run("rope", x=x, positions=m.positions, cos=m.cos, sin=m.sin, inverse=inverse)
        return x

    def spans(self) -> dict[str, np.ndarray]:
        cu = self.model.cu
        return dict(cu_seqlens=cu, kv_start=cu[:-1].copy(), kv_len=np.diff(cu))

    def backward(self, dh: np.ndarray) -> np.ndarray:
        lin = self.linear
        dy = lin["mlp.down_proj"].backward(dh)
        dgate, dup = nans(dy.shape, F32), nans(dy.shape, F32)
        self.abi.run("swiglu_bwd", gate=self.gate, up=self.up, dy=dy, dgate=dgate, dup=dup)
        dx = lin["mlp.up_proj"].backward(dup, lin["mlp.gate_proj"].backward(dgate))
        dh = self.norms["post_attention_layernorm"].backward(dx, residual=dh)
        do = lin["self_attn.o_proj"].backward(dh).reshape(self.q.shape)
        dq, dk, dv = (nans(x.shape, F32) for x in (self.q, self.k, self.v))
        self.abi.run("attention_bwd", q=self.q, k=self.k, v=self.v, dout=do, dq=dq, dk=dk, dv=dv, **self.spans())
        dx = lin["self_attn.v_proj"].backward(dv.reshape(len(dh), -1))
        for name, d in (("q", dq), ("k", dk)):
            dx = lin[f"self_attn.{name}_proj"].backward(self.flat(self.turn(d, inverse=1), name), dx)
        return self.norms["input_layernorm"].backward(dx, residual=dh)

    def flat(self, d: np.ndarray, name: str) -> np.ndarray:
        norm = self.norms[f"self_attn.{name}_norm"]
        return (norm.backward(d.reshape(-1, d.shape[-1])) if norm else d).reshape(len(d), -1)


def lora_scale(adapter: pathlib.Path, folder: pathlib.Path) -> float:
    """alpha / r (alpha / sqrt(r) for rsLoRA), from the adapter's config or the golden file's settings."""
    path = adapter / "adapter_config.json"
    settings = (
        json.loads(path.read_text()) if path.exists() else Tensors(folder / "golden_adapter.safetensors").settings
    )
    for odd in ("use_dora", "alpha_pattern", "rank_pattern", "modules_to_save"):
        assert not settings.get(odd), f"{path}: {odd} is not understood"
    rank = settings["r"] ** 0.5 if settings.get("use_rslora") else settings["r"]
    return settings["lora_alpha"] / rank


def distance(model: Decoder, file: Tensors) -> float:
    """Largest difference of logits relative to the largest logit."""
    want = file.f64("logits").reshape(-1, file["logits"].shape[-1])
    got = model.logits(model.forward(file["input_ids"])).astype(np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


def logits_close(model: Decoder, file: Tensors) -> str:
    off = distance(model, file)
    assert off < 1e-5, f"logits off by {off} of their scale"
    return f"logits {off:.1e} of their scale"


def forward_matches(abi: Abi, folder: pathlib.Path) -> str:
    model, file = Decoder(abi, folder), Tensors(folder / "golden_logits.safetensors")
    if not any(linear.packed for layer in model.layers for linear in layer.linear.values()):
        return logits_close(model, file)
    return quantized_matches(model, folder, file)


def quantized_matches(model: Decoder, folder: pathlib.Path, file: Tensors) -> str:
    """A 4-bit checkpoint. In evaluation mode bitsandbytes 0.50 multiplies in bf16 on CPUs that have AVX-512 bf16,
    also where the compute dtype is f32. Such a file is 1e-2 of the logit scale from f32 products of the same
    weights; with the kernel's roundings in place what is left are roundings of sums that fall to the other side."""
    dense = Decoder(model.abi, folder)
    for linear in (x for layer in dense.layers for x in layer.linear.values() if x.packed):
        linear.w, linear.packed = dequantized(linear.w), False
    ids = file["input_ids"]
    packed, plain = (m.logits(m.forward(ids)) for m in (model, dense))
    own = np.abs(packed - plain).max() / np.abs(plain).max()
    assert own < 1e-5, f"4-bit logits are {own} from those of the dequantized weights"
    codes = same_codes(model, folder)
    off = distance(model, file)
    if off < 1e-5:
        return f"logits {off:.1e} of their scale, {codes}"
    as_bnb = distance(Decoder(model.abi, folder, as_bnb=True), file)
    assert as_bnb < 1e-2 and as_bnb < off / 2, f"logits off by {off}, by {as_bnb} with the peer's bf16 roundings"
    return f"{own:.1e} from dequantized weights; the peer multiplied in bf16: {off:.1e}, with its roundings {as_bnb:.1e}; {codes}"


def maxima(w: Any) -> np.ndarray:
    """The decoded maxima."""
    parts, absmax = w.keep, w.keep["absmax"]
    if "nested_absmax" not in parts:
        return absmax
    outer = np.repeat(parts["nested_absmax"], w.nested_blocksize)[: absmax.size]
    return parts["nested_quant_map"][absmax] * outer + F32(w.offset)


def dequantized(w: Any) -> np.ndarray:
    """f32 [n, k] by the rule of the layout."""
    packed = w.keep["packed"]
    nibbles = np.stack([packed >> 4, packed & 15], 1).ravel()[: w.n * w.k]
    values = w.keep["quant_map"][nibbles] * np.repeat(maxima(w), w.blocksize)[: w.n * w.k]
    return values.reshape(w.n, w.k)


def same_codes(model: Decoder, folder: pathlib.Path) -> str:
    """Where the folder of the dense weights is beside this one, its matrices quantize to these codes."""
    beside = folder.parent / folder.name.removesuffix("-bnb-4bit") / "model.safetensors"
    if not beside.exists():
        return "no dense weights beside it"
    weights, count = Tensors(beside), 0
    for linear in (x for layer in model.layers for x in layer.linear.values() if x.packed):
        x, w = weights[f"{linear.name}.weight"], linear.w
        packed, absmax = nans(-(-x.size // 2), np.uint8), nans(-(-x.size // w.blocksize), F32)
        model.abi.run("nf4_quantize", x=x, blocksize=w.blocksize, packed=packed, absmax=absmax)
        assert (packed == w.keep["packed"]).all(), f"{linear.name}: other codes"
        count += 1
    return f"{count} matrices quantize to these codes"


def adapter_matches(abi: Abi, folder: pathlib.Path) -> str:
    """Adapted logits, and the gradient of the mean log-prob of next tokens by every A and B."""
    file = Tensors(folder / "golden_adapter.safetensors")
    model = Decoder(abi, folder, folder / "adapter")
    figure = logits_close(model, file)
    ids = file["input_ids"]
    targets = np.concatenate([ids[:, 1:], np.full((len(ids), 1), -100)], 1).astype(np.int32).ravel()
    hidden = model.forward(ids)
    logp, score, dhidden = nans(len(hidden), F32), nans(hidden.shape, F32), nans(hidden.shape, F32)
    abi.run(
        "linear_logprob", hidden=hidden, head=model.head, targets=targets, vocab=len(model.head), logp=logp, score=score
    )
    dlogp = np.full(len(hidden), 1 / (targets != -100).sum(), F32)
    abi.run("score_scale", score=score, dlogp=dlogp, dhidden=dhidden)
    model.backward(dhidden)
    found, worst = model.gradients(), 0.0
    wanted = [name for name in file if name.startswith("base_model.model.")]
    assert len(wanted) == len(found) > 0, f"{len(wanted)} gradients in the file, {len(found)} here"
    for name in wanted:
        want, got = file.f64(name), found[name.removeprefix("base_model.model.")]
        off = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert off <= 1e-4, f"{name}: off by {off}"
        worst = max(worst, off)
    return f"{figure}, {len(found)} gradients {worst:.1e}"


def models(abi: Abi, folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks of every model in the folder that is in one file. Of models of pictures the crate's tests run the
    language part."""
    for model in sorted(path.parent for path in folder.glob("*/model.safetensors")):
        if model.name.startswith("qwen2_5_vl"):
            continue
        if (model / "golden_logits.safetensors").exists():
            yield f"{model.name} logits", lambda m=model: forward_matches(abi, m)
        if (model / "golden_adapter.safetensors").exists():
            yield f"{model.name} adapter", lambda m=model: adapter_matches(abi, m)
