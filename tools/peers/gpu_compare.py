"""gradus beside its peers, row by row of `gradus bench`, in one run.

    python3 tools/peers/gpu_compare.py --device cuda --json out.json     # shapes of 8 to 70 B models
    python3 tools/peers/gpu_compare.py --device cpu                      # small shapes, f32

In every round gradus runs in a process of its own (`gradus bench`) and then the peers run here,
on the same shapes; rounds repeat, so that a drift of the machine meets both sides. Peers are
installed from PyPI into target/peers (about 7 GB); `--wheels DIR` downloads the pinned wheels
into DIR if they are not there and installs from DIR alone. `--here` takes what this Python has: a
machine with a torch of its own needs the other wheels alone (`pip install --no-deps --target`, and
`--gradus` for the executable).
On CUDA both sides take turns with enough sets of operands that no L2 keeps one (256 MiB between
two uses), time batches of calls with events, and once more from a graph. What cannot be imported,
refuses a shape or returns something else is listed with its reason.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from gpu_peers import PEERS, Operands, Peer, Row, first_line  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / "target" / "peers"
PINS = [
    "torch==2.15.0", "bitsandbytes==0.50.2", "liger_kernel==0.8.5", "cut-cross-entropy==25.1.1",
    "quack-kernels==0.6.5", "trl==1.16.0", "transformers==5.23.0", "peft==0.21.2",
]
# Its own pin of torch (< 2.15) excludes the others': it is measured where it can be imported.
OPTIONAL = ["unsloth"]
COLD = 256 << 20
MOST_SETS = 1024
SAMPLES = (3, 1000)
# Seconds a sample lasts at least, as in gradus.
SHORTEST = {"cpu": 2e-5, "cuda": 2e-3}


def install(options: argparse.Namespace) -> None:
    """Runs this script again in target/peers, with the pinned peers."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [python, "-m", "pip"]
    source = []
    if options.wheels:
        stamp = options.wheels / "pins.txt"
        if not stamp.exists() or stamp.read_text().split() != PINS:
            subprocess.run([*pip, "download", "-q", "-d", options.wheels, *PINS], check=True)
            stamp.write_text("\n".join(PINS) + "\n")
        source = ["--no-index", "--find-links", options.wheels]
    if options.download_only:
        sys.exit(0)
    have = "import importlib.metadata as m, sys; sys.exit(any(m.version(n) != v for n, v in " \
        "(p.split('==') for p in sys.argv[1:])))"
    if subprocess.run([python, "-c", have, *PINS], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*pip, "install", "-q", *source, *PINS], check=True)
    os.execv(python, [str(python), __file__, "--here", *sys.argv[1:]])


