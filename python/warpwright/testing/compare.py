"""The one definition of correct: at most twice PyTorch's own error against float64, plus a floor.

The floor keeps PyTorch's luck on a tensor of a few elements from deciding. It is one unit in the last place of the
result, plus what one unit in the last place of the arithmetic (float32, whatever the storage; float64 for float64) at
the inputs does to it, found by nudging the inputs of the float64 evaluation. The second part matters where the
result is a difference of nearly equal numbers and its own last place says nothing about the rounding on the way. Of a
single number it is the mean over several nudges: one may leave it where it is by chance, or move it three times as far.

Where PyTorch has no number and the truth does (oneDNN's convolutions read memory that nobody has written), its error
there counts as 0: that excuses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warpwright.testing.spec import OpSpec, Sample

#: How much larger than PyTorch's own error ours may be.
ERROR_FACTOR = 2.0
#: How often the inputs are nudged where a value is a single number.
NUDGES = 16


@dataclass(frozen=True)
class Comparison:
    """One output or gradient against float64: largest absolute errors, and the bound on ours."""

    name: str
    error: float
    torch_error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # False for NaN.

    @property
    def ratio(self) -> float:
        """error / bound: 1 is the limit."""
        if self.bound == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.bound


def evaluate(
    op: Callable[..., Any], sample: Sample, cotangent_seed: int = 1, rounded_as: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Outputs and gradients of one call, by name: output0, output1, ..., grad0, grad1, ...

    Gradients are those of sum(output * cotangent) with a fixed random cotangent, for every tensor that requires grad.
    Its values are rounded to the dtypes of the outputs `rounded_as`, if given: what is compared gets the same numbers.
    """
    call = sample.map(lambda t: t.detach().clone(memory_format=torch.preserve_format).requires_grad_(t.requires_grad))
    return evaluate_in_place(op, call, cotangent_seed, rounded_as)


def _nudged(sample: Sample, eps: float, seed: int) -> Sample:
    """Every floating element moved by one part in 1 / eps, up or down at random."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device) * 2 - 1
        return (tensor.detach() * (1 + eps * signs)).requires_grad_(tensor.requires_grad)

    return sample.map(nudge)


def evaluate_in_place(
    op: Callable[..., Any], call: Sample, cotangent_seed: int = 1, rounded_as: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`evaluate` on the sample's own tensors, with their strides, offsets and aliases."""
    result = op(*call.args, **call.kwargs)
    outputs = [result] if isinstance(result, Tensor) else [t for t in result if t is not None]
    values = {f"output{i}": t.detach() for i, t in enumerate(outputs)}
    leaves = [t for t in call.tensors() if t.requires_grad]
    rooted = {name: t for name, t in zip(values, outputs, strict=True) if t.requires_grad}
    if leaves and rooted:
        generator = torch.Generator().manual_seed(cotangent_seed)
        cotangents = [
            (torch.rand(t.shape, generator=generator, dtype=torch.float64) * 2 - 1)
            .to((rounded_as or values)[name].dtype)
            .to(t)
            for name, t in rooted.items()
        ]
        grads = torch.autograd.grad(list(rooted.values()), leaves, cotangents, allow_unused=True)
        values |= {f"grad{i}": g for i, g in enumerate(grads) if g is not None}
    return values


def to_float64(sample: Sample) -> Sample:
    """The same call with every floating tensor upcast."""

    def upcast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return sample.map(upcast)


@dataclass(frozen=True)
class Expected:
    """What one call should give: the truth, the truth of nudged inputs, and PyTorch's own result, values by name."""

    truth: dict[str, Tensor]
    nudged: dict[str, Tensor]
    theirs: dict[str, Tensor]
    #: The truths of further nudges, for single numbers.
    more_nudged: Sequence[dict[str, Tensor]] = ()

    @staticmethod
    def of(torch_op: Callable[..., Any], sample: Sample) -> Expected:
        """Evaluates `torch_op` in float64, on nudged inputs in float64, and in the sample's own dtype."""
        exact = to_float64(sample)
        double = any(t.dtype == torch.float64 for t in sample.tensors())
        eps = torch.finfo(torch.float64 if double else torch.float32).eps
        theirs = evaluate(torch_op, sample)
        truth = evaluate(torch_op, exact, rounded_as=theirs)
        draws = NUDGES if any(value.numel() == 1 for value in truth.values()) else 1
        nudged, *more = (evaluate(torch_op, _nudged(exact, eps, 2 + i), rounded_as=theirs) for i in range(draws))
        return Expected(truth, nudged, theirs, more)

    def compare(self, ours: dict[str, Tensor]) -> list[Comparison]:
        """Each of our values against its bound. Raises AssertionError where values are missing, or of another shape."""
        if set(ours) != set(self.truth):
            raise AssertionError(f"returned {sorted(ours)}, expected {sorted(self.truth)}")
        return [self._one(name, name, ours) for name in sorted(self.truth)]

    def compare_inference(self, ours: dict[str, Tensor]) -> list[Comparison]:
        """The same for the outputs of a call without gradients."""
        return [self._one(f"{name} (no grad)", name, ours) for name in sorted(ours)]

    def _one(self, title: str, name: str, ours: dict[str, Tensor]) -> Comparison:
        draws = [self.nudged, *(self.more_nudged if self.truth[name].numel() == 1 else ())]
        return _compare_one(title, ours[name], self.theirs[name], self.truth[name], [draw[name] for draw in draws])


def compare(spec: OpSpec, sample: Sample, ours: dict[str, Tensor] | None = None) -> list[Comparison]:
    """Our outputs and gradients (of the current backend, unless given) against float64, forward and backward.

    Unless they are given, the outputs of a call without gradients are compared too: kernels that need not keep anything
    for the backward pass may be others.
    """
    inference: dict[str, Tensor] = {}
    if ours is None:
        ours = evaluate(spec.op, sample)
        if any(t.requires_grad for t in sample.tensors()):
            inference = evaluate(spec.op, sample.map(torch.Tensor.detach))
    expected = Expected.of(spec.torch_op, sample)
    try:
        return expected.compare(ours) + expected.compare_inference(inference)
    except AssertionError as error:
        raise AssertionError(f"{spec.name}: {sample.name}: {error}") from None


def _compare_one(title: str, ours: Tensor, theirs: Tensor, truth: Tensor, nudged: list[Tensor]) -> Comparison:
    if ours.shape != truth.shape:
        raise AssertionError(f"{title}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}")
    truth, theirs = truth.to(torch.float64), theirs.to(torch.float64)  # Few operations know the 8-bit types.
    torch_error = _max_error(torch.where(theirs.isnan() & truth.isfinite(), truth, theirs), truth)
    finite = truth[torch.isfinite(truth)]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    floor = torch.finfo(ours.dtype).eps * largest if ours.is_floating_point() else 0.0
    floor += sum(_max_error(each, truth) for each in nudged) / len(nudged)
    return Comparison(title, _max_error(ours, truth), torch_error, ERROR_FACTOR * torch_error + floor)


def _max_error(value: Tensor, truth: Tensor) -> float:
    """The largest |value - truth|; infinities and NaNs must stand in the same places."""
    if truth.numel() == 0:
        return 0.0
    value = value.to(torch.float64)
    truth = truth.to(torch.float64)
    odd = ~torch.isfinite(truth)
    # A value that overflows its dtype while the truth does not is an infinite error by itself.
    agree = torch.where(truth.isnan(), value.isnan(), value == truth)
    error = torch.where(odd, torch.where(agree, 0.0, math.inf), (value - truth).abs())
    return float(error.max()) if not error.isnan().any() else math.nan
