"""examples/pruning on a shorter run: half of the weights loses something, and training gets it back."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import warpwright

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "pruning" / "prune.py"
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")


def test_training_gets_back_what_pruning_lost(monkeypatch):
    spec = importlib.util.spec_from_file_location("pruning_prune", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    warpwright.fallbacks().clear()
    stages, net = example.run(steps=120, more=80)
    loss, known = zip(*stages.values(), strict=True)
    assert known[0] > 0.95
    assert loss[1] > 1.1 * loss[0]
    assert loss[2] < loss[1]
    assert known[2] > known[0] - 0.01
    assert loss[3] == pytest.approx(loss[2], rel=1e-4)
    for layer in net:
        if hasattr(layer, "weight"):
            assert ((layer.weight.unflatten(1, (-1, 4)) != 0).sum(-1) <= 2).all()
    assert not warpwright.fallbacks()
