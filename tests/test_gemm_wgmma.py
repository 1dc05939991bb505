"""Every configuration of Hopper's product (csrc/cuda/matmul/gemm_wgmma.cuh), on the emulator.

Sums of small integers are exact whatever the tile, the schedule, the cluster, the splits and the order of tiles: each
configuration must give the exact result. On any other numbers, those that do not split K give the same bits.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import emulated
import pytest
import torch
from gemm_entry import Gemm, Product, WgmmaConfig, erase, loaded, make, truth

ROOT = Path(__file__).resolve().parent.parent
MATMUL = ROOT / "csrc" / "cuda" / "matmul"

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))


@pytest.fixture(scope="module")
def gemm() -> Gemm:
    sources = [
        *sorted(MATMUL.glob("gemm_wgmma*.cu")),
        MATMUL / "gemm_mma.cu",
        MATMUL / "split_k.cu",
        ROOT / "tests" / "gemm_entry.cu",
    ]
    built = emulated.build_cases(sources, "gemm")
    return Gemm(ctypes.CDLL(str(built)), emulated.load(built))


def variants(gemm: Gemm, product: Product) -> list[WgmmaConfig]:
    """Each shape as it is, and with a cluster, with splits, and in another order, one of them at a time."""
    found = []
    for i, config in enumerate(gemm.configs(product)):
        change = [{"cluster": 2}, {"splits": 2}, {"band": 1}, {"splits": 3, "cluster": 2}][i % 4]
        found += [config, config.but(**change)]
    return [config for config in found if gemm.allows(product, config)]


def outcomes(gemm: Gemm, product: Product, configs: list[WgmmaConfig]) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(configuration, output, what is kept) of each."""
    found = []
    assert configs
    for config in configs:
        erase(product)
        message = gemm.run(product, config)
        assert message == "", f"{config}: {message}"
        kept = product.output if product.preact is None else product.preact
        found.append((
            str(config),
            loaded(product.output, product.output_dtype),
            loaded(kept, product.output_dtype if product.preact is None else product.dtype),
        ))  # fmt: skip
    return found


#: Sums of integers times powers of two that every dtype holds.
EXACT = {
    "plain": {"m": 150, "n": 200, "k": 72},
    "bfloat16": {"m": 150, "n": 200, "k": 72, "dtype": "bfloat16", "bias": True, "activation": "relu"},
    "nn": {"m": 136, "n": 72, "k": 136, "layout": "nn"},
    "tn": {"m": 136, "n": 72, "k": 136, "layout": "tn", "dtype": "bfloat16"},
    "tt": {"m": 136, "n": 72, "k": 200, "layout": "tt"},
    "few rows": {"m": 13, "n": 264, "k": 136, "bias": True, "alpha": 0.5},
    "few rows, column": {"m": 13, "n": 264, "k": 72, "residual": "column", "dtype": "bfloat16"},
    "batch": {"m": 24, "n": 40, "k": 40, "batch": (5,), "bias": True},
    "three batch dimensions": {"m": 24, "n": 72, "k": 16, "batch": (2, 2, 2), "a_batch": (2, 1, 2), "residual": "rows"},
    "tf32": {"m": 70, "n": 104, "k": 68, "dtype": "float32", "precision": "tf32", "bias": True, "residual": "rows"},
    "one k": {"m": 40, "n": 24, "k": 1, "layout": "tn"},
    "one row": {"m": 1, "n": 40, "k": 72},
    "odd columns": {"m": 70, "n": 101, "k": 72, "bias": True, "residual": "rows", "beta": 2.0},
    "residual": {"m": 70, "n": 104, "k": 72, "residual": "rows", "beta": -1.0, "alpha": 2.0, "keep": True},
    "residual offset": {"m": 70, "n": 104, "k": 72, "residual": "offset", "activation": "relu", "keep": True},
    "float32 out": {"m": 70, "n": 104, "k": 72, "output_dtype": "float32", "output_scale": 0.5},
    "odd float32 out": {"m": 70, "n": 51, "k": 72, "output_dtype": "float32", "activation": "relu"},
    "bfloat16 out of float16": {"m": 70, "n": 104, "k": 72, "output_dtype": "bfloat16"},
    "float8 out": {"m": 70, "n": 104, "k": 72, "output_dtype": "float8_e4m3fn", "alpha": 0.25},
    "odd float8 out": {"m": 70, "n": 51, "k": 16, "output_dtype": "float8_e5m2", "alpha": 0.25},
}


