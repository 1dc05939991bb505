"""PyTorch's samples of its norms through ours, functions and layers."""

from __future__ import annotations

from typing import Any

import opinfo
import pytest
import torch
from torch import Tensor

import warpwright
from warpwright import nn, ops
from warpwright.testing import Sample

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
def test_layer_norm(dtype):
    assert set(opinfo.held_to("nn.functional.layer_norm", ops.layer_norm, dtype)) == {"taken"}


@DTYPES
def test_rms_norm(dtype):
    assert set(opinfo.held_to("nn.functional.rms_norm", ops.rms_norm, dtype)) == {"taken"}


def _layer_norm_layer(input: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    layer = nn.LayerNorm(shape, eps, elementwise_affine=weight is not None, bias=bias is not None)
    tensors = {name: t for name, t in (("weight", weight), ("bias", bias)) if t is not None}
    return torch.func.functional_call(layer, tensors, (input,))


def _rms_norm_layer(input: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    layer = nn.RMSNorm(shape, eps, elementwise_affine=weight is not None)
    return torch.func.functional_call(layer, {} if weight is None else {"weight": weight}, (input,))


def _bias_alone(sample: Sample) -> str | None:
    _, _, weight, bias, *_ = (*sample.args, *(sample.kwargs.get(name) for name in ("weight", "bias")), None, None)
    return "a layer has no bias without a weight" if weight is None and bias is not None else None


@DTYPES
def test_layers_take_them_without_falling_back(dtype):
    before = str(warpwright.fallbacks())
    opinfo.held_to("nn.functional.layer_norm", _layer_norm_layer, dtype, _bias_alone)
    opinfo.held_to("nn.functional.rms_norm", _rms_norm_layer, dtype)
    assert str(warpwright.fallbacks()) == before


def _other_norm(sample: Sample) -> str | None:
    p = sample.kwargs.get("p", 2.0)
    return None if p == 2 else "not the Euclidean length"


def _l2_normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return ops.l2_normalize(input, dim, eps)


@DTYPES
def test_normalize(dtype):
    counts = opinfo.held_to("nn.functional.normalize", _l2_normalize, dtype, _other_norm)
    assert counts["taken"] > 0
    assert set(counts) <= {"taken", "not the Euclidean length"}
