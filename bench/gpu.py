"""Everything that only a GPU can answer, in parts that fit a short loan of one: `make gpu`, or `python3 bench/gpu.py`.

Builds, checks every op on every backend, runs the tests that take a GPU, the sanitizers, all suites with all providers
that are found, and reads the counters of the slowest rows. It works until everything is done or BUDGET seconds are
used, notes in OUT/state.json what became of each step, and goes on from there the next time. Steps that were cut off
keep what they have measured; one that fails does not stop the others.

It runs on the machine's own python3 with the torch that is there, and installs nothing; beside torch it needs Triton
and PyYAML. A machine without nvcc takes libraries that were built elsewhere, from python/warpwright/lib or
the folder that WARPWRIGHT_LIBRARY_DIR names, and for the tests of single instructions the one that
`python tests/conformance_library.py OUT.so` builds, named by WARPWRIGHT_CONFORMANCE_LIBRARY. Libraries that load are
not built again: remove them when their sources have changed.

Exit codes: 0 when all is done and right, 1 when something failed, 75 when time ran out and it should be run again
(`make` makes 2 of the last two).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "bench" / "gpu_steps.py"

DONE, FAILED, AGAIN = 0, 1, 75
#: Seconds that are kept for ending a step and for the summary.
_RESERVE_S, _GRACE_S, _KILL_S = 15, 8, 2
#: A step that cannot resume and was cut off so often does not fit into the time.
_MAX_CUTS = 2

SANITIZERS = ("memcheck", "racecheck", "synccheck")
BACKENDS = ("native", "triton", "reference")
#: Pytest's exit code where no test was chosen.
_NO_TESTS = 5
#: A fixture that gives a test a GPU, where there is one.
_GPU_FIXTURE = re.compile(r"def test_\w+\([^)]*\b(matrix|conformance|hopper)\b")


@dataclass(frozen=True)
class Step:
    """One thing to do, in a process of its own.

    Attributes:
        name: also of its log.
        command: what is run.
        estimate: seconds; of a resumable step, of the least that is worth starting.
        resumable: whether it goes on where it was ended; else it starts over.
        needs: a step that must be done before.
        after: steps that must be over before, however they ended.
        skip: why it cannot be done on this machine, or None.
        nothing: the exit code with which it says that this machine has nothing for it.
    """

    name: str
    command: tuple[str, ...]
    estimate: float
    resumable: bool = False
    needs: str | None = None
    after: tuple[str, ...] = ()
    skip: str | None = None
    nothing: int | None = None


@dataclass
class Outcome:
    """What became of a step: "done", "failed", "skipped" or "unfinished"; of all its runs together."""

    status: str
    rc: int | None = None
    seconds: float = 0.0
    runs: int = 0
    cuts: int = 0
    reason: str | None = None


# ---- the plan ----


def find_tool(name: str) -> str | None:
    """A tool of the CUDA toolkit, which is often not on PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def absent(*modules: str) -> str | None:
    """Which of these Python modules are missing, in words."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def gpu_tests(folder: Path = ROOT / "tests") -> list[Path]:
    """The files with tests that run on a GPU where there is one."""
    return [path for path in sorted(folder.glob("test_*.py")) if _GPU_FIXTURE.search(path.read_text())]


def plan(out: Path, tune: bool) -> list[Step]:
    """All steps, in their order: what is wrong should be known before what is slow."""

    def worker(*arguments: str) -> tuple[str, ...]:
        return (sys.executable, str(WORKER), *arguments)

    steps = [Step("build", worker("build"), 300, resumable=True)]
    for backend in BACKENDS:
        command = worker("check", backend, str(out / f"check-{backend}.jsonl"))
        steps.append(Step(f"check-{backend}", command, 45, resumable=True, needs="build"))
    first = ["quick", *sorted(path.stem for path in (ROOT / "bench" / "suites").glob("*.yaml") if path.stem != "quick")]
    for suite in first:
        command = worker("bench", suite, str(out / f"bench-{suite}.jsonl"))
        steps.append(Step(f"bench-{suite}", command, 60, resumable=True, needs="build"))
    without_pytest = absent("pytest", "numpy", "hypothesis", "expecttest")
    for path in gpu_tests():
        # The parameters of fixtures name the device.
        command = (sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider", str(path))
        name = f"tests-{path.stem.removeprefix('test_')}"
        steps.append(Step(name, command, 240, needs="build", skip=without_pytest, nothing=_NO_TESTS))
    for tool in SANITIZERS:
        found = find_tool("compute-sanitizer")
        command = worker("sanitize", found or "", tool, str(out / f"sanitize-{tool}.jsonl"))
        skip = None if found else "compute-sanitizer not found"
        steps.append(Step(f"sanitize-{tool}", command, 90, resumable=True, needs="build", skip=skip))
    ncu = find_tool("ncu")
    benches = tuple(step.name for step in steps if step.name.startswith("bench-"))
    steps.append(
        Step(
            "counters",
            worker("counters", ncu or "", str(out)),
            90,
            resumable=True,
            needs="build",
            after=benches,
            skip=None if ncu else "ncu not found",
        )
    )
    if tune:
        steps.append(Step("tune", worker("tune"), 120, True, needs="build", skip=absent("typer", "rich")))
    return steps


# ---- the machine ----

_ASK = """
import json, platform, sys
try:
    import torch
