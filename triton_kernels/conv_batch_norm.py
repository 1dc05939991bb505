"""A convolution whose kernel finds the statistics of the tiles that it stores, and the batch norm that takes them."""

from __future__ import annotations

from torch import Tensor

from warpwright.triton_kernels._channel_call import Partials
from warpwright.triton_kernels.channel_norm import batch_norm
from warpwright.triton_kernels.conv import convolution, measured


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
) -> tuple[Tensor, ...]:
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
