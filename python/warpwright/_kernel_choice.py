"""Which kernel a backend takes for a call, and which arguments it copies, in words for `explain`.

Mirrors the choices of csrc/bindings; tests/test_introspection.py compares both with what the profiler sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warpwright import _library
from warpwright._backend import triton_interpreted
from warpwright._check import needs_preact
from warpwright._conv import channels_last, output_sizes
from warpwright._gemm_plans import LIBRARIES, GemmPlan, GemmQuestion
from warpwright.ops._epilogue import wants_grad
from warpwright.ops.conv import conv_geometry, each

#: kPlainWork, kFusedWork and kOneDnnLongestSum of csrc/bindings/onednn/matmul.cpp.
_PLAIN_WORK, _FUSED_WORK, _ONEDNN_LONGEST_SUM = 1 << 22, 1 << 18, 768

_CONVOLUTIONS = (*(f"conv{d}d" for d in (1, 2, 3)), *(f"conv_transpose{d}d" for d in (1, 2, 3)), "conv2d_batch_norm")

_SCALED_CONVOLUTIONS = tuple(f"scaled_conv{d}d" for d in (1, 2, 3))

#: kVector of csrc/cuda/scaled_conv's smaller tile.
_LEAST_PRODUCT = 16

#: kForwardTaps and kMuchSmaller of csrc/bindings/onednn/conv.cpp.
_DEPTHWISE_TAPS, _MUCH_SMALLER = 100, 4


def kernel_text(op: str, backend: str, device: torch.device, bound: dict[str, Any], products: Products) -> str:
    """What runs the forward pass of op(**bound), which makes these products."""
    if device.type == "meta":
        return f"{op} (none: meta tensors have no data)"
    if backend == "triton":
        return f"{op} (Triton, {'interpreted on the CPU' if triton_interpreted() else 'compiled'})"
    if backend == "reference":
        return f"{op} (plain PyTorch)"
    if backend == "emulated" or device.type == "cuda":
        where = "emulated on the CPU"
        if backend != "emulated":
            major, minor = torch.cuda.get_device_capability(device)
            where = f"sm_{major}{minor}"
        family = f": {_gpu_convolution(products)}" if op in _CONVOLUTIONS else ""
        family = f": {_gpu_scaled_convolution(bound)}" if op in _SCALED_CONVOLUTIONS else family
        return f"{op} (C++ CUDA, {where}{family})"
    if op == "linear":
        return f"{op} ({_cpu_linear(bound)})"
    if op in _CONVOLUTIONS and _widened(op, bound):
        return f"{op} (in float32, rounded once: oneDNN's bfloat16 convolution is wrong for this shape)"
    if op.startswith("conv") and ("transpose" in op or not _own_convolution(bound)):
        norm = ""
        if op.endswith("batch_norm"):
            folds = _folds_norm(bound)
            norm = ", with the norm in its weight" if folds else f", then C++ CPU, {_library.cpu_isa()}"
        return f"{op} (aten's convolution, which is oneDNN's where that has one{norm})"
    return f"{op} (C++ CPU, {_library.cpu_isa()})"


def _cpu_linear(bound: dict[str, Any]) -> str:
    """The choice of csrc/bindings/onednn/matmul.cpp."""
    input: Tensor = bound["input"]
    weight: Tensor = bound["weight"]
    residual = bound.get("residual")
    activation = bound.get("activation") or "none"
    keep = needs_preact(activation) and wants_grad(input, weight, bound.get("bias"), residual)
    pieces = sum((activation != "none", residual is not None))
    fused = pieces == 1 and not keep and input.dtype != torch.float16
    # float16 is multiplied in float32, on copies.
    wide = input.dtype in (torch.float32, torch.float16)
    exact = input.dtype == torch.bfloat16 or (wide and input.shape[-1] <= _ONEDNN_LONGEST_SUM)
    a, b = _multiplied(input), _multiplied(weight)
    in_order = (a.is_contiguous() or not _views(input, 1)) and (b.is_contiguous() or b.t().is_contiguous())
    work = input.shape[:-1].numel() * weight.numel()
    takes = exact and in_order and work >= (_FUSED_WORK if fused else _PLAIN_WORK)
    product = "oneDNN" if takes else "aten's product"
    if input.dtype == torch.float16:
        product += " in float32"
    elif pieces == 0:
        return product
    elif takes and fused:
        return f"{product} with fused post-ops"
    return f"{product}, then one pass for the epilogue in C++, {_library.cpu_isa()}"


def _gpu_convolution(found: Products) -> str:
    """Whose kernel of csrc/cuda/conv it is."""
    if not found:
        return "depthwise strips"
    ((question, (plan, *_)),) = found
    if plan.kernel == "wgmma":
        return "products on Hopper's tensor cores, pixels through TMA"
    if plan.kernel == "simple":
        return "float32 products without tensor cores"
    arithmetic = "" if plan.kernel == "mma" else f" as {question.precision}"
    channels = f"{16 // question.dtype.itemsize} channels" if question.aligned else "one channel"
    return f"products on the tensor cores{arithmetic}, {channels} at a time"


def _gpu_scaled_convolution(bound: dict[str, Any]) -> str:
    """The choice of csrc/cuda/scaled_conv: scaled_conv_mma_takes, in_vectors."""
    input: Tensor = bound["input"]
    weight: Tensor = bound["weight"]
    batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
    filters, channels = weight.shape[0] // max(bound.get("groups", 1), 1), weight.shape[1]  # of a group
    if channels * filters < _LEAST_PRODUCT:
        return "a thread sums each output"
    vectors = _in_vectors(batched, channels, 16) and _in_vectors(weight, channels, 16)
    arithmetic = "int8" if input.dtype == torch.int8 else "float16"
    return f"products on the tensor cores as {arithmetic}, {'16 channels' if vectors else 'one channel'} at a time"


def _in_vectors(tensor: Tensor, channels: int, elements: int) -> bool:
    others = [tensor.stride(d) for d in range(tensor.dim()) if d != 1 and tensor.shape[d] > 1]
    together = tensor.shape[1] > 1 and tensor.stride(1) == 1 and channels % elements == 0
    aligned = tensor.storage_offset() % elements == 0
    return together and aligned and all(stride % elements == 0 for stride in others)


def _own_convolution(bound: dict[str, Any]) -> bool:
    """Whether csrc/bindings/onednn/conv.cpp takes the depthwise kernel of csrc/cpu."""
    input: Tensor = bound["input"]
    weight: Tensor = bound["weight"]
    if bound.get("groups", 1) != weight.shape[0] or not weight.shape[0] > weight.shape[1] == 1 or weight.dim() > 4:
        return False
    taps, dilation = weight.shape[2:], bound.get("dilation", 1)
    steps = [dilation] * len(taps) if isinstance(dilation, int) else dilation
    even = bound.get("padding") != "same" or all((k - 1) * d % 2 == 0 for k, d in zip(taps, steps, strict=True))
    batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
    onednn = input.dtype in (torch.float32, torch.bfloat16) and even and channels_last(batched, weight)
    return not onednn or taps.numel() >= _DEPTHWISE_TAPS


def _widened(op: str, bound: dict[str, Any]) -> bool:
    """is_wrong_in_bfloat16 of csrc/bindings/onednn/conv.cpp, which has the reasons."""
    weight: Tensor = bound["weight"]
    input: Tensor = bound["input"] if bound["input"].dim() == weight.dim() else bound["input"].unsqueeze(0)
    if input.dtype != torch.bfloat16 or input.numel() == 0 or weight.numel() == 0:
        return False
    dims, groups, transposed = weight.dim() - 2, bound.get("groups", 1), "transpose" in op
    given = (bound.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    stride, padding, dilation = conv_geometry(op, dims, weight, *given)
    ends = each(bound.get("output_padding", 0), dims) if transposed else []
    output = output_sizes(op, input, weight, stride, padding, dilation, transposed, ends, groups)
    source, met = (output, [*input.shape]) if transposed else ([*input.shape], output)
    if stride[-1] > 1 and (met[-1] == 1 or source[-1] < stride[-1]):
        return True
    channels, kernel = weight.shape[1], weight.shape[2:]
    line = channels * kernel[-2 if dims > 1 and kernel[-1] == 1 else -1]
    if channels < 32 < line and line % 32 == 0:
        return True
    depthwise = 1 != groups == met[1] == source[1]
    if dims < 3:
        return depthwise and transposed
    if depthwise or (source[2] == 1 and kernel[0] > 1):
        return True
    for d in range(dims):
        end = (met[2 + d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1 - padding[d]
        if stride[d] > 1 and (kernel[d] <= stride[d] or end < source[2 + d]):
            return True
    return False


def _folds_norm(bound: dict[str, Any]) -> bool:
    """conv_normalized of csrc/bindings/onednn/conv.cpp."""
    input: Tensor = bound["input"]
    weight: Tensor = bound["weight"]
    leaves = (input, weight, *(bound.get(name) for name in ("bias", "residual", "bn_weight", "bn_bias")))
    if input.dtype != torch.float32 or bound.get("training", False) or wants_grad(*leaves):
        return False
    stride, dilation, groups = (bound.get(name, 1) for name in ("stride", "dilation", "groups"))
    padding: Any = bound.get("padding", 0)
    output = torch.nn.functional.conv2d(
        _without_data(input), _without_data(weight), None, stride, padding, dilation, groups
    )  # fmt: skip
    return 0 < _MUCH_SMALLER * weight.numel() <= output.numel()


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _multiplied(tensor: Tensor) -> Tensor:
    """The operand that is multiplied, without its data."""
    meta = _without_data(tensor)
    return meta.to(torch.float32) if tensor.dtype == torch.float16 else meta


# ---- configurations ----


@dataclass(frozen=True)
class Configuration:
    """What one kernel of the forward pass is launched with.

    Attributes:
        kernel, sizes, layout: as tables name them; sizes are those of its bucket.
        config: tile, warps, stages.
        source: "tuned here" (by `warpwright tune`), "shipped table" or "default".
    """

    kernel: str
    sizes: dict[str, int]
    layout: str
    config: dict[str, int]
    source: str

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in self.sizes.items())
        config = " ".join(f"{name}={value}" for name, value in self.config.items())
        return f"{self.kernel} {sizes}: {config} ({self.source})"


def configurations(
    op: str, backend: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Configuration]:
    """Of Triton's kernels; `products_of` has what the C++ kernels of a GPU choose among."""
    if backend != "triton":
        return []
    from warpwright.tuning.launches import TUNABLE_OPS, foreseen  # Here: it needs Triton.

    found = []
    for launch in foreseen(function, args, kwargs) if op in TUNABLE_OPS else ():
        problem, choice = launch.problem, launch.choice
        sizes = dict(problem.sizes)
        found.append(Configuration(problem.kernel, sizes, problem.layout, dict(choice.config), choice.source))
    return found


