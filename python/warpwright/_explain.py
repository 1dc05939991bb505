"""`warpwright.explain()`: which kernel a call would run, and what it costs at least. Nothing runs, nothing is timed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from warpwright import _library, _registry, ops
from warpwright._backend import backend_for, current_backend
from warpwright._gemm_plans import GemmPlan
from warpwright._kernel_choice import Configuration, configurations, copied, kernel_text, products_of
from warpwright._peaks import peaks_of

#: Families whose CUDA and Triton kernels multiply on the tensor cores.
_TENSOR_CORE_FAMILIES = (
    "matmul",
    "gated",
    "grouped",
    "scaled",
    "packed",
    "sparse",
    "conv",
    "conv_batch_norm",
    "scaled_conv",
)


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of the call.

    Attributes:
        name: the argument's name, "output" or "output[i]"; "params[3]" for a tensor in a list.
        dtype, shape, strides, device: as torch names them.
        copied: whether the kernel reads a contiguous copy in place of the tensor; None where that is not known.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: str
    copied: bool | None


@dataclass(frozen=True)
class Explanation:
    """What `warpwright.explain` found out. `as_dict()` is ready for JSON, `str()` is a table.

    Attributes:
        op: the operator.
        backend: "native", "triton" or "reference", and `backend_reason` why this one.
        kernel: what runs the forward pass.
        autocast: the dtype to which floating arguments are cast first; None without autocast.
        inputs, outputs: every tensor of the call, and of its result.
        flops, bytes: the least work of the forward pass: floating-point operations, and bytes with each input read
            once and each output written once.
        roofline: seconds below which no kernel can do that on this device, from datasheet peaks; None where those are
            not known, and `roofline_reason` says where they are from, or why there are none.
        configurations: tile, warps and stages of the forward pass's Triton kernels, and where they come from.
        plans: the ways in which the C++ kernels of a GPU could compute a product of matrices or a convolution, with
            predicted times: the one that is taken, with its measured time where `warpwright tune` has found it, then
            the alternatives.
    """

    op: str
    backend: str
    backend_reason: str
    kernel: str
    autocast: str | None
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]
    flops: int
    bytes: int
    roofline: float | None
    roofline_reason: str
    configurations: list[Configuration] = field(default_factory=list)
    plans: list[GemmPlan] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A copy as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.op}: {self.kernel}",
            f"  backend   {self.backend}: {self.backend_reason}",
            *(f"  tile      {configuration}" for configuration in self.configurations),
            *(f"  {'tile     ' if i == 0 else '  else   '} {plan}" for i, plan in enumerate(self.plans[:4])),
        ]
        if self.autocast is not None:
            lines.append(f"  autocast  floating arguments are cast to {self.autocast} first")
        for facts in (*self.inputs, *self.outputs):
            copied = {True: ", copied to be contiguous", False: "", None: ""}[facts.copied]
            lines.append(
                f"  {facts.name:<9} {facts.dtype.removeprefix('torch.')} {facts.shape}, strides {facts.strides}, "
                f"{facts.device}{copied}"
            )
        lines.append(f"  work      {self.flops:,} FLOP, {self.bytes:,} bytes at least")
        time = "unknown" if self.roofline is None else f"{self.roofline * 1e6:.3g} us at least"
        lines.append(f"  roofline  {time}: {self.roofline_reason}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(fn: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Explanation:
    """Says what `fn(*args, **kwargs)` would do here and now, without running a kernel.

    Args:
        fn: a function of warpwright.ops, or its name.
        *args, **kwargs: the call's arguments.

    Returns:
        An `Explanation`: backend and why, kernel, tensors, copies, FLOPs, bytes and the roofline time.

    Raises:
        RuntimeError: fn is no warpwright op; or the error that the call itself would raise for these arguments.
    """
    name, function = _public_op(fn)
    from warpwright.testing import SPECS  # Here, so that importing warpwright does not load every OpSpec.
    from warpwright.testing.spec import map_tensors

    spec = SPECS[name]
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    tensors = _named_tensors(bound)
    if not tensors:
        raise RuntimeError(f"warpwright: explain: {name} was given no tensor")
    device = next(iter(tensors.values())).device
    backend = backend_for(name, device)
    outputs = _outputs(function, map_tensors, args, kwargs)
    cost = spec.cost(*args, **kwargs)
    autocast = _autocast_dtype(spec.kernels[0], device)
    multiplied = (t.dtype for t in tensors.values() if t.is_floating_point() or t.dtype == torch.int8)
    dtype = autocast or next(multiplied, torch.float32)
    roofline, roofline_reason = _roofline(cost.flops, cost.bytes, dtype, device, spec.family in _TENSOR_CORE_FAMILIES)
    products = products_of(name, backend, device, function, args, kwargs)
    return Explanation(
        op=name,
        backend=backend,
        backend_reason=_backend_reason(backend, device),
        kernel=kernel_text(name, backend, device, bound, products),
        autocast=None if autocast is None else str(autocast),
        inputs=[_facts(key, tensor, copied(name, backend, key, tensor, bound)) for key, tensor in tensors.items()],
        outputs=[_facts(key, tensor, False) for key, tensor in _named_tensors({"output": outputs}).items()],
        flops=cost.flops,
        bytes=cost.bytes,
        roofline=roofline,
        roofline_reason=roofline_reason,
        configurations=configurations(name, backend, function, args, kwargs) if device.type != "meta" else [],
        plans=[plan for _, plans in products for plan in plans],
    )


def _public_op(fn: Callable[..., Any] | str) -> tuple[str, Callable[..., Any]]:
    name = fn if isinstance(fn, str) else getattr(fn, "__name__", repr(fn))
    functions = {name: getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    function = functions.get(name)
    if function is None or not (isinstance(fn, str) or fn is function):
        raise RuntimeError(
            f"warpwright: explain: fn must be one of warpwright.ops ({', '.join(functions)}), got {fn!r}"
        )
    return name, function


def _named_tensors(values: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor in a dict, list or tuple of arguments, by name."""
    if isinstance(values, Tensor):
        return {prefix: values}
    if hasattr(values, "_asdict"):
        values = values._asdict()
    pairs: list[tuple[str, Any]] = []
    if isinstance(values, dict):
        pairs = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in values.items()]
    elif isinstance(values, (list, tuple)):
        fields = getattr(values, "_fields", None)
        pairs = [(f"{prefix}.{fields[i]}" if fields else f"{prefix}[{i}]", value) for i, value in enumerate(values)]
    found: dict[str, Tensor] = {}
    for name, value in pairs:
        found |= _named_tensors(value, name)
    return found


