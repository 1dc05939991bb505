"""PyTorch's samples of its norms through ours, functions and layers."""

from __future__ import annotations

from typing import Any

import opinfo
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import warpwright
from warpwright import nn, ops
from warpwright.testing import Sample

DTYPES = pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)


@DTYPES
def test_layer_norm(dtype):
    assert not opinfo.wrong(ops.layer_norm, F.layer_norm, "nn.functional.layer_norm", dtype)


@DTYPES
def test_rms_norm(dtype):
    assert not opinfo.wrong(ops.rms_norm, F.rms_norm, "nn.functional.rms_norm", dtype)


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
    assert not opinfo.wrong(_layer_norm_layer, F.layer_norm, "nn.functional.layer_norm", dtype, _bias_alone)
    assert not opinfo.wrong(_rms_norm_layer, F.rms_norm, "nn.functional.rms_norm", dtype)
    assert str(warpwright.fallbacks()) == before


def _other_norm(sample: Sample) -> str | None:
    return None if sample.kwargs.get("p", 2.0) == 2 else "not the Euclidean length"


def _l2_normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return ops.l2_normalize(input, dim, eps)


@DTYPES
def test_normalize(dtype):
    assert not opinfo.wrong(_l2_normalize, F.normalize, "nn.functional.normalize", dtype, _other_norm)
