"""Plants one bug at a time in the kernels and runs the tests of that op: each bug must turn a test red.

    python tests/mutate.py            all mutations (minutes); exit code 1 when one survives
    python tests/mutate.py --list     what would be planted
    python tests/mutate.py rms_norm   those whose name contains a word

The source file is changed in place, rebuilt, tested and put back, whatever happens in between.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from mutations import MUTATIONS, Mutation

from warpwright.testing import SPECS

ROOT = Path(__file__).resolve().parent.parent
#: pytest's exit codes for wrong usage and for no test found; a crash of the process is a noticed bug.
NO_TESTS = (4, 5)
TIMEOUT_S = 600


def survives(mutation: Mutation) -> bool:
    """Whether the tests still pass with the bug in place."""
    if mutation.path.startswith("csrc/"):
        options = ["--emulated"] if mutation.backend == "emulated-cpu" else []
        built = subprocess.run([sys.executable, "csrc/build.py", *options], cwd=ROOT, capture_output=True, text=True)
        if built.returncode != 0:
            raise SystemExit(f"{mutation.name}: the mutant does not compile; write it better\n{built.stdout[-2000:]}")
    # What runs every op on every backend, and the family's own file, where it has one.
    own = ROOT / "tests" / f"test_{SPECS[mutation.op].family}.py"
    select = f"{mutation.backend} and ({mutation.op} or {own.stem})"
    files = ["tests/test_ops.py", "tests/test_batch_invariant.py", "tests/test_large_offsets.py"]
    files += [str(own.relative_to(ROOT))] if own.exists() else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", select]
    try:
        tested = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False  # A hang is noticed too.
    if tested.returncode in NO_TESTS:
        raise SystemExit(f"{mutation.name}: pytest could not run the tests\n{tested.stdout[-2000:]}")
    return tested.returncode == 0


def plant(mutation: Mutation) -> bool:
    path = ROOT / mutation.path
    original = path.read_text()
    count = original.count(mutation.old)
    if count != 1:
        raise SystemExit(f"{mutation.name}: the text to replace occurs {count} times, not once")
    try:
        path.write_text(original.replace(mutation.old, mutation.new))
        return survives(mutation)
    finally:
        path.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutations whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="list the mutations and stop")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.words or any(w in m.name for w in arguments.words)]
    if arguments.list:
        print("\n".join(m.name for m in chosen))
        return
    survived = []
    for mutation in chosen:
        alive = plant(mutation)
        print(f"{'SURVIVED' if alive else 'killed'}  {mutation.name}", flush=True)
        if alive:
            survived.append(mutation)
    for options in ([], ["--emulated"]):  # The libraries without any bug.
        subprocess.run([sys.executable, "csrc/build.py", *options], cwd=ROOT, capture_output=True)
    print(f"{len(chosen) - len(survived)} killed, {len(survived)} survived")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
