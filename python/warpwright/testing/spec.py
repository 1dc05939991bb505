"""OpSpec: what the tests, `warpwright check` and the benchmarks know about an operator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HALF_TYPES = (torch.float16, torch.bfloat16)
FLOAT_TYPES = (torch.float32, *HALF_TYPES)


class Make:
    """Draws the tensors of samples: the same numbers for the same seed, dtype and device."""

    def __init__(self, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0):
        self.dtype = dtype
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(
        self, *shape: int, low: float = -1.0, high: float = 1.0, grad: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Uniform in [low, high), drawn in float64 and rounded once; differentiable unless `grad` is False."""
        values = torch.rand(shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        return values.to(dtype or self.dtype).to(self.device).requires_grad_(grad)

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator).to(self.device)


@dataclass(frozen=True)
class Sample:
    """One call of an op: op(*args, **kwargs). Tensors that require grad are differentiated."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """The same call with every tensor replaced."""
        return Sample(self.name, map_tensors(self.args, function), map_tensors(self.kwargs, function))

    def tensors(self) -> list[Tensor]:
        """Every tensor argument, in order."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(note)
        return found


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` applied to each tensor in its lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, function) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, function) for v in value)
    if isinstance(value, dict):
        return {k: map_tensors(v, function) for k, v in value.items()}
    return value


@dataclass(frozen=True)
class BadInput:
    """A call that must raise RuntimeError with `message`, a regular expression, on every backend."""

    name: str
    args: tuple[Any, ...]
    message: str
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """The least work of one call: floating-point operations, and bytes with each input read and output written once."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class OpSpec:
    """One public operator.

    Attributes:
        name: as in warpwright.ops.
        family: the file it lives in.
        op: the public function; for an op that writes to its arguments, a wrapper that returns what was written.
        torch_op: the same signature out of PyTorch's own ops. In float64 it is the truth; in the sample's dtype its
            error sets the bound: ours may be at most twice that, plus one unit in the last place.
        samples: samples(make) yields calls that together reach every branch; small, as they run interpreted too.
        draw: draw(make, rng) makes one random call; sizes come from rng (odd, empty, one, large).
        bad_inputs: bad_inputs(make) yields calls that must fail, and the message.
        cost: cost(*args, **kwargs) of the forward pass.
        kernels: the operators of csrc/schema.cpp that it stands on, forward and backward.
        dtypes: what it takes beside float64 (CPU only, for gradcheck).
        gradcheck: False for ops without a gradient.
    """

    name: str
    family: str
    op: Callable[..., Any]
    torch_op: Callable[..., Any]
    samples: Callable[[Make], Iterator[Sample]]
    draw: Callable[[Make, random.Random], Sample]
    bad_inputs: Callable[[Make], Iterator[BadInput]]
    cost: Callable[..., Cost]
    kernels: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = FLOAT_TYPES
    gradcheck: bool = True


SPECS: dict[str, OpSpec] = {}


def add(spec: OpSpec) -> None:
    """Makes `spec` known to the tests, `warpwright check` and the benchmarks."""
    SPECS[spec.name] = spec


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of the tensors that are there, each counted once."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def draw_size(rng: random.Random, limit: int = 70) -> int:
    """A dimension: often 0, 1 or odd, at most `limit`."""
    sizes = [0, 1, 1, 2, 3, 5, 7, 8, 16, 17, 31, 33, rng.randint(1, limit), rng.randint(1, limit)]
    return min(rng.choice(sizes), limit)
