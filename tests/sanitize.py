"""`make sanitize`: the CPU kernels, the bindings and the emulated CUDA kernels under AddressSanitizer and
UndefinedBehaviorSanitizer.

Every op's samples, in each memory layout, random draws and bad inputs, forward and backward, run in one process for
each instruction set of the processor, and in others for the emulator. Nothing is compared with float64: that is the
tests' work. A report of a sanitizer ends its process, and the sample that ran is named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import processor

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitized"
EMULATED_SHARES = 2
REPORT_LENGTH = 4000


@dataclass(frozen=True)
class Run:
    """One process: the kernels of an instruction set, or a share of the ops on the emulator."""

    backend: str  # "native" or "emulated".
    isa: str
    share: int = 0

    @property
    def name(self) -> str:
        return f"emulated, share {self.share + 1}" if self.backend == "emulated" else f"cpu, {self.isa}"


def preload(library: str) -> str:
    """The path of one of the compiler's libraries."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment(folder: Path = FOLDER, isa: str = "") -> dict[str, str]:
    """Of a Python process that loads sanitized libraries, from `folder` in the place of the package's own."""
    # Python itself and torch are not instrumented: the runtime must be there before them, and the C++ library beside
    # it, so that it finds the functions that throw. Red zones are wide, as indices go wrong by more than one row.
    return os.environ | {
        "LD_PRELOAD": f"{preload('libasan.so')}:{preload('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:redzone=256:allocator_may_return_null=1:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "WARPWRIGHT_LIBRARY_DIR": str(folder),
        "WARPWRIGHT_CPU_ISA": isa,
        "OMP_NUM_THREADS": "2",  # Kernels share their work, whatever the machine.
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=2, metavar=("BACKEND", "SHARE"), help="what one process does; for this script")
    parser.add_argument("--cpu-only", action="store_true", help="without the emulated kernels: half the time")
    arguments = parser.parse_args()
    if chosen := arguments.run:
        from sanitized_cases import run_all

        run_all(chosen[0], int(chosen[1]), EMULATED_SHARES)
        return 0
    only = ["--cpu-only"] if arguments.cpu_only else []
    subprocess.run([sys.executable, str(ROOT / "csrc" / "build.py"), "--sanitized", *only], check=True)
    runs = [Run("native", isa) for isa in processor.isas()]
    if arguments.cpu_only:
        print("sanitize: the CPU's kernels alone")
    elif (FOLDER / "libwarpwright_emulated.so").exists():
        # First: they take longest.
        runs = [Run("emulated", "", share) for share in range(EMULATED_SHARES)] + runs
    else:
        print("sanitize: without the emulated kernels, which need the CUDA toolkit's headers")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [run.name for run, ok in zip(runs, pool.map(execute, runs), strict=True) if not ok]
    print(f"sanitize: {'FAILED: ' + '; '.join(failed) if failed else 'no report'}")
    return 1 if failed else 0


def execute(run: Run) -> bool:
    """Runs one process; prints how it went, and where it failed what it ran last and what was reported."""
    start = time.perf_counter()
    command = [sys.executable, "-u", __file__, "--run", run.backend, str(run.share)]
    done = subprocess.run(command, env=environment(isa=run.isa), capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if re.match(r"\w+: |\S+::", line)]
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        print(f"sanitize: {run.name}: {len(lines)} calls and tests in {seconds:.0f} s", flush=True)
        return True
    print(f"sanitize: {run.name}: exit code {done.returncode} at: {lines[-1] if lines else 'its start'}")
    report = re.search(r"^.*(ERROR: AddressSanitizer|runtime error: ).*", done.stderr, re.MULTILINE)
    # A report begins with what matters, a traceback ends with it.
    print(done.stderr[report.start() :][:REPORT_LENGTH] if report else done.stderr[-REPORT_LENGTH:], flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
