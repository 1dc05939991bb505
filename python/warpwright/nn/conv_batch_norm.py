"""A convolution, its batch norm and an activation as one layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation
from warpwright.nn._reasons import common_reason
from warpwright.nn.channel_norm import BatchNorm2d, checked_norm_activation
from warpwright.nn.conv import Conv2d


def conv_batch_norm(
    conv: Conv2d, bn: BatchNorm2d, input: Tensor, residual: Tensor | None, activation: str | None
) -> Tensor:
    """The two layers by one operator, for tensors that it takes."""
    input, padding = conv.padded(input)

    def norm(mean: Tensor | None, var: Tensor | None, training: bool, momentum: float) -> Tensor:
        return ops.conv2d_batch_norm(
            input, conv.weight, mean, var, bn.weight, bn.bias, conv.bias, conv.stride, padding, conv.dilation,
            conv.groups, training, momentum, bn.eps, residual=residual, activation=activation,
            process_group=bn.exchange_group(),
        )  # fmt: skip

    return bn.step(norm)


class ConvBnAct2d(torch.nn.Module):
    """`activation(bn(conv(input)) + residual)` on warpwright.ops.conv2d_batch_norm.

    Args:
        in_channels, ..., padding_mode: torch.nn.Conv2d's, without a bias unless it is asked for.
        eps, momentum, affine, track_running_stats: torch.nn.BatchNorm2d's.
        device, dtype: of both.
        activation: "relu", "silu" or None.

    `conv` and `bn` are layers of their own, with torch's attributes and state_dict keys: a Sequential with these names
    loads the layer's state, and the other way round. They are not called: hooks of theirs do not run. `bn` may be in
    another mode than the layer, to keep its statistics, and a SyncBatchNorm, which convert_sync_batchnorm makes of it.
    forward(input, residual=None) takes input as Conv2d does, and a residual like the output. Runs torch's own layers,
    and counts it in warpwright.fallbacks(), where Conv2d or BatchNorm2d would.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__()
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype,
        )  # fmt: skip
        self.bn = BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation = None if activation is None else checked_norm_activation("ConvBnAct2d", activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, bn = self.conv, self.bn
        reason = common_reason(input, conv.weight, conv.bias, residual)
        reason = reason or common_reason(input, bn.weight, bn.bias, bn.running_mean, bn.running_var, wide=True)
        if reason is not None:
            count_fallback("ConvBnAct2d", reason)
            normal = bn.forward_by_torch(torch.nn.Conv2d.forward(conv, input))
            return apply_activation(normal if residual is None else normal + residual, self.activation)
        return conv_batch_norm(conv, bn, input, residual, self.activation)

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation!r}"
