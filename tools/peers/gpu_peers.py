"""The peers of gpu_compare.py: how each library does what a row of `gradus bench` does.

A row's name is read, operands are made as that row has them, and every peer's first result is
compared with a plain f32 computation, so that a peer that is called wrongly does not count.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Callable

BLOCK = 64
SCALE = 0.5
CHECKED_ROWS = 16


@dataclass(frozen=True)
class Row:
    """A row of `gradus bench`, `op extents words dtype`."""

    name: str
    op: str
    dims: tuple[int, ...]
    words: tuple[str, ...]
    dtype: str

    @staticmethod
    def parse(name: str) -> Row:
        op, *rest, dtype = name.split()
        dims = tuple(int(token) for token in rest if token.isdigit())
        words = tuple(token for token in rest if not token.isdigit() and token != "x")
        return Row(name, op, dims, words, dtype)

    @property
    def group(self) -> tuple:
        """Rows that differ in the number of tokens alone are measured in one turn."""
        return (self.op, self.dims[-2:], self.words)

    @property
    def rank(self) -> int:
        return next((int(word[1:]) for word in self.words if word[1:].isdigit()), 0)


class Operands:
    """One set of a row's operands."""

    def __init__(self, row: Row, device: str, seed: int):
        import torch

        self.torch, self.row, self.device = torch, row, device
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[row.dtype]
        self.random = torch.Generator(device).manual_seed(seed)
        if row.op == "linear_logprob":
            self._head(*row.dims)
        elif row.op == "nf4_dequantize":
            self._weight(*row.dims)
        else:
            self._product(*row.dims)

    def _uniform(self, *shape: int):
        empty = self.torch.empty(shape, dtype=self.dtype, device=self.device)
        return empty.uniform_(-1, 1, generator=self.random)

    def _weight(self, n: int, k: int):
        import bitsandbytes.functional as bnb

        # bitsandbytes quantizes itself: the same layout as gradus' rows marked `dq`.
        weight = self._uniform(n, k)
        self.packed, self.state = bnb.quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )

    def _product(self, m: int, n: int, k: int):
        if self.row.op == "matmul":
            self.dense = self._uniform(n, k)
        else:
            self._weight(n, k)
        self.x, self.dy = self._uniform(m, k), None
        if self.row.op == "nf4_matmul_dx":
            self.dy = self._uniform(m, n)
        if self.row.rank:
            self.a, self.b = self._uniform(self.row.rank, k), self._uniform(n, self.row.rank)

    def _head(self, rows: int, h: int, vocab: int):
        # Logits with a standard deviation of 2, as a trained head has rather than a random one.
        normal = lambda *shape: self.torch.randn(shape, device=self.device, generator=self.random)
        self.hidden = normal(rows, h).to(self.dtype)
        self.weight = (normal(vocab, h) * (2 / math.sqrt(h))).to(self.dtype)
        self.targets = self.torch.arange(rows, device=self.device) * 4001 % vocab
        self.wanted = [self.hidden] if self.row.words else []
        self.wanted += [self.weight] if "train" in self.row.words else []
        for tensor in self.wanted:
            tensor.requires_grad_()

    def dequantized(self):
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(self.packed, self.state)

    def nbytes(self) -> int:
        """Of what a call has to read."""
        if self.row.op == "linear_logprob":
            return self.hidden.nbytes + self.weight.nbytes
        weight = self.dense if self.row.op == "matmul" else self.packed
        return weight.nbytes + (0 if self.row.op == "nf4_dequantize" else self.x.nbytes)

    def expected(self) -> list:
        """f32 results: of the first rows, but of all log-probs."""
        row, torch, f32 = self.row, self.torch, lambda tensor: tensor.detach().float()
        if row.op == "linear_logprob":
            logp, weight = [], f32(self.weight)
            for hidden, targets in zip(self.hidden.split(256), self.targets.split(256)):
                all_logp = torch.log_softmax(f32(hidden) @ weight.T, -1)
                logp.append(all_logp.gather(1, targets[:, None])[:, 0])
            hidden, targets = f32(self.hidden[:CHECKED_ROWS]), self.targets[:CHECKED_ROWS]
            dhidden = weight[targets] - torch.softmax(hidden @ weight.T, -1) @ weight
            return [torch.cat(logp), dhidden][: 1 + len(self.wanted[:1])]
        weight = f32(self.dense if row.op == "matmul" else self.dequantized())
        if row.op == "nf4_dequantize":
            return [weight[:CHECKED_ROWS]]
        if row.op == "nf4_matmul_dx":
            return [f32(self.dy[:CHECKED_ROWS]) @ weight]
        x = f32(self.x[:CHECKED_ROWS])
        y = x @ weight.T
        return [y + SCALE * (x @ f32(self.a).T) @ f32(self.b).T if row.rank else y]

    def difference(self, results: tuple) -> str | None:
        """What is wrong with a peer's first results, if anything."""
        bound = 1e-3 if self.row.dtype == "f32" else 5e-2
        for result, expected in zip(results, self.expected()):
            result = result.detach().float()
            if result.dim() == 0:  # A loss that is a sum.
                expected = expected.sum()
            else:
                result = result[: len(expected)]
            off = float((result - expected).norm() / expected.norm())
            if not off <= bound:
                return f"its result is off by {off:.1e} of the norm"
        return None


