"""matrix.h against numpy. Dense ops run in f64, so that rounding hides nothing."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from plain.abi import Abi, bf16, nans, to_bf16, widen
from plain.oracle import gradient, near, normals, sigmoid

EXACT = 1e-13


def weight(abi: Abi, seed: int, n: int, k: int, blocksize: int = 32) -> tuple[Any, np.ndarray]:
    """A 4-bit matrix and its values in f64."""
    x = normals(seed, n, k).astype(np.float32)
    packed, absmax = nans(-(-n * k // 2), np.uint8), nans(-(-n * k // blocksize), np.float32)
    abi.run("nf4_quantize", x=x, blocksize=blocksize, packed=packed, absmax=absmax)
    code = abi.code_book("nf4")
    w = abi.struct(
        "nf4",
        packed=packed,
        absmax=absmax,
        quant_map=code,
        n=n,
        k=k,
        blocksize=blocksize,
        nested_blocksize=256,
        dtype=abi.names["GRADUS_F32"],
    )
    w.keep = (packed, absmax, code)
    nibbles = np.stack([packed >> 4, packed & 15], 1).ravel()[: n * k]
    return w, (code[nibbles] * np.repeat(absmax, blocksize)[: n * k]).astype(np.float64).reshape(n, k)


class Adapted:
    """Operands of a product with two adapters and a row without one."""

    def __init__(self, abi: Abi, dtype: Any = np.float64) -> None:
        self.m, self.n, self.k, self.r, self.scale = 7, 6, 40, 3, 0.5
        cast = lambda x: x.astype(dtype)
        self.x, self.dy = cast(normals(1, self.m, self.k)), cast(normals(2, self.m, self.n))
        self.a = [cast(normals(3 + i, self.r, self.k)) for i in range(2)]
        self.b = [cast(normals(5 + i, self.n, self.r)) for i in range(2)]
        self.rows = np.array([0, 1, -1, 1, 0, 0, 1], np.int32)
        self.lora = [abi.struct("lora", a=a, b=b, scale=self.scale) for a, b in zip(self.a, self.b)]

    def delta(self) -> np.ndarray:
        """[M, N] what the adapters add."""
        out = np.zeros((self.m, self.n))
        for i, row in enumerate(self.rows):
            if row >= 0:
                out[i] = self.scale * self.b[row].astype(float) @ (self.a[row].astype(float) @ self.x[i])
        return out

    def delta_dx(self) -> np.ndarray:
        out = np.zeros((self.m, self.k))
        for i, row in enumerate(self.rows):
            if row >= 0:
                out[i] = self.scale * (self.dy[i] @ self.b[row].astype(float)) @ self.a[row].astype(float)
        return out


def check_matmul(abi: Abi) -> str:
    o, w = Adapted(abi), normals(9, 6, 40)
    bias, residual, y, s = normals(10, 6), normals(11, 7, 6), nans((7, 6)), nans((7, 3), np.float32)
    abi.run("matmul", x=o.x, w=w, bias=bias, lora=o.lora, adapter=o.rows, residual=residual, y=y, s=s)
    off = near("y", y, o.x @ w.T + bias + o.delta() + residual, EXACT)
    dx = normals(12, 7, 40)
    want = dx + o.dy @ w + o.delta_dx()
    abi.run("matmul_dx", dy=o.dy, w=w, lora=o.lora, adapter=o.rows, accumulate=1, dx=dx)
    dw, db = np.ones((6, 40), np.float32), np.ones(6, np.float32)
    abi.run("matmul_dw", dy=o.dy, x=o.x, dw=dw, dbias=db)
    near("dw", dw, 1 + o.dy.T @ o.x, 1e-6)
    near("dbias", db, 1 + o.dy.sum(0), 1e-6)
    return f"{off:.1e}, dx {near('dx', dx, want, EXACT):.1e}"


def check_lora_grad(abi: Abi) -> str:
    """Of adapter 1 alone, from the s of the forward pass."""
    o, w = Adapted(abi), normals(9, 6, 40)
    y, s = nans((7, 6)), nans((7, 3), np.float32)
    abi.run("matmul", x=o.x, w=w, lora=o.lora, adapter=o.rows, y=y, s=s)
    da, db = np.zeros((3, 40), np.float32), np.zeros((6, 3), np.float32)
    abi.run("lora_grad", x=o.x, dy=o.dy, s=s, lora=o.lora[1], adapter=o.rows, index=1, da=da, db=db)
    mine = o.rows == 1
    near("db", db, o.scale * o.dy[mine].T @ (o.x[mine] @ o.a[1].T), 1e-6)
    return f"{near('da', da, o.scale * (o.dy[mine] @ o.b[1]).T @ o.x[mine], 1e-6):.1e}"


def check_nf4_matmul(abi: Abi) -> str:
    o = Adapted(abi, np.float32)
    w, values = weight(abi, 20, 6, 40)
    bias, residual, y = normals(10, 6).astype("f4"), normals(11, 7, 6).astype("f4"), nans((7, 6), np.float32)
    abi.run("nf4_matmul", x=o.x, w=w, bias=bias, lora=o.lora, adapter=o.rows, residual=residual, y=y)
    off = near("y", y, o.x @ values.T + bias + o.delta() + residual, 1e-6)
    dx = nans((7, 40), np.float32)
    abi.run("nf4_matmul_dx", dy=o.dy, w=w, lora=o.lora, adapter=o.rows, dx=dx)
    return f"{off:.1e}, dx {near('dx', dx, o.dy @ values + o.delta_dx(), 1e-6):.1e}"


def check_nf4_matmul_grouped(abi: Abi) -> str:
    made = [weight(abi, 30 + e, 6, 40) for e in range(3)]
    offsets = np.array([0, 4, 4, 9], np.int64)
    x, dy = normals(33, 9, 40).astype("f4"), normals(34, 9, 6).astype("f4")
    y, dx = nans((9, 6), np.float32), nans((9, 40), np.float32)
    weights = [w for w, _ in made]
    abi.run("nf4_matmul_grouped", x=x, offsets=offsets, w=weights, y=y)
    abi.run("nf4_matmul_grouped_dx", dy=dy, offsets=offsets, w=weights, dx=dx)
    expert = np.repeat([0, 1, 2], np.diff(offsets))
    near("dx", dx, np.stack([dy[i] @ made[e][1] for i, e in enumerate(expert)]), 1e-6)
    return f"{near('y', y, np.stack([made[e][1] @ x[i] for i, e in enumerate(expert)]), 1e-6):.1e}"


def check_rmsnorm(abi: Abi) -> str:
    x, w, dy, residual, eps = normals(40, 5, 24), normals(41, 24), normals(42, 5, 24), normals(43, 5, 24), 1e-5
    f = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w
    y, rstd = nans((5, 24)), nans(5, np.float32)
    abi.run("rmsnorm", x=x, weight=w, eps=eps, y=y, rstd=rstd)
    near("rstd", rstd, 1 / np.sqrt((x * x).mean(-1) + eps), 1e-7)
    dx, dw = nans((5, 24)), np.zeros(24, np.float32)
    abi.run("rmsnorm_bwd", x=x, weight=w, eps=eps, dy=dy, residual=residual, dx=dx, dweight=dw)
    near("dweight", dw, gradient(lambda w: (f(x, w) * dy).sum(), w), 1e-6)
    off = near("dx", dx, gradient(lambda x: (f(x, w) * dy).sum(), x) + residual, 1e-8)
    return f"{near('y', y, f(x, w), EXACT):.1e}, dx {off:.1e}"


def check_rope(abi: Abi) -> str:
    x, t, d = normals(50, 6, 2, 8), np.array([0, 1, 2, 7, 3, 0], np.int32), 8
    angle = np.arange(9)[:, None] * 100.0 ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle).astype("f4"), np.sin(angle).astype("f4")
    c, s = cos[t][:, None].astype(float), sin[t][:, None].astype(float)
    want = np.concatenate([x[..., :4] * c - x[..., 4:] * s, x[..., 4:] * c + x[..., :4] * s], -1)
    got = x.copy()
    abi.run("rope", x=got, positions=t, cos=cos, sin=sin)
    off = near("x", got, want, EXACT)
    abi.run("rope", x=got, positions=t, cos=cos, sin=sin, inverse=1)
    near("inverse", got, x, 1e-6)  # cos^2 + sin^2 of the f32 table
    return f"{off:.1e}"


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, cu: np.ndarray, start: np.ndarray, length: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention, one query at a time."""
    o, lse, share = np.empty(q.shape), np.empty(q.shape[:2]), q.shape[1] // k.shape[1]
    for b in range(len(start)):
        for i, t in enumerate(range(cu[b], cu[b + 1])):
            seen = slice(start[b], start[b] + length[b] - (cu[b + 1] - cu[b]) + i + 1)
            for h in range(q.shape[1]):
                z = scale * k[seen, h // share] @ q[t, h]
                lse[t, h] = z.max() + np.log(np.exp(z - z.max()).sum())
                o[t, h] = np.exp(z - lse[t, h]) @ v[seen, h // share]
    return o, lse


def check_attention(abi: Abi) -> str:
    """Two heads a key head, one sequence with keys before its queries; dense, then in pages of 4."""
    q, k, v, do = normals(60, 7, 4, 8), normals(61, 12, 2, 8), normals(62, 12, 2, 8), normals(63, 7, 4, 8)
    spans = dict(cu_seqlens=np.array([0, 3, 7], np.int64), kv_len=np.array([5, 4], np.int64))
    start, scale = np.array([1, 7], np.int64), 8**-0.5
    want, want_lse = attend(q, k, v, spans["cu_seqlens"], start, spans["kv_len"], scale)
    o, lse = nans(q.shape), nans((7, 4), np.float32)
    abi.run("attention", q=q, k=k, v=v, kv_start=start, o=o, lse=lse, **spans)
    off = near("o", o, want, 1e-12)
    near("lse", lse, want_lse, 1e-7)
    paged(abi, q, k, v, spans, start, want)
    dq, dk, dv = nans(q.shape), nans(k.shape), nans(v.shape)
    abi.run("attention_bwd", q=q, k=k, v=v, kv_start=start, dout=do, dq=dq, dk=dk, dv=dv, **spans)
    loss = lambda q, k, v: (attend(q, k, v, spans["cu_seqlens"], start, spans["kv_len"], scale)[0] * do).sum()
    near("dk", dk, gradient(lambda k: loss(q, k, v), k), 1e-7)
    near("dv", dv, gradient(lambda v: loss(q, k, v), v), 1e-7)
    return f"{off:.1e}, dq {near('dq', dq, gradient(lambda q: loss(q, k, v), q), 1e-7):.1e}"


def paged(
    abi: Abi, q: np.ndarray, k: np.ndarray, v: np.ndarray, spans: dict, start: np.ndarray, want: np.ndarray
) -> None:
    """The same keys scattered over pages."""
    pages, size = np.array([[5, 2], [3, 0]], np.int32), 4
    pool_k, pool_v = np.full((24, *k.shape[1:]), np.nan), np.full((24, *v.shape[1:]), np.nan)
    for b in range(2):
        for j in range(spans["kv_len"][b]):
            row = pages[b, j // size] * size + j % size
            pool_k[row], pool_v[row] = k[start[b] + j], v[start[b] + j]
    o = nans(q.shape)
    abi.run("attention", q=q, k=pool_k, v=pool_v, pages=pages, page_size=size, o=o, **spans)
    near("paged o", o, want, 1e-12)


def check_swiglu(abi: Abi) -> str:
    gate, up, dy = normals(70, 4, 10), normals(71, 4, 10), normals(72, 4, 10)
    f = lambda gate, up: gate * sigmoid(gate) * up
    y, dgate, dup = nans((4, 10)), nans((4, 10)), nans((4, 10))
    abi.run("swiglu", gate=gate, up=up, y=y)
    abi.run("swiglu_bwd", gate=gate, up=up, dy=dy, dgate=dgate, dup=dup)
    near("dup", dup, gate * sigmoid(gate) * dy, EXACT)
    near("dgate", dgate, gradient(lambda g: (f(g, up) * dy).sum(), gate), 1e-8)
    return f"{near('y', y, f(gate, up), EXACT):.1e}"


def check_embedding(abi: Abi) -> str:
    ids, table, dy = np.array([3, 0, 3, 8], np.int32), normals(80, 9, 5), normals(81, 4, 5)
    y, dtable = nans((4, 5)), np.ones((9, 5), np.float32)
    abi.run("embedding", ids=ids, table=table, y=y)
    abi.run("embedding_bwd", ids=ids, dy=dy, dtable=dtable)
    want = np.ones((9, 5))
    np.add.at(want, ids, dy)
    near("dtable", dtable, want, 1e-7)
    assert (y == table[ids]).all()
    return "bits"


def check_copy_rows(abi: Abi) -> str:
    x, y = normals(82, 4, 3), normals(83, 6, 3)
    origin, target, want = np.array([2, -1, 0, 1], np.int32), np.array([5, 0, -1, 3], np.int32), y.copy()
    want[5], want[0], want[3] = x[2], 0, x[1]
    abi.run("copy_rows", x=x, from_rows=origin, to_rows=target, y=y)
    assert (y == want).all()
    return "bits"


def check_convert(abi: Abi) -> str:
    x = normals(84, 3, 50).astype("f4")
    to16, half, back = nans((3, 50), "bf16"), nans((3, 50), np.float16), nans((3, 50))
    abi.run("convert", x=x, y=to16)
    abi.run("convert", x=x, y=half)
    abi.run("convert", x=to16, y=back)
    assert (to16 == to_bf16(x)).all() and (half == x.astype("f2")).all() and (back == widen(bf16(to16))).all()
    return "bits"


def check_lerp(abi: Abi) -> str:
    a, b, y = normals(85, 2, 3, 4), normals(86, 2, 3, 4), nans((2, 3, 4))
    abi.run("lerp", a=a, b=b, weight=0.3, y=y)
    return f"{near('y', y, a + 0.3 * (b - a), EXACT):.1e}"


def check_grad_norm(abi: Abi) -> str:
    grads, norm = [normals(87, 30), normals(88, 4, 5)], ctypes.c_double(np.nan)
    abi.run("grad_norm", grads=grads, norm=norm)
    want = np.sqrt(sum((g * g).sum() for g in grads))
    return f"{near('norm', np.array(norm.value), np.array(want), EXACT):.1e}"


def adam(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, lr: float, decay: float) -> np.ndarray:
    """torch's AdamW; m and v are those after the step."""
    u = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return p * (1 - lr * decay) - lr * u


def check_adamw(abi: Abi) -> str:
    p, g, m = (normals(90 + i, 40).astype("f4") for i in range(3))
    v, mask = (normals(93, 40) ** 2).astype("f4"), (np.arange(40) % 5 != 0).astype(np.uint8)
    before = p.astype(float), m.astype(float), v.astype(float)
    outcome = abi.structs["adamw_outcome"]()
    abi.run(
        "adamw",
        tensors=[abi.struct("adamw_tensor", param=p, grad=g, m=m, v=v, mask=mask)],
        settings={"lr": 1e-2, "weight_decay": 0.1, "step": 3, "grad_scale": 0.5},
        outcome=outcome,
    )
    scaled, on = 0.5 * g.astype(float), mask != 0
    want_m, want_v = 0.9 * before[1] + 0.1 * scaled, 0.999 * before[2] + 0.001 * scaled**2
    want = np.where(on, adam(before[0], scaled, want_m, want_v, 3, 1e-2, 0.1), before[0])
    near("m", m, np.where(on, want_m, before[1]), 1e-6)
    near("v", v, np.where(on, want_v, before[2]), 1e-6)
    assert outcome.updated == on.sum() and outcome.non_finite_tensor == -1
    return f"{near('param', p, want, 1e-7):.1e}"


def check_adamw_8bit(abi: Abi) -> str:
    """States of one block more than 256: decoded states after the step are the nearest of the map."""
    n = 300
    p, g = normals(95, n).astype("f4"), normals(96, n).astype("f4")
    zeros = [int(np.abs(abi.dynamic_map(signed)).argmin()) for signed in (1, 0)]
    m, v = np.full(n, zeros[0], np.uint8), np.full(n, zeros[1], np.uint8)
    m_max, v_max, before = np.zeros(2, np.float32), np.zeros(2, np.float32), p.astype(float)
    abi.run(
        "adamw_8bit",
        tensors=[abi.struct("adamw_8bit_tensor", param=p, grad=g, m=m, v=v, m_absmax=m_max, v_absmax=v_max)],
        settings={"lr": 1e-2, "step": 1},
    )
    want_m, want_v = 0.1 * g.astype(float), 0.001 * g.astype(float) ** 2
    block = np.arange(n) // 256
    for codes, peak, want, signed in ((m, m_max, want_m, 1), (v, v_max, want_v, 0)):
        near("maxima", peak, np.array([np.abs(want[block == b]).max() for b in range(2)]), 1e-6)
        table = abi.dynamic_map(signed).astype(float)
        gap = np.abs(table[codes] - want / peak[block])
        best = np.abs(table[None] - (want / peak[block])[:, None]).min(1)
        assert (gap <= best + 1e-6).all(), "a code that is not the nearest"
    return f"{near('param', p, adam(before, g, want_m, want_v, 1, 1e-2, 0.0), 1e-6):.1e}"


def check_sparsity_stats(abi: Abi) -> str:
    w0 = normals(97, 3, 8)
    w1, nnz = w0.copy(), nans(3, np.int64)
    w1[0, :3] += [1e-6, 1e-3, -0.5]
    stats = abi.structs["update_sparsity"]()
    abi.run("sparsity_stats", w0=w0, w1=w1, row_nnz=nnz, stats=stats)
    assert (stats.n, stats.equal_exact, stats.within_tol) == (24, 21, 22) and (nnz == [3, 0, 0]).all()
    return f"{near('max_delta', np.array(stats.max_delta), np.array(0.5), EXACT):.1e}"


def check_delta(abi: Abi) -> str:
    old = normals(98, 5, 6).astype("f4")
    new, count = old.copy(), ctypes.c_int64(-1)
    new.flat[[1, 8, 29]] = [4.0, -0.0, np.nan]
    abi.run("delta_encode", old_value=old, new_value=new, count=count)
    assert count.value == 3
    index, value = nans(3, np.int64), nans(3, np.float32)
    abi.run("delta_encode", old_value=old, new_value=new, count=count, index=index, value=value)
    abi.run("delta_apply", index=index, value=value, target=old)
    assert (index == [1, 8, 29]).all() and (old.view(np.uint32) == new.view(np.uint32)).all()
    return "bits"
