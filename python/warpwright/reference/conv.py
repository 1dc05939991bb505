"""Definitions of the convolution family: a sum over the filter's taps, each of which is one product of matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright._check import acc_dtype, count_of, needs_preact
from warpwright._conv import channels_last, empty_in_format, in_format, output_sizes, sides
from warpwright.reference._activation import activate, activation_grad


def _padded_sizes(
    x_sizes: list[int], y_sizes: list[int], kernel: list[int], stride: list[int], before: list[int], dilation: list[int]
) -> list[int]:
    """Of x with its padding, as far as the filters reach and no less than x itself."""
    reach = [(y - 1) * s + d * (k - 1) + 1 for y, s, d, k in zip(y_sizes, stride, dilation, kernel, strict=True)]
    return [max(r, b + x) for r, b, x in zip(reach, before, x_sizes, strict=True)]


def _taps(
    padded: Tensor, y_sizes: list[int], kernel: list[int], stride: list[int], dilation: list[int]
) -> Iterator[tuple[int, Tensor]]:
    """Each tap's number, and a view (batch, channels, *y_sizes) of the padded elements that it meets."""
    for number, tap in enumerate(product(*map(range, kernel))):
        window = padded
        for d, (t, size) in enumerate(zip(tap, y_sizes, strict=True)):
            first = t * dilation[d]
            window = window.narrow(2 + d, first, (size - 1) * stride[d] + 1 if size else 0)
            window = window[(slice(None),) * (2 + d) + (slice(None, None, stride[d]),)]
        yield number, window


class Convolution:
    """The relation between x, w and y of a convolution, with sums in `acc`: see csrc/kernels/conv.h."""

    def __init__(
        self,
        x_sizes: Sequence[int],
        y_sizes: Sequence[int],
        kernel: Sequence[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        self.x_sizes, self.y_sizes, self.kernel = list(x_sizes), list(y_sizes), list(kernel)
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.before = sides(padding, len(stride))[0]
        self.padded = _padded_sizes(self.x_sizes, self.y_sizes, self.kernel, stride, self.before, dilation)

    def _pad(self, x: Tensor) -> Tensor:
        ends = [p - b - s for p, b, s in zip(self.padded, self.before, self.x_sizes, strict=True)]
        return F.pad(x, [n for pair in zip(reversed(self.before), reversed(ends), strict=True) for n in pair])

    def _rows(self, tensor: Tensor) -> Tensor:
        """(batch, groups, channels a group, pixels)"""
        return tensor.reshape(tensor.shape[0], self.groups, -1, count_of(tensor.shape[2:]))

    def fprop(self, x: Tensor, w: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], self.groups, w.shape[0] // self.groups, torch.Size(self.y_sizes).numel())
        if x.numel() and y.numel():
            for tap, window in _taps(self._pad(x), self.y_sizes, self.kernel, self.stride, self.dilation):
                filters = w.flatten(2)[..., tap].reshape(self.groups, -1, w.shape[1])
                y = y + torch.einsum("gkc,ngcp->ngkp", filters, self._rows(window))
        return y.reshape(x.shape[0], w.shape[0], *self.y_sizes)

    def dgrad(self, y: Tensor, w: Tensor) -> Tensor:
        channels = w.shape[1] * self.groups
        padded = y.new_zeros(y.shape[0], channels, *self.padded)
        if y.numel() and padded.numel():
            for tap, window in _taps(padded, self.y_sizes, self.kernel, self.stride, self.dilation):
                filters = w.flatten(2)[..., tap].reshape(self.groups, -1, w.shape[1])
                part = torch.einsum("gkc,ngkp->ngcp", filters, self._rows(y))
                window += part.reshape(window.shape)
        for d, (first, size) in enumerate(zip(self.before, self.x_sizes, strict=True)):
            padded = padded.narrow(2 + d, first, size)
        return padded

    def wgrad(self, x: Tensor, y: Tensor, filters: int) -> Tensor:
        w = x.new_zeros(filters, x.shape[1] // self.groups, torch.Size(self.kernel).numel())
        if x.numel() and y.numel():
            for tap, window in _taps(self._pad(x), self.y_sizes, self.kernel, self.stride, self.dilation):
                # Image by image: one long sum rounds more than the sum of shorter ones.
                part = torch.einsum("ngkp,ngcp->ngkc", self._rows(y), self._rows(window)).sum(0)
                w[..., tap] = part.reshape(w.shape[:2])
        return w.unflatten(2, self.kernel)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    activation: str,
    precision: str,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    acc, last = acc_dtype(input.dtype), channels_last(input, weight)
    sizes = output_sizes("convolution", input, weight, stride, padding, dilation, transposed, output_padding, groups)
    geometry = (weight.shape[2:], stride, padding, dilation, groups)
    if transposed:
        preact = Convolution(sizes[2:], input.shape[2:], *geometry).dgrad(input.to(acc), weight.to(acc))
    else:
        preact = Convolution(input.shape[2:], sizes[2:], *geometry).fprop(input.to(acc), weight.to(acc))
    if bias is not None:
        preact = preact + bias.view(-1, *[1] * len(stride))
    if residual is not None:
        preact = preact + residual
    output = in_format(activate(activation, preact).to(input.dtype), last)
    keep = save_preact and needs_preact(activation)
    return output, in_format(preact.to(input.dtype), last) if keep else input.new_empty(0)


def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    activation: str,
    precision: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, acc = input.dtype, acc_dtype(input.dtype)
    grad = grad_output.to(acc)
    if saved is not None:
        grad = grad * activation_grad(activation, saved.to(acc))
    wide_input, wide_weight = input.to(acc), weight.to(acc)
    geometry = (weight.shape[2:], stride, padding, dilation, groups)
    grads = [input.new_empty(0) for _ in range(4)]
    if transposed:
        conv = Convolution(grad.shape[2:], input.shape[2:], *geometry)
        wide = (
            conv.fprop(grad, wide_weight) if need_input else None,
            conv.wgrad(grad, wide_input, weight.shape[0]) if need_weight else None,
        )
    else:
        conv = Convolution(input.shape[2:], grad.shape[2:], *geometry)
        wide = (
            conv.dgrad(grad, wide_weight) if need_input else None,
            conv.wgrad(wide_input, grad, weight.shape[0]) if need_weight else None,
        )
    for i, (like, found) in enumerate(zip((input, weight), wide, strict=True)):
        if found is not None:
            grads[i] = empty_in_format(like, like.shape, channels_last(like)).copy_(found)
    if need_bias:
        grads[2] = grad.sum([d for d in range(grad.dim()) if d != 1]).to(dtype)
    if need_residual:
        grads[3] = empty_in_format(input, grad.shape, channels_last(input, weight)).copy_(grad)
    return grads[0], grads[1], grads[2], grads[3]
