"""A layer of ours and the same one in torch's words, compared by the rule of warpwright.testing.compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from warpwright.testing import Sample
from warpwright.testing.compare import Expected, evaluate


def sample_of(layer: nn.Module, inputs: Sequence[Tensor]) -> Sample:
    """The inputs, then the layer's parameters; everything that has a gradient wants one."""
    tensors = [t.detach() for t in (*inputs, *layer.parameters())]
    return Sample("layer", tuple(t.requires_grad_() if t.is_floating_point() else t for t in tensors))


def as_function(layer: nn.Module, count: int) -> Callable[..., Any]:
    """The layer as a function of `count` inputs and then its parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def call(*tensors: Tensor) -> Any:
        parameters = dict(zip(names, tensors[count:], strict=True))
        return torch.func.functional_call(layer, parameters, tensors[:count])

    return call


def assert_as_exact(ours: nn.Module, theirs: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Outputs and all gradients of `ours`, and its outputs without gradients, within the bound that torch's own errors
    set. Both layers name their parameters in the same order; values are those of `ours`."""
    sample = sample_of(ours, inputs)
    op = as_function(ours, len(inputs))
    expected = Expected.of(as_function(theirs, len(inputs)), sample)
    found = expected.compare(evaluate(op, sample))
    with torch.no_grad():
        found += expected.compare_inference(evaluate(op, sample.map(torch.Tensor.detach)))
    bad = [str(comparison) for comparison in found if not comparison.ok]
    assert not bad, "\n".join(bad)