class Gradus:
    """`gradus bench`, one process per call."""

    def __init__(self, options: argparse.Namespace):
        self.binary = options.gradus
        if self.binary is None:
            build = ["cargo", "build", "--release", "-q", "--bin", "gradus"]
            subprocess.run(build, cwd=ROOT, check=True)
            self.binary = ROOT / "target" / "release" / "gradus"
        self.chosen = ["bench", "--shapes", options.shapes, "--device", options.device]
        self.seconds = str(options.seconds)
        self.environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.binary, *self.chosen, *arguments], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
        return done.stdout

    def rows(self, only: str | None, dtype: str) -> list[Row]:
        listed = self.run("--list", *(["--ops", only] if only else []))
        return [row for row in map(Row.parse, listed.splitlines()) if row.dtype == dtype]

    def measure(self, rows: list[Row]) -> tuple[dict[str, dict], dict[str, str], list[dict]]:
        """Rows, reasons of those left out, and floors."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "bench.json"
            names = "|".join("=" + row.name for row in rows)
            self.run("--seconds", self.seconds, "--ops", names, "--json", str(file))
            table = json.loads(file.read_text())
        found = {f"{row['op']} {row['shape']} {row['dtype']}": row for row in table["rows"]}
        reasons = {out["name"]: out["reason"] for out in table["rows_left_out"]}
        return found, reasons, table["floors"]


class Clock:
    """Times calls as gradus does: events on CUDA, else the system's clock."""

    def __init__(self, device: str, seconds: float):
        import torch

        self.torch, self.cuda, self.seconds = torch, device == "cuda", seconds
        self.shortest = SHORTEST[device]
        if self.cuda:
            self.stream = torch.cuda.Stream()
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(self, turns, count: int) -> float:
        """Milliseconds of so many calls."""
        if not self.cuda:
            begun = time.perf_counter()
            for call in itertools.islice(turns, count):
                call()
            return (time.perf_counter() - begun) * 1e3
        self.start.record()
        for call in itertools.islice(turns, count):
            call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)

    def collect(self, calls: list, per_call: int = 1) -> dict:
        turns = itertools.cycle(calls)
        self.sample(turns, 1)
        once = self.sample(turns, 1) / 1e3
        count = min(max(math.ceil(self.shortest / max(once, 1e-9)), 1), 10_000)
        begun, times = time.perf_counter(), []
        while len(times) < SAMPLES[0] or (
            len(times) < SAMPLES[1] and time.perf_counter() - begun < self.seconds
        ):
            times.append(self.sample(turns, count) / count / per_call)
        times.sort()
        at = lambda share: times[round((len(times) - 1) * share)]
        return {"ms": at(0.5), "ms_p10": at(0.1), "ms_p90": at(0.9), "samples": len(times)}

    def measure(self, peer: Peer, row: Row, device: str, check: bool) -> dict:
        """One round of a peer on a row; raises what the peer raises, or ValueError."""
        if not self.cuda:
            return self._measure(peer, row, device, check)
        with self.torch.cuda.stream(self.stream):
            return self._measure(peer, row, device, check)

    def _measure(self, peer: Peer, row: Row, device: str, check: bool) -> dict:
        first = Operands(row, device, 0)
        sets = 1
        if self.cuda and 1 + math.ceil(COLD / first.nbytes()) <= MOST_SETS:
            sets = 1 + math.ceil(COLD / first.nbytes())
        operands = [first] + [Operands(row, device, i) for i in range(1, sets)]
        calls = [peer.build(one) for one in operands]
        wrong = first.difference(calls[0]()) if check else calls[0]() and None
        if wrong:
            raise ValueError(wrong)
        for call in calls[1:]:
            call()
        found = self.collect(calls) | {"operand_sets": sets}
        if self.cuda:
            found |= {"l2_cold": sets > 1} | self.graph(calls)
        return found

    def graph(self, calls: list) -> dict:
        """The same calls replayed, without the host's part."""
        graph = self.torch.cuda.CUDAGraph()
        try:
            self.torch.cuda.synchronize()
            with self.torch.cuda.graph(graph, stream=self.stream):
                for call in calls:
                    call()
            times = self.collect([graph.replay], per_call=len(calls))
        except Exception as error:  # Whatever a library does that a capture cannot hold.
            return {"graph_left_out": f"{type(error).__name__}: {first_line(error)}"}
        return {f"graph_{key}": value for key, value in times.items()}

    def release(self) -> None:
        """Gives memory back, for gradus' next turn."""
        gc.collect()
        if self.cuda:
            self.torch.cuda.synchronize()
            self.torch.cuda.empty_cache()


def gpu_state() -> dict:
    """Driver, name and clocks as nvidia-smi knows them."""
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        values = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return {"unknown": first_line(error)}
    return dict(zip(fields.split(","), (value.strip() for value in values.split(","))))


def cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    head = git("rev-parse", "HEAD")
    if head.returncode:
        return None
    dirty = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return head.stdout.strip() + (" with changes" if dirty else "")


def versions() -> dict[str, str]:
    found = {}
    for name in [pin.split("==")[0] for pin in PINS] + OPTIONAL + ["triton"]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def turns(options: argparse.Namespace, gradus: Gradus, rows: list[Row]) -> dict:
    """All rounds: results[row][who] is a list of measurements, left_out[row][who] a reason."""
    clock = Clock(options.device, options.seconds)
    chosen = options.peers.split("|") if options.peers else [""]
    peers = [peer for peer in PEERS if any(part in peer.name for part in chosen)]
    missing = {peer.name: peer.missing() for peer in peers}
    results = {row.name: {} for row in rows}
    left_out = {row.name: {} for row in rows}
    floors, states = [], []
    by_group = sorted(rows, key=lambda row: row.group)
    groups = [list(group) for _, group in itertools.groupby(by_group, key=lambda row: row.group)]
    for group in groups:
        for number in range(options.rounds):
            try:
                found, reasons, floors = gradus.measure(group)
                for row in group:
                    if row.name in found:
                        results[row.name].setdefault("gradus", []).append(found[row.name])
                    else:
                        left_out[row.name]["gradus"] = reasons.get(row.name, "not in the table")
            except RuntimeError as error:
                for row in group:
                    left_out[row.name]["gradus"] = first_line(error)
            states.append(gpu_state() if options.device == "cuda" else {})
            for row, peer in itertools.product(group, peers):
                if row.op not in peer.ops or peer.name in left_out[row.name]:
                    continue
                reason = missing[peer.name]
                if reason is None:
                    try:
                        found = clock.measure(peer, row, options.device, check=number == 0)
                        results[row.name].setdefault(peer.name, []).append(found)
                    except Exception as error:  # A peer may fail in any way; it is listed.
                        reason = f"{type(error).__name__}: {first_line(error)}"
                if reason is not None:
                    left_out[row.name][peer.name] = reason
                clock.release()
        for row in group:
            print("\n".join(report(row, results[row.name], left_out[row.name])), flush=True)
    return {"results": results, "left_out": left_out, "floors": floors, "gpu_states": states}


