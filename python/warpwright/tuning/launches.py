"""Which launches of tunable Triton kernels an op makes: noted while it runs, or without running anything."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from warpwright import _registry, ops
from warpwright._backend import use_backend
from warpwright.tuning.selector import TUNABLES, Launch, Tunable, intercept

if TYPE_CHECKING:
    from warpwright.bench.case import Case

#: The ops that stand on tunable Triton kernels; their forward passes launch no other kernels.
TUNABLE_OPS = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear_glu",
    "rms_norm", "layer_norm",
)  # fmt: skip
_FAMILIES = ("matmul", "conv", "gated", "norm")


def load_kernels() -> dict[str, Tunable]:
    """Every tunable kernel, by name."""
    for family in _FAMILIES:
        importlib.import_module(f"{_registry.PYTHON_BACKENDS['triton']}.{family}")
    return TUNABLES


def record(case: Case, device: torch.device, seed: int = 0, *, run: bool = True) -> list[Launch]:
    """The launches of one call on the Triton backend, and of its backward pass where the case has one.

    Args:
        case: of one of `TUNABLE_OPS`.
        device: where.
        seed: of the case's inputs.
        run: False leaves the launches out, so that results are whatever memory held.
    """
    found: list[Launch] = []

    def note(launch: Launch) -> None:
        found.append(launch)
        if run:
            launch.run(launch.choice.config)

    with use_backend("triton"), intercept(note):
        run_case(case, device, seed)
    return found


def run_case(case: Case, device: torch.device, seed: int) -> None:
    """One call of a case on the current backend, and its backward pass where the case has one."""
    sample = case.sample(device, seed)
    if not any(direction != "forward" for direction in case.directions):
        sample = sample.map(Tensor.detach)
    result = getattr(ops, case.op)(*sample.args, **sample.kwargs)
    outputs = [t for t in ((result,) if isinstance(result, Tensor) else result) if t.requires_grad]
    if outputs:
        generator = torch.Generator(device).manual_seed(seed)
        cotangents = [torch.empty_like(t).uniform_(-1, 1, generator=generator) for t in outputs]
        torch.autograd.grad(outputs, [t for t in sample.tensors() if t.requires_grad], cotangents)


class Calls(TorchDispatchMode):
    """Notes the calls of a backend's operators: name and arguments."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.namespace = _registry.NAMESPACES[backend]
        self.found: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == self.namespace:
            self.found.append((func._opname, args))
        return func(*args, **(kwargs or {}))


def foreseen(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Launch]:
    """The launches that function(*args, **kwargs) would make, one of `TUNABLE_OPS` without its backward pass.

    Nothing runs: the launchers are called on tensors without data, and stopped before they launch.
    """
    from torch._subclasses import FakeTensorMode

    from warpwright.testing.spec import map_tensors

    found: list[Launch] = []
    mode = FakeTensorMode()
    with mode:
        with Calls("triton") as calls:
            function(*map_tensors(args, mode.from_tensor), **map_tensors(kwargs, mode.from_tensor))
        for name, arguments in calls.found:
            module = importlib.import_module(f"{_registry.PYTHON_BACKENDS['triton']}.{_registry.OPS[name].family}")
            with intercept(found.append):
                getattr(module, name)(*arguments)
    return found
