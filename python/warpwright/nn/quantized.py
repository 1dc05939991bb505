"""Linear layers whose weights are quantised: 8-bit floats, int8, and packed integers of 4 and 8 bits."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import require
from warpwright._fallbacks import count_fallback, run_at_trace_time
from warpwright.nn._activation import activate, apply_activation, checked_activation
from warpwright.nn._floats import FloatLinear, dense_weight, float_linear
from warpwright.nn._reasons import common_reason
from warpwright.nn.matmul import Linear
from warpwright.ops.packed import check_format
from warpwright.ops.scaled import MOST_INT8_TERMS


class QuantizedLinear(torch.nn.Module):
    """What the quantised linear layers share; they are LinearFP8, LinearInt8, LinearW4A16 and LinearW8A16.

    Args:
        in_features, out_features, bias, device, dtype: torch.nn.Linear's. dtype is that of the bias and of the weight
            when it is dequantised.
        activation: applied to the output by the same kernel: one of `ops.linear`'s names, or None.

    A new layer's weight is zero until a state is loaded; `from_float` makes a layer of one that has a weight. The
    integers and their scales are buffers, under names that say the format (`weight_int8`), so a state of another format
    meets torch's error about missing keys and not other numbers. A state_dict with a float `weight` may be loaded too:
    it is quantised as `from_float` does it. Casting the layer (`half()`, `to(torch.bfloat16)`) casts the bias and what
    the weight is dequantised to; the integers stay what they are. The output has the input's dtype.

    `weight` is dequantised each time that it is read, and what is written into it is lost. It has no gradient. Those of
    input and bias are right, taken with the dequantised weight as if the input had not been rounded, so layers before
    and beside it can be trained: adapters, for one. A backward pass through a layer in training mode raises unless
    `frozen` says that this is meant.

    Falls back to torch's linear with the dequantised weight, and counts it in warpwright.fallbacks(), where the op
    cannot take the tensors.
    """

    #: The constructor's keywords that a format adds.
    settings: ClassVar[tuple[str, ...]] = ()
    #: The buffer of the integers.
    data_name: ClassVar[str]
    #: Whether a float checkpoint holds the weight as (in_features, out_features), like Hugging Face's Conv1D.
    transposed: bool = False
    bias: torch.nn.Parameter | None
    #: Allows a backward pass in training mode.
    frozen: bool = False
    #: Its name in the model, for messages.
    label: str = ""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = None if activation is None else checked_activation(type(self).__name__, activation)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        weight = torch.zeros(out_features, in_features, device=device, dtype=self.dtype)
        for name, buffer in self._quantized(weight).items():
            self.register_buffer(name, buffer)
        self.register_parameter("bias", torch.nn.Parameter(weight.new_zeros(out_features)) if bias else None)

    @classmethod
    def from_float(cls, linear: torch.nn.Module, **settings: Any) -> QuantizedLinear:
        """A quantised layer of a float one.

        Args:
            linear: a torch.nn.Linear, a warpwright.nn.Linear, whose activation is kept, or Hugging Face's Conv1D.
            settings: the constructor's keywords of this format.

        Returns:
            A layer on the same device, in the same mode, with the same bias Parameter. Hooks stay behind:
            `warpwright.quantize` keeps them.

        Raises:
            RuntimeError: linear is something else, or `reason_against` it.
        """
        parts = float_linear(f"nn.{cls.__name__}.from_float", linear)
        reason = cls.reason_against(parts)
        require(reason is None, f"nn.{cls.__name__}.from_float", f"linear cannot be quantised: {reason}")
        out_features, in_features = parts.weight.shape
        activation, dtype = parts.activation, parts.weight.dtype
        layer = cls(in_features, out_features, False, "meta", dtype, activation=activation, **settings)
        for name, buffer in layer._quantized(parts.weight).items():
            setattr(layer, name, buffer)
        layer.register_parameter("bias", parts.bias)
        if parts.transposed:
            layer.transposed = True
        return layer.train(linear.training)

    def to_float(self) -> Linear:
        """A float layer with the dequantised weight."""
        weight = self.float_weight()
        linear = Linear(self.in_features, self.out_features, False, "meta", weight.dtype, activation=self.activation)
        linear.weight = torch.nn.Parameter(weight)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    @classmethod
    def reason_against(cls, parts: FloatLinear) -> str | None:
        """Why this format cannot hold such a weight, or None when it can."""
        raise NotImplementedError

    def made_of(self, weight: Tensor) -> bool:
        """Whether quantising `weight` (out_features, in_features) gives the integers that the layer holds."""
        data = self._quantized(weight)[self.data_name]
        return data is not None and torch.equal(data, getattr(self, self.data_name))

    def stored(self) -> int:
        """Bytes of the weight."""
        return sum(buffer.nbytes for buffer in self.buffers(False))

    def _quantized(self, weight: Tensor) -> dict[str, Tensor | None]:
        """The buffers of a weight (out_features, in_features)."""
        raise NotImplementedError

    def float_weight(self) -> Tensor:
        """(out_features, in_features), in the layer's dtype."""
        raise NotImplementedError

    def _reason(self, input: object) -> str | None:
        raise NotImplementedError

    def _product(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, in the shape that the float layer's has."""
        weight = self.float_weight()
        return weight.t() if self.transposed else weight

    def forward(self, input: Tensor) -> Tensor:
        reason = self._reason(input)
        if reason is None:
            output = self._product(input)
        else:
            count_fallback(type(self).__name__, reason)
            output = apply_activation(F.linear(input, self.float_weight(), self.bias), self.activation)
        if self.training and not self.frozen and torch.is_grad_enabled() and output.requires_grad:
            return self._refuse_training(output)
        return output

    def _refuse_training(self, output: Tensor) -> Tensor:
        name = f" {self.label!r}" if self.label else ""
        message = (
            f"warpwright: nn.{type(self).__name__}: layer{name} is quantised and in training mode, but its weight has "
            "no gradient and is not trained; restore the float model to train it, or set frozen=True to train others "
            "through it, such as adapters"
        )
        if torch.compiler.is_compiling():  # Forward and backward pass are traced together, before either is wanted.
            _warn(message)
            return output
        return _Refused.apply(output, message)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        device = next(self.buffers(False)).device
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, device=device, dtype=self.dtype)).dtype
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        shape = (self.out_features, self.in_features)
        weight, others = dense_weight(state_dict, prefix, shape, self.transposed, rest[-1])
        if weight is not None:
            buffers = self._quantized(weight.to(self.dtype))
            others |= {prefix + name: buffer for name, buffer in buffers.items() if buffer is not None}
        super()._load_from_state_dict(others, prefix, *rest)

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        extra += "".join(f", {name}={getattr(self, name)!r}" for name in self.settings)
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{extra}"


