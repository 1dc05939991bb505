"""The library of tests/conformance, built for each target that this machine can run, and the one function in it.

    python tests/conformance_library.py OUT.so    builds it for a Hopper GPU (sm_90a) elsewhere

A GPU machine without nvcc takes such a library from WARPWRIGHT_CONFORMANCE_LIBRARY.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import emulated
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "tests" / "conformance").glob("*.cu"))
FOLDER = ROOT / "build" / "conformance"
PREBUILT = "WARPWRIGHT_CONFORMANCE_LIBRARY"
HOPPER = "sm_90a"


def missing(target: str) -> str | None:
    """Why this target cannot be run here, or None when it can."""
    build = emulated.build_script()
    if target == "emulated":
        return emulated.missing() or (None if shutil.which(build.cxx()) else "no C++ compiler")
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    return None if build.find_nvcc() or os.environ.get(PREBUILT) else f"no nvcc, and {PREBUILT} names no library"


TARGETS = [target for target in ("emulated", "cuda") if missing(target) is None]


def runs_hopper(target: str) -> bool:
    """Whether the target has TMA, wgmma and clusters: sm_90a's instructions exist in no later architecture."""
    return target == "emulated" or torch.cuda.get_device_capability() == (9, 0)


def runs_float8_mma(target: str) -> bool:
    """Whether the target's mma takes 8-bit floats: from sm_89 on."""
    return target == "emulated" or torch.cuda.get_device_capability() >= (8, 9)


def build_cuda(out: Path, arch: str) -> None:
    nvcc = emulated.build_script().find_nvcc()
    assert nvcc is not None, "building for a GPU needs nvcc"
    flags = ["-O2", "-std=c++20", f"-arch={arch}", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]
    subprocess.run([nvcc, *flags, f"-I{ROOT / 'csrc'}", *map(str, SOURCES), "-o", str(out)], check=True)


def _built_for_this_gpu() -> Path:
    if os.environ.get(PREBUILT):
        return Path(os.environ[PREBUILT])
    FOLDER.mkdir(parents=True, exist_ok=True)
    out = FOLDER / "cases_cuda.so"
    parts = [*(ROOT / "csrc" / "cuda").rglob("*.cuh"), *(ROOT / "csrc").rglob("*.h"), *SOURCES]
    parts.append(ROOT / "tests" / "conformance" / "harness.h")
    with open(FOLDER / "cuda.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists() or out.stat().st_mtime < max(part.stat().st_mtime for part in parts):
            build_cuda(out, HOPPER if runs_hopper("cuda") else "native")
    return out


class Library:
    def __init__(self, path: Path, hopper: bool, float8_mma: bool):
        self.hopper = hopper
        self.float8_mma = float8_mma
        self._function = ctypes.CDLL(str(path)).conformance
        self._function.restype = ctypes.c_char_p
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._function.argtypes = [ctypes.c_char_p, pointer, size, pointer, size, pointer]

    def message(self, name: str, given: np.ndarray, output: np.ndarray, numbers: Iterable[int] = ()) -> str:
        """Runs a case, which may change `output`; what went wrong, or an empty text."""
        given = np.ascontiguousarray(given)
        assert output.flags.c_contiguous
        values = np.array(list(numbers), dtype=np.int64)
        at, to = given.ctypes.data, output.ctypes.data
        return self._function(name.encode(), at, given.nbytes, to, output.nbytes, values.ctypes.data).decode()

    def run(self, name: str, given: np.ndarray, output: np.ndarray, numbers: Iterable[int] = ()) -> np.ndarray:
        message = self.message(name, given, output, numbers)
        assert not message, message
        return output


@functools.cache
def library(target: str) -> Library:
    path = emulated.build_cases(SOURCES, "conformance") if target == "emulated" else _built_for_this_gpu()
    return Library(path, runs_hopper(target), runs_float8_mma(target))


if __name__ == "__main__":
    build_cuda(Path(sys.argv[1]), HOPPER)
