"""OpSpecs of the convolution family."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._conv import in_format
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, nbytes


def _composed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """PyTorch's convolution, then the epilogue by its own ops."""

    def call(*args: Any, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        product = function(*args)
        return TORCH_ACTIVATIONS[activation](product if residual is None else product + residual)

    return call


def _last(tensor: Tensor) -> Tensor:
    """The same leaf, channels last."""
    leaf = in_format(tensor.detach(), True)
    return leaf.requires_grad_(tensor.requires_grad)


def _conv2d_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(2, 3, 6, 5), make.tensor(4, 3, 3, 3), make.tensor(4)
    yield Sample("3x3", (x, w, b))
    yield Sample("3x3 padded, no bias", (x, w, None, 1, 1))
    yield Sample("stride 2", (x, w, b, 2, 1), {"activation": "relu"})
    yield Sample("unlike sides", (x, make.tensor(4, 3, 2, 3), b, (2, 1), (0, 2), (1, 2)), {"activation": "silu"})
    yield Sample("dilation 2", (make.tensor(1, 2, 7, 8), make.tensor(3, 2, 3, 3), None, 1, 2, 2))
    for activation in ("gelu", "gelu_tanh"):
        yield Sample(activation, (x, w, b, 1, 1), {"activation": activation})
    residual = make.tensor(2, 4, 6, 5)
    yield Sample("residual", (x, w, b, 1, 1), {"residual": residual})
    yield Sample("residual and relu", (x, w, b, 1, 1), {"residual": residual, "activation": "relu"})
    yield Sample("residual and gelu", (x, w, None, 1, 1), {"residual": residual, "activation": "gelu"})
    yield Sample("grouped", (make.tensor(2, 4, 5, 5), make.tensor(6, 2, 3, 3), make.tensor(6), 1, 1, 1, 2))
    yield Sample("depthwise", (make.tensor(1, 5, 6, 6), make.tensor(5, 1, 3, 3), make.tensor(5), 2, 1, 1, 5))
    yield from _depthwise_samples(make)
    yield Sample("1x1", (make.tensor(2, 7, 4, 3), make.tensor(5, 7, 1, 1), make.tensor(5)), {"activation": "silu"})
    yield Sample("1x1 stride 2", (make.tensor(1, 3, 5, 5), make.tensor(4, 3, 1, 1), None, 2))
    yield Sample("channels last", (_last(x), _last(w), b, 1, 1), {"activation": "gelu"})
    yield Sample("channels last and residual", (_last(x), w, b, 1, 1), {"residual": _last(residual)})
    yield Sample("weight channels last", (x, _last(w), b, 2, 1), {"activation": "relu"})
    yield Sample("past one tile", (make.tensor(1, 20, 9, 9), make.tensor(66, 20, 3, 3), make.tensor(66), 1, 1))
    yield Sample("large tiles", (make.tensor(1, 66, 4, 3), make.tensor(66, 66, 2, 1), make.tensor(66), (1, 2)))
    chunks = _last(make.tensor(2, 16, 5, 4)), _last(make.tensor(24, 16, 3, 3))
    yield Sample("eight channels at a time", (*chunks, make.tensor(24), 2, 1), {"activation": "silu"})
    chunks = _last(make.tensor(1, 72, 4, 3)), _last(make.tensor(72, 72, 1, 2))
    yield Sample("large tiles, eight channels at a time", (*chunks, make.tensor(72), 1, 1), {"activation": "relu"})
    spans = _last(make.tensor(3, 72, 7, 7)), _last(make.tensor(136, 72, 3, 2))
    yield Sample("spans of 64 channels", (*spans, make.tensor(136), 1, 1), {"activation": "silu"})
    spans = _last(make.tensor(2, 40, 13, 20)), _last(make.tensor(40, 40, 2, 3))
    yield Sample("spans of channels, strides", (*spans, None, (2, 3), (1, 2)), {"activation": "silu"})
    yield Sample("a long sum", (make.tensor(1, 70, 4, 3), make.tensor(2, 70, 3, 3), None, 1, 1))
    yield Sample("same, even kernel", (x, make.tensor(4, 3, 2, 4), b, 1, "same"), {"activation": "relu"})
    yield Sample("same, even kernel, channels last", (_last(x), make.tensor(4, 3, 2, 3), b, 1, "same"))
    yield Sample("stride past the filter", (x, make.tensor(4, 3, 1, 2), b, (3, 4), (1, 0)))
    yield Sample("stride and dilation", (make.tensor(1, 2, 9, 11), make.tensor(3, 2, 2, 3), None, (2, 4), 1, (2, 2)))
    yield Sample("unbatched", (make.tensor(3, 5, 5), w, b))
    yield Sample("no images", (make.tensor(0, 3, 5, 5), w, b), {"activation": "relu"})


def _depthwise_samples(make: Make) -> Iterator[Sample]:
    """A filter for each channel: more channels than a vector has and fewer, filters within and past the image."""
    x, w, b = make.tensor(2, 19, 5, 7), make.tensor(19, 1, 3, 3), make.tensor(19)
    residual = make.tensor(2, 19, 5, 7)
    epilogue = {"residual": residual, "activation": "gelu"}
    yield Sample("depthwise, residual and gelu", (x, w, b, 1, 1, 1, 19), epilogue)
    yield Sample("depthwise, channels last", (_last(x), w, b, 1, 1, 1, 19), {"residual": _last(residual)})
    strided = (make.tensor(19, 1, 5, 4), None, (2, 3), (4, 2), (1, 2), 19)
    yield Sample("depthwise, stride and dilation", (x, *strided), {"activation": "relu"})
    yield Sample("depthwise, stride and dilation, channels last", (_last(x), *strided))
    yield Sample("depthwise, one channel", (make.tensor(2, 1, 4, 19), make.tensor(1, 1, 7, 7), None, 1, 3))
    yield Sample("depthwise, many rows", (make.tensor(1, 2, 18, 17), make.tensor(2, 1, 3, 3), None, 1, 1, 1, 2))
    wide = (_last(make.tensor(1, 3, 4, 3)), make.tensor(3, 1, 10, 10), b[:3], 1, 5, 1, 3)
    last = {"residual": _last(make.tensor(1, 3, 5, 4)), "activation": "silu"}
    yield Sample("depthwise past the image, channels last", wide, last)
    yield Sample("depthwise past the image", (make.tensor(1, 3, 4, 3), make.tensor(3, 1, 9, 9), b[:3], 1, 4, 1, 3))
    packs = (_last(make.tensor(1, 72, 19, 4)), make.tensor(72, 1, 3, 3), make.tensor(72), 1, 1, 1, 72)
    yield Sample("depthwise, packs of channels", packs, {"activation": "relu"})
    strided = (make.tensor(16, 1, 5, 3), None, (3, 2), (2, 1), (2, 1), 16)
    yield Sample("depthwise, packs of channels, stride and dilation", (_last(make.tensor(2, 16, 21, 5)), *strided))
    yield Sample("depthwise, many pixels", (make.tensor(1, 1, 66, 66), make.tensor(1, 1, 2, 2), None))
    tall = (make.tensor(1, 2, 40, 3), make.tensor(2, 1, 31, 3), None, 1, (15, 1), 1, 2)
    yield Sample("depthwise, tall kernel", tall)
    yield Sample("depthwise, taller kernel", (make.tensor(1, 2, 66, 1), make.tensor(2, 1, 65, 2), None, 1, 1, 1, 2))
    yield Sample(
        "depthwise, same, even kernel", (make.tensor(1, 3, 6, 5), make.tensor(3, 1, 2, 4), None, 1, "same", 1, 3)
    )


def _conv1d_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(2, 3, 11), make.tensor(4, 3, 3), make.tensor(4)
    yield Sample("k3", (x, w, b))
    yield Sample("stride 2", (x, w, b, 2, 1), {"activation": "silu"})
    yield Sample("same, even kernel", (x, make.tensor(4, 3, 4), b, 1, "same", 2), {"activation": "relu"})
    yield Sample("residual", (x, w, None, 1, 1), {"residual": make.tensor(2, 4, 11)})
    yield Sample("depthwise", (x, make.tensor(3, 1, 5), make.tensor(3), 1, 2, 1, 3))
    yield Sample("depthwise of two tiles", (make.tensor(1, 2, 140), make.tensor(2, 1, 3), None, 1, 1, 1, 2))
    yield Sample("channels last", (_last(x), w, b, 1, 1))
    yield Sample("many pixels", (make.tensor(1, 8, 1100), make.tensor(4, 8, 1), None))
    yield Sample("unbatched", (make.tensor(3, 5), w, b))
    yield Sample("no images", (make.tensor(0, 3, 5), w, b))


def _conv3d_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(1, 3, 4, 5, 6), make.tensor(4, 3, 2, 3, 3), make.tensor(4)
    yield Sample("2x3x3", (x, w, b))
    yield Sample("strides", (x, w, b, (1, 2, 3), 1), {"activation": "relu"})
    yield Sample("dilation", (x, w, None, 1, (1, 2, 0), (2, 2, 1)), {"activation": "gelu"})
    yield Sample("residual", (x, w, b, 1, (1, 1, 1)), {"residual": make.tensor(1, 4, 5, 5, 6)})
    yield Sample("channels last", (_last(x), w, b, 1, 1))
    yield Sample("depthwise", (x, make.tensor(3, 1, 3, 1, 2), make.tensor(3), 1, (1, 0, 0), 1, 3))
    yield Sample("same, even kernel", (x, w, b, 1, "same"))
    yield Sample("unbatched", (make.tensor(3, 3, 4, 5), w, b))


def _conv_transpose2d_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(2, 3, 5, 4), make.tensor(3, 4, 3, 3), make.tensor(4)
    yield Sample("3x3", (x, w, b))
    yield Sample("4x4 stride 2", (x, make.tensor(3, 4, 4, 4), None, 2, 1), {"activation": "relu"})
    yield Sample("output padding", (x, w, b, 2, 1, 1), {"activation": "silu"})
    yield Sample("unlike sides", (x, make.tensor(3, 4, 2, 3), b, (1, 3), (0, 1), (0, 2), 1, (3, 1)))
    yield Sample("stride past the filter", (x, make.tensor(3, 4, 1, 2), b, 3, 0, 2), {"activation": "gelu"})
    yield Sample("dilation that meets few phases", (x, make.tensor(3, 2, 3, 3), None, 2, 2, 0, 1, 2))
    yield Sample("grouped", (make.tensor(1, 4, 5, 4), make.tensor(4, 3, 3, 3), make.tensor(6), 2, 1, 0, 2))
    yield Sample("depthwise", (x, make.tensor(3, 1, 4, 4), make.tensor(3), 2, 1, 0, 3))
    residual = make.tensor(2, 4, 7, 6)
    yield Sample("residual and relu", (x, w, b), {"residual": residual, "activation": "relu"})
    yield Sample("channels last", (_last(x), _last(w), b, 2, 1), {"activation": "gelu"})
    yield Sample("past one tile", (make.tensor(1, 66, 9, 9), make.tensor(66, 20, 2, 2), make.tensor(20), 1, 1))
    spans = _last(make.tensor(2, 72, 5, 6)), _last(make.tensor(72, 40, 3, 2))
    yield Sample("spans of 64 channels", (*spans, make.tensor(40), (2, 3), 1, (0, 1)), {"activation": "gelu"})
    yield Sample("unbatched", (make.tensor(3, 5, 5), w, b))
    yield Sample("no images", (make.tensor(0, 3, 5, 5), w, b))


def _conv_transpose1d_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(2, 3, 7), make.tensor(3, 4, 3), make.tensor(4)
    yield Sample("k3", (x, w, b))
    yield Sample("k4 stride 2", (x, make.tensor(3, 4, 4), None, 2, 1), {"activation": "relu"})
    yield Sample("output padding", (x, w, b, 3, 1, 2))
    yield Sample("grouped, dilation", (x, make.tensor(3, 2, 3), make.tensor(6), 2, 0, 0, 3, 2))
    yield Sample("unbatched", (make.tensor(3, 5), w, b))


def _conv_transpose3d_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(1, 3, 2, 3, 4), make.tensor(3, 4, 2, 3, 3), make.tensor(4)
    yield Sample("2x3x3", (x, w, b))
    yield Sample("strides", (x, w, b, (1, 2, 3), 1, (0, 1, 2)), {"activation": "relu"})
    yield Sample("channels last", (_last(x), w, None, 2))
    yield Sample("unbatched", (make.tensor(3, 2, 3, 4), w, b))


def _numbers(rng: random.Random, dims: int, least: int, most: int) -> list[int]:
    return [rng.randint(least, most) for _ in range(dims)]


def _drawn_epilogue(make: Make, rng: random.Random, shape: Sequence[int]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"activation": rng.choice([None, "relu", "gelu", "gelu_tanh", "silu"])}
    if rng.random() < 0.3:
        kwargs["residual"] = make.tensor(*shape)
    return kwargs


def _draw_conv(dims: int, function: Callable[..., Tensor]) -> Callable[[Make, random.Random], Sample]:
    def draw(make: Make, rng: random.Random) -> Sample:
        groups = rng.choice([1, 1, 1, 2, 3])
        channels, filters = groups * rng.randint(1, 5), groups * rng.randint(1, 6)
        if rng.random() < 0.2:
            groups = filters = channels
        kernel, stride = _numbers(rng, dims, 1, 4), _numbers(rng, dims, 1, 3)
        padding, dilation = _numbers(rng, dims, 0, 2), _numbers(rng, dims, 1, 2)
        sizes = [d * (k - 1) + 1 + rng.randint(0, 9 if dims < 3 else 3) for d, k in zip(dilation, kernel, strict=True)]
        x = make.tensor(rng.choice([0, 1, 1, 2, 3]), channels, *sizes)
        w = make.tensor(filters, channels // groups, *kernel)
        args = (x, w, make.tensor(filters) if rng.random() < 0.7 else None, stride, padding, dilation, groups)
        kwargs = _drawn_epilogue(make, rng, function(x.to("meta"), w.to("meta"), None, *args[3:]).shape)
        text = f"{tuple(x.shape)} * {tuple(w.shape)} s{stride} p{padding} d{dilation} {kwargs['activation']}"
        return Sample(text, args, kwargs)

    return draw


def _draw_conv_transpose(dims: int, function: Callable[..., Tensor]) -> Callable[[Make, random.Random], Sample]:
    def draw(make: Make, rng: random.Random) -> Sample:
        groups = rng.choice([1, 1, 1, 2, 3])
        channels, filters = groups * rng.randint(1, 5), groups * rng.randint(1, 6)
        kernel, stride, dilation = (_numbers(rng, dims, 1, most) for most in (4, 3, 3))
        padding = [rng.randint(0, min(2, d * (k - 1) // 2)) for d, k in zip(dilation, kernel, strict=True)]
        ends = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        x = make.tensor(rng.choice([0, 1, 1, 2, 3]), channels, *_numbers(rng, dims, 1, 6 if dims < 3 else 3))
        w = make.tensor(channels, filters // groups, *kernel)
        bias = make.tensor(filters) if rng.random() < 0.7 else None
        args = (x, w, bias, stride, padding, ends, groups, dilation)
        kwargs = _drawn_epilogue(make, rng, function(x.to("meta"), w.to("meta"), None, *args[3:]).shape)
        text = f"{tuple(x.shape)} * {tuple(w.shape)} s{stride} p{padding} op{ends} d{dilation} {kwargs['activation']}"
        return Sample(text, args, kwargs)

    return draw


def _conv2d_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w, b = make.tensor(2, 4, 6, 5), make.tensor(6, 4, 3, 3), make.tensor(6)
    yield BadInput("input rank", (make.tensor(4, 6), w, b), "input must have 4 dimensions, got 2")
    yield BadInput("weight rank", (x, make.tensor(6, 4, 3), None), "weight must have 4 dimensions, got 3")
    yield BadInput(
        "no taps", (x, make.tensor(6, 4, 0, 3)), r"weight must have at least 1 element in each .*\(6, 4, 0, 3\)"
    )
    yield BadInput("weight dtype", (x, w.detach().double(), b), "weight must have the dtype of input")
    yield BadInput("input dtype", (x.detach().long(), w), "input must be float32, .* got torch.int64")
    yield BadInput("channels", (x, make.tensor(6, 3, 3, 3)), "weight has 3 channels a group, input has 4")
    yield BadInput("groups", (x, w, b, 1, 0, 1, 3), "groups must divide 4 input channels and 6 filters, got 3")
    yield BadInput("zero groups", (x, w, b, 1, 0, 1, 0), "groups must divide .* got 0")
    yield BadInput("stride", (x, w, b, 0), r"stride must be at least 1, got \(0, 0\)")
    yield BadInput("padding", (x, w, b, 1, -1), r"padding must be at least 0, got \(-1, -1\)")
    yield BadInput("dilation", (x, w, b, 1, 0, (1, 0)), r"dilation must be at least 1, got \(1, 0\)")
    yield BadInput("three strides", (x, w, b, (1, 1, 1)), r"stride must have 2 values, got \(1, 1, 1\)")
    yield BadInput("four paddings", (x, w, b, 1, (1, 1, 1, 1)), r"padding must have 2 values, got \(1, 1, 1, 1\)")
    yield BadInput("small input", (make.tensor(1, 4, 2, 5), w, b), "weight reaches over 3 input elements, .* has 2")
    yield BadInput("bias shape", (x, w, make.tensor(4)), r"bias must have shape \(6,\), got \(4,\)")
    yield BadInput("padding name", (x, w, b, 1, "full"), "padding must be numbers, 'same' or 'valid', got 'full'")
    yield BadInput("same with stride", (x, w, b, 2, "same"), r"padding 'same' needs stride 1, got \(2, 2\)")
    message = r"residual must have the shape of the output \(2, 6, 4, 3\)"
    yield BadInput("residual shape", (x, w, b), message, {"residual": make.tensor(2, 6, 4, 4)})
    yield BadInput("activation", (x, w, b), "activation must be one of none, relu", {"activation": "mish"})


def _few_bad_inputs(dims: int) -> Callable[[Make], Iterator[BadInput]]:
    """What a convolution of other dimensions than two says in its own words."""
    op = f"conv{dims}d"

    def bad_inputs(make: Make) -> Iterator[BadInput]:
        sizes, kernel = [6] * dims, [3] * dims
        x, w = make.tensor(2, 4, *sizes), make.tensor(6, 4, *kernel)
        yield BadInput("input rank", (make.tensor(6), w), f"{op}: input must have {dims + 2} dimensions, got 1")
        yield BadInput(
            "weight rank", (x, make.tensor(6, 4, 3, 3, 3, 3)), f"{op}: weight must have {dims + 2} dimensions"
        )
        yield BadInput("channels", (x, make.tensor(6, 3, *kernel)), f"{op}: weight has 3 channels a group, input has 4")
        yield BadInput("numbers", (x, w, None, [1] * (dims + 1)), f"{op}: stride must have {dims} value")
        small = make.tensor(2, 4, *[2] * dims)
        yield BadInput("small input", (small, w), f"{op}: weight reaches over 3 input elements, .* has 2")

    return bad_inputs


def _transpose_bad_inputs(dims: int) -> Callable[[Make], Iterator[BadInput]]:
    op = f"conv_transpose{dims}d"

    def bad_inputs(make: Make) -> Iterator[BadInput]:
        x, w, b = make.tensor(2, 4, *[5] * dims), make.tensor(4, 3, *[3] * dims), make.tensor(3)
        yield BadInput("input rank", (make.tensor(6), w), f"{op}: input must have {dims + 2} dimensions, got 1")
        yield BadInput("weight rank", (x, make.tensor(6, 4)), f"{op}: weight must have {dims + 2} dimensions, got 2")
        yield BadInput("weight dtype", (x, w.detach().double()), f"{op}: weight must have the dtype of input")
        wrong = make.tensor(6, 3, *[3] * dims)
        yield BadInput("channels", (x, wrong), f"{op}: weight has 6 input channels, input has 4")
        yield BadInput("groups", (x, w, None, 1, 0, 0, 3), f"{op}: groups must divide 4 input channels, got 3")
        yield BadInput("stride", (x, w, b, 0), f"{op}: stride must be at least 1")
        yield BadInput("bias shape", (x, w, make.tensor(4)), rf"{op}: bias must have shape \(3,\), got \(4,\)")
        message = f"{op}: output_padding must be less than the larger of stride and dilation, 2, got 2"
        yield BadInput("output padding", (x, w, b, 2, 0, 2), message)
        yield BadInput("negative output padding", (x, w, b, 2, 0, -1), f"{op}: output_padding must be at least 0")
        yield BadInput("no output", (x, w, b, 1, 4), f"{op}: the output would have size -1 in dimension 2: padding")
        message = f"{op}: residual must have the shape of the output"
        yield BadInput("residual shape", (x, w, b), message, {"residual": make.tensor(2, 3, *[5] * dims)})

    return bad_inputs


def conv_cost(function: Callable[..., Tensor]) -> Callable[..., Cost]:
    def cost(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, residual: Tensor | None = None, **_: Any
    ) -> Cost:
        shape = function(input.to("meta"), weight.to("meta"), None, *rest).shape
        flops = 2 * shape.numel() * weight.shape[1:].numel()
        return Cost(flops, nbytes(input, weight, bias, residual) + shape.numel() * input.element_size())

    return cost


def _conv_transpose_cost(function: Callable[..., Tensor]) -> Callable[..., Cost]:
    """Each input meets each weight of its channel, also those whose products padding cuts off."""

    def cost(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, residual: Tensor | None = None, **_: Any
    ) -> Cost:
        shape = function(input.to("meta"), weight.to("meta"), None, *rest).shape
        flops = 2 * input.numel() * weight.shape[1:].numel()
        return Cost(flops, nbytes(input, weight, bias, residual) + shape.numel() * input.element_size())

    return cost


def _add(
    dims: int,
    op: Callable[..., Tensor],
    function: Callable[..., Tensor],
    samples: Callable[[Make], Iterator[Sample]],
    bad_inputs: Callable[[Make], Iterator[BadInput]] | None = None,
) -> None:
    transposed = "transpose" in op.__name__
    add(
        OpSpec(
            name=op.__name__,
            family="conv",
            op=op,
            torch_op=_composed(function),
            samples=samples,
            draw=(_draw_conv_transpose if transposed else _draw_conv)(dims, function),
            bad_inputs=bad_inputs or (_transpose_bad_inputs if transposed else _few_bad_inputs)(dims),
            cost=(_conv_transpose_cost if transposed else conv_cost)(function),
            kernels=("convolution", "convolution_backward"),
        )
    )


_add(1, ops.conv1d, F.conv1d, _conv1d_samples)
_add(2, ops.conv2d, F.conv2d, _conv2d_samples, _conv2d_bad_inputs)
_add(3, ops.conv3d, F.conv3d, _conv3d_samples)
_add(1, ops.conv_transpose1d, F.conv_transpose1d, _conv_transpose1d_samples)
_add(2, ops.conv_transpose2d, F.conv_transpose2d, _conv_transpose2d_samples)
_add(3, ops.conv_transpose3d, F.conv_transpose3d, _conv_transpose3d_samples)
