"""What the steps of bench/gpu.py do, each in a process of its own; without typer and rich, which a machine may lack.

Results are JSON Lines, a line as soon as it is known. A step that is started again goes on after the last whole line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AGAIN = 75
#: Rows whose counters are read.
_SLOWEST = 12
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "WarpStateStats")


def time_is_up() -> bool:
    return time.time() > float(os.environ.get("WARPWRIGHT_GPU_UNTIL") or "inf")


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; what follows the last whole line is cut off it."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, record: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")


# ---- build ----

_LOAD = "import sys; from warpwright import _library; sys.exit(_library.CUDA_MISSING)"


def build() -> int:
    """Builds the libraries where they do not load, and says in the end whether they do."""
    load = [sys.executable, "-c", _LOAD]
    if subprocess.run(load).returncode == 0:
        print("the libraries load, and are kept")
        return 0
    print("building")
    built = subprocess.run([sys.executable, str(ROOT / "csrc" / "build.py")]).returncode
    return built or subprocess.run(load).returncode


# ---- check ----


def check(backend: str, path: Path, ops: Sequence[str] | None = None, dtypes: Sequence[str] | None = None) -> int:
    """Every op in every dtype on a backend of this GPU."""
    import torch

    from warpwright._info import backend_states
    from warpwright.testing.check import plan, run

    states = [s for s in backend_states() if s.backend == backend and s.device == "cuda"]
    if states[0].missing is not None:
        print(f"{states[0].name} cannot run: {states[0].missing}")
        return 1
    found = whole_lines(path)
    known = {(record["op"], record["dtype"]) for record in found}
    failures = sum(len(record["failures"]) for record in found)
    for case in plan(states, ops, None if dtypes is None else [getattr(torch, name) for name in dtypes]):
        if (case.spec.name, str(case.dtype).removeprefix("torch.")) in known:
            continue
        if time_is_up():
            return AGAIN
        result = run(case)
        append(path, asdict(result))
        failures += len(result.failures)
        print(f"{result.op} {result.dtype}: {result.samples} samples, worst {result.worst_ratio:.2f} of the bound")
        print("".join(f"  {failure}\n" for failure in result.failures), end="")
    return 1 if failures else 0


# ---- sanitize ----


def sanitize(sanitizer: str, tool: str, path: Path) -> int:
    """One op after the other in bfloat16 under compute-sanitizer, which makes everything tens of times slower."""
    from warpwright.testing import SPECS

    found = whole_lines(path)
    known = {record["op"] for record in found}
    bad = sum(record["rc"] != 0 for record in found)
    for op in sorted(set(SPECS) - known):
        if time_is_up():
            return AGAIN
        scratch = path.with_name(f"{path.stem}-{op}.jsonl")
        scratch.unlink(missing_ok=True)
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        inner = [sys.executable, __file__, "check", "native", str(scratch), "--op", op, "--dtype", "bfloat16"]
        start = time.monotonic()
        # Freed memory must go back to the driver, or accesses to it would go unnoticed.
        env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        env.pop("WARPWRIGHT_GPU_UNTIL", None)  # This process ends in time; a half checked op must not count.
        done = subprocess.run([*command, *inner], env=env)
        scratch.unlink(missing_ok=True)
        append(path, {"op": op, "tool": tool, "rc": done.returncode, "seconds": round(time.monotonic() - start, 1)})
        bad += done.returncode != 0
    return 1 if bad else 0


# ---- bench ----


def bench(suite: str, path: Path, device: str = "cuda", seconds: float = 0.3) -> int:
    """All cases of a suite, with every provider that is found."""
    import torch

    from warpwright.bench.case import PROVIDERS
    from warpwright.bench.rows import Row, read_results, write_record
    from warpwright.bench.runner import run
    from warpwright.bench.suite import load_suite

    providers = [name for name, p in PROVIDERS.items() if p.missing(torch.device(device)) is None]
    before = read_results(path).rows if whole_lines(path) else []
    wrong = sum(row.status in ("wrong", "failed") and row.provider.startswith("warpwright") for row in before)
    cases = load_suite(suite, device)
    records = run(cases, device=device, providers=providers, seconds=seconds, done={row.key for row in before})
    with open(path, "a") as file:
        for record in records:
            write_record(file, record)
            if isinstance(record, Row):
                print(f"{record.op} {record.case} {record.dtype} {record.direction} {record.provider}: {_said(record)}")
                wrong += record.status in ("wrong", "failed") and record.provider.startswith("warpwright")
                # The rows of a case come together: only after the last one is nothing lost.
                if record.provider == providers[-1] and time_is_up():
                    return AGAIN
    return 1 if wrong else 0


def _said(row: Any) -> str:
    return f"{row.p50 * 1e6:.1f} us" if row.p50 else f"{row.status}: {row.reason}"


# ---- counters ----


def slowest(folder: Path, count: int = _SLOWEST) -> list[Any]:
    """Our rows that lose most to the baseline, of all results in a folder."""
    from warpwright.bench.rows import read_results

    found = {}
    for path in sorted(folder.glob("bench-*.jsonl")):
        if whole_lines(path):
            found |= {row.key: row for row in read_results(path).rows}
    timed = [row for row in found.values() if row.ratio is not None and row.provider.startswith("warpwright-")]
    return sorted(timed, key=lambda row: row.ratio)[:count]


def counters(ncu: str, folder: Path) -> int:
    """Counters of the slowest rows' kernels, each in a log of its own."""
    notes = folder / "counters.jsonl"
    known = {tuple(record["key"]) for record in whole_lines(notes)}
    bad = 0
    for number, row in enumerate(slowest(folder)):
        if row.key in known:
            continue
        if time_is_up():
            return AGAIN
        sections = [word for name in _SECTIONS for word in ("--section", name)]
        what = json.dumps({"suite": row.suite, "op": row.op, "dtype": row.dtype, "direction": row.direction,
                           "provider": row.provider, "parameters": dict(row.parameters)})  # fmt: skip
        log = folder / f"counters-{number}.txt"
        command = [ncu, "--profile-from-start", "off", "--log-file", str(log), *sections]
        rc = subprocess.run([*command, sys.executable, __file__, "call", what]).returncode
        append(notes, {"key": row.key, "ratio": row.ratio, "log": log.name, "rc": rc})
        bad += rc != 0
    return 1 if bad else 0


