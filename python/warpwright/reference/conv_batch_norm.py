"""Definition of a convolution with its batch norm: the one's, then the other's."""

from __future__ import annotations

from torch import Tensor

from warpwright.reference.channel_norm import batch_norm
from warpwright.reference.conv import convolution
from warpwright.reference.sync_batch_norm import batch_norm_moments


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
    product, _ = convolution(
        input, weight, bias, None, stride, padding, dilation, False, [], groups, "none", precision, False
    )  # fmt: skip
    output, *others = batch_norm(
        product, running_mean, running_var, bn_weight, bn_bias, residual, training, momentum, eps, activation
    )
    if not training and not save_product:
        return output, *(t.new_empty(0) for t in (product, *others[:2])), *others[2:]
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
    product, _ = convolution(
        input, weight, bias, None, stride, padding, dilation, False, [], groups, "none", precision, False
    )  # fmt: skip
    return product, batch_norm_moments(product)
