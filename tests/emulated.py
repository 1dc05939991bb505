"""The `emulated` backend: the kernels of csrc/cuda, compiled for the CPU and run by csrc/emulator."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from warpwright import _registry

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
    """Builds the library where it is out of date. Test processes take turns: they share one build folder."""
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    with open(folder / "emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_script().build_emulated()


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
