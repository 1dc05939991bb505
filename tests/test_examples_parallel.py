"""The examples of parallel training: they run as they say they do, learn, and leave no layer to torch."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch

import warpwright

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "parallel"
NAMES = ("ddp", "fsdp2", "tensor_parallel", "pipeline")
STEPS = 6
pytest.importorskip("sklearn", reason="the digits of ddp.py are scikit-learn's")


def _all_of_them() -> dict[str, tuple[list[float], dict[tuple[str, str], int]]]:
    """The losses of each example, and what its layers left to torch."""
    sys.path.insert(0, str(FOLDER))
    found = {}
    for name in NAMES:
        warpwright.fallbacks().clear()
        losses = importlib.import_module(name).train(torch.device("cpu"), STEPS)
        found[name] = losses, dict(warpwright.fallbacks())
    return found


def test_examples_learn_without_a_fallback():
    results = processes.run(_all_of_them, 2)
    for name in NAMES:
        losses, _ = results[1][name]
        assert len(losses) == STEPS
        assert losses[-1] < 0.9 * losses[0], name
        assert [result[name][1] for result in results] == [{}, {}], name
        assert results[0][name][0] in (losses, []), name  # The same in both, or the last stage's alone.


@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_an_example_starts_as_it_says(launcher):
    command = [sys.executable]
    if launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(FOLDER / "pipeline.py"), "--steps", "2"]
    threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(
        r"^2 processes on (cpu|cuda): loss \d\.\d+ at first, \d\.\d+ at last$", result.stdout, re.MULTILINE
    )
