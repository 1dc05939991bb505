"""Each wrapper of csrc/cuda/ptx does what the PTX ISA's tables say: on the emulator, and on a GPU where there is one.

What is expected is computed in NumPy from the tables' own formulas, so that neither the emulator nor its author's idea
of an instruction is the judge.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import emulated
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "conformance.cu"
BUILD = emulated.build_script()


def _missing(target: str) -> str | None:
    if target == "emulated":
        return emulated.missing() or (None if shutil.which("g++") else "no C++ compiler")
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    return None if BUILD.find_nvcc() else "no nvcc"


TARGETS = [t for t in ("emulated", "cuda") if _missing(t) is None]


@pytest.fixture(scope="module", params=TARGETS)
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    if request.param == "emulated":
        out = emulated.build_cases([SOURCE], folder)
    else:
        out = folder / "conformance.so"
        command = [BUILD.find_nvcc(), "-O2", "-std=c++20", "-arch=native", "-shared", "-Xcompiler=-fPIC"]
        subprocess.run([*command, f"-I{ROOT / 'csrc'}", str(SOURCE), "-o", str(out)], check=True)
    loaded = ctypes.CDLL(str(out))
    loaded.conformance.restype = ctypes.c_char_p
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.conformance.argtypes = [ctypes.c_char_p, pointer, size, pointer, size]
    return loaded


def run(library, name: str, given: np.ndarray, output: np.ndarray) -> np.ndarray:
    given = np.ascontiguousarray(given)
    message = library.conformance(name.encode(), given.ctypes.data, given.nbytes, output.ctypes.data, output.nbytes)
    assert message == b""
    return output


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(3))
def test_mma_m16n8k16(library, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    a = torch.randn(16, 16, generator=generator).to(kind)
    b = torch.randn(16, 8, generator=generator).to(kind)
    c = torch.randn(16, 8, generator=generator)
    words = np.zeros((32, 10), dtype=np.uint32)
    bits_a, bits_b = (x.view(torch.int16).numpy().view(np.uint16) for x in (a, b))
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(8):  # Figures of the fragments: a_i at (row, col), two to a register.
            row = group if i < 2 or 4 <= i < 6 else group + 8
            col = thread * 2 + (i & 1) + (8 if i >= 4 else 0)
            words[lane, i // 2] |= np.uint32(bits_a[row, col]) << np.uint32(16 * (i & 1))
        for i in range(4):
            row = thread * 2 + (i & 1) + (8 if i >= 2 else 0)
            words[lane, 4 + i // 2] |= np.uint32(bits_b[row, group]) << np.uint32(16 * (i & 1))
        for i in range(4):
            value = c[group + (8 if i >= 2 else 0), thread * 2 + (i & 1)]
            words[lane, 6 + i] = np.float32(value).view(np.uint32)
    out = run(library, f"mma_{dtype}", words, np.zeros((32, 4), dtype=np.float32))
    expected = (a.double() @ b.double() + c.double()).numpy()
    for lane in range(32):
        for i in range(4):
            row, col = (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)
            # The sum of 17 terms of about 1 in float32; the hardware's own order and rounding are not specified.
            assert abs(out[lane, i] - expected[row, col]) < 17 * 4 * 2.0**-23


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_x4(library, transposed):
    matrices = np.random.default_rng(0).integers(0, 1 << 16, (4, 8, 8), dtype=np.uint16)
    out = np.zeros((32, 4), dtype=np.uint32)
    run(library, "ldmatrix_trans" if transposed else "ldmatrix", matrices.reshape(32, 8), out)
    for matrix in range(4):
        seen = matrices[matrix].T if transposed else matrices[matrix]
        for lane in range(32):
            low, high = seen[lane // 4, 2 * (lane % 4)], seen[lane // 4, 2 * (lane % 4) + 1]
            assert out[lane, matrix] == (int(high) << 16 | int(low))


@pytest.mark.parametrize("seed", range(6))
def test_cp_async_fills_up_with_zeros(library, seed, monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(seed))
    given = np.random.default_rng(seed).integers(1, 256, (2, 32, 16), dtype=np.uint8)
    out = run(library, "cp_async", given, np.zeros((2, 32, 16), dtype=np.uint8))
    expected = given.copy()
    for thread in range(32):
        expected[:, thread, thread % 17 :] = 0
    assert np.array_equal(out, expected[:, ::-1])


@pytest.mark.skipif(BUILD.find_nvcc() is None, reason="no nvcc")
def test_the_inline_assembly_is_accepted(tmp_path):
    """By the assembler of the oldest and the newest architecture that ships, so that no GPU is needed to see a typo."""
    archs = BUILD.gencode_flags(BUILD.DEFAULT_ARCHS)
    command = [BUILD.find_nvcc(), "-O2", "-std=c++20", *archs, "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c"]
    subprocess.run([*command, str(SOURCE), "-o", str(tmp_path / "conformance.o")], check=True)
