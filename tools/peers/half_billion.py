"""A model of 0.5 B parameters, from nothing to an adapter, on this machine's CPU; beside TRL and PEFT.

    python half_billion.py [--work DIR] [--gradus target/release/gradus] [--threads N]
    python half_billion.py --model SmolLM2-135M-Instruct --prompts 8 --group 8 --new 16

Makes a folder of Qwen2.5-0.5B's shape with random weights and a small tokenizer, then lets gradus quantize
it, sample from it and take one GRPO step, and TRL take the same step with PEFT (f32, dense base: TRL has no
4-bit base without a GPU library). Same prompts, group, completion length, rank and threads. Prints seconds
and the peak resident memory of each process. The step's reward is a hash of the completion, so that
advantages are not zero.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

RANK = 16

REWARD = """import json, sys, zlib
for line in sys.stdin:
    sample = json.loads(line)
    score = zlib.crc32(sample["completion"].encode()) % 1000 / 1000
    print(json.dumps({"id": sample["id"], "score": score}), flush=True)
"""

TRL = """import sys, time, zlib
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
model, data, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
begun = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(model)
tokenizer.pad_token = tokenizer.pad_token or "<|endoftext|>"
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
def reward(completions, **_):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in texts]
config = GRPOConfig(
    output_dir="trl", max_steps={steps}, per_device_train_batch_size={batch}, num_generations={group},
    max_completion_length={new}, learning_rate=5e-5, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
    gradient_checkpointing=False, disable_tqdm=True, logging_steps=1, beta=0.0,
)
lora = LoraConfig(r={rank}, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = GRPOTrainer(
    base, reward_funcs=reward, args=config, train_dataset=load_dataset("json", data_files=data, split="train"),
    processing_class=tokenizer, peft_config=lora,
)
loaded = time.perf_counter()
trainer.train()
print(f"loaded in {{loaded - begun:.1f}} s, a step in {{(time.perf_counter() - loaded) / {steps}:.1f}} s")
"""


def make_model(folder: pathlib.Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, bos_token_id=0, eos_token_id=2,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator([__doc__, REWARD, TRL], trainers.BpeTrainer(special_tokens=special, initial_alphabet=bytes_))
    # A text for every row, or most of what a random model writes would be empty.
    stored = json.loads(tokenizer.to_str())
    vocabulary = stored["model"]["vocab"]
    vocabulary.update({f"t{i}": i for i in range(len(vocabulary), config.vocab_size)})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    stored = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))


def timed(name: str, command: list[str], cwd: pathlib.Path, threads: int) -> str:
    before = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    seconds = time.perf_counter() - before
    print(f"{name:34} {seconds:7.1f} s   peak {usage.ru_maxrss / 1024:7.0f} MiB", flush=True)
    if status:
        print(text)
        sys.exit(f"{name} failed")
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/half_billion"))
    parser.add_argument("--gradus", type=pathlib.Path, default=pathlib.Path("target/release/gradus"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--make", action="store_true", help="only make the model")
    parser.add_argument("--model", type=pathlib.Path, help="a chat model's folder in place of the random one")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--new", type=int, default=32, help="tokens of a completion, at most")
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    work, gradus, threads = options.work, str(options.gradus.resolve()), options.threads
    prompts, group, new, steps = options.prompts, options.group, options.new, options.steps
    model = options.model.resolve() if options.model else work / "model"
    if options.make:
        return make_model(model)
    work.mkdir(parents=True, exist_ok=True)
    if not (model / "tokenizer.json").exists():
        model.mkdir(parents=True, exist_ok=True)
        # In a process of its own: a child's peak begins with what its parent holds.
        subprocess.run([sys.executable, __file__, "--work", str(work), "--make"], check=True)
    data, reward = work / "prompts.jsonl", work / "reward.py"
    said = lambda text: [{"role": "user", "content": text}] if options.model else text
    rows = [{"prompt": said(f"{a} + {b} = "), "answer": str(a + b)} for a in range(8) for b in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward.write_text(REWARD)
    print(f"{threads} threads")

    subprocess.run(["rm", "-rf", work / "nf4", work / "runs", work / "trl"], check=True)
    timed("gradus quantize", [gradus, "quantize", str(model), str(work / "nf4")], work, threads)
    common = ["--set", f"threads={threads}", "--set", f"rl.max_new_tokens={new}"]
    sample = [gradus, "sample", "--model", str(work / "nf4"), "--prompt", "3 + 4 = ", "-n", "4", *common]
    timed(f"gradus sample 4 x {new}", sample, work, threads)
    step = [gradus, "train", "--model", str(work / "nf4"), "--data", str(data), "--reward", f"cmd:python3 {reward}"]
    step += ["--out", str(work / "runs"), "--set", f"rl.steps={steps}", "--set", f"rl.prompts={prompts}", "--set", f"rl.group={group}"]
    step += ["--set", "eval.max_prompts=1", "--set", f"lora.rank={RANK}", "--set", "rl.scale=group", *common]
    text = timed(f"gradus train, GRPO steps: {steps}", step, work, threads)
    print("".join(line + "\n" for line in text.splitlines() if "memory" in line or "time" in line), end="")
    rows = [json.loads(line) for line in (work / "runs/latest/metrics.jsonl").read_text().splitlines()]
    times = [row["time/step_time"] for row in rows if row["phase"] == "rl"]
    print("  seconds of a step: " + ", ".join(f"{time:.2f}" for time in times))
    row = rows[-1]
    figures = ", ".join(f"{k} {row[k]:.4g}" for k in ("reward", "reward_std", "grad_norm", "entropy", "time/step_time"))
    print(f"  {figures}")

    script = work / "trl_step.py"
    script.write_text(TRL.format(batch=prompts * group, group=group, new=new, rank=RANK, steps=steps))
    text = timed(f"TRL + PEFT, GRPO steps: {steps}", [sys.executable, str(script), str(model), str(data), str(threads)], work, threads)
    print("".join(f"  {line}\n" for line in text.splitlines() if "loaded in" in line or "grad_norm" in line), end="")


main()
