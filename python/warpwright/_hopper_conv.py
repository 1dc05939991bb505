"""Which convolutions Hopper's own kernels take: what csrc/cuda/conv/conv_wgmma.cuh says, for `explain`.

Numbers of dimensions run from the innermost here, as they do there: width, height, depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warpwright._conv import MOST_DIMS, channels_last, empty_in_format, output_sizes

_SPAN = 64  # Channels of a step.
_MOST = 2**31 - 1 - 1024  # Of numbers of 32 bits, with room for a tile that reaches past the end.
_MOST_PHASES = 4  # Of a dimension.
#: kWide, kSquare and kNarrow of conv_wgmma.cu.
_WIDE, _NARROW = ((128, 256), (128, 128)), (128, 64)
#: Of an im2col map with so many dimensions: the corners of its box, and a load's offset.
_MOST_CORNER, _MOST_OFFSET = {1: 2**15, 2: 2**7, 3: 2**4}, {1: 2**16, 2: 2**8, 3: 2**5}
_MOST_STEP = 8


@dataclass(frozen=True)
class _Positions:
    """Of filters in one dimension: see ConvPositions of csrc/cuda/conv/wgmma_maps.h."""

    count: int
    first: int
    step: int
    reach: int


@dataclass(frozen=True)
class Geometry:
    """Strides, paddings before the input, dilations; of a transposed convolution also its output paddings."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]


