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
        weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        values, loss = {"output": output}, (output * weights.to(output)).sum()
    loss.backward()
    values = {name: value.detach().clone() for name, value in values.items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return values | grads


def nudged(model, inputs):
    """A copy of a float64 model, and its inputs, with every value moved by a unit in the last place of float32."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)

    def nudge(value):
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            return value
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        return value.detach().double() * (1 + EPS * signs.to(value.device))

    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.copy_(nudge(parameter))
    return moved, torch.utils._pytree.tree_map(nudge, inputs)


def expected(theirs, inputs) -> Expected:
    """What torch's model in float32 should give: the truth, that of nudged values, and what it gives itself."""
    truth = exact(theirs)
    moved, near = nudged(truth, inputs)
    # A copied model's norms are those of the original: exact() tied them to it.
    return Expected(results(truth, inputs), results(exact(moved), near), results(theirs, inputs))


def compare(ours, theirs, inputs) -> list[Comparison]:
    """Our model against torch's, of the same weights in float32: each value with its error and its bound."""
    return expected(theirs, inputs).compare(results(ours, inputs))


def wrong(ours, theirs, inputs) -> list[str]:
    """What our model computes otherwise than torch's, in words.

    By the error rule in float32. Where a network normalises over its batch and cuts values off at 0, a last place on
    one side of a cut changes a gradient by as much as the gradient itself, in PyTorch's result as in ours, so that one
    is compared in float64, in which no value is that near to a cut: to nine digits.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in theirs.modules()):
        return [str(c) for c in compare(ours, theirs, inputs) if not c.ok]
    expected, found = (results(copy.deepcopy(model).double(), inputs) for model in (theirs, ours))
    assert set(found) == set(expected)
    scale = max(value.abs().max() for value in expected.values())  # For gradients that are 0, and come as rounding.
    return [
        f"{name}: off by {error}"
        for name, value in expected.items()
        if not (error := (found[name] - value).abs().max()) <= 1e-9 * value.abs().max() + 1e-13 * scale
    ]
