"""optim.h against numpy."""

from __future__ import annotations

import ctypes

import numpy as np

from plain.abi import Abi, nans
from plain.oracle import near, normals

EXACT = 1e-13


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


def check_grad_norm(abi: Abi) -> str:
    grads, norm = [normals(87, 30), normals(88, 4, 5)], ctypes.c_double(np.nan)
    abi.run("grad_norm", grads=grads, norm=norm)
    want = np.sqrt(sum((g * g).sum() for g in grads))
    return f"{near('norm', np.array(norm.value), np.array(want), EXACT):.1e}"


def check_lerp(abi: Abi) -> str:
    a, b, y = normals(85, 2, 3, 4), normals(86, 2, 3, 4), nans((2, 3, 4))
    abi.run("lerp", a=a, b=b, weight=0.3, y=y)
    return f"{near('y', y, a + 0.3 * (b - a), EXACT):.1e}"


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
