#!/usr/bin/env python3
"""Plants one-token bugs in the kernels and counts how many the tests notice.

    cargo build --release -p kernelc
    python3 tools/mutants/mutants.py [--count 50] [--seed 1] [--op policy_loss]

Each mutant is a copy of one `kernels/<family>/<op>.cu` (or of a header it includes) with one token changed:
an off-by-one, a comparison or a sign turned, operands swapped, a barrier or fence dropped. It is
compiled by kernelc; one that does not compile, or compiles to the PTX that is shipped, is no mutant.
The tests of the op (the folder `tests/ops/<family>/<op>`), then those of its family, run on the
emulator with that PTX in place of the shipped one (`GRADUS_EMU_PTX`). Survivors are printed with their source line, for a person to judge: either the
change has no effect (a bound that is never met) or a test is missing.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
WORK = ROOT / "target" / "mutants"

# (what, pattern, replacement)
OPERATORS = [
    ("comparison", r"(?<![<\-=>])<(?![<=>a-zA-Z_])", "<="),
    ("comparison", r"(?<![>\-=<])>(?![>=(])(?= )", ">="),
    ("comparison", r"<=", "<"),
    ("comparison", r"(?<!-)>=", ">"),
    ("equality", r"==", "!="),
    ("equality", r"!=", "=="),
    ("off by one", r" \+ 1\b(?!\.)", ""),
    ("off by one", r" - 1\b(?!\.)", ""),
    ("off by one", r"(?<![\w.])(\d+)\b(?![.\d]|\s*\])(?=[;,) ])", lambda m: str(int(m.group(1)) + 1)),
    ("sign", r" \+ ", " - "),
    ("sign", r" - ", " + "),
    ("factor", r" \* ", " + "),
    ("logic", r"&&", "||"),
    ("logic", r"\|\|", "&&"),
    ("extreme", r"\bfmax\(", "fmin("),
    ("extreme", r"\bfmin\(", "fmax("),
    ("extreme", r"\bfmaxf\(", "fminf("),
    ("dropped barrier", r"__syncthreads\(\);", ";"),
    ("dropped barrier", r"__syncwarp\(\);", ";"),
    ("dropped fence", r"__threadfence\(\);", ";"),
    ("swapped operands", r"\b(\w+) - (\w+)\b", r"\2 - \1"),
    ("swapped operands", r"\b(\w+) / (\w+)\b", r"\2 / \1"),
    ("step", r"\+= THREADS\b", "+= THREADS + 1"),
    ("step", r"\+= WARP\b", "+= WARP + 1"),
]


def sites(text):
    """Every (start, end, replacement, what) that may be planted: code, not comments or includes."""
    found = []
    offset = 0
    for line in text.splitlines(keepends=True):
        code = line.split("//")[0]
        skip = code.lstrip().startswith(("#", "template <", "static constexpr", "static_assert", "enum", "extern", "KERNEL"))
        if not skip and "asm" not in code:
            for what, pattern, replacement in OPERATORS:
                for m in re.finditer(pattern, code):
                    new = m.expand(replacement) if isinstance(replacement, str) else replacement(m)
                    found.append((offset + m.start(), offset + m.end(), new, what))
        offset += len(line)
    return found


def in_families(extension):
    """Files of the kernel tree by name: names are unique, families are folders."""
    files = [p for p in KERNELS.rglob(f"*.{extension}") if p.parent.name != "generated"]
    return {p.name: p for p in files}


SOURCES, HEADERS = in_families("cu"), in_families("cuh")
# What launches share with kernels: copied, not mutated, as Rust has the same.
SHARED = in_families("h")


def headers_of(path):
    """Headers that a source includes, themselves included, except the one with instructions."""
    seen = []
    for name in re.findall(r'#include "([^"]+)"', path.read_text()):
        if name in HEADERS and name != "ptx.cuh" and name not in seen:
            seen.append(name)
            seen += [h for h in headers_of(HEADERS[name]) if h not in seen]
    return seen


def compile_mutant(op, file, text):
    """The folder with the mutant's PTX, or None if it is no mutant."""
    folder = WORK / "kernels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for header in (HEADERS | SHARED).values():
        shutil.copy(header, folder)
    source = SOURCES[f"{op}.cu"].read_text()
    (folder / f"{op}.cu").write_text(source)
    (folder / file).write_text(text)
    # Spills may be what the mutation causes: they are not what is tested here.
    allowed = (folder / f"{op}.cu").read_text().replace("#include", "// local memory: *: mutant\n#include", 1)
    (folder / f"{op}.cu").write_text(allowed)
    run = subprocess.run([ROOT / "target/release/kernelc", "--dir", folder], cwd=ROOT, capture_output=True)
    if run.returncode != 0:
        return None
    made = folder / "generated"
    same = all(p.read_text() == (KERNELS / "generated" / p.name).read_text() for p in made.glob("*.ptx"))
    return None if same else made