def spread(rounds: list[dict], key: str = "ms") -> tuple[float, float, float]:
    """Median of the rounds' medians, the lowest 10th and the highest 90th percentile."""
    low, high = (min(r[f"{key}_p10"] for r in rounds), max(r[f"{key}_p90"] for r in rounds))
    return statistics.median(r[key] for r in rounds), low, high


def ratios(theirs: list[dict], ours: list[dict], key: str = "ms") -> tuple[float, float, float]:
    """Their time over ours, round by round: above 1, gradus is faster."""
    each = [a[key] / b[key] for a, b in zip(theirs, ours)]
    return statistics.median(each), min(each), max(each)


def report(row: Row, results: dict, left_out: dict) -> list[str]:
    """Lines of one row."""
    ours = results.get("gradus", [])
    # The CPU's rates are measured in every process: the best of them bound it.
    floor = min((r["floor_ms"] for r in ours if r["floor_ms"]), default=None)
    title = f"floor {floor:.4f} ms ({ours[0]['bound']})" if floor else "floor unknown"
    cold = {None: "", True: ", L2 cold", False: ", L2 warm"}[ours[0]["l2_cold"] if ours else None]
    lines = [f"\n{row.name}   {title}{cold}"]
    for who, rounds in results.items():
        ms, low, high = spread(rounds)
        line = f"  {who:<37} {ms:10.4f} ms [{low:.4f}, {high:.4f}]"
        if floor:
            line += f"   floor/measured {floor / ms:.2f}"
        if who != "gradus" and ours:
            line += "   {:.2f} x [{:.2f}, {:.2f}]".format(*ratios(rounds, ours))
        if all("graph_ms" in r and r["graph_ms"] for r in rounds):
            line += "   graph {:.4f} ms [{:.4f}, {:.4f}]".format(*spread(rounds, "graph_ms"))
        elif rounds[0].get("graph_left_out"):
            line += f"   no graph: {rounds[0]['graph_left_out']}"
        lines.append(line)
    return lines + [f"  {who:<37} left out: {reason}" for who, reason in left_out.items()]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shapes", choices=["peers", "large"], help="large on CUDA, else peers")
    parser.add_argument("--only", metavar="TEXT|TEXT", help="rows, as `gradus bench --ops`")
    parser.add_argument("--peers", metavar="TEXT|TEXT", help="only peers whose name contains it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="a row, side and round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH")
    parser.add_argument("--gradus", type=pathlib.Path, help="a built executable")
    parser.add_argument("--wheels", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--download-only", action="store_true", help="fill --wheels and stop")
    parser.add_argument("--here", action="store_true", help="install nothing")
    options = parser.parse_args()
    if options.rounds < 1 or options.download_only and not options.wheels:
        parser.error("--rounds is at least 1, and --download-only needs --wheels")
    if not options.here:
        install(options)
    options.shapes = options.shapes or ("large" if options.device == "cuda" else "peers")
    # Read when a library is loaded: bitsandbytes has an OpenMP of its own.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu tries the script without one")
    gradus = Gradus(options)
    rows = gradus.rows(options.only, "bf16" if options.device == "cuda" else "f32")
    if not rows:
        parser.error("no row of this device's dtype fits --only")
    now = datetime.datetime.now(datetime.timezone.utc)
    about = {
        "commit": commit(), "date": now.isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu_name(),
        "gpu": gpu_state() if options.device == "cuda" else None, "versions": versions(),
        "cuda": torch.version.cuda, "threads": options.threads, "rounds": options.rounds,
        "seconds": options.seconds, "shapes": options.shapes,
    }
    about["driver"] = (about["gpu"] or {}).get("driver_version")
    print(json.dumps(about, indent=1))
    print("times: median of the rounds' medians [lowest p10, highest p90]; x: time over gradus'")
    found = turns(options, gradus, rows)
    if options.json:
        options.json.write_text(json.dumps(about | found, indent=1) + "\n")
    return int(any("gradus" in reasons for reasons in found["left_out"].values()))


if __name__ == "__main__":
    sys.exit(main())
