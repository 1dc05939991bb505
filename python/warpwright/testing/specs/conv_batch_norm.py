"""OpSpecs of a convolution with its batch norm, and with the moments that one over several processes takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, nbytes
from warpwright.testing.specs.channel_norm import (
    ACTIVATION_FLOPS,
    ACTIVATIONS,
    affine_parameters,
    keeping_running,
    lying_last,
    running_statistics,
)
from warpwright.testing.specs.conv import conv_cost
from warpwright.testing.specs.sync_batch_norm import torch_moments


def _torch_function(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    if input.dim() == 3:  # PyTorch's norm would take the height for the channels.
        input, residual = input.unsqueeze(0), residual if residual is None else residual.unsqueeze(0)
        batched = _torch_function(
            input, weight, running_mean, running_var, bn_weight, bn_bias, bias, stride, padding, dilation, groups,
            training, momentum, eps, residual=residual, activation=activation,
        )  # fmt: skip
        return batched.squeeze(0)
    product = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    normal = F.batch_norm(product, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return ACTIVATIONS[activation](normal if residual is None else normal + residual)


def _with_running(function: Callable[..., Tensor]) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The running statistics as they are afterwards are outputs, too; unless training they are what they were."""

    def call(
        input: Tensor,
        weight: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        def run(input: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
            return function(input, weight, mean, var, *args, **kwargs)

        if running_mean is None and running_var is None:
            return run(input, None, None)
        return keeping_running(run, input, running_mean, running_var)

    return call


def _samples(make: Make) -> Iterator[Sample]:
    none = (None, None)
    training = {"training": True}

    x, w = make.tensor(2, 3, 6, 5), make.tensor(4, 3, 3, 3)
    yield Sample(
        "training", (x, w, *running_statistics(make, 4), *affine_parameters(make, 4), None, 1, 1, 1, 1, True, 0.3)
    )
    yield Sample(
        "bias", (x, w, *running_statistics(make, 4), *affine_parameters(make, 4), make.tensor(4), 2, 1), training
    )
    yield Sample("inference", (x, w, *running_statistics(make, 4), *affine_parameters(make, 4), make.tensor(4), 1, 1))
    fused = {"residual": make.tensor(2, 4, 4, 3), "activation": "silu"}
    yield Sample("inference, residual", (x, w, *running_statistics(make, 4)), fused)
    # Tensors that the tensor cores take, and past the first tile of 64 pixels and filters.
    x, w, b = make.tensor(2, 5, 7, 6), make.tensor(70, 5, 3, 3), make.tensor(70)
    fused = {"residual": make.tensor(2, 70, 7, 6), "activation": "relu", **training}
    yield Sample("residual and relu", (x, w, *none, *affine_parameters(make, 70), b, 1, 1), fused)
    yield Sample("no affine", (x, w, *none, None, None, None, 1, (1, 0)), training)
    narrow = (make.tensor(70), make.tensor(70))
    yield Sample("parameters like input", (x, w, *none, *narrow, None, (1, 2), 1), {"activation": "silu", **training})
    x, w = lying_last(make.tensor(3, 16, 6, 5)), lying_last(make.tensor(24, 16, 3, 3))
    fused = {"residual": lying_last(make.tensor(3, 24, 6, 5)), "activation": "relu", **training}
    yield Sample(
        "channels last", (x, w, *running_statistics(make, 24), *affine_parameters(make, 24), None, 1, 1), fused
    )
    fused = {"residual": make.tensor(3, 24, 3, 3), "activation": "silu", **training}
    yield Sample("two layouts", (x, w, *none, *affine_parameters(make, 24), make.tensor(24), 2, 1), fused)
    yield Sample("1x1", (x, make.tensor(8, 16, 1, 1), *none, *affine_parameters(make, 8)), training)
    w = lying_last(make.tensor(72, 16, 1, 1))
    yield Sample("large tiles", (x, w, *none, *affine_parameters(make, 72)), training)
    x, w = lying_last(make.tensor(3, 40, 9, 8)), lying_last(make.tensor(72, 40, 1, 1))
    spans = (x, w, *none, *affine_parameters(make, 72), make.tensor(72))
    yield Sample("spans of channels", spans, {"activation": "silu", **training})
    # A mean a thousand times the deviation, of what is rounded to few digits.
    x, w = make.tensor(3, 8, 5, 5), make.tensor(8, 8, 1, 1, low=0, high=0.01)
    large = make.tensor(8, low=99, high=101)
    yield Sample("large mean", (x, w, *running_statistics(make, 8), *affine_parameters(make, 8), large), training)
    x, w = make.tensor(2, 12, 5, 6), make.tensor(18, 4, 3, 3)
    yield Sample(
        "grouped", (x, w, *none, *affine_parameters(make, 18), None, 1, 1, 1, 3), {"activation": "relu", **training}
    )
    depthwise = (make.tensor(2, 5, 6, 6), make.tensor(5, 1, 3, 3), *none, *affine_parameters(make, 5), make.tensor(5))
    yield Sample("depthwise", (*depthwise, 1, 1, 1, 5), training)
    same = (make.tensor(2, 3, 6, 5), make.tensor(6, 3, 2, 4), *none, *affine_parameters(make, 6), None, 1, "same")
    yield Sample("same, even kernel", same, training)
    yield Sample("dilation", (*same[:6], None, 1, 2, 2), training)
    yield Sample("unbatched", (make.tensor(3, 5, 5), make.tensor(8, 3, 3, 3), *none), training)
    empty = (
        make.tensor(0, 3, 5, 5),
        make.tensor(8, 3, 3, 3),
        *running_statistics(make, 8),
        *affine_parameters(make, 8),
    )
    yield Sample("no images", empty)


def _draw(make: Make, rng: random.Random) -> Sample:
    groups = rng.choice([1, 1, 1, 2, 3])
    channels, filters = groups * rng.randint(1, 6), groups * rng.randint(2, 12)
    kernel, stride, dilation = ([rng.randint(1, most) for _ in range(2)] for most in (3, 2, 2))
    padding = [rng.randint(0, 2) for _ in range(2)]
    # As many pixels that a channel's values are not almost equal by chance: PyTorch's error is then luck.
    sizes = [d * (k - 1) + 1 + s * rng.randint(3, 9) for d, k, s in zip(dilation, kernel, stride, strict=True)]
    x, w = make.tensor(rng.choice([1, 2, 3]), channels, *sizes), make.tensor(filters, channels // groups, *kernel)
    if rng.random() < 0.5:
        x = lying_last(x)
    training = rng.random() < 0.7
    running = running_statistics(make, filters) if not training or rng.random() < 0.5 else (None, None)
    affine = affine_parameters(make, filters) if rng.random() < 0.7 else (None, None)
    bias = make.tensor(filters) if rng.random() < 0.5 else None
    kwargs: dict[str, Any] = {"training": training, "activation": rng.choice(list(ACTIVATIONS))}
    if rng.random() < 0.5:
        shape = F.conv2d(x.to("meta"), w.to("meta"), None, stride, padding, dilation, groups).shape
        residual = make.tensor(*shape)
        kwargs["residual"] = lying_last(residual) if rng.random() < 0.5 else residual
    args = (x, w, *running, *affine, bias, stride, padding, dilation, groups)
    text = f"{tuple(x.shape)} * {tuple(w.shape)} s{stride} p{padding} d{dilation} {kwargs['activation']} {training=}"
    return Sample(text, args, kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    op = "conv2d_batch_norm"
    x, w, b = make.tensor(2, 4, 6, 5), make.tensor(6, 4, 3, 3), make.tensor(6)
    none, training = (None, None), {"training": True}
    running = running_statistics(make, 6)
    yield BadInput(
        "weight rank", (x, make.tensor(6, 4, 3), *none), f"{op}: weight must have 4 dimensions, got 3", training
    )
    yield BadInput("input rank", (make.tensor(4, 6), w, *none), f"{op}: input must have 4 dimensions, got 2", training)
    yield BadInput(
        "input dtype", (x.detach().long(), w, *none), f"{op}: input must be float32, .* got torch.int64", training
    )
    yield BadInput(
        "channels", (x, make.tensor(6, 3, 3, 3), *none), f"{op}: weight has 3 channels a group, input has 4", training
    )
    yield BadInput("stride", (x, w, *running, *none, None, 0), rf"{op}: stride must be at least 1, got \(0, 0\)")
    yield BadInput(
        "four paddings", (x, w, *running, *none, None, 1, (1, 1, 1, 1)), rf"{op}: padding must have 2 values"
    )
    yield BadInput(
        "bias shape", (x, w, *running, *none, make.tensor(4)), rf"{op}: bias must have shape \(6,\), got \(4,\)"
    )
    message = rf"{op}: residual must have the shape of the output \(2, 6, 4, 3\)"
    yield BadInput("residual shape", (x, w, *running), message, {"residual": make.tensor(2, 6, 4, 4)})
    yield BadInput("no statistics", (x, w, *none), f"{op}: running_mean and running_var must be given unless training")
    bad: tuple[object, ...] = (x, w, running[0][:5], running[1])
    yield BadInput("running shape", bad, rf"{op}: running_mean must have shape \(6,\), got \(5,\)")
    yield BadInput(
        "running shape in training", bad, rf"{op}: running_mean must have shape \(6,\), got \(5,\)", training
    )
    bad = (x, w, running[0], running[1].double())
    yield BadInput("running dtype", bad, f"{op}: running_var must be torch.float32, got torch.float64")
    bad = (x, w, *running, make.tensor(4))
    yield BadInput("bn_weight shape", bad, rf"{op}: bn_weight must have shape \(6,\), got \(4,\)")
    bad = (x, w, *running, None, b.detach().double())
    yield BadInput("bn_bias dtype", bad, f"{op}: bn_bias must be torch.float32, got torch.float64")
    single = (make.tensor(1, 4, 3, 3), w, *none)
    message = rf"{op}: the output must have more than one value per channel in training, got shape \(1, 6, 1, 1\)"
    yield BadInput("single", single, message, training)
    other = {"activation": "gelu"}
    yield BadInput(
        "activation", (x, w, *running), f"{op}: activation must be one of none, relu, silu, got 'gelu'", other
    )


def _cost(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Cost:
    """As conv2d's and batch_norm's, without the tensor between them."""
    product = conv_cost(F.conv2d)(input, weight, bias, stride, padding, dilation, groups, residual=residual)
    size = F.conv2d(input.to("meta"), weight.to("meta"), None, stride, padding, dilation, groups).numel()
    each = (7 if training else 2) + ACTIVATION_FLOPS[activation] + (residual is not None)
    return Cost(product.flops + each * size, product.bytes + nbytes(running_mean, running_var, bn_weight, bn_bias))


add(
    OpSpec(
        name="conv2d_batch_norm",
        family="conv_batch_norm",
        op=_with_running(ops.conv2d_batch_norm),
        torch_op=_with_running(_torch_function),
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("convolution_batch_norm", "batch_norm_backward", "convolution_backward"),
    )
)

# ---- conv2d_moments ----


def _torch_conv2d_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    product = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return product, torch_moments(product.unsqueeze(0) if product.dim() == 3 else product)


def _moments_samples(make: Make) -> Iterator[Sample]:
    def tensor(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return make.tensor(*shape, low=low, high=high, grad=False)

    x, w = tensor(2, 5, 7, 6), tensor(70, 5, 3, 3)
    yield Sample("channels first", (x, w, tensor(70), 1, 1))
    yield Sample("stride", (x, w, None, 2, (1, 0)))
    x = lying_last(tensor(3, 16, 6, 5))
    yield Sample("channels last", (x, lying_last(tensor(24, 16, 3, 3)), tensor(24), 1, 1))
    yield Sample("large tiles", (x, lying_last(tensor(72, 16, 1, 1))))
    large = tensor(8, low=99, high=101)
    yield Sample("large mean", (tensor(3, 8, 5, 5), tensor(8, 8, 1, 1, low=0, high=0.01), large))
    yield Sample("grouped", (tensor(2, 12, 5, 6), tensor(18, 4, 3, 3), None, 1, "same", 1, 3))
    yield Sample("depthwise", (tensor(2, 5, 6, 6), tensor(5, 1, 3, 3), tensor(5), 1, 1, 2, 5))
    yield Sample("unbatched", (tensor(3, 5, 5), tensor(8, 3, 3, 3)))
    yield Sample("no images", (tensor(0, 3, 5, 5), tensor(8, 3, 3, 3)))


def _draw_moments(make: Make, rng: random.Random) -> Sample:
    drawn = _draw(make, rng).map(lambda t: t.detach())
    input, weight, _, _, _, _, *rest = drawn.args
    return Sample(drawn.name, (input, weight, *rest))


def _moments_bad_inputs(make: Make) -> Iterator[BadInput]:
    op = "conv2d_moments"
    x, w = make.tensor(2, 4, 6, 5, grad=False), make.tensor(6, 4, 3, 3, grad=False)
    yield BadInput("weight rank", (x, w[..., 0]), f"{op}: weight must have 4 dimensions, got 3")
    yield BadInput("input rank", (x[0, 0], w), f"{op}: input must have 4 dimensions, got 2")
    yield BadInput("input dtype", (x.long(), w), f"{op}: input must be float32, .* got torch.int64")
    yield BadInput("channels", (x, w[:, :3]), f"{op}: weight has 3 channels a group, input has 4")
    yield BadInput("stride", (x, w, None, 0), rf"{op}: stride must be at least 1, got \(0, 0\)")
    yield BadInput("bias shape", (x, w, w[:4, 0, 0, 0]), rf"{op}: bias must have shape \(6,\), got \(4,\)")


def _moments_cost(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Cost:
    product = conv_cost(F.conv2d)(input, weight, bias, stride, padding, dilation, groups)
    size = F.conv2d(input.to("meta"), weight.to("meta"), None, stride, padding, dilation, groups).numel()
    return Cost(product.flops + 4 * size, product.bytes + 12 * weight.shape[0])


add(
    OpSpec(
        name="conv2d_moments",
        family="conv_batch_norm",
        op=ops.conv2d_moments,
        torch_op=_torch_conv2d_moments,
        samples=_moments_samples,
        draw=_draw_moments,
        bad_inputs=_moments_bad_inputs,
        cost=_moments_cost,
        kernels=("convolution_moments",),
        gradcheck=False,
    )
)
