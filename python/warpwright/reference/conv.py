"""Definitions of the convolution family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright._check import acc_dtype, needs_preact
from warpwright.reference._activation import activate, activation_grad


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last as soon as one of them lies so and not also as NCHW."""
    for tensor in tensors:
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
    return torch.contiguous_format


def _unfolded(input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """(batch, channels, taps, pixels): the input elements that each output pixel reads."""
    columns = F.unfold(input, tuple(weight.shape[2:]), tuple(dilation), tuple(padding), tuple(stride))
    return columns.view(input.shape[0], input.shape[1], weight.shape[2:].numel(), columns.shape[-1])


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(input.dtype)
    sizes = [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in (0, 1)
    ]
    n, k = input.shape[0], weight.shape[0]
    if input.numel() == 0 or weight.numel() == 0:
        product = torch.zeros(n, k, *sizes, dtype=acc, device=input.device)
    else:
        columns = _unfolded(input.to(acc), weight, stride, padding, dilation)
        columns = columns.reshape(n, groups, -1, columns.shape[-1])  # (n, group, c * taps, pixels)
        filters = weight.to(acc).reshape(groups, k // groups, -1)  # (group, filter, c * taps)
        product = torch.einsum("gkc,ngcp->ngkp", filters, columns).reshape(n, k, *sizes)
    preact = product if bias is None else product + bias[:, None, None]
    preact = preact if residual is None else preact + residual
    layout = memory_format(input, weight)
    output = activate(activation, preact).to(input.dtype).contiguous(memory_format=layout)
    keep = save_preact and needs_preact(activation)
    return output, preact.to(input.dtype).contiguous(memory_format=layout) if keep else input.new_empty(0)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, acc = input.dtype, acc_dtype(input.dtype)
    grad = grad_output.to(acc)
    if saved is not None:
        grad = grad * activation_grad(activation, saved.to(acc))
    n, k = grad.shape[:2]
    grad_input, grad_weight = torch.zeros_like(input, dtype=acc), torch.zeros_like(weight, dtype=acc)
    if input.numel() and weight.numel():
        rows = grad.reshape(n, groups, k // groups, -1)  # (n, group, filter, pixels)
        filters = weight.to(acc).reshape(groups, k // groups, -1)
        columns = torch.einsum("gkc,ngkp->ngcp", filters, rows).reshape(n, -1, rows.shape[-1])
        grad_input = F.fold(
            columns,
            tuple(input.shape[2:]),
            tuple(weight.shape[2:]),
            tuple(dilation),
            tuple(padding),
            tuple(stride),
        )
        read = _unfolded(input.to(acc), weight, stride, padding, dilation).reshape(n, groups, -1, rows.shape[-1])
        # Image by image: one long sum rounds more than the sum of shorter ones.
        grad_weight = torch.einsum("ngkp,ngcp->ngkc", rows, read).sum(0).reshape(weight.shape)
    nothing = input.new_empty(0)
    return (
        grad_input.to(dtype).contiguous(memory_format=memory_format(input)) if need_input else nothing,
        grad_weight.to(dtype).contiguous(memory_format=memory_format(weight)) if need_weight else nothing.clone(),
        grad.sum((0, 2, 3)).to(dtype) if need_bias else nothing.clone(),
        grad.to(dtype, copy=True).contiguous(memory_format=memory_format(input, weight))
        if need_residual
        else nothing.clone(),
    )
