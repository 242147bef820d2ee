"""One GRPO step of the demo model: gradus beside TRL's GRPOTrainer on torch CPU, in one run.

    python3 tools/peers/trl_step.py [--steps 20] [--threads 2]

Installs its peers from PyPI into target/peers by itself (about 3 GB). Both sides use the same
decoder shape, 32 prompts x 8 samples, the same prompt and completion lengths, LoRA on all linear
maps, AdamW, no KL. TRL's base weights stay dense f32 (its 4-bit path is slower on a CPU); gradus
runs its NF4 base. Prints seconds per step and rollout tokens per second with their spread.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "target" / "peers"
PINS = ["trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "torch==2.15.0"]
SHAPE = dict(hidden=64, layers=2, heads=4, ffn=192)
PROMPTS, GROUP, RANK, ALPHA = 32, 8, 16, 32
CHARS = "0123456789+-=:"


def install():
    """Runs this script again inside target/peers, after installing the pinned peers there."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    probe = subprocess.run([python, "-c", "import trl, peft"], capture_output=True)
    if probe.returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", *PINS], check=True)
    os.execv(python, [str(python), __file__, "--installed", *sys.argv[1:]])


def spread(values):
    """Median with the 10th and 90th percentile."""
    ordered = sorted(values)
    at = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))]
    return statistics.median(ordered), at(0.1), at(0.9)


def gradus(steps, threads):
    """Step times and rollout speed of `gradus train` from its metrics file."""
    subprocess.run(["cargo", "build", "--release", "-q"], cwd=ROOT, check=True)
    out = ROOT / "target" / "peers-runs"
    settings = [f"model.{k}={v}" for k, v in SHAPE.items()] + [
        "sft.epochs=1", f"rl.steps={steps + 5}", f"rl.prompts={PROMPTS}", f"rl.group={GROUP}",
        f"lora.rank={RANK}", f"lora.alpha={ALPHA}.0", "rl.beta=0.0", f"threads={threads}",
        "eval.every=1000000",
    ]
    command = [ROOT / "target" / "release" / "gradus", "train", "--out", out]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in open(out / "latest" / "metrics.jsonl")]
    rows = [row for row in rows if row["phase"] == "rl"][5:]
    summary = json.load(open(out / "latest" / "summary.json"))
    return [row["time/step_time"] for row in rows], summary["rollout_tokens_per_second"]


def tokenizer():
    """A character-level tokenizer with the demo's vocabulary."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate(CHARS)} | {"<eos>": len(CHARS), "<pad>": len(CHARS) + 1}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def trl(steps, threads):
    """Step times and generated tokens per second of TRL's GRPOTrainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(CHARS) + 2, hidden_size=SHAPE["hidden"], num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["heads"],
        intermediate_size=SHAPE["ffn"], max_position_embeddings=64, tie_word_embeddings=False,
        eos_token_id=len(CHARS), pad_token_id=len(CHARS) + 1, bos_token_id=None,
    )
    prompts = [{"prompt": f"{i % 9 + 1}{i % 7 + 1}{i % 5 + 1}={i % 19}:"} for i in range(4096)]
    lengths = []

    def reward(completions, completion_ids, **_):
        lengths.append(sum(len(ids) for ids in completion_ids))
        return [float(len(set(text)) % 3) for text in completions]

    class Clock(TrainerCallback):
        times, begun = [], 0.0

        def on_step_begin(self, *_, **__):
            self.begun = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.times.append(time.perf_counter() - self.begun)

    arguments = GRPOConfig(
        output_dir=str(ROOT / "target" / "peers-trl"), use_cpu=True, bf16=False, report_to=[],
        per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_steps=steps + 2,
        max_completion_length=6, temperature=1.0, beta=0.0, learning_rate=1e-3, save_strategy="no",
        gradient_checkpointing=False, logging_strategy="no", disable_tqdm=True,
    )
    clock = Clock()
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(config), reward_funcs=reward, args=arguments, callbacks=[clock],
        train_dataset=Dataset.from_list(prompts), processing_class=words,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    times = clock.times[2:]
    return times, lengths[2:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--installed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.installed:
        install()
    ours, ours_rate = gradus(options.steps, options.threads)
    theirs, lengths = trl(options.steps, options.threads)
    (a, a_low, a_high), (b, b_low, b_high) = spread(ours), spread(theirs)
    print(f"{PROMPTS} prompts x {GROUP} samples, {options.threads} threads, {len(ours)} / {len(theirs)} steps")
    print(f"gradus  {a * 1e3:8.1f} ms/step  [{a_low * 1e3:.1f}, {a_high * 1e3:.1f}]  rollout {ours_rate:,.0f} tokens/s")
    print(f"TRL     {b * 1e3:8.1f} ms/step  [{b_low * 1e3:.1f}, {b_high * 1e3:.1f}]  {statistics.mean(lengths):.0f} tokens sampled per step")
    print(f"ratio   {b / a:8.1f} x")


if __name__ == "__main__":
    main()
