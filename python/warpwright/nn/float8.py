"""Linear layers that train in 8-bit floats: products are 8-bit, parameters and optimizer states are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation
from warpwright.nn._reasons import common_reason
from warpwright.nn.matmul import Linear

#: Activations and weights need digits more than range, gradients range more than digits (Micikevicius et al., 2022).
FORWARD_TYPE, GRADIENT_TYPE = torch.float8_e4m3fn, torch.float8_e5m2
GRANULARITIES = ("row", "tensor")


class _Product(torch.autograd.Function):
    """x w.T + bias of (m, k) and (n, k), and its gradients, each product of 8-bit operands.

    An operand is quantized along what its product sums over, so both orientations of x, w and dy are needed; one call
    of ops.quantize makes both. What is kept for the backward pass is the transposed 8-bit copies: a byte an element.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, granularity: str, out_dtype: torch.dtype
    ) -> Tensor:
        x = ops.quantize(input, FORWARD_TYPE, granularity=granularity, transposed=True)
        w = ops.quantize(weight, FORWARD_TYPE, granularity=granularity, transposed=True)
        ctx.save_for_backward(*x[2:], *w[2:])
        ctx.granularity = granularity
        ctx.dtypes = input.dtype, weight.dtype, None if bias is None else bias.dtype
        return _product(x[:2], w[:2], out_dtype, None if bias is None else bias.to(out_dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_t, x_scale, w_t, w_scale = ctx.saved_tensors
        input_dtype, weight_dtype, bias_dtype = ctx.dtypes
        dy = ops.quantize(grad, GRADIENT_TYPE, granularity=ctx.granularity, transposed=True)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _product(dy[:2], (w_t, w_scale), grad.dtype).to(input_dtype)
        if ctx.needs_input_grad[1]:
            dw = _product(dy[2:], (x_t, x_scale), grad.dtype).to(weight_dtype)
        if ctx.needs_input_grad[2]:
            db = grad.sum(0, dtype=torch.float32).to(bias_dtype)
        return dx, dw, db, None, None


def _product(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], out_dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    return ops.scaled_matmul(a[0], b[0], a[1], b[1], bias=bias, out_dtype=out_dtype)


class Float8Linear(Linear):
    """torch.nn.Linear whose three products, forward and backward, are of 8-bit floats with scales of the moment.

    Args:
        in_features, out_features, bias, device, dtype, activation: warpwright.nn.Linear's. The weight stays in `dtype`,
            and so do its gradient and what an optimizer keeps of it.
        granularity: what shares a scale: "row", each row of what a product sums over, or "tensor", all of it.

    y = x w.T takes x and w in e4m3; dx = dy w and dw = dy.T x take dy in e5m2, and w and x in e4m3. Scales are of the
    tensors as they are at each call: there is no history to keep, and a checkpoint is torch.nn.Linear's. Sums are
    float32; the result has the dtype that torch.nn.Linear's would have, under autocast, too. The backward pass keeps x
    and w as 8-bit transposes in place of x. Without gradients the same product runs.

    Runs warpwright.nn.Linear's forward, and counts it in warpwright.fallbacks(), for float64 and where that falls back.

    Not twice differentiable. Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
    """

    granularity: str = "row"  # Here too, for layers whose constructor was another's (convert_to_float8_training).

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        granularity: str = "row",
    ):
        super().__init__(in_features, out_features, bias, device, dtype, activation=activation)
        if granularity != "row":
            self.granularity = _checked_granularity("Float8Linear", granularity)

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, self.weight, self.bias)
        if reason is None and torch.float64 in (input.dtype, self.weight.dtype):
            reason = "float64 has no 8-bit product"
        if reason is not None:
            count_fallback("Float8Linear", reason)
            return super().forward(input)
        if input.numel() == 0 and input.shape[-1:] == (self.in_features,):
            return super().forward(input)  # Nothing to quantize, and no maximum to scale by.
        kind = input.device.type
        out_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            got = tuple(input.shape)
            raise RuntimeError(f"warpwright: Float8Linear: input must be (..., {self.in_features}), got {got}")
        rows = input.reshape(-1, self.in_features)
        result = _Product.apply(rows, self.weight, self.bias, self.granularity, out_dtype)
        return apply_activation(result.view(*input.shape[:-1], self.out_features), self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, granularity={self.granularity!r}"


def convert_to_float8_training(
    model: torch.nn.Module,
    *,
    granularity: str = "row",
    filter: Callable[[str, torch.nn.Linear], bool] | None = None,
) -> list[str]:
    """Switches the linear layers of `model` to Float8Linear, in place; everything but their class stays as it is.

    Args:
        model: any module. torch.nn.Linear and warpwright.nn.Linear are switched, subclasses are not.
        granularity: Float8Linear's.
        filter: filter(name, layer) says whether a layer is switched; None for all. A model's last layer is often left
            out: its products are few, and its logits need their digits.

    Returns:
        The names of the layers that were switched; a second call finds none.

    Raises:
        RuntimeError: granularity is something else.
    """
    _checked_granularity("convert_to_float8_training", granularity)
    names = []
    for name, module in model.named_modules():
        if type(module) in (torch.nn.Linear, Linear) and (filter is None or filter(name, module)):
            module.__class__ = Float8Linear
            if granularity != "row":
                module.granularity = granularity
            names.append(name)
    return names


def _checked_granularity(function: str, granularity: str) -> str:
    if granularity not in GRANULARITIES:
        raise RuntimeError(
            f"warpwright: {function}: granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}"
        )
    return granularity
