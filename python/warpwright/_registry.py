"""Every operator, on every backend.

A backend is a namespace of torch operators with the same schemas:

    torch.ops.warpwright            C++ kernels, for CPU and CUDA tensors ("native")
    torch.ops.warpwright_triton     Triton kernels, on CUDA, or on the CPU with TRITON_INTERPRET=1
    torch.ops.warpwright_reference  the definitions, in plain PyTorch
    torch.ops.warpwright_emulated   the CUDA C++ kernels run on the CPU; only the tests build it

`define` is called once for each operator, by python/warpwright/ops/<family>.py. It gives all of these the same argument
checks, fake, autograd and autocast, so the backends can only differ in their kernels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from warpwright import _library  # noqa: F401  (defines the schemas)

NATIVE = "warpwright"
NAMESPACES = {
    "native": NATIVE,
    "triton": "warpwright_triton",
    "reference": "warpwright_reference",
    "emulated": "warpwright_emulated",
}
#: Backends written in Python, and the package that holds one module a family for each.
PYTHON_BACKENDS = {"triton": "warpwright.triton_kernels", "reference": "warpwright.reference"}

AutocastRule = Callable[[tuple[Any, ...], torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True)
class OpDefinition:
    """One operator: what `define` was told."""

    name: str
    family: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None
    backward: Callable[..., Any] | None
    autocast: AutocastRule | None


OPS: dict[str, OpDefinition] = {}
#: backend -> operator name -> the overload to call. Filled by `activate`.
TABLES: dict[str, dict[str, Any]] = {"native": {}}
#: backend -> operator name -> what calls it as a torch.autograd.Function, for _backend.call.
FUNCTIONS: dict[str, dict[str, Any]] = {name: {} for name in NAMESPACES}
_libraries: dict[str, torch.library.Library] = {}


def define(
    name: str,
    *,
    family: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    autocast: AutocastRule | None = None,
) -> None:
    """Registers operator `name` of csrc/schema.cpp.

    check(*args) raises RuntimeError on bad input; it runs before every Python kernel and in fake (the C++ bindings
    check for themselves, with the same words). fake(*args) returns empty outputs. setup_context(ctx, inputs, output)
    and backward(ops, ctx, *grads) are torch.library.register_autograd's, with the backend's operators as `ops`.
    autocast(args, dtype) returns the arguments to use under an autocast to `dtype`; without it they stay what they are.
    """
    OPS[name] = OpDefinition(name, family, check, fake, setup_context, backward, autocast)
    _register("native", OPS[name])


def activate(backend: str) -> None:
    """Makes `backend`'s operators callable; does nothing the second time."""
    if backend in TABLES:
        return
    namespace = NAMESPACES[backend]
    library = torch.library.Library(namespace, "DEF")
    _libraries[backend] = library
    for op in OPS.values():
        schema = str(getattr(torch.ops.warpwright, op.name).default._schema)
        library.define(schema.removeprefix(f"{NATIVE}::"))
    TABLES[backend] = {}
    for op in OPS.values():
        if backend in PYTHON_BACKENDS:
            _implement(backend, op)
        _register(backend, op)


def _implement(backend: str, op: OpDefinition) -> None:
    module = importlib.import_module(f"{PYTHON_BACKENDS[backend]}.{op.family}")
    kernel = getattr(module, op.name)

    def checked(*args: Any) -> Any:
        op.check(*args)
        return kernel(*args)

    for key in ("CPU", "CUDA"):
        _libraries[backend].impl(op.name, checked, key)


def _register(backend: str, op: OpDefinition) -> None:
    """Fake, autograd and autocast of one operator in one namespace."""
    namespace = NAMESPACES[backend]
    if backend not in _libraries:
        _libraries[backend] = torch.library.Library(namespace, "FRAGMENT")
    library = _libraries[backend]
    qualified = f"{namespace}::{op.name}"
    overload = getattr(getattr(torch.ops, namespace), op.name).default
    TABLES[backend][op.name] = overload

    def fake(*args: Any) -> Any:
        op.check(*args)
        return op.fake(*args)

    torch.library.register_fake(qualified, fake, lib=library)
    if op.backward is not None:
        operators = getattr(torch.ops, namespace)

        def backward(ctx: Any, *grads: Any) -> Any:
            return _gradients(op, overload, operators, ctx, grads)

        torch.library.register_autograd(qualified, backward, setup_context=_setup_of(op), lib=library)
        FUNCTIONS[backend][op.name] = _function(overload, op, operators)
    elif not overload._schema.is_mutable:

        def no_backward(ctx: Any, *grads: Any) -> Any:
            reason = (
                "gradients of gradients are not supported" if op.name.endswith("_backward") else "not differentiable"
            )
            raise RuntimeError(f"warpwright: {op.name}: {reason}")

        torch.library.register_autograd(qualified, no_backward, lib=library)
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        library.impl(op.name, _autocast_kernel(overload, op.autocast or keep_dtypes, device_type), key)


def _setup_of(op: OpDefinition) -> Callable[..., None]:
    """The op's setup_context, with no zeros for the gradients of what has none: statistics, and gradients that wait for
    their scale, may be as large as the op's operands. Where several outputs have gradients those stay zeros."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        assert op.setup_context is not None
        op.setup_context(ctx, inputs, output)
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        if len(outputs) - len(ctx.non_differentiable or ()) <= 1:
            ctx.set_materialize_grads(False)

    return setup


def _gradients(op: OpDefinition, overload: Any, operators: Any, ctx: Any, grads: tuple[Any, ...]) -> Any:
    """The op's backward; no gradient makes none."""
    assert op.backward is not None
    if all(grad is None for grad in grads):
        return (None,) * len(overload._schema.arguments)
    return op.backward(operators, ctx, *grads)


class _BelowAutograd:
    """A namespace's operators, called below autograd."""

    def __init__(self, operators: Any):
        self._operators = operators

    def __getattr__(self, name: str) -> Any:
        overload = getattr(self._operators, name).default

        def call(*args: Any) -> Any:
            # Under create_graph the operator's own formula says that it has no gradient.
            if torch.is_grad_enabled():
                return overload(*args)
            with torch._C._AutoDispatchBelowAutograd():
                return overload._op(*args)

        setattr(self, name, call)
        return call


def _function(overload: Any, op: OpDefinition, operators: Any) -> Any:
    """The formula that `register_autograd` has, as a torch.autograd.Function.

    The one that torch.library makes of it goes through the dispatcher, twice in a backward pass, by way of several
    Python frames each time: as long as a small product takes.
    """
    below, setup_context = _BelowAutograd(operators), _setup_of(op)

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            result = overload._op(*args)
        setup_context(ctx, args, result)
        return result

    def backward(ctx: Any, *grads: Any) -> Any:
        return _gradients(op, overload, below, ctx, grads)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(op.name, (torch.autograd.Function,), members)
    # Function's own `apply` looks for defaults and transforms first, which takes as long as a small kernel.
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def _autocast_kernel(overload: Any, rule: AutocastRule, device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return overload(*rule(args, dtype))

    return kernel


def keep_dtypes(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The rule of ops without one of their own. It is no empty rule: kernels that call torch's ops, such as a backward
    inside the autocast region, must find autocast switched off, or their products are silently recast."""
    return args


def cast_to_ambient(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The usual autocast rule: every floating tensor but float64 takes the ambient dtype."""

    def cast(value: Any) -> Any:
        eligible = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    return tuple(cast(value) for value in args)
