"""The steps of docs/hopper-matmul.md as Python functions: step_01_naive(input, weight) and so on. They need a Hopper
GPU and nvcc. The benchmarks take them beside PyTorch and the shipped kernel:

    warpwright bench run --suite matmul-square --op linear --dtype bfloat16 --direction forward \\
        --providers torch,warpwright,step_09_persistent,step_10_tma_store \\
        --kernel linear=examples/hopper_matmul/steps.py:step_09_persistent \\
        --kernel linear=examples/hopper_matmul/steps.py:step_10_tma_store

HOPPER_MATMUL_LIBRARY names a library of the steps that is built already.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
SOURCES = sorted(FOLDER.glob("*.cu"))
NVCC_FLAGS = ["-O3", "-std=c++20", "-arch=sm_90a", "-Werror=all-warnings", f"-I{FOLDER.parent.parent / 'csrc'}"]


def build(nvcc: str, out: Path) -> Path:
    """Compiles all steps into one library for sm_90a."""
    flags = [*NVCC_FLAGS, "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]
    subprocess.run([nvcc, *flags, *map(str, SOURCES), "-o", str(out)], check=True)
    return out


class Params(ctypes.Structure):
    """MatmulParams of matmul.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
        *((name, ctypes.c_int64) for name in ("m", "n", "k")),
    )


def call(library: ctypes.CDLL, step: str, a: Tensor, b: Tensor, c: Tensor) -> str:
    """Has the step write a (m, k) times b (n, k) transposed to c (m, n), contiguous bfloat16 all of them; what went
    wrong, or an empty text."""
    (m, k), n = a.shape, b.shape[0]
    function = getattr(library, f"matmul_{step}")
    function.restype = ctypes.c_char_p
    stream = torch.cuda.current_stream().cuda_stream if a.is_cuda else None
    params = Params(a.data_ptr(), b.data_ptr(), c.data_ptr(), m, n, k)
    return function(ctypes.byref(params), ctypes.c_void_p(stream)).decode()


@functools.cache
def library() -> ctypes.CDLL:
    named = os.environ.get("HOPPER_MATMUL_LIBRARY")
    out = Path(named) if named else build("nvcc", Path(tempfile.mkdtemp(prefix="hopper-matmul-")) / "steps.so")
    return ctypes.CDLL(str(out))


def linear(step: str) -> Callable[..., Tensor]:
    """The step as torch.nn.functional.linear without a bias."""

    def function(input: Tensor, weight: Tensor) -> Tensor:
        output = torch.empty(input.shape[0], weight.shape[0], dtype=torch.bfloat16, device=input.device)
        message = call(library(), step, input, weight, output)
        if message:
            raise RuntimeError(message)
        return output

    return function


globals().update({f"step_{source.stem}": linear(source.stem) for source in SOURCES})