# ---- plans ----

#: A product as the choice sees it, and its plans: the one that is taken, then the others, the fastest first.
Products = list[tuple[GemmQuestion, list[GemmPlan]]]


def products_of(
    op: str,
    backend: str,
    device: torch.device,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Products:
    """The products of op(*args, **kwargs) that a GPU's C++ kernels choose a plan for."""
    if backend not in LIBRARIES or (backend, device.type) not in (("native", "cuda"), ("emulated", "cpu")):
        return []
    from warpwright.tuning import products  # Here, so that importing warpwright does not load the tables.

    return products.foreseen(op, function, args, kwargs, device, backend)


# ---- copies ----


def copied(op: str, backend: str, name: str, tensor: Tensor, bound: dict[str, Any]) -> bool | None:
    """Whether the kernel reads a copy of the argument `name`; None for what is not known here."""
    if backend not in ("native", "triton"):
        return None
    if op in ("rms_norm", "layer_norm"):
        if name in ("weight", "bias"):
            return not tensor.is_contiguous()
        ndim = len(bound["normalized_shape"])
        return not (_merges(tensor, ndim) if backend == "native" else _views(tensor, ndim))
    if op == "linear":
        return _linear_copies(backend, name, tensor)
    if op in _CONVOLUTIONS and name in ("input", "weight") and backend == "native" and tensor.device.type == "cpu":
        return True if _widened(op, bound) else None
    return None


def _linear_copies(backend: str, name: str, tensor: Tensor) -> bool | None:
    on_cpu = backend == "native" and tensor.device.type == "cpu"
    if on_cpu and tensor.dtype == torch.float16 and name in ("input", "weight"):
        return True
    if tensor.is_contiguous():
        return False
    if name in ("input", "residual") and not _views(tensor, 1):
        return True
    # What oneDNN and aten do with the strides they are given is theirs.
    return None if on_cpu else name == "bias"


def _merges(tensor: Tensor, row_ndim: int) -> bool:
    """rows_of of csrc/bindings/common.cpp: one stride walks a row, at most four walk the rows."""
    lead = tensor.dim() - row_ndim
    return _strides_left(tensor, lead, tensor.dim()) <= 1 and _strides_left(tensor, 0, lead) <= 4


def _strides_left(tensor: Tensor, begin: int, end: int) -> int:
    """How many strides walk these dimensions once neighbours are merged."""
    count, last = 0, 0
    for size, stride in zip(tensor.shape[begin:end], tensor.stride()[begin:end], strict=True):
        if size == 1:
            continue
        count += count == 0 or last != stride * size
        last = stride
    return count


def _views(tensor: Tensor, row_ndim: int) -> bool:
    """Whether the (rows, cols) shape that Triton kernels want is a view; asked of a tensor without data."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    lead = tensor.dim() - row_ndim
    rows = empty.reshape(tensor.shape[:lead].numel(), tensor.shape[lead:].numel())
    return rows.untyped_storage()._cdata == empty.untyped_storage()._cdata
