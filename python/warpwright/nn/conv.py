"""Convolution layers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation, checked_activation
from warpwright.nn._reasons import common_reason


class _Conv(torch.nn.modules.conv._ConvNd):
    """What the layers share; their other base class is torch's layer."""

    activation: str | None = None  # Here too, for layers whose constructor was torch's (replace_modules).

    def __init_subclass__(cls) -> None:
        """Help shows torch's constructor with `activation` behind."""
        if not hasattr(torch.nn, cls.__name__):
            return
        shown = inspect.signature(getattr(torch.nn, cls.__name__))
        activation = inspect.Parameter(
            "activation", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None
        )
        cls.__signature__ = shown.replace(parameters=[*shown.parameters.values(), activation])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if activation is not None:
            self.activation = checked_activation(type(self).__name__, activation)

    def _reason(self, input: Tensor) -> str | None:
        """Why torch's own forward must run, counted; None where the op takes the tensors."""
        reason = common_reason(input, self.weight, self.bias, op="convolution")
        if reason is not None:
            count_fallback(type(self).__name__, reason)
        return reason

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + extra


class _PlainConv(_Conv):
    _op: Any

    def forward(self, input: Tensor) -> Tensor:
        if self._reason(input) is not None:
            return apply_activation(super().forward(input), self.activation)
        return self.call_op(input, self.activation)

    def call_op(self, input: Tensor, activation: str | None, residual: Tensor | None = None) -> Tensor:
        """The op with the layer's parameters, and with an epilogue that need not be the layer's own."""
        input, padding = self.padded(input)
        return type(self)._op(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=activation,
            residual=residual,
        )

    def padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, with the padding that no op has, and the padding that is left for the op."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    def output_shape(self, input: Tensor) -> tuple[int, ...]:
        """The shape of the layer's output, for an input of the right rank."""
        dims = self.weight.dim() - 2
        sizes = []
        for size, kernel, stride, dilation, before, after in zip(
            input.shape[-dims:],
            self.kernel_size,
            self.stride,
            self.dilation,
            self._reversed_padding_repeated_twice[-2::-2],
            self._reversed_padding_repeated_twice[::-2],
            strict=True,
        ):
            sizes.append((size + before + after - dilation * (kernel - 1) - 1) // stride + 1)
        return (*input.shape[: -dims - 1], self.out_channels, *sizes)


class _TransposedConv(_Conv):
    _op: Any

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self._reason(input) is not None:
            return apply_activation(super().forward(input, output_size), self.activation)
        return self.call_op(input, self.activation, output_size=output_size)

    def call_op(
        self,
        input: Tensor,
        activation: str | None,
        residual: Tensor | None = None,
        output_size: list[int] | None = None,
    ) -> Tensor:
        """The op with the layer's parameters, and with an epilogue that need not be the layer's own."""
        dims = self.weight.dim() - 2
        output_padding = self._output_padding(  # type: ignore[operator]
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        return type(self)._op(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
            activation=activation,
            residual=residual,
        )

    def output_shape(self, input: Tensor) -> tuple[int, ...]:
        """The shape of the layer's output without an output_size, for an input of the right rank."""
        dims = self.weight.dim() - 2
        sizes = [
            (size - 1) * stride - 2 * int(padding) + dilation * (kernel - 1) + more + 1
            for size, kernel, stride, padding, dilation, more in zip(
                input.shape[-dims:],
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.output_padding,
                strict=True,
            )
        ]
        return (*input.shape[: -dims - 1], self.out_channels, *sizes)


class Conv1d(_PlainConv, torch.nn.Conv1d):
    """torch.nn.Conv1d on warpwright.ops.conv1d; everything else is as in `Conv2d`."""

    _op = staticmethod(ops.conv1d)


class Conv2d(_PlainConv, torch.nn.Conv2d):
    """torch.nn.Conv2d on warpwright.ops.conv2d: same constructor, attributes and state_dict.

    Args:
        in_channels, ..., dtype: torch.nn.Conv2d's.
        activation: applied to the output by the same kernel: one of `ops.linear`'s names, or None.

    A padding_mode other than "zeros" pads a copy of the input first, as torch's layer does. Runs torch's own forward,
    and counts it in warpwright.fallbacks(), where the op cannot take the tensors: a dtype other than float32, float16,
    bfloat16 (float64 on the CPU), input and weight of different dtypes outside autocast, sparse, nested or quantised
    tensors, subclasses with their own dispatch, torch.func transforms, devices without a kernel.
    """

    _op = staticmethod(ops.conv2d)


class Conv3d(_PlainConv, torch.nn.Conv3d):
    """torch.nn.Conv3d on warpwright.ops.conv3d; everything else is as in `Conv2d`."""

    _op = staticmethod(ops.conv3d)


class ConvTranspose1d(_TransposedConv, torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d on warpwright.ops.conv_transpose1d; everything else is as in `ConvTranspose2d`."""

    _op = staticmethod(ops.conv_transpose1d)


class ConvTranspose2d(_TransposedConv, torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d on warpwright.ops.conv_transpose2d: same constructor, attributes and state_dict, and
    forward takes `output_size` as torch's does.

    Args:
        in_channels, ..., dtype: torch.nn.ConvTranspose2d's.
        activation: applied to the output by the same kernel: one of `ops.linear`'s names, or None.

    Runs torch's own forward, and counts it, where `Conv2d` does.
    """

    _op = staticmethod(ops.conv_transpose2d)


class ConvTranspose3d(_TransposedConv, torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d on warpwright.ops.conv_transpose3d; everything else is as in `ConvTranspose2d`."""

    _op = staticmethod(ops.conv_transpose3d)
