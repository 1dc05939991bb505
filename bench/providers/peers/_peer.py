"""What all peers have in common: they may be absent, or broken, and each has a few of the ops.

A peer's module is imported when one of its functions is asked for, never before: most of them take seconds, and some
start CUDA. An import that raises makes the peer, or that one op of it, missing, with the reason.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from warpwright.bench.case import Provider
from warpwright.testing import Sample


def takes_all(sample: Sample) -> str | None:
    return None


@dataclass(frozen=True)
class Adapter:
    """One op of a peer.

    Attributes:
        module: what has to be imported for it.
        make: make(module) is a callable with the signature of the op's torch_op.
        accepts: accepts(sample) is None, or why the peer does not take these arguments.
    """

    module: str
    make: Callable[[Any], Callable[..., Any]]
    accepts: Callable[[Sample], str | None] = takes_all


def peer(
    name: str,
    about: str,
    *,
    package: str,
    install: str,
    adapters: Mapping[str, Adapter],
    devices: tuple[str, ...] = ("cuda",),
) -> Provider:
    """A provider of these ops.

    Args:
        name, about: of the provider.
        package: its top-level module.
        install: how to get it, such as "pip install liger-kernel".
        adapters: op -> how the peer runs it.
        devices: where it can run.
    """

    def missing(device: torch.device) -> str | None:
        if not _is_installed(package):
            return f"{name} is not installed ({install})"
        if device.type not in devices:
            return f"{name} needs a CUDA GPU"
        reason = import_failure(package)
        return reason and f"{name} is installed but cannot be imported: {reason}"

    def function(op: str, device: torch.device) -> Callable[..., Any] | None:
        adapter = adapters.get(op)
        if adapter is None:
            return None
        if import_failure(adapter.module) is not None:
            return _unusable  # `accepts` says why.
        return adapter.make(importlib.import_module(adapter.module))

    def accepts(op: str, sample: Sample) -> str | None:
        adapter = adapters.get(op)
        if adapter is None:
            return None
        reason = import_failure(adapter.module)
        return adapter.accepts(sample) if reason is None else f"{name} has no {op} here: {reason}"

    return Provider(name, about, missing, function, peer=True, accepts=accepts)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # It was put into sys.modules by hand.
        return True


@functools.cache
def import_failure(module: str) -> str | None:
    """Imports a module; in one line why that failed, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _unusable(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("warpwright: bench: this peer cannot be imported")


# ---- reasons ----


def first_of(*checks: Callable[[Sample], str | None]) -> Callable[[Sample], str | None]:
    """The first reason that any of these gives."""

    def accepts(sample: Sample) -> str | None:
        return next((reason for check in checks if (reason := check(sample)) is not None), None)

    return accepts


def without(*names: str, why: str = "is not supported") -> Callable[[Sample], str | None]:
    """Refuses calls in which one of these keyword arguments is given."""

    def accepts(sample: Sample) -> str | None:
        given = [name for name in names if sample.kwargs.get(name) is not None]
        return f"{given[0]} {why}" if given else None

    return accepts


def only(name: str, *values: Any) -> Callable[[Sample], str | None]:
    """Refuses calls in which this keyword argument has another value; the first is what it is when it is not given."""

    def accepts(sample: Sample) -> str | None:
        value = sample.kwargs.get(name, values[0])
        return None if value in values else f"{name}={value!r} is not supported"

    return accepts


def argument(sample: Sample, index: int, name: str) -> Any:
    """A positional argument, wherever it was given; None where it was not."""
    return sample.args[index] if len(sample.args) > index else sample.kwargs.get(name)


def needs(index: int, name: str) -> Callable[[Sample], str | None]:
    """Refuses calls without this optional argument."""

    def accepts(sample: Sample) -> str | None:
        return f"it needs {name}" if argument(sample, index, name) is None else None

    return accepts


def matrix(sample: Sample) -> str | None:
    """Refuses inputs of other than two dimensions."""
    return None if sample.args[0].dim() == 2 else "its input must have 2 dimensions"


def last_dim(sample: Sample) -> str | None:
    """Of softmax: refuses other dimensions than the last."""
    dim = argument(sample, 1, "dim")
    return None if dim in (None, -1, sample.args[0].dim() - 1) else "only the last dimension is supported"


def last_dim_norm(sample: Sample) -> str | None:
    """Of normalisations: refuses other dimensions than the last, and calls without a weight."""
    if len(argument(sample, 1, "normalized_shape")) != 1:
        return "only the last dimension is supported"
    return needs(2, "weight")(sample)


def no_gradient(op: str, *tensors: torch.Tensor) -> None:
    """For kernels that write gradients over the inputs, which here belong to all providers.

    Copies of the inputs would be timed too, and cost as much as such a kernel.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(
            f"warpwright: bench: this peer's {op} writes gradients over its inputs, which others share: only its "
            "forward pass is compared"
        )
