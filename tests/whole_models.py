"""Whole models by the project's error rule: outputs, losses and gradients of one against another's."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from warpwright.testing.compare import Comparison, Expected

EPS = torch.finfo(torch.float32).eps


def without_dropout(model):
    """Masks are drawn by another generator: with them nothing can be compared."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def exact(model):
    """A copy in float64, in which the norms that transformers computes in float32 are computed in float64 too."""
    double = copy.deepcopy(model).double()
    for module in double.modules():
        kind = type(module).__name__
        if kind.endswith(("RMSNorm", "T5LayerNorm")) and not isinstance(module, nn.RMSNorm):
            offset, eps = (1.0, module.eps) if kind.startswith("Gemma") else (0.0, module.variance_epsilon)
            module.forward = lambda x, m=module, o=offset, e=eps: F.rms_norm(x, m.weight.shape, m.weight + o, e)
    return double


def _cast(value, dtype):
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def results(model, inputs):
    """name -> output, loss and the gradient of every parameter, of one call. `inputs`: a tensor, or keywords."""
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    if isinstance(inputs, dict):
        output = model(**{name: _cast(value, dtype) for name, value in inputs.items()})
        values, loss = {"logits": output.logits, "loss": output.loss}, output.loss
    else:
        output = model(_cast(inputs, dtype))
        weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        values, loss = {"output": output}, (output * weights.to(output)).sum()
    loss.backward()
    values = {name: value.detach().clone() for name, value in values.items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return values | grads


def nudged(model):
    """A copy of a float64 model whose parameters are moved by a unit in the last place of float32."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in moved.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + EPS * signs)
    return moved


def compare(ours, theirs, inputs) -> list[Comparison]:
    """Our model against torch's, of the same weights in float32: each value with its error and its bound."""
    truth = exact(theirs)
    expected = Expected(*(results(model, inputs) for model in (truth, _again(nudged(truth)), theirs)))
    return expected.compare(results(ours, inputs))


def _again(model):
    """A copied model's norms are those of the original: exact() tied them to it."""
    return exact(model)


def worst(comparisons):
    """The comparison nearest to its bound, or past it."""
    return max(comparisons, key=lambda c: c.ratio)
