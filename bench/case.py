"""A case: one op with named sizes, in one dtype. `bench/operators/` says how the sizes become tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from warpwright.testing import SPECS, Cost, Make, Sample

#: Numbers that a case may be given in YAML.
Value = int | float | str | bool | None | list[int]


class Draw(Make):
    """Draws the tensors of a case on the device itself, where gigabytes take no time; on "meta" they have no data."""

    def __init__(self, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0):
        super().__init__(dtype, device, seed)
        if self.device.type != "meta":
            self.generator = torch.Generator(self.device).manual_seed(seed)

    def tensor(
        self, *shape: int, low: float = -1.0, high: float = 1.0, grad: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        values = torch.empty(shape, device=self.device)
        if self.device.type != "meta":
            values.uniform_(low, high, generator=self.generator)
        return values.to(dtype or self.dtype).requires_grad_(grad)

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        values = torch.empty(shape, dtype=torch.int64, device=self.device)
        return values if self.device.type == "meta" else values.random_(low, high, generator=self.generator)


@dataclass(frozen=True)
class Operator:
    """What is timed under one name.

    Attributes:
        name: as in warpwright.ops, where there is such an op.
        family: of the op.
        sample: sample(draw, **parameters) makes one call; the sample's name is the case's label. Its keyword parameters
            are what a YAML file may give.
        torch_op: the call out of PyTorch's own ops: the provider "torch", compiled the provider "compile", and in
            float64 the truth.
        cost: cost(*args, **kwargs): the least work of the forward pass.
        smaller: smaller(parameters) -> parameters of about half the work, for the comparison with float64 where that
            does not fit the memory; None at the end.
        dtypes: what a case may be in.
        directions: "forward", and "backward" and "both" for ops with a gradient.
        written: for an op that writes to its arguments: written(sample) lists what it wrote, in the order of torch_op's
            results, which end in what the op returns beside. None for ops that return all that they make.
        in_place: for such an op: PyTorch's own way to do it in place, which the provider "torch" is timed on.
        functions: for what is more than a call of an op: "torch", "compile" and "warpwright" -> what makes the callable
            that each of them is timed on.
        compared: compared(parameters) -> parameters of the case to compare with float64, where that is another one.
        outcome: outcome(function, sample, device): further fields of a provider's row, found after the timing;
            `peak_memory` is then one of them.
        sets: how often the inputs are drawn; None for as often as exceeds the caches.
    """

    name: str
    family: str
    sample: Callable[..., Sample]
    torch_op: Callable[..., Any]
    cost: Callable[..., Cost]
    smaller: Callable[[dict[str, Any]], dict[str, Any] | None]
    dtypes: tuple[torch.dtype, ...]
    directions: tuple[str, ...]
    written: Callable[[Sample], list[Tensor]] | None = None
    in_place: Callable[..., Any] | None = None
    functions: Mapping[str, Callable[[], Callable[..., Any]]] = field(default_factory=dict)
    compared: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    outcome: Callable[[Callable[..., Any], Sample, torch.device], dict[str, Any]] | None = None
    sets: int | None = None

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The keyword parameters of `sample`."""
        found = dict(inspect.signature(self.sample).parameters)
        found.pop(next(iter(found)))
        return found


#: Every op that can be timed, by name; bench/operators/ fills it.
OPERATORS: dict[str, Operator] = {}


def halve(*names: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """`Operator.smaller` that halves the first of these parameters that is above 1, and so on."""

    def smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
        for name in names:
            if parameters.get(name, 1) > 1:
                return parameters | {name: parameters[name] // 2}
        return None

    return smaller


def operator(
    name: str,
    *,
    smaller: Callable[[dict[str, Any]], dict[str, Any] | None],
    family: str | None = None,
    torch_op: Callable[..., Any] | None = None,
    cost: Callable[..., Cost] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    gradient: bool | None = None,
    **further: Any,
) -> Callable[[Callable[..., Sample]], Callable[..., Sample]]:
    """Decorates `sample(draw, *, sizes...) -> Sample`. What an OpSpec of this name knows need not be said again."""
    spec = SPECS.get(name)
    if spec is None and (family is None or torch_op is None or cost is None or dtypes is None or gradient is None):
        raise TypeError(f"{name} has no OpSpec: family, torch_op, cost, dtypes and gradient must be given")

    def register(sample: Callable[..., Sample]) -> Callable[..., Sample]:
        differentiable = spec.gradcheck if gradient is None and spec is not None else gradient
        OPERATORS[name] = Operator(
            name=name,
            family=family or spec.family,
            sample=sample,
            torch_op=torch_op or spec.torch_op,
            cost=cost or spec.cost,
            smaller=smaller,
            dtypes=dtypes or spec.dtypes,
            directions=("forward", "backward", "both") if differentiable else ("forward",),
            **further,
        )
        return sample

    return register


@dataclass(frozen=True)
class Case:
    """One op with its sizes, in one dtype; `sample(device, seed)` draws its tensors."""

    suite: str
    op: str
    dtype: torch.dtype
    directions: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def operator(self) -> Operator:
        return OPERATORS[self.op]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def sample(self, device: str | torch.device, seed: int = 0) -> Sample:
        """The call's arguments, random and the same for the same seed and device."""
        return self.operator.sample(Draw(self.dtype, device, seed), **self.parameters)

    @property
    def label(self) -> str:
        """Such as "8192 x 4096"; made without data."""
        return self.sample("meta").name

    def smaller(self) -> Case | None:
        """A case of about half the work, or None."""
        parameters = self.operator.smaller(self.parameters)
        return None if parameters is None else Case(self.suite, self.op, self.dtype, self.directions, parameters)


@dataclass(frozen=True)
class Provider:
    """Who may run a case: PyTorch, warpwright on one of its backends, a peer, or a user's own kernel.

    Attributes:
        name: as in --providers.
        about: one line: what it is.
        missing: missing(device) says why it cannot run there, or None when it can.
        function: function(op, device) is a callable with the signature of the op's torch_op, or None where the
            provider has no such op. For an op that writes to its arguments the callable writes to them too.
        scope: entered around each batch of calls, for what must be set while they run.
        limit: how many times the allowed error a result may have and still be timed.
        peer: someone else's: that it is wrong or fails is shown, and is no failure of the run.
        sources: sources(op, device) is a hash of the kernel's source files, or None where they are not ours or not at
            hand.
        accepts: accepts(op, sample) is None, or why this provider does not take these arguments.
    """

    name: str
    about: str
    missing: Callable[[torch.device], str | None]
    function: Callable[[str, torch.device], Callable[..., Any] | None]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    limit: float = 1.0
    peer: bool = False
    sources: Callable[[str, torch.device], str | None] = lambda op, device: None
    accepts: Callable[[str, Sample], str | None] = lambda op, sample: None


#: By name, in the order of the tables; bench/providers/ fills it.
PROVIDERS: dict[str, Provider] = {}
