"""A model against what `warpwright.fuse` makes of it: outputs, gradients and buffers within the error rule."""

from __future__ import annotations

import copy

import torch
from torch import nn

import warpwright
from warpwright.testing.compare import Expected


class Function(nn.Module):
    """A function as a model, with its tensors as parameters: those that are floats have gradients."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                setattr(self, name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def floats(*shape, seed=0, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


def converted(model, inputs, dtype):
    """Copies in another dtype; inputs that are floats ask for their gradients."""

    def convert(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value.detach().clone(memory_format=torch.preserve_format).to(dtype).requires_grad_(value.requires_grad)

    return copy.deepcopy(model).to(dtype), [convert(value) for value in inputs]


def nudged(model, inputs):
    """The same in float64, each number moved by one part in the last place of float32."""
    generator = torch.Generator().manual_seed(2)
    eps = torch.finfo(torch.float32).eps

    def nudge(tensor):
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        return tensor.detach() * (1 + eps * signs)

    model, inputs = converted(model, inputs, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(nudge(parameter))
    return model, [
        nudge(value).requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for value in inputs
    ]


def values(model, call, inputs, rounded_as=None):
    """Outputs, gradients of parameters and inputs, and buffers after the call, by name."""
    result = call(*inputs)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    found = {f"output{i}": output.detach() for i, output in enumerate(outputs)}
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves |= {f"input{i}": t for i, t in enumerate(inputs) if isinstance(t, torch.Tensor) and t.requires_grad}
    rooted = {name: t for name, t in zip(found, outputs, strict=True) if t.requires_grad}
    if leaves and rooted:
        generator = torch.Generator().manual_seed(1)
        weights = [
            (torch.rand(t.shape, generator=generator, dtype=torch.float64) * 2 - 1)
            .to((rounded_as or found)[name].dtype)
            .to(t.dtype)
            for name, t in rooted.items()
        ]
        grads = torch.autograd.grad(list(rooted.values()), list(leaves.values()), weights, allow_unused=True)
        found |= {f"grad of {name}": g for name, g in zip(leaves, grads, strict=True) if g is not None}
    return found | {name: b.detach().clone() for name, b in model.named_buffers() if b.is_floating_point()}


def check(model, inputs, counts=None, *, dtype=torch.float32, skipped=(), zero=(), **options):
    """Fuses `model` and compares it with itself.

    counts: op -> how often the report says that it was put in; None leaves that open.
    skipped: parts of the reasons that the report must give, each for one place.
    zero: names of gradients that are zero by definition, of which PyTorch returns what rounding left.
    Returns the report.
    """
    model, inputs = converted(model, inputs, dtype)
    copied = converted(model, inputs, dtype)
    theirs = values(copied[0], copied[0], copied[1])
    truth, moved = (
        values(m, m, i, theirs) for m, i in (converted(model, inputs, torch.float64), nudged(model, inputs))
    )
    own, own_inputs = converted(model, inputs, dtype)
    fused = warpwright.fuse(own, **{"inductor": False, "fullgraph": True, **options})
    ours = values(own, fused, own_inputs)
    for name in zero:
        assert not ours.pop(name).any()
        for other in (theirs, truth, moved):
            del other[name]
    assert {name: value.dtype for name, value in ours.items()} == {name: v.dtype for name, v in theirs.items()}
    for comparison in Expected(truth, moved, theirs).compare(ours):
        assert comparison.ok, f"{comparison}\n{fused.report}"
    if counts is not None:
        assert fused.report.counts() == counts, str(fused.report)
    reasons = [skip.reason for skip in fused.report.skipped]
    for part in skipped:
        assert any(part in reason for reason in reasons), str(fused.report)
    return fused.report