def _outputs(function: Callable[..., Any], map_tensors: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What the call returns, as tensors without data: the op's own checks run, its kernels do not."""
    from torch._subclasses import FakeTensorMode

    mode = FakeTensorMode()
    with mode:
        return function(*map_tensors(args, mode.from_tensor), **map_tensors(kwargs, mode.from_tensor))


def _facts(name: str, tensor: Tensor, copied: bool | None) -> TensorFacts:
    return TensorFacts(name, str(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()), str(tensor.device), copied)


def _autocast_dtype(kernel: str, device: torch.device) -> torch.dtype | None:
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return None
    return None if _registry.OPS[kernel].autocast is None else torch.get_autocast_dtype(device.type)


def _backend_reason(backend: str, device: torch.device) -> str:
    if current_backend() != "auto":
        return f"chosen by use_backend({backend!r})"
    if backend == "triton":
        return f"use_backend is auto and the CUDA library is not in use: {_library.CUDA_MISSING}"
    return f"use_backend is auto and there are C++ kernels for {device.type} tensors"


def _roofline(
    flops: int, nbytes: int, dtype: torch.dtype, device: torch.device, tensor_cores: bool
) -> tuple[float | None, str]:
    peaks, reason = peaks_of(device)
    if peaks is None:
        return None, reason
    compute, memory = flops / peaks.flops(dtype, tensor_cores), nbytes / peaks.memory
    bound = "compute" if compute > memory else "memory"
    return max(compute, memory), f"{bound}-bound, by the {reason}"