@pytest.mark.parametrize("name", EXACT)
def test_integers_are_exact_in_every_configuration(gemm, name):
    product = make(**EXACT[name])
    output, kept = (x.to(getattr(torch, product.output_dtype)).double() for x in truth(product))
    for config, ours, ours_kept in outcomes(gemm, product, variants(gemm, product)):
        assert torch.equal(ours, output), config
        assert product.preact is None or torch.equal(ours_kept, kept), config


#: Any numbers.
ROUNDED = {
    "plain": {"m": 150, "n": 200, "k": 200},
    "gelu and preact": {"m": 70, "n": 104, "k": 264, "bias": True, "activation": "gelu", "keep": True},
    "tanh and value": {"m": 70, "n": 99, "k": 136, "dtype": "bfloat16", "activation": "tanh", "keep": True},
    "few rows": {"m": 40, "n": 136, "k": 264, "bias": True, "residual": "rows", "activation": "silu"},
}


@pytest.mark.parametrize("name", ROUNDED)
def test_configurations_agree_bit_by_bit_unless_they_split_k(gemm, name):
    product = make(integers=False, **ROUNDED[name])
    found = gemm.configs(product)
    configs = [c.but(cluster=1 + i % 2) for i, c in enumerate(found)]
    (_, output, kept), *others = outcomes(gemm, product, configs)
    expected = truth(product)
    spacing = 2**-7 if product.dtype == "bfloat16" else 2**-10
    assert torch.allclose(output, expected[0], rtol=spacing, atol=spacing / 16)
    for config, ours, ours_kept in others:
        assert torch.equal(ours, output), config
        assert torch.equal(ours_kept, kept), config
    # Another order of the sums: float32's own error, which may turn the last rounding.
    split = [c.but(splits=2 + i % 2) for i, c in enumerate(found[-3:])]
    for config, ours, ours_kept in outcomes(gemm, product, split):
        assert torch.allclose(ours, expected[0], rtol=spacing, atol=spacing / 16), config
        assert product.preact is None or torch.allclose(ours_kept, expected[1], rtol=spacing, atol=spacing / 16), config
    same = outcomes(gemm, product, [split[0], split[0]])
    assert torch.equal(same[0][1], same[1][1])


def test_no_split_is_empty(gemm):
    """Nine steps in six parts are five parts of two, and the workspace has as many."""
    product = make(40, 24, 9 * 64 - 8)
    config = gemm.configs(product)[-1].but(splits=6)
    needed = gemm.library.wgmma_workspace_bytes(ctypes.byref(product.params()), ctypes.byref(config))
    assert needed == 5 * 40 * 24 * 4
    ((_, ours, _),) = outcomes(gemm, product, [config])
    assert torch.equal(ours, truth(product)[0])


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"k": 68}, False),  # A row is no multiple of 16 bytes.
        ({"n": 43}, True),  # The output's rows may be anything.
        ({"layout": "tt", "m": 44}, False),
        ({"dtype": "float32"}, False),
        ({"dtype": "float32", "precision": "tf32"}, True),
        ({"dtype": "float32", "precision": "tf32", "layout": "nn"}, False),
        ({"dtype": "float32", "precision": "tf32x3"}, False),
    ],
)
def test_what_is_taken(gemm, change, taken):
    product = make(**{"m": 40, "n": 48, "k": 72, **change})
    count = gemm.library.wgmma_configs(ctypes.byref(product.params()), None, 0)
    assert (count > 0) == taken


@pytest.mark.parametrize("change", [{"tile_n": 48}, {"cluster": 3}, {"splits": 3}, {"splits": 0}, {"band": 0}])
def test_what_is_no_configuration_is_refused(gemm, change):
    product = make(40, 48, 72)
    config = gemm.configs(product)[-1].but(**change)
    assert not gemm.allows(product, config)
    assert gemm.run(product, config) == "warpwright: this product cannot be configured so"


def test_a_batch_invariant_product_is_not_split(gemm):
    product = make(16, 16, 2048)
    config = gemm.configs(product)[-1].but(splits=2)
    assert gemm.allows(product, config)
    product.batch_invariant = True
    assert not gemm.allows(product, config)