def call(what: str) -> int:
    """One call of a row between the profiler's marks, after two to warm up."""
    import torch

    from warpwright.bench.case import PROVIDERS, Case
    from warpwright.bench.checks import Calls

    row = json.loads(what)
    device = torch.device("cuda")
    case = Case(row["suite"], row["op"], getattr(torch, row["dtype"]), (row["direction"],), row["parameters"])
    provider = PROVIDERS[row["provider"]]
    function = provider.function(case.op, device)
    assert function is not None
    with provider.scope():
        run = Calls(case, row["direction"], device, 1).of(function)
        for _ in range(2):
            run(0)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        run(0)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return 0


# ---- tune ----


def tune() -> int:
    """`warpwright tune` for the time that is left; it goes on by itself."""
    left = max(1.0, float(os.environ.get("WARPWRIGHT_GPU_UNTIL") or time.time() + 3600) - time.time())
    command = [sys.executable, "-m", "warpwright.cli", "tune", "--device", "cuda", "--budget", f"{left:.0f}", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if done.returncode != 0:
        return 1
    return AGAIN if json.loads(done.stdout)["stopped"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The steps of bench/gpu.py.")
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("build")
    one = steps.add_parser("check")
    one.add_argument("backend")
    one.add_argument("path", type=Path)
    one.add_argument("--op", action="append")
    one.add_argument("--dtype", action="append")
    one = steps.add_parser("sanitize")
    for name in ("sanitizer", "tool"):
        one.add_argument(name)
    one.add_argument("path", type=Path)
    one = steps.add_parser("bench")
    one.add_argument("suite")
    one.add_argument("path", type=Path)
    one = steps.add_parser("counters")
    one.add_argument("ncu")
    one.add_argument("folder", type=Path)
    one = steps.add_parser("call")
    one.add_argument("what")
    steps.add_parser("tune")
    given = parser.parse_args(arguments)
    runs: dict[str, Any] = {
        "build": build,
        "check": lambda: check(given.backend, given.path, given.op, given.dtype),
        "sanitize": lambda: sanitize(given.sanitizer, given.tool, given.path),
        "bench": lambda: bench(given.suite, given.path),
        "counters": lambda: counters(given.ncu, given.folder),
        "call": lambda: call(given.what),
        "tune": tune,
    }
    return runs[given.step]()


if __name__ == "__main__":
    # This file's folder is where Python would look first, and its statistics.py is not Python's own.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT / "bench"]
    sys.exit(main())