def executable():
    """The executable of the tests of ops, built."""
    out = subprocess.run(
        ["cargo", "test", "--no-run", "--message-format=json", "--test=ops"],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True,
    ).stdout
    messages = [json.loads(line) for line in out.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "ops")


def rooms_of(source):
    """Ops whose Rust names a kernel's source, as `pair_loss` names `group_loss`; none if its family does."""
    folders = [p for p in (ROOT / "src/ops" / source.parent.name).iterdir() if p.is_dir()]
    named = re.compile(rf'(?:::|"){source.stem}(?:::|")')
    names = [p.name for p in folders if any(named.search(f.read_text()) for f in p.rglob("*.rs"))]
    return [source.stem] if source.stem in [p.name for p in folders] else names


def filters_of(tests, source):
    """What to run for a kernel's source, narrow first. Ends the program if an op has no test."""
    family = source.parent.name
    listed = subprocess.run([tests, "--list"], stdout=subprocess.PIPE, check=True, text=True).stdout
    filters = [f"{family}::{room}::" for room in rooms_of(source)]
    for wanted in [*filters, f"{family}::"]:
        if not re.search(f"^{wanted}", listed, re.MULTILINE):
            sys.exit(f"{source.relative_to(ROOT)}: no test is named {wanted}...")
    return ([filters] if filters else []) + [[f"{family}::"]]


def caught(tests, filters, ptx):
    """The filters whose tests fail with the mutant, or None."""
    env = dict(os.environ, GRADUS_EMU_PTX=str(ptx), RUST_BACKTRACE="0", PROPTEST_CASES="16",
               PROPTEST_DISABLE_FAILURE_PERSISTENCE="true")
    for names in filters:
        try:
            run = subprocess.run([tests, *names], cwd=ROOT, env=env, capture_output=True, timeout=600)
        except subprocess.TimeoutExpired:
            return f"{' '.join(names)} (time)"
        if run.returncode != 0:
            return " ".join(names)
    return None


def main():
    parser = argparse.ArgumentParser(description="Plants one-token bugs in the kernels.")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--op", help="only this op")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    tests = executable()
    ops = sorted(p.stem for p in SOURCES.values())
    if args.op and args.op not in ops:
        sys.exit(f"--op {args.op}: expected one of {', '.join(ops)}")
    ops = [args.op] if args.op else ops
    filters = {op: filters_of(tests, SOURCES[f"{op}.cu"]) for op in ops}
    survivors, done = [], 0
    while done < args.count:
        op = rng.choice(ops)
        # Three in four mutations are in the op's own file.
        file = f"{op}.cu" if rng.random() < 0.75 else rng.choice(headers_of(SOURCES[f"{op}.cu"]))
        text = (SOURCES | HEADERS)[file].read_text()
        candidates = sites(text)
        if not candidates:
            continue
        start, end, new, what = rng.choice(candidates)
        ptx = compile_mutant(op, file, text[:start] + new + text[end:])
        if ptx is None:
            continue
        done += 1
        line = text.count("\n", 0, start) + 1
        by = caught(tests, filters[op], ptx)
        shown = text.splitlines()[line - 1].strip()
        label = f"{file}:{line} [{op}] {what}: `{text[start:end].strip()}` -> `{new.strip()}`"
        print(f"{done:3} {'caught by ' + by if by else 'SURVIVED':28} {label}", flush=True)
        if not by:
            survivors.append(f"{label}\n      {shown}")
    print(f"\n{done - len(survivors)} of {done} caught")
    for survivor in survivors:
        print(f"  {survivor}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
