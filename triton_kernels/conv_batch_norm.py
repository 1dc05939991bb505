"""A convolution whose kernel finds the statistics of the tiles that it stores, and the batch norm that takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright.triton_kernels._channel_call import Partials
from warpwright.triton_kernels._common import acc_dtype
from warpwright.triton_kernels._conv import Norm
from warpwright.triton_kernels.channel_norm import batch_norm
from warpwright.triton_kernels.conv import convolution, measured, normalized
from warpwright.triton_kernels.sync_batch_norm import batch_norm_moments


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
    if not training and not save_product:
        assert running_mean is not None
        assert running_var is not None
        norm = Norm(running_mean, running_var, bn_weight, bn_bias, eps)
        output = normalized(
            input, weight, bias, residual, norm, stride, padding, dilation, groups, activation, precision
        )  # fmt: skip
        statistics = torch.empty(0, dtype=acc_dtype(input.dtype), device=input.device)
        return output, input.new_empty(0), *[statistics] * 4
    found: Partials | None = None
    if training:
        product, found = measured(input, weight, bias, stride, padding, dilation, groups, precision)
    else:
        product, _ = convolution(
            input, weight, bias, None, stride, padding, dilation, False, [], groups, "none", precision, False
        )  # fmt: skip
    output, *others = batch_norm(
        product, running_mean, running_var, bn_weight, bn_bias, residual, training, momentum, eps, activation, found
    )
    return output, product, *others


def convolution_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    product, found = measured(input, weight, bias, stride, padding, dilation, groups, precision)
    return product, batch_norm_moments(product, found)
