"""The claim of docs/mixed-precision.md on a short run of its example: masters follow float32, bfloat16 does not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "mixed_precision" / "train.py"
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")


def test_masters_track_float32_and_bfloat16_alone_does_not(monkeypatch):
    spec = importlib.util.spec_from_file_location("mixed_precision_train", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    images, classes = example.digits()
    last = {
        name: example.train(run, images, classes, steps=200, width=64, lr=3e-4)[-1]
        for name, run in example.RUNS.items()
    }
    distance = {name: abs(loss - last["float32"]) for name, loss in last.items()}
    assert distance["masters"] < 0.01 * last["float32"]
    assert distance["plain"] > 0.1 * last["float32"]
    assert distance["masters"] <= distance["stochastic"] < 0.5 * distance["plain"]
