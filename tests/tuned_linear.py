"""What the tests of tuning share: linear's product of one size, entries for it, and a kernel that is looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import warpwright
from warpwright import tuning
from warpwright._backend import triton_interpreted, triton_missing

if triton_missing() is not None or not triton_interpreted():
    pytest.skip("interprets Triton's kernels on the CPU", allow_module_level=True)

from warpwright.testing import Sample
from warpwright.triton_kernels import _gemm
from warpwright.tuning import Problem, tables
from warpwright.tuning.launches import foreseen
from warpwright.tuning.tables import Entry

CPU = torch.device("cpu")
TILE = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 1, "num_warps": 4, "num_stages": 3}


@contextmanager
def tables_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for the user's tables, and none of the package's."""
    monkeypatch.setenv("WARPWRIGHT_TUNING_DIR", str(path / "own"))
    monkeypatch.setattr(tables, "SHIPPED", path / "shipped")
    tuning.reload()
    with warpwright.use_backend("triton"):
        yield path / "own"
    tuning.reload()


def problem(m: int = 64, n: int = 16, k: int = 40) -> Problem:
    return Problem("triton", "gemm", "float32", (("m", m), ("n", n), ("k", k)), "kk")


def entry(config: dict | None = TILE, **changes) -> Entry:
    found = Entry(
        problem(), config, 1e-6, 2e-6, 1e-8, 10, 1, 0, "2026-01-01T00:00:00+00:00", "2.13", "3.7", "0.1", None,
        _gemm.GEMM.sources,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def save(folder, *entries: Entry) -> None:
    tables.write_table(folder / "interpreted.json", "interpreted", {e.problem: e for e in entries})
    tuning.reload()


def linear(m: int = 64, n: int = 16, k: int = 40) -> Sample:
    return Sample("linear", (torch.rand(m, k) - 0.5, torch.rand(n, k) - 0.5))


def chosen(m: int = 64, n: int = 16, k: int = 40):
    (launch,) = foreseen(warpwright.ops.linear, linear(m, n, k).args, {})
    return launch.choice


class Spy:
    """A kernel that notes the constants of its launches, and may break them: change(kwargs, args) runs after each."""

    def __init__(self, kernel, change=lambda kwargs, args: None):
        self.kernel, self.change, self.launched = kernel, change, []

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.launched.append({name: kwargs[name] for name in kwargs if name in TILE})
            self.kernel[grid](*args, **kwargs)
            self.change(kwargs, args)

        return launch