except Exception as error:
    sys.exit(f"torch cannot be imported: {error}")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no CUDA GPU")
try:
    import triton
    version = triton.__version__
except Exception as error:
    version = f"cannot be imported: {error}"
print(json.dumps({"gpu": torch.cuda.get_device_name(), "capability": "%d.%d" % torch.cuda.get_device_capability(),
    "torch": torch.__version__, "cuda": torch.version.cuda, "triton": version, "python": platform.python_version()}))
"""


def look_at_machine() -> dict[str, Any] | str:
    """What is there; or in one line why nothing can be done."""
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["python cannot be started"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def package_tree(folder: Path) -> Path:
    """A folder for PYTHONPATH in which `warpwright` has its kernels and its benchmarks, as where it is installed."""
    package = folder / "warpwright"
    shutil.rmtree(folder, ignore_errors=True)
    package.mkdir(parents=True)
    parts = [path for path in (ROOT / "python" / "warpwright").iterdir() if path.name != "__pycache__"]
    for path in (*parts, ROOT / "bench", ROOT / "triton_kernels"):
        (package / path.name).symlink_to(path)
    return folder


# ---- running ----


class Runner:
    """Runs steps one after the other until the time is used.

    Args:
        out: the folder for logs, results and state.json.
        budget: seconds.
        say: prints a line.
        clock: seconds since some moment.
    """

    def __init__(
        self,
        out: Path,
        budget: float,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
        reserve: float = _RESERVE_S,
    ):
        self.out, self.say, self.clock = out, say, clock
        self.budget, self.start = budget, clock()
        self.end = self.start + budget - reserve
        self.outcomes: dict[str, Outcome] = {}
        self.machine: Mapping[str, Any] = {}

    @property
    def _path(self) -> Path:
        return self.out / "state.json"

    def load(self) -> None:
        """Reads what earlier runs have left."""
        if self._path.exists():
            state = json.loads(self._path.read_text())
            self.outcomes = {name: Outcome(**fields) for name, fields in state["steps"].items()}

    def save(self) -> None:
        state = {"machine": self.machine, "steps": {name: asdict(o) for name, o in self.outcomes.items()}}
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1) + "\n")
        part.replace(self._path)  # At once: this process may be ended at any moment.

    def _is_over(self, name: str) -> bool:
        return name in self.outcomes and self.outcomes[name].status != "unfinished"

    def run(self, steps: Sequence[Step], env: Mapping[str, str]) -> int:
        """Runs what is left of the steps; returns the exit code."""
        for step in steps:
            outcome = self.outcomes.setdefault(step.name, Outcome("unfinished"))
            if outcome.status in ("unfinished", "skipped"):  # What a step was skipped for may be there by now.
                outcome.status, outcome.reason = self._obstacle(step) or ("unfinished", None)
                if outcome.reason is None:
                    self._run(step, outcome, env)
            self.save()
        return self.exit_code(steps)

    def _obstacle(self, step: Step) -> tuple[str, str] | None:
        """(status, reason) of a step that cannot be started now."""
        if step.skip is not None:
            return "skipped", step.skip
        if step.needs is not None and self.outcomes[step.needs].status != "done":
            over = self._is_over(step.needs)
            return "skipped" if over else "unfinished", f"{step.needs} is {self.outcomes[step.needs].status}"
        waiting = [name for name in step.after if not self._is_over(name)]
        if waiting:
            return "unfinished", f"{waiting[0]} is unfinished"
        left = self.end - self.clock()
        # What takes longer than a whole run is started at the beginning of one, and gets all of it.
        if left < min(step.estimate, 0.9 * (self.end - self.start)):
            return "unfinished", f"needs about {step.estimate:.0f} s, {max(0.0, left):.0f} s were left"
        return None

    def _run(self, step: Step, outcome: Outcome, env: Mapping[str, str]) -> None:
        self.save()
        left = self.end - self.clock()
        self.say(f"{self.clock() - self.start:5.0f} s  {step.name} ...")
        began = self.clock()
        rc = self._execute(step, env, left)
        outcome.seconds = round(outcome.seconds + self.clock() - began, 1)
        outcome.runs += 1
        self._judge(step, outcome, rc)
        self.say(f"{self.clock() - self.start:5.0f} s  {step.name}: {outcome.status}{_because(outcome)}")

    def _judge(self, step: Step, outcome: Outcome, rc: int | None) -> None:
        outcome.rc, outcome.reason = rc, None
        if rc == 0:
            outcome.status = "done"
        elif rc is not None and rc == step.nothing:
            outcome.status, outcome.reason = "skipped", f"nothing to do here, see {step.name}.log"
        elif rc is None and not step.resumable:
            outcome.cuts += 1
            if outcome.cuts >= _MAX_CUTS:
                outcome.status = "failed"
                outcome.reason = f"cut off {outcome.cuts} times: give it a larger BUDGET"
            else:
                outcome.reason = "cut off; starts over"
        elif rc is None or rc == AGAIN:
            outcome.reason = "goes on the next time"
        else:
            outcome.status = "failed"
            outcome.reason = f"exit code {rc}, see {step.name}.log"

    def _execute(self, step: Step, env: Mapping[str, str], left: float) -> int | None:
        """The exit code, or None for a step that had to be ended."""
        with open(self.out / f"{step.name}.log", "ab") as log:
            log.write(f"\n$ {' '.join(step.command)}\n".encode())
            log.flush()
            until = {"WARPWRIGHT_GPU_UNTIL": str(time.time() + left - _GRACE_S)}
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **env, **until},
                start_new_session=True,
            )
            try:
                return process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _end(process)

    def exit_code(self, steps: Sequence[Step]) -> int:
        statuses = {self.outcomes[step.name].status for step in steps}
        if "unfinished" in statuses:
            return AGAIN
        return FAILED if "failed" in statuses else DONE


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a step's process group, and waits for it: the next step needs the GPU's memory."""
    for number, seconds in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _KILL_S)):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            process.poll()
            number = 0  # Once; then only ask whether there is still a process.
            time.sleep(0.05)


