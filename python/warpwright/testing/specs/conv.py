"""OpSpecs of the convolution family."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, nbytes


def _torch_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    product = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return TORCH_ACTIVATIONS[activation](product if residual is None else product + residual)


def _last(tensor: Tensor) -> Tensor:
    """The same leaf, channels last."""
    grad = tensor.requires_grad
    return tensor.detach().contiguous(memory_format=torch.channels_last).requires_grad_(grad)


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
    yield Sample("1x1", (make.tensor(2, 7, 4, 3), make.tensor(5, 7, 1, 1), make.tensor(5)), {"activation": "silu"})
    yield Sample("1x1 stride 2", (make.tensor(1, 3, 5, 5), make.tensor(4, 3, 1, 1), None, 2))
    yield Sample("channels last", (_last(x), _last(w), b, 1, 1), {"activation": "gelu"})
    yield Sample("channels last and residual", (_last(x), w, b, 1, 1), {"residual": _last(residual)})
    yield Sample("weight channels last", (x, _last(w), b, 2, 1), {"activation": "relu"})
    yield Sample("past one tile", (make.tensor(1, 20, 9, 9), make.tensor(66, 20, 3, 3), make.tensor(66), 1, 1))
    yield Sample("a long sum", (make.tensor(1, 70, 4, 3), make.tensor(2, 70, 3, 3), None, 1, 1))
    yield Sample("same, even kernel", (x, make.tensor(4, 3, 2, 4), b, 1, "same"))
    yield Sample("unbatched", (make.tensor(3, 5, 5), w, b))
    yield Sample("no images", (make.tensor(0, 3, 5, 5), w, b), {"activation": "relu"})


def _draw_conv2d(make: Make, rng: random.Random) -> Sample:
    groups = rng.choice([1, 1, 1, 2, 3])
    channels, filters = groups * rng.randint(1, 5), groups * rng.randint(1, 6)
    kernel = [rng.randint(1, 4), rng.randint(1, 4)]
    stride = [rng.randint(1, 3), rng.randint(1, 3)]
    padding = [rng.randint(0, 2), rng.randint(0, 2)]
    dilation = [rng.randint(1, 2), rng.randint(1, 2)]
    sizes = [d * (k - 1) + 1 + rng.randint(0, 9) for d, k in zip(dilation, kernel, strict=True)]
    x = make.tensor(rng.choice([0, 1, 1, 2, 3]), channels, *sizes)
    w = make.tensor(filters, channels // groups, *kernel)
    args = (x, w, make.tensor(filters) if rng.random() < 0.7 else None, stride, padding, dilation, groups)
    kwargs: dict[str, Any] = {"activation": rng.choice([None, "relu", "gelu", "gelu_tanh", "silu"])}
    if rng.random() < 0.3:
        kwargs["residual"] = make.tensor(*F.conv2d(x.to("meta"), w.to("meta"), None, *args[3:]).shape)
    text = f"{tuple(x.shape)} * {tuple(w.shape)} s{stride} p{padding} d{dilation} {kwargs['activation']}"
    return Sample(text, args, kwargs)


def _conv2d_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w, b = make.tensor(2, 4, 6, 5), make.tensor(6, 4, 3, 3), make.tensor(6)
    yield BadInput("input rank", (make.tensor(4, 6), w, b), "input must have 4 dimensions .*got 2")
    yield BadInput("weight rank", (x, make.tensor(6, 4, 3), None), "weight must have 4 dimensions, got 3")
    yield BadInput("weight dtype", (x, w.detach().double(), b), "weight must have the dtype of input")
    yield BadInput("input dtype", (x.detach().long(), w), "input must be float32, .* got torch.int64")
    yield BadInput("channels", (x, make.tensor(6, 3, 3, 3)), "weight has 3 channels a group, input has 4")
    yield BadInput("groups", (x, w, b, 1, 0, 1, 3), "groups must divide 4 input channels and 6 filters, got 3")
    yield BadInput("zero groups", (x, w, b, 1, 0, 1, 0), "groups must divide .* got 0")
    yield BadInput("stride", (x, w, b, 0), r"stride must be at least 1, got \(0, 0\)")
    yield BadInput("padding", (x, w, b, 1, -1), r"padding must be at least 0, got \(-1, -1\)")
    yield BadInput("dilation", (x, w, b, 1, 0, (1, 0)), r"dilation must be at least 1, got \(1, 0\)")
    yield BadInput("three strides", (x, w, b, (1, 1, 1)), r"stride must have 2 values, got \(1, 1, 1\)")
    yield BadInput("small input", (make.tensor(1, 4, 2, 5), w, b), "weight reaches over 3 input elements, .* has 2")
    yield BadInput("bias shape", (x, w, make.tensor(4)), r"bias must have shape \(6,\), got \(4,\)")
    yield BadInput("padding name", (x, w, b, 1, "full"), "padding must be numbers, 'same' or 'valid', got 'full'")
    yield BadInput("same with stride", (x, w, b, 2, "same"), r"padding 'same' needs stride 1, got \(2, 2\)")
    message = r"residual must have the shape of the output \(2, 6, 4, 3\)"
    yield BadInput("residual shape", (x, w, b), message, {"residual": make.tensor(2, 6, 4, 4)})
    yield BadInput("activation", (x, w, b), "activation must be one of none, relu", {"activation": "mish"})


def _conv2d_cost(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Cost:
    shape = F.conv2d(input.to("meta"), weight.to("meta"), None, stride, padding, dilation, groups).shape
    flops = 2 * shape.numel() * weight.shape[1:].numel()
    return Cost(flops, nbytes(input, weight, bias, residual) + shape.numel() * input.element_size())


add(
    OpSpec(
        name="conv2d",
        family="conv",
        op=ops.conv2d,
        torch_op=_torch_conv2d,
        samples=_conv2d_samples,
        draw=_draw_conv2d,
        bad_inputs=_conv2d_bad_inputs,
        cost=_conv2d_cost,
        kernels=("conv2d", "conv2d_backward"),
    )
)
