"""Who runs a case: PyTorch, warpwright on each of its backends, peers where they are installed, and your own kernels.

    @bench.kernel("rms_norm")
    def mine(input, normalized_shape, weight=None, eps=None, *, residual=None): ...

makes "mine" a provider beside the others. `warpwright bench run --kernel my_file.py --providers torch,mine` finds it,
and `--kernel rms_norm=my_package.my_module:function` a function without the decorator.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

import warpwright
from warpwright._backend import missing_for
from warpwright._info import backend_states
from warpwright.bench.case import OPERATORS, PROVIDERS, Provider
from warpwright.bench.providers.peers import PEERS
from warpwright.bench.sources import source_hash
from warpwright.testing import SPECS

Function = TypeVar("Function", bound=Callable[..., Any])

# ---- PyTorch ----


def _never_missing(device: torch.device) -> None:
    return None


@contextmanager
def _cudnn_at_its_best() -> Iterator[None]:
    """The baseline may choose its convolution by trying them, as its users are told to let it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _torch_function(op: str, device: torch.device) -> Callable[..., Any]:
    found = OPERATORS[op]
    return found.functions["torch"]() if "torch" in found.functions else found.in_place or found.torch_op


def _compiled_function(op: str, device: torch.device) -> Callable[..., Any]:
    # Dynamo gives up on a function that was compiled for eight shapes, and runs it eagerly without a word.
    torch._dynamo.reset()
    if "compile" in OPERATORS[op].functions:
        return OPERATORS[op].functions["compile"]()
    return torch.compile(_torch_function(op, device), dynamic=False)


# ---- warpwright ----


def _our_function(op: str, device: torch.device) -> Callable[..., Any] | None:
    if "warpwright" in OPERATORS[op].functions:
        return OPERATORS[op].functions["warpwright"]()
    if op not in SPECS:
        return None
    return getattr(warpwright.ops, op) if OPERATORS[op].written is not None else SPECS[op].op


def _ours(name: str, about: str, backend: str, device: str) -> Provider:
    """Warpwright's kernels of one backend."""

    def missing(wanted: torch.device) -> str | None:
        if wanted.type != device:
            return f"{name} runs on {device}, not on {wanted.type}"
        states = [s for s in backend_states() if s.backend == backend and s.device == device]
        return states[0].missing

    def scope() -> AbstractContextManager[Any]:
        return warpwright.use_backend(backend)

    return Provider(name, about, missing, _our_function, scope, sources=lambda op, device: source_hash(op, name))


_BUILT_IN = (
    Provider(
        "torch",
        "PyTorch's own ops, eager; cuDNN with benchmark=True",
        _never_missing,
        _torch_function,
        _cudnn_at_its_best,
        peer=True,
    ),
    # Compiled code fuses roundings away, and adds up in another order than the op that sets the bound.
    Provider("compile", "torch.compile on PyTorch's own ops", _never_missing, _compiled_function, limit=8.0, peer=True),
    Provider(
        "warpwright",
        "warpwright, on the backend that it chooses",
        missing_for,
        _our_function,
        sources=lambda op, device: source_hash(op, f"warpwright-{device.type}"),
    ),
    _ours("warpwright-cpu", "warpwright's C++ kernels for the CPU", "native", "cpu"),
    _ours("warpwright-cuda", "warpwright's CUDA C++ kernels", "native", "cuda"),
    _ours("warpwright-triton", "warpwright's Triton kernels", "triton", "cuda"),
)

#: What `run` compares unless it is told otherwise; the first is the baseline of the ratios.
DEFAULT_PROVIDERS = ("torch", "compile", "warpwright")

PROVIDERS.update({provider.name: provider for provider in (*_BUILT_IN, *PEERS)})


def find(names: Sequence[str]) -> list[Provider]:
    """The providers of these names, in this order; raises RuntimeError for an unknown one."""
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown or len(set(names)) != len(names):
        known = ", ".join(PROVIDERS)
        raise RuntimeError(f"warpwright: bench: providers must be different ones of {known}, got {list(names)}")
    return [PROVIDERS[name] for name in names]


# ---- your own ----

_FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {}


def kernel(op: str, name: str | None = None) -> Callable[[Function], Function]:
    """Makes the decorated function a provider of `op`, beside warpwright and PyTorch.

    Args:
        op: one of `warpwright.bench.OPERATORS`; the function takes the arguments of that op's `torch_op`, and its
            result is compared with float64 before it is timed.
        name: the provider's name in the tables; the function's own unless given. Functions for several ops may share
            it.
    """

    def register(function: Function) -> Function:
        provider = name or function.__name__
        if op not in OPERATORS:
            raise RuntimeError(f"warpwright: bench: kernel: op must be one of {', '.join(OPERATORS)}, got {op!r}")
        if provider in PROVIDERS and provider not in _FUNCTIONS:
            raise RuntimeError(f"warpwright: bench: kernel: {provider!r} is the name of a provider already")
        functions = _FUNCTIONS.setdefault(provider, {})
        functions[op] = function
        PROVIDERS[provider] = Provider(
            provider, "your own kernel", _never_missing, lambda wanted, device: functions.get(wanted)
        )
        return function

    return register


def load_kernel(text: str) -> list[str]:
    """Registers what the user names: "file.py" or "module" with decorated functions, or "op=file-or-module:function".

    Returns:
        The names of the providers that came with it.
    """
    op, _, place = text.rpartition("=")
    path, _, attribute = place.rpartition(":") if op else (place, "", "")
    before = {name: set(functions) for name, functions in _FUNCTIONS.items()}
    module = _import(path or place)
    if op:
        function = getattr(module, attribute, None) if path else None
        if not callable(function):
            raise RuntimeError(
                f"warpwright: bench: --kernel {text}: {place!r} must be FILE.py:function or module:function"
            )
        kernel(op, attribute)(function)
        return [attribute]
    found = [name for name, functions in _FUNCTIONS.items() if set(functions) != before.get(name)]
    if not found:
        raise RuntimeError(f"warpwright: bench: --kernel {text}: it has no function under @warpwright.bench.kernel(op)")
    return found


def _import(place: str) -> Any:
    path = Path(place)
    try:
        if path.suffix != ".py":
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # Triton and Dynamo look a function's module up.
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise RuntimeError(f"warpwright: bench: --kernel {place}: {type(error).__name__}: {error}") from error
