"""What a provider must pass before it is timed, and again afterwards: a fast kernel that is wrong is worth nothing.

Accuracy: outputs and gradients against float64, by the bound that every test of this package uses.

Freshness: the very calls that are timed must follow their inputs. The inputs are overwritten in place, and the result
must then be nearer to what PyTorch gives for the new ones than the old result was. A kernel that remembers results,
skips its work once it is warm or leaves its output unwritten is right on its first call and wrong on this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from warpwright.bench.case import Case, Provider
from warpwright.testing import Expected, Sample, evaluate

#: The comparison with float64 takes no more elements and floating-point operations than these: on the CPU a second.
_CPU_LIMITS = (1 << 23, 2e10)
_CUDA_LIMITS = (1 << 27, 4e12)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (list, tuple)) else []


def detached(sample: Sample) -> Sample:
    return sample.map(Tensor.detach)


# ---- the calls that are timed ----


class Calls:
    """A case's inputs, drawn several times, and the calls on them.

    Args:
        case: what to call.
        direction: of bench.rows.DIRECTIONS.
        device: where.
        sets: how many times the inputs are drawn; a call takes the next set each time.
    """

    def __init__(self, case: Case, direction: str, device: torch.device, sets: int):
        self.case, self.direction, self.device = case, direction, device
        drawn = [case.sample(device, seed) for seed in range(sets)]
        self.samples = drawn if direction != "forward" else [detached(s) for s in drawn]
        self.leaves = [[t for t in s.tensors() if t.requires_grad] for s in self.samples]
        self.cotangents: list[list[Tensor]] | None = None

    def _differentiable(self, result: Any) -> list[Tensor]:
        return [t for t in tensors_of(result) if t.requires_grad]

    def _draw_cotangents(self, outputs: Sequence[Tensor], seed: int) -> list[Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        return [torch.empty_like(t).uniform_(-1, 1, generator=generator) for t in outputs]

    def of(self, function: Callable[..., Any]) -> Callable[[int], Any]:
        """call(i): `function` in this direction on the i-th set of inputs."""
        samples, count = self.samples, len(self.samples)
        if self.direction == "forward":

            def forward(i: int) -> Any:
                sample = samples[i % count]
                return function(*sample.args, **sample.kwargs)

            return forward
        if self.cotangents is None:
            outputs = self._differentiable(function(*samples[0].args, **samples[0].kwargs))
            self.cotangents = [self._draw_cotangents(outputs, seed) for seed in range(count)]
        leaves, cotangents = self.leaves, self.cotangents
        if self.direction == "both":

            def both(i: int) -> Any:
                k = i % count
                outputs = self._differentiable(function(*samples[k].args, **samples[k].kwargs))
                return torch.autograd.grad(outputs, leaves[k], cotangents[k])

            return both
        graphs = [self._differentiable(function(*s.args, **s.kwargs)) for s in samples]

        def backward(i: int) -> Any:
            k = i % count
            return torch.autograd.grad(graphs[k], leaves[k], cotangents[k], retain_graph=True)

        return backward

    @torch.no_grad()
    def restart(self) -> None:
        """The first set as it was drawn."""
        for target, value in zip(self.samples[0].tensors(), self.case.sample(self.device, 0).tensors(), strict=True):
            target.copy_(value)

    def results(self, call: Callable[[int], Any]) -> list[Tensor]:
        """Copies of what call(0) gives; for an op that writes to its arguments, of what it wrote first."""
        result = call(0)
        written = self.case.operator.written
        values = [*([] if written is None else written(self.samples[0])), *tensors_of(result)]
        return [t.detach().clone() for t in values]

    @torch.no_grad()
    def overwrite(self, seed: int) -> None:
        """New numbers in the tensors of the first set, or in its cotangents where the graph holds on to the tensors."""
        if self.direction == "backward":
            assert self.cotangents is not None
            old: list[Tensor] = self.cotangents[0]
            new = self._draw_cotangents(old, seed)
        else:
            old, new = self.samples[0].tensors(), self.case.sample(self.device, seed).tensors()
        for target, value in zip(old, new, strict=True):
            target.copy_(value)


# ---- accuracy ----


@dataclass
class Accuracy:
    """The comparison with float64 of a case, or of a smaller one where that does not fit; for all its providers."""

    case: Case
    sample: Sample
    expected: Expected
    checked: str | None

    @staticmethod
    def of(case: Case, direction: str, device: torch.device) -> Accuracy:
        limits = _CUDA_LIMITS if device.type == "cuda" else _CPU_LIMITS
        small = case
        while (smaller := small.smaller()) is not None and not _fits(small, limits):
            small = smaller
        if case.operator.compared is not None:
            small = replace(small, parameters=case.operator.compared(small.parameters))
        sample = small.sample(device)
        if direction == "forward":
            sample = detached(sample)  # Without gradients a provider may take other kernels than with them.
        return Accuracy(
            small, sample, Expected.of(case.operator.torch_op, sample), None if small is case else small.label
        )

    def error(self, provider: Provider, function: Callable[..., Any]) -> float:
        """Largest error / allowed error of any output or gradient. Raises whatever the function raises."""
        with provider.scope():
            ours = evaluate(_functional(function, self.case), self.sample)
        return max((c.ratio if c.ratio == c.ratio else float("inf") for c in self.expected.compare(ours)), default=0.0)


def _fits(case: Case, limits: tuple[float, float]) -> bool:
    sample = case.sample("meta")
    elements, flops = limits
    size = sum(t.numel() for t in sample.tensors())
    cost = case.operator.cost(*sample.args, **sample.kwargs)
    return size <= elements and cost.bytes <= 8 * elements and cost.flops <= flops


def _functional(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """The function as one that returns its results, of an op that writes them to its arguments (here to copies)."""
    written = case.operator.written
    if written is None:
        return function

    def call(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        sample = Sample("", args, kwargs).map(Tensor.clone)
        result = function(*sample.args, **sample.kwargs)
        return (*written(sample), *tensors_of(result))

    return call


# ---- freshness ----


class Freshness:
    """Whether calls follow their inputs. `reference` is PyTorch's own call on the same `Calls`."""

    def __init__(self, calls: Calls, reference: Callable[[int], Any]):
        self.calls, self.reference = calls, reference
        self._seed = 1 << 20

    def stale(self, candidates: dict[str, tuple[Provider, Callable[[int], Any]]]) -> dict[str, str | Exception]:
        """Candidate name -> what is wrong with it, or what it raised; runs all on the inputs of before, then on new."""
        if self.calls.case.operator.written is not None:
            return self._unwritten(candidates)
        found: dict[str, str | Exception] = {}
        before = self.calls.results(self.reference)
        for name, (provider, call) in candidates.items():
            try:
                with provider.scope():
                    call(0)
            except Exception as error:
                found[name] = error
        self._seed += 1
        self.calls.overwrite(self._seed)
        after = self.calls.results(self.reference)
        for name, (provider, call) in candidates.items():
            if name in found:
                continue
            _poison(after)
            try:
                with provider.scope():
                    ours = self.calls.results(call)
            except Exception as error:
                found[name] = error
                continue
            if not _follows(ours, before, after):
                found[name] = "its result did not follow when its inputs changed"
        return found

    def _unwritten(self, candidates: dict[str, tuple[Provider, Callable[[int], Any]]]) -> dict[str, str | Exception]:
        """For ops that write to their arguments: a call must change them (a small tensor may round to what it was)."""
        found: dict[str, str | Exception] = {}
        written = self.calls.case.operator.written
        assert written is not None
        for name, (provider, call) in candidates.items():
            self._seed += 1
            self.calls.overwrite(self._seed)
            before = [t.clone() for t in written(self.calls.samples[0])]
            try:
                with provider.scope():
                    after = self.calls.results(call)
            except Exception as error:
                found[name] = error
                continue
            if all(torch.equal(t, old) for t, old in zip(after, before, strict=False)):  # What is returned comes after.
                found[name] = "it left unwritten what it should have updated"
        return found


def _follows(ours: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether each value is nearer to `after` than `before` is; where nothing changed there is nothing to tell."""
    if len(ours) != len(after):
        return False
    for value, old, new in zip(ours, before, after, strict=True):
        moved = _distance(old, new)
        if moved > 0 and not _distance(value, new) <= moved / 2:
            return False
    return True


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(torch.linalg.vector_norm(a.float() - b.float()))


def _poison(results: Sequence[Tensor]) -> None:
    """NaN in the memory that the next results are likely to get: a kernel that does not write must not look right."""
    spoiled = [
        torch.empty(t.numel() * t.element_size(), dtype=torch.uint8, device=t.device).fill_(255)
        for t in results
        for _ in range(3)
    ]
    del spoiled
