"""Which backend an op runs on: `use_backend`, and the choice that every public function makes."""

from __future__ import annotations

import importlib.util
import os
from types import TracebackType
from typing import Any

import torch

from warpwright import _library, _registry, distributed

#: What `use_backend` takes. "auto" is C++ where there is a kernel, then Triton.
BACKENDS = ("auto", "native", "triton", "reference", "emulated")

_current = "auto"


class _Scope:
    """What `use_backend` returns: restores the previous backend at the end of a `with` block."""

    def __init__(self, previous: str):
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = self._previous


def use_backend(name: str) -> _Scope:
    """Chooses the backend of every warpwright op, for the whole process.

    Args:
        name: "auto" (the default: the C++ kernels; for CUDA tensors Triton where the CUDA library is missing),
            "native" (C++ only), "triton", or "reference" (the definitions in plain PyTorch, slow and clear).

    Returns:
        A context manager: `with use_backend("triton"): ...` restores the earlier choice at the end. Without `with`
        the choice stays.

    Raises:
        RuntimeError: the name is unknown, or the backend cannot run here; the message says why.
    """
    global _current
    if name not in BACKENDS:
        raise RuntimeError(f"warpwright: use_backend: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "emulated" and "emulated" not in _registry.TABLES:
        raise RuntimeError("warpwright: use_backend: the emulated backend is for the tests, which build it")
    if name == "triton":
        reason = triton_missing()
        if reason is not None:
            raise RuntimeError(f"warpwright: use_backend: triton cannot be used: {reason}")
    if name in _registry.PYTHON_BACKENDS:
        _registry.activate(name)
    scope = _Scope(_current)
    _current = name
    return scope


def current_backend() -> str:
    """The name that `use_backend` set last ("auto" at the start)."""
    return _current


def triton_interpreted() -> bool:
    """Whether Triton kernels are interpreted on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def triton_missing() -> str | None:
    """Why Triton kernels cannot run here, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'warpwright[triton]')"
    if not torch.cuda.is_available() and not triton_interpreted():
        return "there is no CUDA GPU; set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU"
    return None


def missing_for(device: torch.device) -> str | None:
    """Why no op can run on `device` with the backend that is chosen now, or None when ops can."""
    kind = device.type
    if _current in ("reference", "emulated") or kind == "meta":
        return None
    if kind not in ("cpu", "cuda"):
        return f"input must be on a cpu or cuda device, got {device}"
    if _current == "triton":
        if kind == "cpu" and not triton_interpreted():
            return "the triton backend takes cpu tensors only with TRITON_INTERPRET=1"
        return None
    if kind == "cuda" and _library.CUDA_MISSING is not None:
        if _current == "native":
            return f"no kernel for cuda tensors: {_library.CUDA_MISSING}"
        triton = triton_missing()
        if triton is not None:
            return f"no kernel for cuda tensors: {_library.CUDA_MISSING}; triton: {triton}"
    return None


def backend_for(op: str, device: torch.device) -> str:
    """The backend that a call of `op` on `device` takes now: "native", "triton", "reference" or "emulated"."""
    reason = missing_for(device)
    if reason is not None:
        raise RuntimeError(f"warpwright: {op}: {reason}")
    if _current != "auto":
        return _current
    if device.type == "cuda" and _library.CUDA_MISSING is not None:
        _registry.activate("triton")
        return "triton"
    return "native"


#: What is no DTensor, for sure.
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def resolve(op: str, tensor: torch.Tensor) -> Any:
    """The operator overload that a public function calls for `tensor`."""
    return _registry.TABLES[_backend_of(op, tensor)][op]


def _backend_of(op: str, tensor: torch.Tensor) -> str:
    if _current == "auto" and tensor.is_cpu:  # The shortest way for the most common case.
        return "native"
    return backend_for(op, tensor.device)


def call(op: str, *args: Any) -> Any:
    """Calls operator `op` on the backend that fits its first argument, a tensor.

    Where no gradient is wanted this goes below autograd at once, and where one is, to a torch.autograd.Function. The
    formulas that torch.library registers are Python behind the dispatcher, and entering one costs more than everything
    else in the call; they serve what traces, transforms or casts.
    """
    backend = _backend_of(op, args[0])
    if type(args[0]) not in _PLAIN and distributed.is_dtensor(args[0]):
        distributed.register_rules(backend, op)
    overload = _registry.TABLES[backend][op]
    if torch.compiler.is_compiling():
        return overload(*args)
    if torch.is_grad_enabled() and any(map(_requires_grad, args)):
        function = _registry.FUNCTIONS[backend].get(op)
        if function is None or torch._C._is_any_autocast_enabled() or _transformed():
            return overload(*args)
        return function(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload._op(*args)  # What overload(*args) calls, one Python frame later.


_transformed = torch._C._are_functorch_transforms_active


def _requires_grad(value: Any) -> bool:
    return getattr(value, "requires_grad", False)
