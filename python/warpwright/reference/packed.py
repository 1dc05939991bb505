"""Definitions of the packed family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype, count_of, needs_preact
from warpwright.ops.packed import PackedWeight, pack_weights, unpack_weights
from warpwright.reference._activation import activate, activation_grad


def dequantize_packed(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int | None, in_features: int
) -> Tensor:
    acc = acc_dtype(scale.dtype)
    values = unpack_weights(PackedWeight(packed, scale, zero, bits, group_size, in_features)).to(acc)
    group = torch.arange(in_features, device=packed.device) // (group_size or max(in_features, 1))
    zeros = 2 ** (bits - 1) if zero is None else zero.to(acc)[:, group]
    return (scale.to(acc)[:, group] * (values - zeros)).to(scale.dtype).contiguous()


def quantize_packed(
    weight: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    packed = pack_weights(weight, bits, group_size, symmetric)
    return packed.data, packed.scale, packed.data.new_empty(0) if packed.zero is None else packed.zero


def linear_packed(
    input: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(input.dtype)
    weight = dequantize_packed(packed, scale, zero, bits, group_size, input.shape[-1])
    preact = input.to(acc) @ weight.to(acc).t()
    if bias is not None:
        preact = preact + bias
    if residual is not None:
        preact = preact + residual
    keep = save_preact and needs_preact(activation)
    output = activate(activation, preact).to(input.dtype).contiguous()
    return output, preact.to(input.dtype).contiguous() if keep else input.new_empty(0)


def linear_packed_backward(
    grad_output: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    saved: Tensor | None,
    bits: int,
    group_size: int | None,
    in_features: int,
    activation: str,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, ...]:
    dtype, acc = grad_output.dtype, acc_dtype(grad_output.dtype)
    grad = grad_output.to(acc)
    if saved is not None:
        grad = grad * activation_grad(activation, saved.to(acc))
    weight = dequantize_packed(packed, scale, zero, bits, group_size, in_features)
    grads = (
        grad @ weight.to(acc) if need_input else None,
        grad.reshape(count_of(grad.shape[:-1]), packed.shape[0]).sum(0) if need_bias else None,
        grad.clone() if need_residual else None,
    )
    return tuple(grad_output.new_empty(0) if g is None else g.to(dtype).contiguous() for g in grads)
