"""Every barrier, wait, fence, arrival and predicate of the tensor-core products matters to the emulator: without any
one of them some seed ends in an error or in wrong numbers."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType

import dropped_statements
import emulated
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

#: The files whose statements are dropped, by kernel.
FILES = {
    "mma": [CUDA / "matmul" / "gemm_mma.cu", CUDA / "tile" / "mma_operand.cuh"],
    "wgmma": [CUDA / "matmul" / "gemm_wgmma.cu"],
}
SEEDS = 8


def _rewritten() -> tuple[dict[Path, str], list[tuple[str, dropped_statements.Site]]]:
    sources, sites = {}, []
    for kernel, paths in FILES.items():
        for path in paths:
            sources[path], found = dropped_statements.rewrite(path, 1 + len(sites))
            sites += [(kernel, site) for site in found]
    return sources, sites


SOURCES, SITES = _rewritten()


class GemmParams(ctypes.Structure):
    """csrc/kernels/matmul.h."""

    _fields_ = (
        ("a", ctypes.c_void_p), ("a_row", ctypes.c_int64), ("a_col", ctypes.c_int64),
        ("b", ctypes.c_void_p), ("b_row", ctypes.c_int64), ("b_col", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p), ("residual_row", ctypes.c_int64), ("residual_col", ctypes.c_int64),
        ("output", ctypes.c_void_p), ("preact", ctypes.c_void_p),
        ("m", ctypes.c_int64), ("n", ctypes.c_int64), ("k", ctypes.c_int64),
        ("activation", ctypes.c_int32), ("dtype", ctypes.c_int32),
    )  # fmt: skip


RELU, FLOAT16 = 1, 2  # Of the enums of csrc/kernels/common.h.


#: Elements around each array that belong to no other one: more than 256 lines.
GUARD = 1 << 18


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Random float16 numbers at a multiple of 16 bytes."""
    count = int(np.prod(shape))
    raw = np.empty(GUARD + count + GUARD, dtype=np.float16)
    first = GUARD + -raw.ctypes.data % 16 // 2
    values = raw[first : first + count].reshape(shape)
    values[...] = np.random.default_rng(count).standard_normal(shape) / 4
    return values


class Product:
    """A product of whose tiles each block has several, the last ones cut at both edges."""

    m, n, k = 136, 520, 72

    def __init__(self, library: ctypes.CDLL, emulator: ModuleType):
        self.library = library
        self.a, self.b, self.residual = (
            _aligned((self.m, self.k)),
            _aligned((self.n, self.k)),
            _aligned((self.m, self.n)),
        )
        self.bias, self.output = _aligned((self.n,)), _aligned((self.m, self.n))
        self.preact = _aligned((self.m, self.n))
        truth = self.a.astype(np.float64) @ self.b.astype(np.float64).T + self.bias + self.residual
        self.truth = truth, np.maximum(truth, 0)
        for array in (self.a, self.b, self.residual, self.bias, self.output, self.preact):
            emulator.allow(array)

    def wrong(self, kernel: str, keep: bool) -> str:
        """What is wrong with a run, if anything. `keep`: it stores the values before the activation too."""
        params = GemmParams(
            self.a.ctypes.data, self.k, 1, self.b.ctypes.data, self.k, 1, self.bias.ctypes.data,
            self.residual.ctypes.data, self.n, 1, self.output.ctypes.data, self.preact.ctypes.data if keep else None,
            self.m, self.n, self.k, RELU, FLOAT16,
        )  # fmt: skip
        self.output[...] = self.preact[...] = np.nan
        message = self.library.run_gemm(int(kernel == "wgmma"), ctypes.byref(params)).decode()
        results = [(self.output, self.truth[1]), *([(self.preact, self.truth[0])] if keep else [])]
        # Half a unit in the last place of float16 each for the sum and for what it is stored as.
        close = all(np.allclose(ours, truth, rtol=2**-10, atol=2**-10) for ours, truth in results)
        return message or ("" if close else "wrong numbers")


def _write(path: Path, text: str) -> None:
    """At once, and not at all where it is there: other test processes may be compiling it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(text)
        new.replace(path)


@pytest.fixture(scope="module")
def product():
    folder = ROOT / "build" / "dropped_statements"
    _write(folder / dropped_statements.SWITCH, dropped_statements.SWITCH_TEXT)
    for path, text in SOURCES.items():
        _write(folder / path.relative_to(ROOT / "csrc"), text)
    sources = [folder / path.relative_to(ROOT / "csrc") for path in SOURCES if path.suffix == ".cu"]
    built = emulated.build_cases([*sources, ROOT / "tests" / "gemm_entry.cu"], "dropped_statements", include=folder)
    library = ctypes.CDLL(str(built))
    library.run_gemm.restype = ctypes.c_char_p
    return Product(library, emulated.load(built))


def _first_error(product, monkeypatch, kernel: str, site: int) -> str:
    product.library.drop_site(site)
    for seed in range(SEEDS):
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(seed))
        if wrong := product.wrong(kernel, keep=seed % 2 == 0):
            return wrong
    return ""


@pytest.mark.parametrize("kernel", FILES)
def test_nothing_dropped_nothing_wrong(product, monkeypatch, kernel):
    assert _first_error(product, monkeypatch, kernel, 0) == ""


@pytest.mark.parametrize(("kernel", "site"), [pytest.param(k, s, id=f"{s.number}-{s}") for k, s in SITES])
def test_what_is_dropped_is_missed(product, monkeypatch, kernel, site):
    assert _first_error(product, monkeypatch, kernel, site.number) != "", f"nobody misses {site}"
