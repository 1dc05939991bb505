"""What the kernels of convolutions share: places, phases, the epilogue, and their arguments."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from warpwright._conv import MOST_DIMS
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._channel_call import Partials
from warpwright.triton_kernels._common import interpreted, rounded, tl_acc


@triton.jit
def place(flat, size_d, size_h, size_w):
    """The line of a flat index over (line, depth, height, width), and its place in it."""
    rest = flat // size_w
    return rest // size_h // size_d, rest // size_h % size_d, rest % size_h, flat % size_w


@triton.jit
def finish(
    acc, at, wide_n, mask, n, d, h, w, y_ptr, yc, res_ptr, rn, rc, rd, rh, rw, bias_ptr, preact_ptr,
    mean_ptr, var_ptr, scale_ptr, shift_ptr, eps, in_n,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Bias, folded batch norm, residual and activation of a tile whose rows lie at offsets `at` of the output. Returns
    what is stored."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + wide_n, in_n, 0.0).to(ACC)[None, :]
    if HAS_NORM:
        # The mean first, so that a large one costs no digits.
        acc -= tl.load(mean_ptr + wide_n, in_n, 0.0).to(ACC)[None, :]
        scale = 1.0 / tl.sqrt(tl.load(var_ptr + wide_n, in_n, 1.0).to(ACC) + eps)
        if HAS_SCALE:
            scale *= tl.load(scale_ptr + wide_n, in_n, 0.0).to(ACC)
        acc *= scale[None, :]
        if HAS_SHIFT:
            acc += tl.load(shift_ptr + wide_n, in_n, 0.0).to(ACC)[None, :]
    if HAS_RESIDUAL:
        from_row = n * rn + d * rd + h * rh + w * rw
        acc += tl.load(res_ptr + from_row[:, None] + wide_n[None, :] * rc, mask, 0.0).to(ACC)
    to = at[:, None] + wide_n[None, :] * yc
    if SAVE_PREACT:
        tl.store(preact_ptr + to, rounded(acc, preact_ptr.dtype.element_ty, INTERPRETED), mask)
    result = rounded(activate(acc, ACTIVATION), y_ptr.dtype.element_ty, INTERPRETED)
    tl.store(y_ptr + to, result, mask)
    return result


@triton.jit
def phase(index, size, kernel, stride, pad, dil):
    """Of the positions index + i * stride: how many there are, the first tap that meets them, the step to the next such
    tap, their number, and the output that the first position meets through the first tap."""
    step = tl.cast(1, tl.int64)
    while step * dil % stride != 0:
        step += 1
    first = tl.cast(0, tl.int64)
    # Not below zero: the sign of a remainder is nothing to rely on.
    while (first < step) & ((index + pad + (step - first) * dil) % stride != 0):
        first += 1
    taps = tl.where(first < step, tl.maximum(kernel - first + step - 1, 0) // step, 0)
    met = index + pad - tl.where(first < step, first * dil, 0)
    # Exact where there are taps; floor division of a negative would be nothing to rely on either.
    y = tl.where(met >= 0, met // stride, -((-met) // stride))
    return tl.maximum(size - index + stride - 1, 0) // stride, first, step, taps, y


# ---- arguments of the launches ----


class Relation:
    """x, w and y of a convolution, of which a kernel writes one from the others: see csrc/kernels/conv.h."""

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        y: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        precision: str,
    ) -> None:
        self.x, self.w, self.y, self.groups = x, w, y, groups
        missing = [1] * (MOST_DIMS - len(stride))
        self.x_size, self.y_size, self.kernel = ([*missing, *t.shape[2:]] for t in (x, y, w))
        self.stride, self.dilation = [*missing, *stride], [*missing, *dilation]
        self.channels, self.filters = w.shape[1], w.shape[0] // groups  # of a group
        self.padding = [*[0] * len(missing), *padding[: len(stride)]]
        self.tensors = (*pointer(x), *pointer(w), *pointer(y))
        self.common = {"ACC": tl_acc(x.dtype), "PRECISION": precision, "UPCAST": interpreted()}

    def sizes(self, *channels: int) -> tuple[int, ...]:
        """What kernels know of the geometry; `channels` are those that they count."""
        return (
            self.x.shape[0], *self.x_size, *self.y_size, *channels, *self.kernel, *self.stride, *self.padding,
            *self.dilation,
        )  # fmt: skip

    def depthwise(self) -> bool:
        return self.channels == self.filters == 1

    def taps(self) -> int:
        return prod(self.kernel)

    def layout(self) -> str:
        return "channels_last" if self.x.stride(1) == 1 else ""


def pointer(tensor: Tensor) -> tuple[Tensor | int, ...]:
    """A tensor, and its strides as one of three dimensions."""
    return (tensor, *tensor.stride()[:2], *[0] * (MOST_DIMS + 2 - tensor.dim()), *tensor.stride()[2:])


class Norm(NamedTuple):
    """A batch norm with constant statistics, one value a channel."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class Epilogue:
    """What follows a product's sums; of nothing, for gradients."""

    def __init__(
        self,
        preact: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        keep: bool = False,
        measure: bool = False,
        norm: Norm | None = None,
    ) -> None:
        self.preact, self.activation, self.keep = preact, activation, keep
        self.measure, self.norm = measure, norm
        self.found: Partials | None = None  # The statistics of a forward product's tiles, if it is to `measure` them.
        self.bias, self.residual = None if bias is None else bias.contiguous(), residual

    def tensors(self, output: Tensor) -> tuple[Tensor | float, ...]:
        """`output` stands for what is not there."""
        residual = output if self.residual is None else self.residual
        norm = Norm(output, output, None, None, 0.0) if self.norm is None else self.norm
        values = [output if value is None else value.contiguous() for value in norm[:4]] if self.norm else [output] * 4
        return (*pointer(residual), output if self.bias is None else self.bias, self.preact, *values, norm.eps)

    def flags(self) -> dict[str, bool | str]:
        return {
            "HAS_BIAS": self.bias is not None,
            "HAS_NORM": self.norm is not None,
            "HAS_SCALE": self.norm is not None and self.norm.weight is not None,
            "HAS_SHIFT": self.norm is not None and self.norm.bias is not None,
            "HAS_RESIDUAL": self.residual is not None,
            "SAVE_PREACT": self.keep,
            "ACTIVATION": self.activation,
        }
