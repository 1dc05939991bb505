"""Operators as PyTorch's own functions, where there are such: what other runtimes have kernels for.

Outputs that only a backward pass reads come from the definitions; nothing of a program for inference uses them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright._check import acc_dtype, needs_preact
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.reference import activation as activation_reference
from warpwright.reference import channel_norm, norm


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _finished(product: Tensor, activation: str, save_preact: bool) -> tuple[Tensor, Tensor]:
    """An epilogue's output and pre-activation."""
    keep = save_preact and needs_preact(activation)
    output = TORCH_ACTIVATIONS[activation](product).contiguous()
    return output, product.contiguous() if keep else _nothing(product)


# ---- products ----


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    product = F.linear(input, weight, bias)
    return _finished(product if residual is None else product + residual, activation, save_preact)


def linear_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = F.linear(input, gate_weight, gate_bias), F.linear(input, up_weight, up_bias)
    active = TORCH_ACTIVATIONS[activation](gate)
    saved = gate if needs_preact(activation) else active
    return active * up, saved if save else _nothing(gate), up if save else _nothing(up)


def mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if gate_weight is not None:
        settings = (activation, precision, batch_invariant, save)
        hidden, gate, up = linear_glu(input, gate_weight, up_weight, gate_bias, up_bias, *settings)
    else:
        before = F.linear(input, up_weight, up_bias)
        hidden = TORCH_ACTIVATIONS[activation](before)
        up = (before if needs_preact(activation) else hidden) if save else _nothing(hidden)
        gate = _nothing(hidden)
    output = F.linear(hidden, down_weight, down_bias)
    return output if residual is None else output + residual, gate, up


def grouped_matmul(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    activation: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    """Every row with every group's weight: a program cannot depend on where the groups end."""
    ends = offsets.clamp(0, input.shape[0]).cummax(0).values
    row = torch.arange(input.shape[0], device=input.device)[:, None]
    preact, first = input.new_zeros(input.shape[0], weight.shape[1]), torch.zeros_like(ends[:1])
    output = preact
    for group in range(weight.shape[0]):
        last = ends[group : group + 1]
        own = (row >= first) & (row < last)
        product = F.linear(input, weight[group], None if bias is None else bias[group])
        output = torch.where(own, TORCH_ACTIVATIONS[activation](product), output)
        preact = torch.where(own, product, preact)
        first = last
    return output, preact if save_preact and needs_preact(activation) else _nothing(preact)


# ---- convolutions ----


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
    dims = weight.dim() - 2
    if len(padding) > dims:  # Those before the input, then those after it.
        sides = [side for d in reversed(range(dims)) for side in (padding[d], padding[dims + d])]
        input, padding = F.pad(input, sides), [0] * dims
    if transposed:
        function = getattr(F, f"conv_transpose{dims}d")
        product = function(input, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        product = getattr(F, f"conv{dims}d")(input, weight, bias, stride, padding, dilation, groups)
    product = product if residual is None else product + residual
    keep = save_preact and needs_preact(activation)
    return TORCH_ACTIVATIONS[activation](product), product if keep else _nothing(product)


def convolution_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    precision: str,
    save_product: bool,
) -> tuple[Tensor, ...]:
    geometry = (stride, padding, dilation, False, [0] * len(stride), groups)
    product, _ = convolution(input, weight, bias, None, *geometry, "none", precision, False)
    output, *others = batch_norm(
        product, running_mean, running_var, bn_weight, bn_bias, residual, training, momentum, eps, activation
    )
    if not training and not save_product:
        return output, *(_nothing(t) for t in (product, *others[:2])), *others[2:]
    return output, product, *others


# ---- norms ----


def _wide(values: Tensor | None, input: Tensor) -> Tensor | None:
    """Values of the channels in the dtype that PyTorch computes in: it takes no mixture of two."""
    return None if values is None else values.to(acc_dtype(input.dtype))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> tuple[Tensor, ...]:
    channels = (running_mean, running_var, weight, bias)
    found = channel_norm.batch_norm(input, *channels, residual, training, momentum, eps, activation)
    if training:
        return found
    mean, var, factor, term = (_wide(t, input) for t in channels)
    output = F.batch_norm(input, mean, var, factor, term, False, 0.0, eps)
    output = output if residual is None else output + residual
    return TORCH_ACTIVATIONS[activation](output), *found[1:]


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, ...]:
    found = channel_norm.group_norm(input, num_groups, weight, bias, eps, activation)
    output = F.group_norm(input, num_groups, _wide(weight, input), _wide(bias, input), eps)
    return TORCH_ACTIVATIONS[activation](output), *found[1:]


def layer_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    dropout_p: float,
    *rest: Any,
) -> tuple[Tensor, ...]:
    found = norm.layer_norm(input, residual, normalized_ndim, weight, bias, eps, weight_offset, dropout_p, *rest)
    if dropout_p != 0:
        return found
    total = input if residual is None else input + residual
    factor = weight if weight is None or weight_offset == 0 else weight + weight_offset
    output = F.layer_norm(total, input.shape[input.dim() - normalized_ndim :], factor, bias, eps)
    return output.contiguous(), found[1] if residual is None else total, *found[2:]


# ---- pointwise, and tables ----


def activation(input: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    if activation not in TORCH_ACTIVATIONS:
        return activation_reference.activation(input, bias, activation)
    return TORCH_ACTIVATIONS[activation](input if bias is None else input + bias).contiguous()


def glu(gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str) -> Tensor:
    gate = gate if gate_bias is None else gate + gate_bias
    up = up if up_bias is None else up + up_bias
    return (TORCH_ACTIVATIONS[activation](gate) * up).contiguous()


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None, scale_grad_by_freq: bool) -> Tensor:
    return F.embedding(input, weight)