Call = Callable[[], tuple]


def linear(o: Operands) -> Call:
    weight = o.dense if o.row.op == "matmul" else o.dequantized()
    return lambda: (with_lora(o, o.torch.nn.functional.linear(o.x, weight)),)


def with_lora(o: Operands, y):
    """The adapter as PEFT adds it."""
    linear = o.torch.nn.functional.linear
    return y + linear(linear(o.x, o.a), o.b) * SCALE if o.row.rank else y


def bitsandbytes(o: Operands) -> Call:
    import bitsandbytes as bnb

    if o.row.op == "nf4_dequantize":
        return lambda: (o.dequantized(),)
    multiply = lambda: bnb.matmul_4bit(o.x, o.packed, quant_state=o.state)
    if o.row.op == "nf4_matmul":
        return lambda: (with_lora(o, multiply()),)
    o.x.requires_grad_()
    y = multiply()
    return lambda: o.torch.autograd.grad(y, o.x, o.dy, retain_graph=True)


_compiled: dict = {}


def compiled(name: str, function: Callable) -> Callable:
    """One compiled function for all sets of operands, specialized to each shape."""
    import torch

    if name not in _compiled:
        torch._dynamo.config.recompile_limit = 1000
        torch._dynamo.config.accumulated_recompile_limit = 10_000
        _compiled[name] = torch.compile(function, dynamic=False)
    return _compiled[name]


def dequantize(packed, codes, nested, table, offset, code, like):
    """Plain torch for Inductor to fuse."""
    import torch

    absmax = (table[codes.int()].view(-1, 256) * nested[:, None]).view(-1, 1) + offset
    nibbles = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), -1).view(-1, BLOCK)
    return (code[nibbles.int()] * absmax).to(like)


def compile_four_bit(o: Operands) -> Call:
    state, op, shape, dtype = o.state, o.row.op, tuple(o.state.shape), o.dtype
    parts = (o.packed, state.absmax, state.state2.absmax, state.state2.code, state.offset, state.code)

    def function(parts, x, a, b):
        weight = dequantize(*parts, dtype).view(shape)
        if op == "nf4_dequantize":
            return weight
        if op == "nf4_matmul_dx":
            return x @ weight
        return x @ weight.T if a is None else x @ weight.T + (x @ a.T) @ b.T * SCALE

    x = None if op == "nf4_dequantize" else o.x if o.dy is None else o.dy
    a, b = (o.a, o.b) if o.row.rank else (None, None)
    # A function for each of the constants it closes over, none of which is a set of operands.
    run = compiled(f"{op} {shape} {dtype}", function)
    return lambda: (run(parts, x, a, b),)


