"""What the oracles share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def near(what: str, got: np.ndarray, want: np.ndarray, tolerance: float) -> float:
    """Largest difference relative to the largest |want|, which must stay within the tolerance."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: {got.shape} against {want.shape}"
    assert (np.isnan(got) == np.isnan(want)).all(), f"{what}: NaN at other places"
    scale = max(np.nanmax(np.abs(want), initial=0.0), 1e-30)
    off = float(np.nanmax(np.abs(got - want), initial=0.0) / scale)
    assert off <= tolerance, f"{what}: off by {off} of its scale, {tolerance} allowed"
    return off


def gradient(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function."""
    out, flat = np.empty(x.shape), x.ravel()
    for i in range(flat.size):
        up, down = flat.copy(), flat.copy()
        up[i] += h
        down[i] -= h
        out.flat[i] = (f(up.reshape(x.shape)) - f(down.reshape(x.shape))) / (2 * h)
    return out


def log_softmax(z: np.ndarray) -> np.ndarray:
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normals(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)
