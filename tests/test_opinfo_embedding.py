"""PyTorch's samples of embedding through ours, function and layer."""

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

NAME = "nn.functional.embedding"
DTYPES = pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)


def _theirs(weight: Tensor, input: Tensor, **options: Any) -> Tensor:
    """op_db's samples have the weight first: it is what has a gradient."""
    return F.embedding(input, weight, **options)


def _ours(weight: Tensor, input: Tensor, **options: Any) -> Tensor:
    return ops.embedding(input, weight, **options)


def _layer(weight: Tensor, input: Tensor, padding_idx: int | None = None, scale_grad_by_freq: bool = False) -> Tensor:
    layer = nn.Embedding(*weight.shape, padding_idx=padding_idx, scale_grad_by_freq=scale_grad_by_freq)
    return torch.func.functional_call(layer, {"weight": weight}, (input,))


def _renormalised(sample: Sample) -> str | None:
    """Why a sample is none of ours: each refusal has its words in the OpSpec's bad inputs."""
    if sample.kwargs.get("max_norm") is not None:
        return "writes to the weight"
    return "a sparse gradient" if sample.kwargs.get("sparse") else None


@DTYPES
def test_embedding(dtype):
    assert not opinfo.wrong(_ours, _theirs, NAME, dtype, _renormalised)


@DTYPES
def test_the_layer_takes_them_without_falling_back(dtype):
    before = str(warpwright.fallbacks())
    assert not opinfo.wrong(_layer, _theirs, NAME, dtype, _renormalised)
    assert str(warpwright.fallbacks()) == before


@DTYPES
def test_most_samples_are_taken(dtype):
    taken = [_renormalised(sample) is None for sample in opinfo.samples(NAME, dtype)]
    assert sum(taken) > len(taken) / 2
