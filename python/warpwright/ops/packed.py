"""Linear layers whose weights are packed integers of 4 or 8 bits: `w = scale * (q - zero)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_same_device,
    check_same_dtype,
    needs_preact,
    require,
    shape_text,
)
from warpwright.ops._epilogue import check_bias, check_output_like, check_saved, saved_of, wants_grad

#: Rows are padded to whole pieces of this many elements: 16 bytes of 4 bits each, 32 of 8.
PIECE = 32
#: The elements of a 32-bit word of 4 bits each, in the low and in the high half of each of its bytes.
_LOW, _HIGH = (0, 4, 1, 5), (2, 6, 3, 7)


class PackedWeight(NamedTuple):
    """A weight (out_features, in_features) of integers q of 4 or 8 bits, w = scale * (q - zero).

    Three tensors that a state_dict can hold, and three numbers that say how to read them. `pack_weights` and
    `pack_quantized` make it.

    Attributes:
        data: (out_features, bytes), uint8: rows of ceil(in_features / 32) * 32 elements, zeros past the end. With 8
            bits element k is byte k. With 4 bits a 32-bit word (little-endian) holds the elements 8 i to 8 i + 7:
            element 2 j of the word in its bits 4 j to 4 j + 3, element 2 j + 1 sixteen bits above. So one shift and one
            mask bring two neighbours into the halves of a register, in order.
        scale: (out_features, groups), a floating dtype: that of the inputs it is multiplied with.
        zero: (out_features, groups), uint8, from 0 to 2^bits; None for 2^(bits - 1) everywhere.
        bits: 4 or 8.
        group_size: consecutive elements of a row that share a scale and a zero point, a power of two of at least 32;
            the last group of a row may be shorter. None: the whole row is one group.
        in_features: elements of a row.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group_size: int | None
    in_features: int

    @property
    def shape(self) -> torch.Size:
        """(out_features, in_features)."""
        return torch.Size((self.data.shape[0], self.in_features))

    def dequantize(self) -> Tensor:
        """The weight as floats: `dequantize_packed`."""
        return dequantize_packed(self)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PackedWeight:
        """On another device, or with scales rounded to another dtype."""
        zero = None if self.zero is None else self.zero.to(device)
        return self._replace(data=self.data.to(device), scale=self.scale.to(device, dtype), zero=zero)


# ---- packing: torch's ops, once for each weight ----


