"""products.h against numpy. Dense products run in f64, so that rounding hides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from plain.abi import Abi, nans
from plain.ops_quantize import weight
from plain.oracle import near, normals

EXACT = 1e-13


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
