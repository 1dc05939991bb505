"""warpwright.fuse on random small graphs: whatever they are, the fused result is the model's."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from fusion_library import check, converted, floats
from torch import nn

#: Of rows (4, 6), or of images (2, 6, 5, 4); a step reads values made before, and may write to one.
ACTIVATIONS = [
    F.relu,
    F.gelu,
    F.silu,
    torch.sigmoid,
    torch.tanh,
    F.leaky_relu,
    F.hardswish,
    lambda t: F.leaky_relu(t, 0.3),
]


class Program(nn.Module):
    """A list of steps over a growing list of values, of which some are returned."""

    def __init__(self, steps, results, images):
        super().__init__()
        self.steps, self.results = steps, results
        if images:
            self.layers = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=bias) for bias in (False, True))
            self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6).eval()])
        else:
            self.layers = nn.ModuleList(nn.Linear(6, 6, bias) for bias in (False, True))
            self.norms = nn.ModuleList([nn.LayerNorm(6), nn.RMSNorm(6, 1e-5)])
        for i, parameter in enumerate(self.parameters()):
            with torch.no_grad():
                parameter.copy_(floats(*parameter.shape, seed=i))

    def forward(self, t):
        values = [t.sin(), t.cos()]
        for kind, which, first, second in self.steps:
            a, b = values[first % len(values)], values[second % len(values)]
            values.append(self.step(kind, which, a, b))
        # A copy of each: results that are one tensor could be written to by later steps.
        return [values[at % len(values)] * 1 for at in self.results]

    def step(self, kind, which, a, b):
        if kind == "layer":
            return self.layers[which % 2](a)
        if kind == "norm":
            return self.norms[which % 2](a)
        if kind == "activation":
            return ACTIVATIONS[which % len(ACTIVATIONS)](a)
        if kind == "add":
            return a + b if which % 2 else torch.add(a, b)
        if kind == "add_":
            a = a * 1 if which % 2 else a  # Either a tensor of its own, or one that others have.
            a += b
            return a
        if kind == "relu_":
            return F.relu(a, inplace=True)
        return a * b


_KINDS = ("layer",) * 4 + ("activation",) * 4 + ("add",) * 3 + ("norm", "norm", "mul", "add_", "relu_")


def program(seed, images):
    """Mostly a step works on the value before it: chains are what is fused."""
    draw = random.Random(seed)

    def place():
        return -1 if draw.random() < 0.7 else draw.randrange(-4, 4)

    steps = [
        (draw.choice(_KINDS), draw.randrange(8), place(), draw.randrange(-4, 4)) for _ in range(draw.randrange(4, 12))
    ]
    return Program(steps, [-1, *(place() for _ in range(draw.randrange(2)))], images)


def writes_to_what_a_gradient_needs(model, x):
    """Whether autograd refuses the model itself."""
    model, (x,) = converted(model, [x.requires_grad_()], torch.float32)
    try:
        sum(value.sum() for value in model(x)).backward()
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)
    return False


@pytest.mark.parametrize("images", [False, True], ids=["rows", "images"])
def test_random_graphs(images):
    """Not drawn by Hypothesis: which programs it makes of its numbers depends on the modules that are loaded."""
    fused = []
    for seed in range(60):
        torch._dynamo.reset()
        model = program(seed, images)
        x = floats(2, 6, 5, 4) if images else floats(4, 6)
        if not writes_to_what_a_gradient_needs(model, x):
            fused.extend(check(model, [x.requires_grad_()]).fused)
    patterns = {fusion.pattern for fusion in fused}
    assert len(patterns) >= 8, patterns
