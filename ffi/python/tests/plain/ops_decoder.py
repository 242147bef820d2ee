"""decoder.h against numpy, in f64, so that rounding hides nothing."""

from __future__ import annotations

import numpy as np

from plain.abi import Abi, bf16, nans, to_bf16, widen
from plain.oracle import gradient, near, normals, sigmoid

EXACT = 1e-13


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


def check_dropout(abi: Abi) -> str:
    x, y = normals(70, 3, 10), normals(71, 3, 10)
    streams, positions = np.array([5, 5, -1], np.int32), np.array([0, 1, 1], np.int32)
    key, p, scale = 0x0123456789ABCDEF, 0.3, 1.5
    mask = np.empty((3, 10))
    for i, j in np.ndindex(mask.shape):
        counter = [j // 4, int(positions[i]) % 2**32, int(streams[i]) % 2**32, 0]
        mask[i, j] = philox(counter, key)[j % 4] >= int(p * 2**32)
    assert 0 < mask.sum() < mask.size
    want, got = mask * x * scale / (1 - p), nans(x.shape)
    abi.run("dropout", x=x, streams=streams, positions=positions, p=p, scale=scale, key=key, y=got)
    off, added = near("y", got, want, EXACT), y.copy()
    abi.run("dropout", x=x, streams=streams, positions=positions, p=p, scale=scale, key=key, accumulate=1, y=added)
    near("accumulated", added, y + want, EXACT)
    return f"{off:.1e}"


def philox(counter: list[int], key: int) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011)."""
    c, k = list(counter), [key % 2**32, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b % 2**32, a >> 32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


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
    """Attention over keys that lie scattered over pages."""
    pages, size = np.array([[5, 2], [3, 0]], np.int32), 4
    pool_k, pool_v = np.full((24, *k.shape[1:]), np.nan), np.full((24, *v.shape[1:]), np.nan)
    for b in range(2):
        for j in range(spans["kv_len"][b]):
            row = pages[b, j // size] * size + j % size
            pool_k[row], pool_v[row] = k[start[b] + j], v[start[b] + j]
    o = nans(q.shape)
    abi.run("attention", q=q, k=pool_k, v=pool_v, pages=pages, page_size=size, o=o, **spans)
    near("paged o", o, want, 1e-12)


def check_attention_prefix(abi: Abi) -> str:
    """Two continuations of one sequence: its keys are there once, and their gradients sums."""
    q, k, v, do = normals(64, 7, 4, 8), normals(65, 7, 2, 8), normals(66, 7, 2, 8), normals(67, 7, 4, 8)
    cu, start = np.array([0, 4, 5, 7], np.int64), np.array([0, 4, 5], np.int64)
    spans = dict(cu_seqlens=cu, kv_start=start, kv_len=np.array([4, 4, 5], np.int64))
    spans |= dict(prefix_start=np.array([0, 0, 0], np.int64), prefix_len=np.array([0, 3, 3], np.int64))
    # The same sequences laid out whole.
    rows = np.array([0, 1, 2, 3, 0, 1, 2, 4, 0, 1, 2, 5, 6])
    whole = cu, np.array([0, 4, 8], np.int64), spans["kv_len"], 8**-0.5
    want = lambda q, k, v: attend(q, k[rows], v[rows], *whole)[0]
    o = nans(q.shape)
    abi.run("attention", q=q, k=k, v=v, o=o, **spans)
    off = near("o", o, want(q, k, v), 1e-12)
    dq, dk, dv = nans(q.shape), nans(k.shape), nans(v.shape)
    abi.run("attention_bwd", q=q, k=k, v=v, dout=do, dq=dq, dk=dk, dv=dv, **spans)
    near("dq", dq, gradient(lambda q: (want(q, k, v) * do).sum(), q), 1e-7)
    near("dv", dv, gradient(lambda v: (want(q, k, v) * do).sum(), v), 1e-7)
    return f"{off:.1e}, dk {near('dk', dk, gradient(lambda k: (want(q, k, v) * do).sum(), k), 1e-7):.1e}"


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
