"""Every barrier, wait, fence, arrival and predicate of the tensor-core products matters to the emulator: without any
one of them some seed ends in an error or in wrong numbers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import dropped_statements
import emulated
import pytest
import torch
from gemm_entry import Gemm, Product, WgmmaConfig, erase, loaded, make, truth

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

#: The files whose statements are dropped, by kernel.
FILES = {
    "mma": [CUDA / "matmul" / "gemm_mma.cu", *(CUDA / "tile" / f"mma_{part}.cuh" for part in ("operand", "tile"))],
    "wgmma": [
        *(CUDA / "tile" / f"wgmma_{part}.cuh" for part in ("walk", "pipeline", "operand", "mainloop")),
        CUDA / "tile" / "warp_specialised.cuh",
        *(CUDA / "matmul" / f"gemm_wgmma_{part}.cuh" for part in ("consumer", "epilogue", "kernel")),
        CUDA / "matmul" / "split_k.cu",
    ],
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

#: Products of whose tiles each block has several, the last ones cut at both edges, and how they are computed. By wgmma
#: every way out, every kind of operand and both schedules occur.
EPILOGUE = {"bias": True, "residual": "rows", "activation": "hardswish"}
CASES: dict[str, list[tuple[dict[str, object], WgmmaConfig | None]]] = {
    "mma": [
        ({"m": 136, "n": 520, "k": 72, **EPILOGUE}, None),
        ({"m": 136, "n": 520, "k": 72, **EPILOGUE, "keep": True}, None),
    ],
    "wgmma": [
        ({"m": 136, "n": 200, "k": 72, "bias": True, "activation": "relu"}, WgmmaConfig(128, 64, True, False, 1, 1, 2)),
        ({"m": 136, "n": 104, "k": 200, **EPILOGUE, "keep": True}, WgmmaConfig(128, 64, True, False, 2, 1, 8)),
        ({"m": 13, "n": 261, "k": 72, "bias": True, "residual": "offset"}, WgmmaConfig(128, 16, False, True, 1, 1, 8)),
        ({"m": 13, "n": 133, "k": 136, **EPILOGUE, "keep": True}, WgmmaConfig(128, 16, False, True, 1, 2, 8)),
        (
            {"m": 24, "n": 72, "k": 136, "activation": "tanh", "batch": (2, 2)},
            WgmmaConfig(128, 64, True, False, 1, 1, 8),
        ),
        ({"m": 24, "n": 72, "k": 136, **EPILOGUE, "batch": (2, 2)}, WgmmaConfig(128, 64, True, False, 1, 2, 8)),
        # More steps than there are stages.
        (
            {"m": 136, "n": 72, "k": 560, "layout": "tn", "dtype": "bfloat16", "activation": "relu"},
            WgmmaConfig(128, 64, True, False, 2, 1, 8),
        ),
        ({"m": 200, "n": 200, "k": 264}, WgmmaConfig(128, 192, False, False, 1, 1, 8)),
    ],
}


def wrong(gemm: Gemm, product: Product, config: WgmmaConfig | None) -> str:
    """What is wrong with a run, if anything."""
    erase(product)
    if message := gemm.run(product, config):
        return message
    output, kept = truth(product)
    results = [(product.output, product.output_dtype, output)]
    if product.preact is not None:
        results.append((product.preact, product.dtype, kept))
    for ours, dtype, expected in results:
        # Half a unit in the last place each for the sum and for what it is stored as.
        unit = 2 * torch.finfo(getattr(torch, dtype)).eps
        if not torch.allclose(loaded(ours, dtype), expected, rtol=unit, atol=unit):
            return "wrong numbers"
    return ""


@pytest.fixture(scope="module")
def gemm() -> Gemm:
    folder = ROOT / "build" / "dropped_statements"
    emulated.write(folder / dropped_statements.SWITCH, dropped_statements.SWITCH_TEXT)
    for path, text in SOURCES.items():
        emulated.write(folder / path.relative_to(ROOT / "csrc"), text)
    kernels = [*(CUDA / "matmul" / name for name in ("gemm_mma.cu", "split_k.cu"))]
    kernels += [*sorted((CUDA / "matmul").glob("gemm_wgmma*.cu"))]
    sources = [folder / path.relative_to(ROOT / "csrc") if path in SOURCES else path for path in kernels]
    built = emulated.build_cases([*sources, ROOT / "tests" / "gemm_entry.cu"], "dropped_statements", include=folder)
    return Gemm(ctypes.CDLL(str(built)), emulated.load(built))


@pytest.fixture(scope="module")
def products() -> dict[str, list[tuple[Product, WgmmaConfig | None]]]:
    return {
        kernel: [(make(integers=False, **arguments), config) for arguments, config in cases]
        for kernel, cases in CASES.items()
    }


def _first_error(gemm, products, monkeypatch, kernel: str, site: int) -> str:
    gemm.library.drop_site(site)
    for seed in range(SEEDS):
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(seed))
        for product, config in products[kernel]:
            if found := wrong(gemm, product, config):
                return found
    return ""


@pytest.mark.parametrize("kernel", FILES)
def test_nothing_dropped_nothing_wrong(gemm, products, monkeypatch, kernel):
    assert _first_error(gemm, products, monkeypatch, kernel, 0) == ""


#: (file, statement) -> why no product of `CASES` can miss it.
UNMISSED = {
    ("mma_operand.cuh", "kChunks % kThreads != 0"): "false of the tile that is run here, whose copies go round evenly",
    ("mma_operand.cuh", "i >= kChunks"): "behind the one before it",
    (
        "gemm_wgmma_epilogue.cuh",
        "p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16",
    ): "the launcher's: a residual of float32 is not read in packs, and residuals here have 16 bits",
}


def test_what_nobody_misses_is_still_there():
    assert UNMISSED.keys() <= {(site.file, site.text) for _, site in SITES}


@pytest.mark.parametrize(
    ("kernel", "site"),
    [pytest.param(k, s, id=f"{s.number}-{s}") for k, s in SITES if (s.file, s.text) not in UNMISSED],
)
def test_what_is_dropped_is_missed(gemm, products, monkeypatch, kernel, site):
    assert _first_error(gemm, products, monkeypatch, kernel, site.number) != "", f"nobody misses {site}"
