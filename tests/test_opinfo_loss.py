"""PyTorch's own samples of the losses, through warpwright.ops and warpwright.nn."""

from __future__ import annotations

from typing import Any

import opinfo
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import warpwright
from warpwright import ops

OPS = {"cross_entropy": ("nn.functional.cross_entropy", F.cross_entropy, "CrossEntropyLoss"),
       "nll_loss": ("nn.functional.nll_loss", F.nll_loss, "NLLLoss")}  # fmt: skip


@pytest.mark.parametrize("dtype", opinfo.DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_samples_pass_through_the_op(matrix, name, dtype):
    if matrix == "cuda":
        pytest.skip("the samples lie on the CPU")
    listed, torch_op, _ = OPS[name]
    assert opinfo.wrong(getattr(ops, name), torch_op, listed, dtype) == []


@pytest.mark.parametrize("dtype", opinfo.DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_samples_pass_through_the_layer(name, dtype):
    listed, torch_op, layer = OPS[name]

    def op(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        return getattr(warpwright.nn, layer)(**options)(input, target)

    assert opinfo.wrong(op, torch_op, listed, dtype) == []
    assert not warpwright.fallbacks()


def test_a_layer_has_torchs_state():
    ours = warpwright.nn.LinearCrossEntropyLoss(8, 5, bias=True)
    assert list(ours.state_dict()) == ["linear.weight", "linear.bias"]
    x, target = torch.randn(6, 8), torch.randint(0, 5, (6,))
    expected = F.cross_entropy(ours.linear(x), target)
    torch.testing.assert_close(ours(x, target), expected)


def test_a_layer_weighs_classes():
    weight = torch.rand(5)
    ours = warpwright.nn.LinearCrossEntropyLoss(8, 5, class_weight=weight)
    assert list(ours.state_dict()) == ["class_weight", "linear.weight"]
    x, target = torch.randn(6, 8), torch.randint(0, 5, (6,))
    torch.testing.assert_close(ours(x, target), F.cross_entropy(ours.linear(x), target, weight))
