"""PyTorch's own samples of the activations and softmaxes, through warpwright.ops and warpwright.nn."""

from __future__ import annotations

import opinfo
import pytest
import torch
import torch.nn.functional as F

import warpwright
from warpwright import ops


def _softmax(function):
    """With the signature of torch.softmax."""

    def call(input, dim, dtype=None):
        return function(input, dim, dtype=dtype)

    return call


def _layer(name):
    """The layer, made of a call's options."""

    def call(input, *arguments, **keywords):
        return getattr(warpwright.nn, name)(*arguments, **keywords)(input)

    return call


#: name in op_db -> ours, the layer's call, torch's.
CASES = {
    "softmax": (_softmax(ops.softmax), _layer("Softmax"), torch.softmax),
    "log_softmax": (_softmax(ops.log_softmax), _layer("LogSoftmax"), torch.log_softmax),
    "nn.functional.gelu": (ops.gelu, _layer("GELU"), F.gelu),
    "nn.functional.silu": (ops.silu, _layer("SiLU"), F.silu),
    "nn.functional.relu": (ops.relu, _layer("ReLU"), F.relu),
    "nn.functional.glu": (ops.glu, _layer("GLU"), F.glu),
}


@pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)
@pytest.mark.parametrize("through", ["ops", "nn"])
@pytest.mark.parametrize("name", CASES)
def test_torchs_samples(name, through, dtype):
    function, layer, torch_op = CASES[name]
    wrong = opinfo.wrong(function if through == "ops" else layer, torch_op, name, dtype)
    assert not wrong, "\n".join(wrong)
    assert not warpwright.fallbacks()
