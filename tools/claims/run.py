"""Runs what papers claim on tasks of seconds, recipe beside control, and writes docs/CLAIMS.md.

    python tools/claims/run.py [NAME ...] [--gradus target/release/gradus] [--seeds 5] [--work DIR] [--write]

`claims.toml` and `more.toml` beside this file hold a claim per table: the paper's sentence, the toy, and the sides that are
compared with equal rollouts (or, without rollouts, equal demonstrations). Every side runs with the same
seeds; nothing is tuned per seed. A measurement that exists in DIR is not repeated, so an interrupted
table goes on where it stopped.

The verdict counts pairs of runs with the same seed in which the first side is better than the second by more
than `margin` (0.01): with 5 seeds, 4 or more are "reproduced", 4 or more the other way round are "reversed", all
else is "not reproduced". A claim that two sides are equal has `no_worse`: 4 or more must not be worse by more.
"""

import argparse
import hashlib
import json
import pathlib
import statistics
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "CLAIMS.md"

HEAD = """# What papers claim, and what a laptop shows

Every row was run by `python tools/claims/run.py` on {machine}. Medians over {seeds} seeds, smallest and largest in brackets.
Sides of a claim have the same number of rollouts unless the table shows otherwise. Tasks are toys of seconds with a
model of about 0.2 million parameters: a claim that is not reproduced here may hold for large models, and the contrary.
Seconds were taken on machines that had other work, too.

* reproduced: the first side is better than the second by more than 0.01, sampled unless a claim says otherwise, in at least 4 of 5 seeds; or not worse by
  more, where the paper says "as well as"
* reversed: worse by more than 0.01 in at least 4 of 5
* not reproduced: anything else
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="claims to run; all without")
    parser.add_argument("--gradus", default="target/release/gradus")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/claims"))
    parser.add_argument("--write", action="store_true", help="write docs/CLAIMS.md from all claims that are measured")
    args = parser.parse_args()
    files = [HERE / "claims.toml", HERE / "more.toml"]
    claims = [claim for file in files for claim in tomllib.loads(file.read_text())["claim"]]
    known = [claim["name"] for claim in claims]
    for name in set(args.names) - set(known):
        sys.exit(f"`{name}` is no claim; known are {', '.join(known)}")
    for claim in claims:
        if not args.names or claim["name"] in args.names:
            print(section(claim, measured(args, claim)), flush=True)
    if args.write:
        write(args, claims)


def measured(args: argparse.Namespace, claim: dict) -> list:
    """Figures of each side and seed: `[side][seed] -> dict`."""
    return [[figures(args, claim, side, seed) for seed in range(args.seeds)] for side in claim["side"]]


def figures(args: argparse.Namespace, claim: dict, side: dict, seed: int) -> dict:
    """What one run came to, from the file of an earlier one where there is one."""
    stored = stored_at(args, claim, side, seed)
    if not stored.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(trained(args, claim, side, seed)))
    return json.loads(stored.read_text())


def stored_at(args: argparse.Namespace, claim: dict, side: dict, seed: int) -> pathlib.Path:
    asked = json.dumps([toy_of(claim, side), rewards_of(claim, side), settings(claim, side), seed, *claim.get("files", {}).values()])
    return args.work / claim["name"] / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"


def toy_of(claim: dict, side: dict) -> str:
    return side.get("toy", claim["toy"])


def rewards_of(claim: dict, side: dict) -> list:
    return side.get("reward", claim["reward"])


def settings(claim: dict, side: dict) -> list:
    return [*claim.get("set", []), *side.get("set", [])]


def files_of(args: argparse.Namespace, claim: dict) -> dict:
    """Further data files of a claim by name, and `files`, the folder that holds them all."""
    folder = (args.work / claim["name"] / "files").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    names = {"files": folder}
    for name, toy in claim.get("files", {}).items():
        names[name] = folder / f"{name}.jsonl"
        names[name].write_text(output([args.gradus, "toy", *toy.split()]))
    return names


def teacher_of(args: argparse.Namespace, claim: dict, data: pathlib.Path) -> pathlib.Path:
    """The model of the run with the settings `teacher` of a claim, which all sides and seeds learn from."""
    out = (args.work / claim["name"] / "teacher").absolute()
    if not (out / "latest/model").exists():
        command = [args.gradus, "train", "--seed", "0", "--out", out, "--data", data]
        for reward in claim["reward"]:
            command += ["--reward", reward]
        for setting in claim["teacher"]:
            command += ["--set", setting]
        output(command)
    return out / "latest/model"


def trained(args: argparse.Namespace, claim: dict, side: dict, seed: int) -> dict:
    out = args.work / claim["name"] / "runs"
    command = [args.gradus, "train", "--seed", str(seed), "--out", out]
    toy = toy_of(claim, side)
    data = args.work / claim["name"] / (hashlib.sha256(toy.encode()).hexdigest()[:12] + ".jsonl")
    data.write_text(output([args.gradus, "toy", *toy.split()]))
    command += ["--data", data]
    for reward in rewards_of(claim, side):
        command += ["--reward", reward]
    files = files_of(args, claim)
    if "teacher" in claim:
        files["teacher"] = teacher_of(args, claim, data)
    for setting in settings(claim, side):
        for name, path in files.items():
            setting = setting.replace("{" + name + "}", str(path))
        command += ["--set", setting]
    output(command)
    summary = json.loads((out / "latest/summary.json").read_text())
    found = {"seconds": summary["train_seconds"], "final": summary["final_accuracy"], "steps": summary["rl_steps"]}
    rows = [json.loads(row) for row in (out / "latest/metrics.jsonl").read_text().splitlines()]
    found["rollouts"] = summary.get("rollouts", 0)
    for heat, name in [(1.0, "sampled"), (0.0, "greedy")]:
        text = output([args.gradus, "eval", "--run", out / "latest", "--temperature", str(heat)])
        found[name] = float(text.split("accuracy")[1].split()[0])
    for column in claim.get("metrics", []):
        values = [row[column] for row in rows if row.get(column) is not None]
        found[column] = statistics.fmean(values[-claim.get("last", 10) :])
    return found


def output(command: list) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def verdict(claim: dict, sides: list) -> str:
    key, margin = claim.get("measure", "sampled"), claim.get("margin", 0.01)
    sign = -1 if claim.get("smaller", False) else 1
    gains = [sign * (a[key] - b[key]) for a, b in zip(sides[0], sides[1])]
    most = -(-4 * len(gains) // 5)
    least = -margin if claim.get("no_worse", False) else margin
    if sum(gain > least for gain in gains) >= most:
        return "reproduced"
    if sum(gain < -margin for gain in gains) >= most:
        return "reversed"
    return "not reproduced"


def section(claim: dict, sides: list) -> str:
    """A claim as Markdown."""
    names = ["sampled", "greedy", *claim.get("metrics", [])]
    lines = [f"## {claim['name']} (row {claim['row']}): {verdict(claim, sides)}", "", f"> {claim['paper']}", ""]
    lines += [claim["shows"], ""] if "shows" in claim else []
    lines += ["| side | " + " | ".join(names) + " | RL steps | seconds |", "|---" * (len(names) + 3) + "|"]
    for side, runs in zip(claim["side"], sides):
        cells = [spread([run[name] for run in runs]) for name in names]
        seconds = statistics.median(run["seconds"] for run in runs)
        lines.append(f"| {side['name']} | {' | '.join(cells)} | {runs[0]['steps']} | {seconds:.0f} |")
    if silent(claim, sides):
        lines += ["", "No side comes far from 0 here: this table says nothing about the claim."]
    return "\n".join([*lines, "", f"`python tools/claims/run.py {claim['name']}`", ""])


def silent(claim: dict, sides: list) -> bool:
    """Whether all sides are within the margin of 0, where a larger score is the better one."""
    best = max(run["sampled"] for runs in sides for run in runs)
    return claim.get("measure", "sampled") == "sampled" and best <= claim.get("margin", 0.01)


def spread(values: list) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def write(args: argparse.Namespace, claims: list) -> None:
    """Writes the page from what is measured. Of a claim that lacks a run its section on the page stays; a claim
    that has none is named."""
    parts, missing = [], []
    page = PAGE.read_text().split("\nNot measured yet")[0].split("\n## ")[1:] if PAGE.exists() else []
    written = {section.split(" (row ")[0]: f"## {section.rstrip()}\n" for section in page}
    for claim in claims:
        runs = [stored_at(args, claim, side, seed) for side in claim["side"] for seed in range(args.seeds)]
        if all(run.exists() for run in runs):
            parts.append(section(claim, measured(args, claim)))
        elif claim["name"] in written:
            parts.append(written[claim["name"]])
        else:
            missing.append(claim["name"])
    head = HEAD.format(machine=machine(), seeds=args.seeds)
    tail = f"\nNot measured yet: {', '.join(missing)}.\n" if missing else ""
    PAGE.write_text("\n".join([head, *parts]) + tail)


def machine() -> str:
    import os

    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "this CPU")
    return f"{os.cpu_count()} cores of {cpu}"


if __name__ == "__main__":
    main()
