"""The CPU's vector functions against float64, over a dense sweep, for every instruction set this machine has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import processor
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CXX = os.environ.get("CXX", "g++")

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason="no C++ compiler")

EXACT = {
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "normal_cdf": lambda x: torch.special.erfc(-x * 0.5**0.5) / 2,
    "sigmoid": torch.sigmoid,
}
#: Largest error in units of the result's last place. A subnormal result of sigmoid may be flushed to zero, as torch
#: does: 1 + exp(-x) is infinite there. That of normal_cdf is what half a unit's error of x^2 / 2 does to exp(-x^2 / 2).
BOUND_ULP = {"exp": 1.1, "log": 1.0, "tanh": 2.0, "normal_cdf": 3.5, "sigmoid": 2.5}


def _build_module():
    spec = importlib.util.spec_from_file_location("warpwright_build", ROOT / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _inputs() -> np.ndarray:
    generator = np.random.default_rng(0)
    dense = np.linspace(-110, 110, 1 << 20)
    near = np.linspace(-5, 5, 1 << 20)
    tiny = generator.choice([-1, 1], 1 << 16) * 10.0 ** generator.uniform(-44, 0, 1 << 16)
    odd = [0.0, -0.0, 1.0, -1.0, 0.625, 4.0, 88.72284, -87.33655, -103.97, 1e38, -1e38, np.inf, -np.inf, np.nan]
    values = np.concatenate([dense, near, tiny, odd]).astype(np.float32)
    return np.pad(values, (0, -len(values) % 16))


@pytest.fixture(scope="module", params=processor.isas())
def sweep(request, tmp_path_factory):
    build = _build_module()
    program = tmp_path_factory.mktemp("sweep") / "sweep"
    flags = [f for f in build.CXX_FLAGS if f != "-fPIC"] + build.ISAS[request.param]
    flags += [f"-DWARPWRIGHT_ISA={request.param}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([CXX, *flags, str(ROOT / "tests" / "vec_math_sweep.cpp"), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("name", EXACT)
def test_error_in_units_of_the_last_place(sweep, name, tmp_path):
    x = _inputs()
    x.tofile(tmp_path / "in")
    subprocess.run([sweep, name, tmp_path / "in", tmp_path / "out"], check=True)
    ours = torch.from_numpy(np.fromfile(tmp_path / "out", dtype=np.float32).astype(np.float64))
    exact = EXACT[name](torch.from_numpy(x).double())
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan())
    beyond = exact.abs() > torch.finfo(torch.float32).max
    assert torch.equal(ours[beyond], exact[beyond].sign() * torch.inf)
    finite = ~exact.isnan() & ~beyond
    value = exact[finite]
    ulp = torch.exp2(torch.floor(torch.log2(value.abs().clamp_min(torch.finfo(torch.float32).tiny))) - 23)
    if name == "sigmoid":
        ulp = ulp.masked_fill(value < torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).tiny)
    if name == "normal_cdf":
        ulp *= 1 + torch.from_numpy(x).double()[finite].square() / 2
    error = ((ours[finite] - value).abs() / ulp).max().item()
    assert error <= BOUND_ULP[name], f"{name}: {error:.3f} units in the last place"
