"""examples/quantization on a shorter run: every format knows nearly as many digits, and a state goes through a file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import warpwright

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "quantization" / "quantize.py"
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("quantization_quantize", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_each_format_knows_nearly_as_much(example, capsys):
    seen, unseen = example.digits()
    net = example.network()
    example.train(net, *seen, steps=100)
    exact = example.accuracy(net, *unseen)
    assert exact > 0.95
    before = {name: p.clone() for name, p in net.named_parameters()}
    found = example.quantised_accuracies(net, *unseen)
    assert set(found) == {"fp8", "int8", "w8a16", "w4a16"}
    assert min(found.values()) > exact - 0.02
    assert capsys.readouterr().out.count("4 replaced, 0 skipped") == 4
    after = dict(net.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in before.items())
    ours, loaded = example.through_a_file(net, unseen[0])
    assert torch.equal(ours, loaded)
    assert all(p.dim() == 1 for p in net.parameters())  # Biases are what is left of the float parameters.
    assert not warpwright.fallbacks()
