"""quantize.h against numpy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from plain.abi import Abi, nans
from plain.oracle import near, normals


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


def check_nf4_quantize(abi: Abi) -> str:
    """Every code is the nearest of the book, maxima are exact, and nf4_dequantize gives back code times maximum."""
    w, values = weight(abi, 7, 5, 40)
    x = normals(7, 5, 40).astype(np.float32).ravel()
    packed, absmax, book = w.keep
    peaks = np.repeat(absmax, 32)[:200]
    assert (absmax == [np.abs(x[i : i + 32]).max() for i in range(0, 200, 32)]).all(), "maxima"
    gap = np.abs(values.ravel() / peaks - x / peaks)
    best = np.abs(book[None] - (x / peaks)[:, None]).min(1)
    assert (gap <= best + 1e-6).all(), "a code that is not the nearest"
    y = nans((5, 40), np.float32)
    abi.run("nf4_dequantize", w=w, y=y)
    return f"{near('y', y, values, 1e-7):.1e}"


def check_nf4_quantize_absmax(abi: Abi) -> str:
    """Nested codes are the nearest of the map, around the mean of the maxima. Values first go to the nearest of
    65,536 points, as in bitsandbytes, which moves them by at most 1 / 65,535."""
    absmax, table, offset = np.abs(normals(8, 300)).astype(np.float32), abi.dynamic_map(), ctypes.c_double()
    codes, outer = nans(300, np.uint8), nans(2, np.float32)
    abi.run(
        "nf4_quantize_absmax", absmax=absmax, nested_quant_map=table, codes=codes, nested_absmax=outer, offset=offset
    )
    centered, block = absmax - np.float32(offset.value), np.arange(300) // 256
    near("nested_absmax", outer, np.array([np.abs(centered[block == b]).max() for b in range(2)]), 1e-6)
    gap = np.abs(table[codes] - centered / outer[block])
    best = np.abs(table[None] - (centered / outer[block])[:, None]).min(1)
    assert (gap <= best + 2 / 65535 + 1e-6).all(), "a code that is not the nearest"
    return f"{near('offset', np.array(offset.value), np.array(absmax.astype(float).mean()), 1e-6):.1e}"