def _because(outcome: Outcome) -> str:
    return f" ({outcome.reason})" if outcome.reason else ""


def summary(steps: Sequence[Step], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A table, and a line that counts."""
    width = max(len(step.name) for step in steps)
    unknown = {step.name: Outcome("skipped" if step.skip else "to do", reason=step.skip) for step in steps}
    found = {step.name: outcomes.get(step.name, unknown[step.name]) for step in steps}
    lines = [
        f"{name:<{width}}  {o.status:<10}  {o.seconds:7.1f} s  {o.reason or ''}".rstrip() for name, o in found.items()
    ]
    counts = Counter(outcome.status for outcome in found.values())
    return [*lines, ", ".join(f"{count} {status}" for status, count in counts.items())]


def main(
    arguments: Sequence[str] | None = None,
    plan: Callable[[Path, bool], list[Step]] = plan,
    look: Callable[[], dict[str, Any] | str] = look_at_machine,
) -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], epilog="Exit codes: 0 done, 1 failures, 75 run it again."
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "gpu-results"))
    parser.add_argument("--budget", type=float, default=float(os.environ.get("BUDGET") or 540), help="seconds")
    parser.add_argument("--tune", action="store_true", default=os.environ.get("TUNE") == "1", help="tune at the end")
    parser.add_argument("--list", action="store_true", help="print the steps and what became of them; run nothing")
    parser.add_argument("--again", action="append", default=[], metavar="STEP", help="run a finished step again")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    steps = plan(out, options.tune)
    runner = Runner(out, options.budget)
    runner.load()
    if options.list:
        print("\n".join(summary(steps, runner.outcomes)))
        return DONE
    unknown = set(options.again) - {step.name for step in steps}
    if unknown:
        parser.error(f"--again: no step is called {', '.join(sorted(unknown))}; --list shows them")
    machine = look()
    if isinstance(machine, str):
        print(f"warpwright: gpu: {machine}", file=sys.stderr)
        return FAILED
    out.mkdir(parents=True, exist_ok=True)
    for name in options.again:
        runner.outcomes.pop(name, None)
        (out / f"{name}.jsonl").unlink(missing_ok=True)
    # Whoever ends this process ends the step that runs: `Runner` does so on its way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(AGAIN))
    runner.machine = machine
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    tree = package_tree(out / "tree")
    path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    # Tables come back with the rest; winners that a user of this machine has tuned are not what is measured.
    code = runner.run(
        steps, {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "WARPWRIGHT_TUNING_DIR": str(out / "tuning")}
    )
    print("\n".join(summary(steps, runner.outcomes)))
    if code == AGAIN:
        print("warpwright: gpu: time is up; run it again to go on")
    return code


if __name__ == "__main__":
    sys.exit(main())