def pack_weights(weight: Tensor, bits: int = 4, group_size: int | None = 128, symmetric: bool = True) -> PackedWeight:
    """Quantizes a weight to the nearest integers and packs them.

    Args:
        weight: (out_features, in_features), float32, float16, bfloat16 or float64. The scales get its dtype.
        bits: 4 or 8.
        group_size: see PackedWeight.
        symmetric: True for a range that is as wide below zero as above: scale = largest magnitude / (2^(bits - 1) - 1)
            and no zero points. False for the range from the smallest to the largest element of the group (and zero),
            with a zero point: zero itself is always an integer.

    Returns:
        A PackedWeight. Each element is off by at most half its group's scale. A group of zeros has scale 1.

    Raises:
        RuntimeError: weight, bits or group_size is something else.

    In torch's own ops, on any device; `quantize_packed` is one kernel that gives the same.
    """
    op = "pack_weights"
    check_float(op, "weight", weight)
    require(weight.dim() == 2, op, f"weight must have 2 dimensions, got {weight.dim()}")
    check_format(op, bits, group_size)
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    groups = _grouped(weight.detach().to(exact), group_size)
    largest = 2**bits - 1
    low, high = _extremes(groups)
    span, steps = (torch.maximum(-low, high), largest // 2) if symmetric else (high - low, largest)
    scale = _rounded_up(torch.where(span == 0, 1.0, span / steps), weight.dtype)
    step = scale.to(exact)
    zero = torch.full_like(step, 2 ** (bits - 1)) if symmetric else (-low / step).round()
    values = ((groups / step[..., None]).round() + zero[..., None]).clamp(0, largest)
    values = values.flatten(-2)[:, : weight.shape[1]].to(torch.uint8)
    zeros = None if symmetric else zero.to(torch.uint8)
    return PackedWeight(_packed_bytes(values, bits), scale, zeros, bits, group_size, weight.shape[1])


def pack_quantized(
    values: Tensor, scale: Tensor, zero: Tensor | None = None, *, bits: int = 4, group_size: int | None = 128
) -> PackedWeight:
    """Packs a weight that is quantized already, such as one of GPTQ or AWQ: w = scale * (values - zero).

    Args:
        values: (out_features, in_features), integers from 0 to 2^bits - 1 of any integer dtype, one an element. Add
            2^(bits - 1) to signed ones. Checkpoints that hold them packed, or (in_features, out_features), must be
            unpacked and transposed first; columns that were reordered ("act order") stay with inputs in the same order.
        scale: (out_features, groups), float32, float16 or bfloat16 (float64 on the CPU).
        zero: (out_features, groups), integers from 0 to 2^bits, or None for 2^(bits - 1). (GPTQ's first format stores
            zero - 1.)
        bits, group_size: see PackedWeight.

    Raises:
        RuntimeError: naming the argument whose dtype, shape or range does not fit.
    """
    op = "pack_quantized"
    check_format(op, bits, group_size)
    _check_integers(op, "values", values, 2**bits - 1)
    require(values.dim() == 2, op, f"values must have 2 dimensions, got {values.dim()}")
    packed = PackedWeight(_packed_bytes(values.to(torch.uint8), bits), scale, None, bits, group_size, values.shape[1])
    if zero is not None:
        _check_integers(op, "zero", zero, 2**bits)
        packed = packed._replace(zero=zero.to(torch.uint8))
    _check_packed(op, *packed)
    return packed


def unpack_weights(packed: PackedWeight) -> Tensor:
    """The integers q of a packed weight: (out_features, in_features), uint8. The inverse of `pack_quantized`."""
    if packed.bits == 8:
        return packed.data[:, : packed.in_features].clone()
    words = packed.data.unflatten(1, (-1, 4))
    halves = torch.cat((words & 15, words >> 4), -1)
    order = [(_LOW + _HIGH).index(element) for element in range(8)]
    return _picked(halves, order).flatten(1)[:, : packed.in_features].contiguous()


def group_count(in_features: int, group_size: int | None) -> int:
    """Scales of a row."""
    return 1 if group_size is None else -(-in_features // group_size)


def _packed_bytes(values: Tensor, bits: int) -> Tensor:
    """Rows of uint8 integers, one a byte, as PackedWeight.data."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % PIECE))
    if bits == 8:
        return padded.contiguous()
    words = padded.unflatten(1, (-1, 8))
    return (_picked(words, _LOW) | _picked(words, _HIGH) << 4).flatten(1)


def _picked(words: Tensor, places: Sequence[int]) -> Tensor:
    """`words[..., places]` without a tensor of places, which a traced program would have to carry along."""
    return torch.stack([words[..., place] for place in places], -1)


def _grouped(weight: Tensor, group_size: int | None) -> Tensor:
    """(n, k) as (n, groups, group_size), the last group filled up with zeros."""
    if group_size is None:
        return weight.unsqueeze(1)
    return torch.nn.functional.pad(weight, (0, -weight.shape[1] % group_size)).unflatten(1, (-1, group_size))


def _extremes(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of each group and zero."""
    if groups.shape[-1] == 0:
        return groups.new_zeros(groups.shape[:-1]), groups.new_zeros(groups.shape[:-1])
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def _rounded_up(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Positive numbers in `dtype`, none below what it was: else the largest element might be cut off."""
    rounded = scale.to(dtype)
    bits = rounded.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    return (bits + (rounded.to(scale.dtype) < scale)).view(dtype)  # The next pattern is the next number.


# ---- ops ----


def linear_w4a16(
    input: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(input @ packed.dequantize().T + bias + residual)` with a weight of 4-bit integers.

    Args:
        input: (..., in_features), float16, bfloat16, float32 (float64 on the CPU), any strides.
        packed: what `pack_weights(weight, bits=4)` or `pack_quantized` returns, its scales of input's dtype.
        bias: (out_features), input's dtype, or None.
        activation: see `linear`.
        residual: (..., out_features), input's dtype, added before the activation.

    Returns:
        (..., out_features), contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    The weight is read packed and becomes floats in registers; sums are kept in float32 (float64 for float64). Many rows
    (more than 512 on a GPU, 32 on the CPU), and operands that do not lie in whole pieces of 16 bytes, are multiplied by
    a dequantized copy of the weight, which lives as long as the call. Differentiable in input, bias and residual, for
    training beside a frozen weight: the input's gradient is taken with the dequantized weight. The packed weight gets
    no gradient. Bitwise the same from run to run.
    """
    return _linear("linear_w4a16", 4, input, packed, bias, activation, residual)


def linear_w8a16(
    input: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`linear_w4a16` with a weight of 8-bit integers: `pack_weights(weight, bits=8)`."""
    return _linear("linear_w8a16", 8, input, packed, bias, activation, residual)


def dequantize_packed(packed: PackedWeight) -> Tensor:
    """`scale * (q - zero)`: a packed weight as floats.

    Args:
        packed: what `pack_weights` or `pack_quantized` returns; its tensors may have any strides.

    Returns:
        (out_features, in_features), contiguous, in the scales' dtype: the product rounded once.

    Raises:
        RuntimeError: naming what of `packed` does not fit the rest.

    The same bits on every backend. Not differentiable.
    """
    _check_is_packed("dequantize_packed", packed)
    return call("dequantize_packed", *packed)


def _linear(
    op: str,
    bits: int,
    input: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    _check_is_packed(op, packed)
    require(packed.bits == bits, op, f"packed must have {bits} bits, got {packed.bits}")
    features = input.shape[-1] if input.dim() else 0
    message = f"packed has {packed.in_features} input features, input has {features}"
    require(packed.in_features == features, op, message)
    name = activation or "none"
    save_preact = needs_preact(name) and wants_grad(input, bias, residual)
    arguments = (input, *packed[:5], bias, residual, name, *arithmetic_of(input), save_preact)
    return call("linear_packed", *arguments)[0]


# ---- argument checks, in the words of csrc/bindings/packed.cpp ----


def _check_is_packed(op: str, packed: Any) -> None:
    if isinstance(packed, PackedWeight):
        return
    what = f"a {packed.dtype} tensor" if isinstance(packed, Tensor) else type(packed).__name__
    require(
        False, op, f"packed must be a PackedWeight, got {what}: call warpwright.ops.pack_weights on the weight first"
    )


def check_format(op: str, bits: int, group_size: int | None) -> None:
    require(bits in (4, 8), op, f"bits must be 4 or 8, got {bits}")
    fits = group_size is None or (group_size >= PIECE and group_size & (group_size - 1) == 0)
    require(fits, op, f"group_size must be None or a power of two of at least 32, got {group_size}")


def _check_integers(op: str, name: str, tensor: Tensor, largest: int) -> None:
    floating = tensor.is_floating_point() or tensor.is_complex()
    require(not floating, op, f"{name} must be integers, got {tensor.dtype}")
    if tensor.numel() == 0:
        return
    low, high = (int(t) for t in tensor.aminmax())
    require(low >= 0 and high <= largest, op, f"{name} must be from 0 to {largest}, got {low} to {high}")


def _check_packed(
    op: str, data: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int | None, in_features: int
) -> None:
    check_format(op, bits, group_size)
    message = f"packed must be torch.uint8, as warpwright.ops.pack_weights makes it, got {data.dtype}"
    require(data.dtype == torch.uint8, op, message)
    require(data.dim() == 2, op, f"packed must have 2 dimensions, got {data.dim()}")
    require(in_features >= 0, op, f"in_features must not be negative, got {in_features}")
    width = -(-in_features // PIECE) * PIECE * bits // 8
    message = f"packed must have {width} bytes in a row of {in_features} input features, got {data.shape[1]}"
    require(data.shape[1] == width, op, message)
    check_float(op, "scale", scale)
    expected = (data.shape[0], group_count(in_features, group_size))
    _check_group_tensor(op, "scale", scale, data, expected)
    if zero is not None:
        require(zero.dtype == torch.uint8, op, f"zero must be torch.uint8, got {zero.dtype}")
        _check_group_tensor(op, "zero", zero, data, expected)


def _check_group_tensor(op: str, name: str, tensor: Tensor, data: Tensor, expected: tuple[int, int]) -> None:
    check_same_device(op, name, tensor, "packed", data)
    message = f"{name} must have shape {shape_text(expected)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == expected, op, message)


def _linear_name(bits: int) -> str:
    """Errors name the public function that takes this many bits."""
    return {4: "linear_w4a16", 8: "linear_w8a16"}.get(bits, "linear_packed")


def _check_linear(
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
) -> None:
    op = _linear_name(bits)
    check_float(op, "input", input)
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    _check_packed(op, packed, scale, zero, bits, group_size, input.shape[-1])
    check_same_device(op, "packed", packed, "input", input)
    check_same_dtype(op, "scale", scale, "input", input)
    check_activation(op, activation)
    check_bias(op, "bias", bias, input, packed.shape[0])
    if residual is not None:
        check_output_like(op, "residual", residual, input, packed.shape[0])
        check_same_dtype(op, "residual", residual, "input", input)


def _fake_linear(
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
    sizes = (*input.shape[:-1], packed.shape[0])
    return input.new_empty(sizes), input.new_empty(sizes if save_preact and needs_preact(activation) else (0,))


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, packed, scale, zero, bits, group_size, bias, residual, activation, *arithmetic, _ = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.weight = bits, group_size
    ctx.in_features = input.shape[-1]
    ctx.activation, ctx.arithmetic = activation, arithmetic
    saved = saved_of(activation, result, preact)
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments, which
    # are not needed otherwise.
    ctx.recompute = activation != "none" and saved is None
    ctx.save_for_backward(packed, scale, zero, saved, *((input, bias, residual) if ctx.recompute else ()))


def _backward_linear(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    packed, scale, zero, saved, *rest = ctx.saved_tensors
    if ctx.recompute:
        input, *addends = rest
        saved, _ = ops.linear_packed(input, packed, scale, zero, *ctx.weight, *addends, "none", *ctx.arithmetic, False)
    needs = [ctx.needs_input_grad[i] for i in (0, 6, 7)]
    grads = ops.linear_packed_backward(
        grad, packed, scale, zero, saved, *ctx.weight, ctx.in_features, ctx.activation, *ctx.arithmetic, *needs
    )
    input_grad, bias_grad, residual_grad = (g if need else None for g, need in zip(grads, needs, strict=True))
    return input_grad, *[None] * 5, bias_grad, residual_grad, *[None] * 4


def _check_backward(
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
    *needs: bool,
) -> None:
    op = "linear_packed_backward"
    check_float(op, "grad_output", grad_output)
    require(grad_output.dim() >= 1, op, "grad_output must have at least 1 dimension, got 0")
    _check_packed(op, packed, scale, zero, bits, group_size, in_features)
    check_same_device(op, "packed", packed, "grad_output", grad_output)
    check_same_dtype(op, "scale", scale, "grad_output", grad_output)
    check_activation(op, activation)
    message = f"packed has {packed.shape[0]} output features, grad_output has {grad_output.shape[-1]}"
    require(grad_output.shape[-1] == packed.shape[0], op, message)
    check_saved(op, saved, activation, grad_output)


def _fake_backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        grad_output.new_empty((*grad_output.shape[:-1], in_features) if need_input else (0,)),
        grad_output.new_empty((packed.shape[0],) if need_bias else (0,)),
        grad_output.new_empty(grad_output.shape if need_residual else (0,)),
    )


def _check_dequantize(*packed: Any) -> None:
    _check_packed("dequantize_packed", *packed)


def _fake_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int | None, in_features: int
) -> Tensor:
    return scale.new_empty(packed.shape[0], in_features)


_registry.define(
    "linear_packed",
    family="packed",
    check=_check_linear,
    fake=_fake_linear,
    setup_context=_setup_linear,
    backward=_backward_linear,
    autocast=_registry.cast_to_ambient,
)
_registry.define("linear_packed_backward", family="packed", check=_check_backward, fake=_fake_backward)
_registry.define("dequantize_packed", family="packed", check=_check_dequantize, fake=_fake_dequantize)