def head(forward: Callable) -> Callable[[Operands], Call]:
    """`forward(operands)` gives a function of hidden states, head and targets that returns log-probs
    or their sum; their gradients, of weights 1, follow where the row has them."""

    def build(o: Operands) -> Call:
        function = forward(o)

        def call() -> tuple:
            if not o.wanted:
                with o.torch.no_grad():
                    return (function(o.hidden, o.weight, o.targets),)
            logp = function(o.hidden, o.weight, o.targets)
            ones = o.torch.ones_like(logp)
            return (logp, *o.torch.autograd.grad(logp, o.wanted, ones))

        return call

    return build


def torch_head(hidden, weight, targets):
    import torch.nn.functional as F

    return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


def liger(o: Operands) -> Callable:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as fused

    f32 = o.torch.float32
    return lambda h, w, t: -fused(h, w, t, reduction="sum", accum_dtype=f32)


def cce(filter_eps: str | None) -> Callable:
    def forward(o: Operands) -> Callable:
        from cut_cross_entropy import linear_cross_entropy as fused

        return lambda h, w, t: -fused(h, w, t, reduction="none", filter_eps=filter_eps)

    return forward


def quack(o: Operands) -> Callable:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy as fused

    return lambda h, w, t: -fused(h, w, t, reduction="sum")


def trl(o: Operands) -> Callable:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as chunk

    return lambda h, w, t: ChunkedLogProbFunction.apply(h, w, None, t, 1.0, chunk, None, 1.0, ())[0]


def unsloth(o: Operands) -> Call:
    from unsloth.kernels.utils import fast_dequantize, matmul_lora

    if o.row.op == "nf4_dequantize":
        return lambda: (fast_dequantize(o.packed, o.state),)
    a, b = (o.a, o.b) if o.row.rank else (None, None)
    return lambda: (matmul_lora(o.x, o.packed, o.state, a, b, SCALE),)


@dataclass(frozen=True)
class Peer:
    """A library's way to do some ops."""

    name: str
    module: str
    ops: tuple[str, ...]
    build: Callable[[Operands], Call]

    def missing(self) -> str | None:
        """Why it cannot be imported, if so."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # Libraries raise all kinds without a GPU.
            return f"import {self.module}: {type(error).__name__}: {first_line(error)}"
        return None


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no text")[:300]


FOUR_BIT = ("nf4_matmul", "nf4_matmul_dx", "nf4_dequantize")
HEAD = ("linear_logprob",)
# unsloth comes last: importing it patches transformers, TRL and PEFT.
PEERS = (
    Peer("torch F.linear", "torch", ("matmul",), linear),
    Peer("torch F.linear, dense weight", "torch", ("nf4_matmul",), linear),
    Peer("bitsandbytes", "bitsandbytes", FOUR_BIT, bitsandbytes),
    Peer("torch.compile of dequantize + matmul", "torch", FOUR_BIT, compile_four_bit),
    Peer("torch", "torch", HEAD, head(lambda o: torch_head)),
    Peer("torch.compile", "torch", HEAD, head(lambda o: compiled("head", torch_head))),
    Peer("TRL ChunkedLogProb", "trl.kernels", HEAD, head(trl)),
    Peer("Liger", "liger_kernel", HEAD, head(liger)),
    Peer("cut-cross-entropy", "cut_cross_entropy", HEAD, head(cce("high"))),
    Peer("cut-cross-entropy, no filter", "cut_cross_entropy", HEAD, head(cce(None))),
    Peer("QuACK", "quack.linear_cross_entropy", HEAD, head(quack)),
    Peer("unsloth", "unsloth", ("nf4_matmul", "nf4_dequantize"), unsloth),
)