class _Refused(torch.autograd.Function):
    """The identity, whose backward pass raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, message: str) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


@run_at_trace_time
def _warn(message: str) -> bool:
    warnings.warn(message, stacklevel=2)
    return True


# ---- 8-bit operands on both sides ----


class _ScaledLinear(QuantizedLinear):
    """Weight and input in 8 bits: each call finds scales for the rows, or blocks of rows, of its input."""

    weight_scale: Tensor
    granularity: str = "row"
    quantized_dtype: ClassVar[torch.dtype]

    @classmethod
    def reason_against(cls, parts: FloatLinear) -> str | None:
        return "a weight in float64" if parts.weight.dtype == torch.float64 else None

    def _data(self) -> Tensor:
        return getattr(self, self.data_name)

    def _quantized(self, weight: Tensor) -> dict[str, Tensor | None]:
        granularity = "square" if self.granularity == "block" else "row"
        data, scale = ops.quantize(weight.detach(), self.quantized_dtype, granularity=granularity)
        return {self.data_name: data, "weight_scale": scale}

    def float_weight(self) -> Tensor:
        return _dequantize(self._data(), self.weight_scale, self.granularity, self.dtype)

    def _reason(self, input: object) -> str | None:
        reason = common_reason(input, self.bias)
        if reason is None and isinstance(input, Tensor) and input.dtype == torch.float64:
            return "torch.float64 input"
        return reason

    def _product(self, input: Tensor) -> Tensor:
        kind = input.device.type
        autocast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        weight = self._data(), self.weight_scale, self.granularity
        if not (torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))):
            return _scaled(input, *weight, bias, self.activation, dtype)
        # Where a gradient is wanted the activation is a pass of its own: the op has no gradients.
        return activate(_Product.apply(input, *weight, bias, dtype), self.activation)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:  # The op takes float32 scales, whatever the layer is cast to.
            self.weight_scale = scale.to(self.weight_scale.device)
        return self


def _scaled(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    granularity: str,
    bias: Tensor | None,
    activation: str | None,
    dtype: torch.dtype,
) -> Tensor:
    require(input.dim() >= 1, "nn.QuantizedLinear", "input must have at least 1 dimension, got 0")
    rows, row_scale = ops.quantize(input.reshape(-1, input.shape[-1]), data.dtype, granularity=granularity)
    output = ops.scaled_matmul(rows, data, row_scale, scale, bias=bias, activation=activation, out_dtype=dtype)
    return output.view(*input.shape[:-1], data.shape[0])


def _dequantize(data: Tensor, scale: Tensor, granularity: str, dtype: torch.dtype) -> Tensor:
    return ops.dequantize(data, scale, granularity="square" if granularity == "block" else "row", dtype=dtype)


class _Product(torch.autograd.Function):
    """The product with gradients of input and bias, taken with the dequantised weight."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        data: Tensor,
        scale: Tensor,
        granularity: str,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(data, scale)
        ctx.granularity = granularity
        ctx.dtype = input.dtype
        return _scaled(input, data, scale, granularity, bias, None, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        data, scale = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            weight = _dequantize(data, scale, ctx.granularity, grad.dtype)
            of_input = ops.matmul(rows, weight).view(*grad.shape[:-1], data.shape[1]).to(ctx.dtype)
        if ctx.needs_input_grad[4]:
            of_bias = rows.sum(0)
        return of_input, None, None, None, of_bias, None


class LinearInt8(_ScaledLinear):
    """A linear layer of int8 by int8 on warpwright.ops.scaled_matmul: a scale for each row of the weight and of the
    input, whose sums are exact. Arguments and behaviour: see `QuantizedLinear`. Inputs of float32, float16, bfloat16.
    """

    data_name = "weight_int8"
    quantized_dtype = torch.int8
    weight_int8: Tensor

    @classmethod
    def reason_against(cls, parts: FloatLinear) -> str | None:
        if parts.weight.shape[1] >= MOST_INT8_TERMS:
            return f"{parts.weight.shape[1]} input features, whose sum int32 may not hold"
        return super().reason_against(parts)


class LinearFP8(_ScaledLinear):
    """A linear layer of 8-bit floats (e4m3) on both sides on warpwright.ops.scaled_matmul.

    Args:
        granularity: "row" for a scale for each row of the weight and of the input; "block" for one for each block of
            128 x 128 of the weight and 128 elements of an input's row, as DeepSeek-V3 has them.

    The others and the behaviour: see `QuantizedLinear`. Inputs of float32, float16, bfloat16. `weight_fp8` holds the
    bytes as uint8: what casts, copies or sends floating tensors would take 8-bit floats for such.
    """

    data_name = "weight_fp8"
    quantized_dtype = torch.float8_e4m3fn
    settings = ("granularity",)
    weight_fp8: Tensor

    def __init__(self, *args: Any, granularity: str = "row", **keywords: Any):
        known = granularity in ("row", "block")
        require(known, "nn.LinearFP8", f"granularity must be row or block, got {granularity!r}")
        self.granularity = granularity
        super().__init__(*args, **keywords)

    def _data(self) -> Tensor:
        return self.weight_fp8.view(torch.float8_e4m3fn)

    def _quantized(self, weight: Tensor) -> dict[str, Tensor | None]:
        buffers = super()._quantized(weight)
        data = buffers["weight_fp8"]
        assert data is not None
        return {**buffers, "weight_fp8": data.view(torch.uint8)}


# ---- packed weights beside float inputs ----


class _PackedLinear(QuantizedLinear):
    """Weights of packed integers, which become floats on their way to the product; inputs stay what they are."""

    weight_scale: Tensor
    weight_zero: Tensor | None
    settings = ("group_size", "symmetric")
    bits: ClassVar[int]

    def __init__(self, *args: Any, group_size: int | None = 128, symmetric: bool = True, **keywords: Any):
        check_format(f"nn.{type(self).__name__}", self.bits, group_size)
        self.group_size = group_size
        self.symmetric = symmetric
        super().__init__(*args, **keywords)

    @classmethod
    def reason_against(cls, parts: FloatLinear) -> str | None:
        wide = parts.weight.dtype == torch.float64 and parts.weight.device.type == "cuda"
        return "a weight in float64 on cuda" if wide else None

    @property
    def packed(self) -> ops.PackedWeight:
        """The weight as ops.linear_w4a16 takes it."""
        data = getattr(self, self.data_name)
        return ops.PackedWeight(data, self.weight_scale, self.weight_zero, self.bits, self.group_size, self.in_features)

    def _quantized(self, weight: Tensor) -> dict[str, Tensor | None]:
        packed = ops.quantize_packed(weight, self.bits, self.group_size, self.symmetric)
        return {self.data_name: packed.data, "weight_scale": packed.scale, "weight_zero": packed.zero}

    def float_weight(self) -> Tensor:
        return self.packed.dequantize()

    def _reason(self, input: object) -> str | None:
        return common_reason(input, self.weight_scale, self.bias)

    def _product(self, input: Tensor) -> Tensor:
        multiply = ops.linear_w4a16 if self.bits == 4 else ops.linear_w8a16
        return multiply(input, self.packed, self.bias, activation=self.activation)


class LinearW4A16(_PackedLinear):
    """A linear layer whose weight is 4-bit integers on warpwright.ops.linear_w4a16, beside inputs that stay floats.

    Args:
        group_size: elements of a row that share a scale, a power of two of at least 32; None for the whole row.
        symmetric: False for zero points.

    The others and the behaviour: see `QuantizedLinear`. The input must have the layer's dtype, as torch's layers ask.
    """

    data_name = "weight_uint4"
    bits = 4
    weight_uint4: Tensor


class LinearW8A16(_PackedLinear):
    """LinearW4A16 with 8-bit integers, on warpwright.ops.linear_w8a16."""

    data_name = "weight_uint8"
    bits = 8
    weight_uint8: Tensor