def takes(input: Tensor, weight: Tensor, residual: Tensor | None, geometry: Geometry, device: tuple[int, int]) -> bool:
    """Whether a convolution of one group is Hopper's, on a device of this capability and number of multiprocessors."""
    capability, multiprocessors = device
    if capability != 90 or input.dtype not in (torch.float16, torch.bfloat16):
        return False
    g = geometry
    sizes = output_sizes("conv", input, weight, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, 1)
    output = empty_in_format(input.to("meta"), sizes, channels_last(input, weight))
    if not (_in_range(input, weight, output, geometry) and _is_even(output)):
        return False
    if residual is not None and _pixel_stride(residual) == 0:
        return False
    positions = _gradients_positions(input, weight, output, g) if g.transposed else _positions(weight, output, g)
    phases = 1
    for stride in g.stride if g.transposed else ():
        phases *= stride
        if stride > _MOST_PHASES:
            return False
    rows = phases * input.shape[0]
    for at in positions:
        rows *= at.count
    channels = input.shape[1]
    enough = 2 * _tiles(rows // phases, rows, sizes[1], phases, multiprocessors) >= multiprocessors
    used = 2 * channels >= -(-channels // _SPAN) * _SPAN
    return enough and used and _tma_reads(weight) and _pixels_fit(input, positions)


def _in_range(input: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> bool:
    x, y = (output, input) if geometry.transposed else (input, output)
    x_pixels = x.shape[0]
    for d, stride in enumerate(geometry.stride):
        reach = weight.shape[2 + d] * geometry.dilation[d]
        if max(x.shape[2 + d], y.shape[2 + d], geometry.padding[d], stride, reach) > _MOST:
            return False
        x_pixels *= -(-x.shape[2 + d] // stride) * stride
    y_pixels = y.shape[0] * y.shape[2:].numel()
    columns = weight.shape[2:].numel() * (max(x.shape[1], y.shape[1]) + _SPAN)
    return 0 < min(x_pixels, y_pixels) <= max(x_pixels, y_pixels, columns) <= _MOST


def _tiles(rows: int, all_rows: int, columns: int, phases: int, multiprocessors: int) -> int:
    """Of the shape that is chosen."""
    for m, n in _WIDE:
        if 2 * columns > n and -(-all_rows // m) * -(-columns // n) >= multiprocessors:
            return phases * -(-rows // m) * -(-columns // n)
    return phases * -(-rows // _NARROW[0]) * -(-columns // _NARROW[1])


# ---- tensors ----


def _stride(tensor: Tensor, d: int) -> int:
    """0 where it is never taken, as in csrc/bindings/conv.cpp."""
    return 0 if tensor.shape[d] == 1 else tensor.stride(d)


def _pixel_stride(tensor: Tensor) -> int:
    """Elements from each pixel to the next; where there is one, the number of channels; 0 where they lie unevenly."""
    pixels, stride = 1, 0
    for d in (*range(tensor.dim() - 1, 1, -1), 0):
        if tensor.shape[d] == 1:
            continue
        stride = stride if pixels > 1 else tensor.stride(d)
        if tensor.stride(d) != stride * pixels:
            return 0
        pixels *= tensor.shape[d]
    return stride if pixels > 1 else tensor.shape[1]


def _is_even(output: Tensor) -> bool:
    return _stride(output, 1) == 1 and _pixel_stride(output) == output.shape[1]


def _tma_reads(tensor: Tensor) -> bool:
    """Channels lie together, all else at multiples of 16 bytes."""
    vector = 16 // tensor.element_size()
    others = [tensor.stride(d) for d in range(tensor.dim()) if d != 1 and tensor.shape[d] > 1]
    far = 2**40 // tensor.element_size()
    whole = all(stride % vector == 0 and 0 < stride < far for stride in others)
    return _stride(tensor, 1) == 1 and tensor.storage_offset() % vector == 0 and whole


def _pixels_fit(tensor: Tensor, positions: Sequence[_Positions]) -> bool:
    """Whether a map of boxes of pixels can be made: conv_pixels_map and ConvPixelsMap::fits."""
    sizes = tensor.shape[:1:-1]
    whole = [p.first == 0 and p.reach == 0 and p.count == size for p, size in zip(positions, sizes, strict=True)]
    single = all(w and (p.step == 1 or p.count == 1) for w, p in zip(whole, positions, strict=True))
    if not _tma_reads(tensor):
        return False
    if single and _pixel_stride(tensor) != 0:
        return True
    needed = [d + 1 for d, p in enumerate(positions) if not (whole[d] and p.count == 1)]
    dims = max(needed, default=1)
    limit = _MOST_CORNER[dims]
    for p, size in zip(positions[:dims], sizes, strict=False):
        upper = p.first + (p.count - 1) * p.step + 1 - size
        corners = -limit <= min(p.first, upper) and max(p.first, upper) < limit
        if not corners or p.step > _MOST_STEP or p.reach >= _MOST_OFFSET[dims]:
            return False
    return dims <= MOST_DIMS


# ---- positions ----


def _positions(weight: Tensor, output: Tensor, g: Geometry) -> list[_Positions]:
    dims = range(len(g.stride) - 1, -1, -1)
    return [
        _Positions(output.shape[2 + d], -g.padding[d], g.stride[d], (weight.shape[2 + d] - 1) * g.dilation[d])
        for d in dims
    ]


def _gradients_positions(input: Tensor, weight: Tensor, output: Tensor, g: Geometry) -> list[_Positions]:
    """Of filters over what is `input` here, and the output of the convolution that is transposed."""
    found = []
    for d in range(len(g.stride) - 1, -1, -1):
        stride, dilation, kernel = g.stride[d], g.dilation[d], weight.shape[2 + d]
        step = next(s for s in range(1, stride + 1) if s * dilation % stride == 0)
        begins, ends = [], []
        for origin in range(stride):
            met = [t for t in range(min(step, kernel)) if (origin + g.padding[d] - t * dilation) % stride == 0]
            for tap in met[:1]:
                first = (origin + g.padding[d] - tap * dilation) // stride
                begins.append(first - (-(-(kernel - tap) // step) - 1) * (step * dilation // stride))
                ends.append(first)
        count = -(-output.shape[2 + d] // stride)
        found.append(_Positions(count, min(begins), 1, max(ends) - min(begins)))
    return found


def bound_geometry(op: str, bound: dict[str, Any]) -> Geometry:
    """Of a call of one of the public functions."""
    from warpwright.ops.conv import conv_geometry  # Here: it needs the backends, which need this module.

    weight: Tensor = bound["weight"]
    transposed = "transpose" in op
    values = (bound.get("stride", 1), bound.get("padding", 0), bound.get("dilation", 1))
    strides, paddings, dilations = conv_geometry(op, weight.dim() - 2, weight, *values)
    ends = bound.get("output_padding", 0)
    ends = [ends] * len(strides) if isinstance(ends, int) else list(ends)
    return Geometry(strides, paddings, dilations, transposed, ends if transposed else [])
