"""The `emulated` backend: the kernels of csrc/cuda, compiled for the CPU and run by csrc/emulator."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import torch

from warpwright import _library, _registry

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("warpwright_build", ROOT / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str | None:
    """Why the emulator cannot be built here, or None when it can."""
    if build_script().cuda_headers() is None:
        return "the CUDA toolkit's headers are not installed"
    return None


@functools.cache
def library() -> Path:
    """Builds the library where it is out of date. Test processes take turns: they share one build folder.

    Where Python's libraries are those of another build, such as that for the sanitizers, it is the one beside them."""
    given = _library.LIBRARY_DIR / build_script().EMULATED_LIBRARY
    if given.exists():
        return given
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    with open(folder / "emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_script().build_emulated()


def build_cases(sources: list[Path], folder: Path) -> Path:
    """A library of its own out of a test's kernels and the emulator."""
    build = build_script()
    flags = [*build.CXX_FLAGS, *build.EMULATED_FLAGS, f"-I{ROOT / 'csrc'}", f"-isystem {build.cuda_headers()}"]
    objects = []
    for part in [*sources, *sorted((ROOT / "csrc" / "emulator").glob("*.cpp"))]:
        objects.append(folder / f"{part.stem}.o")
        watched = build.INSTRUMENT_FLAGS if part in sources else []
        command = " ".join([build.cxx(), *flags, *watched, "-c", str(part), "-o", str(objects[-1])])
        subprocess.run(shlex.split(command), check=True)
    out = folder / "cases.so"
    subprocess.run([build.cxx(), "-shared", *map(str, objects), "-o", str(out)], check=True)
    return out


@functools.cache
def activate() -> None:
    """Makes `warpwright.use_backend("emulated")` possible."""
    _registry.activate("emulated")
    torch.ops.load_library(str(library()))


def launches(kernel: str) -> int:
    """How often the kernel of this launch name has run in this process."""
    function = ctypes.CDLL(str(library())).warpwright_emulator_launches
    function.restype = ctypes.c_int64
    return function(kernel.encode())


def kernels() -> dict[str, bool]:
    """Every kernel of csrc/cuda, each instantiation of a template by itself: name -> whether it has run here."""
    listed = subprocess.run(["nm", "-C", "--defined-only", str(library())], check=True, capture_output=True, text=True)
    reached = ctypes.CDLL(str(library())).warpwright_emulator_reached
    reached.argtypes = [ctypes.c_int64]
    symbols = re.findall(
        r"^([0-9a-f]+) [tTwW] (?:void )?(warpwright::cuda::.*_kernel(?:<[^()]*>)?)\([\w:]+\)$",
        listed.stdout,
        re.MULTILINE,
    )
    return {name.replace("(anonymous namespace)::", ""): bool(reached(int(at, 16))) for at, name in symbols}
