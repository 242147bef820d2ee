"""gradus beside its peers on the CPU: 4-bit weights, products, vocabulary rows, the policy loss.

    python3 tools/peers/cpu_compare.py [--threads 1] [--rounds 5] [--only TEXT|TEXT] [--json PATH]

Rows are those of `gradus bench --shapes cpu`. In every round gradus runs in a process of its own, then
the peers here on the same shapes; a ratio is a peer's time over gradus' in the same round, so above
1 gradus is faster. torch (eager and compiled), bitsandbytes and TRL are those of this Python.
TRL's loss is the lines of GRPOTrainer._compute_loss (loss_type dapo) between log-probs and loss: the
method itself wants a trainer, and computes metrics as well.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from gpu_compare import Clock, Gradus, commit, cpu_name, ratios, spread, versions  # noqa: E402
from gpu_peers import Operands, Row, compiled, first_line  # noqa: E402

BETA, LOW, HIGH = 0.04, 0.2, 0.2


def dapo(logp, old, ref, advantages, mask, tokens):
    """trl 1.16.0, grpo_trainer.py, _compute_loss."""
    import torch

    advantages = advantages.unsqueeze(1)
    coef_1 = torch.exp(logp - old)
    coef_2 = torch.clamp(coef_1, 1 - LOW, 1 + HIGH)
    loss = -torch.min(coef_1 * advantages, coef_2 * advantages)
    if ref is not None:
        loss = loss + BETA * (torch.exp(ref - logp) - (ref - logp) - 1)
    return (loss * mask).sum() / tokens


def policy_calls(row: Row) -> dict:
    import torch

    draw = lambda scale, *shape: torch.randn(shape, generator=torch.manual_seed(1)) * scale
    logp = -draw(1.0, *row.dims).abs()
    old, ref = logp + draw(0.05, *row.dims), logp + draw(0.1, *row.dims)
    given = (old, ref if "kl" in row.words else None, draw(1.0, row.dims[0]), torch.ones(row.dims), logp.numel())
    logp.requires_grad_()

    def call(loss):
        return lambda: torch.autograd.grad(loss(logp, *given), logp)

    return {"TRL's loss, eager": call(dapo), "TRL's loss, torch.compile": call(compiled(row.name, dapo))}


def logprob_calls(row: Row) -> dict:
    import torch
    from trl.trainer.utils import selective_log_softmax

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[row.dtype]
    logits = torch.empty(row.dims, dtype=dtype).uniform_(-1, 1)
    targets = (torch.arange(row.dims[0]) * 4001 % row.dims[1])[:, None]
    plain = lambda x: x.log_softmax(-1).gather(1, targets)
    train = "train" in row.words
    ones = torch.ones(row.dims[0], 1, dtype=dtype)
    logits.requires_grad_(train)

    def call(function):
        if train:
            return lambda: torch.autograd.grad(function(logits), logits, ones)
        return lambda: function(logits)

    return {
        "log_softmax + gather, eager": call(plain),
        "log_softmax + gather, torch.compile": call(compiled(row.name, plain)),
        "TRL selective_log_softmax": call(lambda x: selective_log_softmax(x, targets)),
    }


def weight_calls(row: Row) -> dict:
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional
    import torch

    o = Operands(row, "cpu", 0)
    linear = torch.nn.functional.linear
    if row.op == "matmul":
        return {"torch F.linear": lambda: linear(o.x, o.dense)}
    if row.op == "nf4_dequantize":
        if "dq" not in row.words:
            o.packed, o.state = functional.quantize_4bit(o.dequantized(), blocksize=64, quant_type="nf4")
        # bitsandbytes 0.50.2 has no `out=` on the CPU: each call allocates its result.
        return {"bitsandbytes": lambda: o.dequantized()}
    dense = o.dequantized()
    return {
        "torch F.linear, dense weight": lambda: linear(o.x, dense),
        "bitsandbytes": lambda: bnb.matmul_4bit(o.x, o.packed, quant_state=o.state),
    }


MAKE = {"policy_loss": policy_calls, "logprob": logprob_calls}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT|TEXT", help="rows, as `gradus bench --ops`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="a row, side and round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gradus", type=pathlib.Path, help="a built executable")
    parser.add_argument("--before", type=pathlib.Path, help="an older executable, measured in turn as well")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    options.shapes, options.device = "cpu", "cpu"
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    gradus, clock, before = Gradus(options), Clock("cpu", options.seconds), None
    if options.before:
        options.gradus = options.before
        before = Gradus(options)
    rows = [row for dtype in ("f32", "bf16") for row in gradus.rows(options.only, dtype)]
    about = {"commit": commit(), "device": cpu_name(), "threads": options.threads, "versions": versions()}
    print(json.dumps(about))
    print("ms: median of the rounds' medians [lowest p10, highest p90]; x: a peer's time over gradus'")
    results = {}
    for row in rows:
        calls, of = MAKE.get(row.op, weight_calls)(row), {"gradus": []}
        for _ in range(options.rounds):
            of["gradus"].append(gradus.measure([row])[0][row.name])
            if before:
                of.setdefault("gradus before", []).append(before.measure([row])[0][row.name])
            for name, call in calls.items():
                if isinstance(of.get(name), str):
                    continue
                with torch.set_grad_enabled("train" in row.words or row.op == "policy_loss"):
                    try:
                        of.setdefault(name, []).append(clock.collect([call]))
                    except Exception as error:  # A peer may fail in any way; it is listed.
                        of[name] = first_line(error)
        print(f"\n{row.name}")
        for name, rounds in of.items():
            if isinstance(rounds, str):
                print(f"  {name:<36} left out: {rounds}")
                continue
            line = "{:9.3f} [{:.3f}, {:.3f}]".format(*spread(rounds))
            versus = "" if name == "gradus" else "{:6.2f} x [{:.2f}, {:.2f}]".format(*ratios(rounds, of["gradus"]))
            print(f"  {name:<36} {line:<34} {versus}", flush=True)
        results[row.name] = of
    if options.json:
        options.json.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
