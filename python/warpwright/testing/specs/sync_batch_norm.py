"""OpSpecs of the stages of a batch norm whose batch is spread over several processes.

tests/test_sync_batch_norm.py runs them between processes, with autograd.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright._check import acc_dtype
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes
from warpwright.testing.specs.channel_norm import ACTIVATIONS, affine_parameters, lying_last, running_statistics

EPS = 1e-5


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(acc_dtype(tensor.dtype))


def _of_channels(tensor: Tensor) -> Tensor:
    """(channels, elements), in the dtype that it is computed in."""
    return _wide(tensor).transpose(0, 1).flatten(1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(acc_dtype(like.dtype)).reshape(1, -1, *[1] * (like.dim() - 2))


def _inputs(make: Make) -> Iterator[tuple[str, Tensor]]:
    def tensor(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return make.tensor(*shape, low=low, high=high, grad=False)

    yield "plain", tensor(4, 3, 2, 3)
    yield "channels last", lying_last(tensor(3, 8, 2, 3))
    yield "odd, channels last", lying_last(tensor(2, 5, 7))
    yield "packs", tensor(2, 4, 8)
    yield "no positions", tensor(6, 5)
    yield "more than a slab", tensor(1, 2, 2056)
    yield "more than a slab, last", lying_last(tensor(2, 16, 137))
    yield "large mean", tensor(4, 3, 20, low=999, high=1001)
    yield "one element", tensor(1, 6)
    yield "no samples", tensor(0, 4, 3)


def _draw_input(make: Make, rng: random.Random) -> Tensor:
    shape = [rng.choice([1, 2, 3]), rng.choice([4, 6, 8, 12, 24, 40]), *rng.choice([[9], [7, 3], [8, 8], [2, 3, 4]])]
    x = make.tensor(*shape, grad=False)
    return lying_last(x) if rng.random() < 0.5 else x


# ---- batch_norm_moments ----


def torch_moments(input: Tensor) -> Tensor:
    x = _of_channels(input)
    if x.numel() == 0:
        return x.new_zeros(3, x.shape[0])
    var, mean = torch.var_mean(x, 1, correction=0)
    return torch.stack((mean, var, torch.full_like(mean, x.shape[1])))


def _moments_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(2, 6, 4, grad=False)
    yield BadInput("rank", (x[0, :, 0],), "batch_norm_moments: input must have at least 2 dimensions, got 1")
    yield BadInput("dtype", (x.long(),), r"batch_norm_moments: input must be float32, .* got torch.int64")


add(
    OpSpec(
        name="batch_norm_moments",
        family="sync_batch_norm",
        op=ops.batch_norm_moments,
        torch_op=torch_moments,
        samples=lambda make: (Sample(name, (x,)) for name, x in _inputs(make)),
        draw=lambda make, rng: Sample("drawn", (_draw_input(make, rng),)),
        bad_inputs=_moments_bad_inputs,
        cost=lambda input: Cost(4 * input.numel(), nbytes(input) + 12 * input.shape[1]),
        kernels=("batch_norm_moments",),
        gradcheck=False,
    )
)

# ---- batch_norm_join ----


def _join(
    moments: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, momentum: float = 0.1
) -> tuple[Tensor, ...]:
    """The running statistics as they are afterwards are outputs, too."""
    mean, var = (None if t is None else t.clone() for t in (running_mean, running_var))
    return (*ops.batch_norm_join(moments, mean, var, momentum), *(t for t in (mean, var) if t is not None))


def _torch_join(
    moments: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, momentum: float = 0.1
) -> tuple[Tensor, ...]:
    means, variances, counts = moments.unbind(1)
    elements = counts.sum(0)
    shares = counts / elements
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean) ** 2)).sum(0)
    moved = [
        (running.to(moments.dtype) * (1 - momentum) + found * momentum).to(running.dtype)
        for running, found in ((running_mean, mean), (running_var, var * elements / (elements - 1)))
        if running is not None
    ]
    return mean, var, elements, *moved


def _moments(make: Make, processes: int, channels: int, low: float = -1, high: float = 1) -> Tensor:
    wide = acc_dtype(make.dtype)
    means = make.tensor(processes, channels, low=low, high=high, grad=False, dtype=wide)
    variances = make.tensor(processes, channels, low=0.5, high=2, grad=False, dtype=wide)
    counts = make.integers(processes, 1, low=1, high=500).expand(processes, channels)
    return torch.stack((means, variances, counts.to(wide)), 1)


def _join_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (_moments(make, 3, 5),))
    yield Sample("running", (_moments(make, 2, 8), *running_statistics(make, 8), 0.3))
    narrow = (make.tensor(6, grad=False), make.tensor(6, low=0.5, high=2, grad=False))
    yield Sample("running like input", (_moments(make, 4, 6), *narrow))
    yield Sample("mean alone", (_moments(make, 2, 3), running_statistics(make, 3)[0]))
    yield Sample("variance alone", (_moments(make, 2, 3), None, running_statistics(make, 3)[1]))
    yield Sample("one process", (_moments(make, 1, 4), *running_statistics(make, 4), 1.0))
    yield Sample("large mean", (_moments(make, 5, 4, 999, 1001),))
    yield Sample("channels of two blocks", (_moments(make, 2, 131), *running_statistics(make, 131)))
    yield Sample("gaps", (_moments(make, 4, 6)[::2, :, ::3],))
    yield Sample("no channels", (_moments(make, 2, 0),))
    # Processes without values, the first among them.
    some = _moments(make, 5, 4)
    some[0], some[3] = 0, 0
    yield Sample("empty batches", (some, *running_statistics(make, 4)))


def _draw_join(make: Make, rng: random.Random) -> Sample:
    channels = draw_size(rng, 40)
    running = running_statistics(make, channels) if rng.random() < 0.5 else (None, None)
    return Sample(f"{channels} channels", (_moments(make, rng.randint(1, 9), channels), *running))


def _join_bad_inputs(make: Make) -> Iterator[BadInput]:
    moments, (mean, var) = _moments(make, 2, 6), running_statistics(make, 6)
    shape = r"batch_norm_join: moments must have shape \(processes, 3, channels\), got"
    yield BadInput("rank", (moments[0],), rf"{shape} \(3, 6\)")
    yield BadInput("two moments", (moments[:, :2],), rf"{shape} \(2, 2, 6\)")
    yield BadInput("dtype", (moments.half(),), "batch_norm_join: moments must be float32 or float64, got torch.float16")
    bad: tuple[object, ...] = (moments, mean[:5], var)
    yield BadInput("shape", bad, r"batch_norm_join: running_mean must have shape \(6,\), got \(5,\)")
    bad = (moments, mean, var.long())
    yield BadInput("running dtype", bad, r"running_var must be float32, float16 or bfloat16, got torch.int64")
    bad = (moments, mean, var.bfloat16())
    message = r"running_var must have the dtype of running_mean \(torch.float32\), got torch.bfloat16"
    yield BadInput("two dtypes", bad, message)


add(
    OpSpec(
        name="batch_norm_join",
        family="sync_batch_norm",
        op=_join,
        torch_op=_torch_join,
        samples=_join_samples,
        draw=_draw_join,
        bad_inputs=_join_bad_inputs,
        cost=lambda moments, *rest: Cost(6 * moments.numel() // 3, nbytes(moments) * 2),
        kernels=("batch_norm_join",),
        gradcheck=False,
    )
)

# ---- batch_norm_sums ----

#: grad_output, input, weight, bias, mean, rstd; residual; activation.
Backward = tuple[str, tuple[Tensor | None, ...], Tensor | None, str | None]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Not quite x's own: there are other batches."""
    mean, var, _ = torch_moments(x)
    return mean + 0.1, (var * 1.1 + 0.1 + EPS).rsqrt()


def _backwards(make: Make) -> Iterator[Backward]:
    activations = (None, "relu", "silu")
    for i, (name, x) in enumerate(_inputs(make)):
        affine = affine_parameters(make, x.shape[1]) if i % 4 else (None, None)
        grad = make.tensor(*x.shape, grad=False)
        residual = make.tensor(*x.shape, grad=False) if i % 2 else None
        leaves = [None if t is None else t.detach() for t in affine]
        yield name, (grad, x, *leaves, *_statistics(x)), residual, activations[i % 3]
    x = lying_last(make.tensor(2, 16, 6, grad=False))
    narrow = make.tensor(16, grad=False), make.tensor(16, grad=False)
    grad, residual = lying_last(make.tensor(2, 16, 6, grad=False)), lying_last(make.tensor(2, 16, 6, grad=False))
    yield "all last, narrow", (grad, x, *narrow, *_statistics(x)), residual, "silu"
    yield "weight alone", (grad, x, narrow[0], None, *_statistics(x)), None, "silu"
    yield "bias alone", (grad, x, None, narrow[1], *_statistics(x)), None, "relu"


def _draw_backward(make: Make, rng: random.Random) -> Backward:
    x = _draw_input(make, rng)
    affine = [make.tensor(x.shape[1], grad=False) if rng.random() < 0.6 else None for _ in range(2)]
    residual = make.tensor(*x.shape, grad=False) if rng.random() < 0.5 else None
    args = (make.tensor(*x.shape, grad=False), x, *affine, *_statistics(x))
    return f"{tuple(x.shape)}", args, residual, rng.choice(list(ACTIVATIONS))


def _torch_parts(
    residual: Tensor | None,
    activation: str | None,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of what goes into the activation, the normalised input, and the factor of its channels. As PyTorch's
    norm hands its result to an activation: rounded."""
    xhat = (_wide(input) - _per_channel(mean, input)) * _per_channel(rstd, input)
    factor = _per_channel(torch.ones_like(mean) if weight is None else weight, input)
    z = xhat * factor
    if bias is not None:
        z = z + _per_channel(bias, input)
    if residual is not None:
        z = z + _wide(residual)
    z = z.detach().to(input.dtype).requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(ACTIVATIONS[activation](z), z, grad_output)
    return _wide(grad), xhat, factor


def _torch_sums(*args: Any, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
    g, xhat, _ = _torch_parts(residual, activation, *args)
    return torch.stack((_of_channels(g).sum(1), _of_channels(g * xhat).sum(1)))


def _sample(backward: Backward) -> Sample:
    name, args, residual, activation = backward
    return Sample(name, args, {"residual": residual, "activation": activation})


def _backward_bad_inputs(make: Make, op: str, *more: Tensor) -> Iterator[BadInput]:
    x, w = make.tensor(2, 6, 4, grad=False), make.tensor(6, grad=False)
    mean, rstd = _statistics(x)
    yield BadInput("rank", (w, w, None, None, mean, rstd, *more), f"{op}: input must have at least 2 dimensions, got 1")
    bad: tuple[object, ...] = (x[:1], x, w, w, mean, rstd, *more)
    yield BadInput("grad shape", bad, rf"{op}: grad_output must have the shape of input \(2, 6, 4\), got \(1, 6, 4\)")
    bad = (x, x, w[:5], w, mean, rstd, *more)
    yield BadInput("weight shape", bad, rf"{op}: weight must have shape \(6,\), got \(5,\)")
    bad = (x, x, w, w.double(), mean, rstd, *more)
    yield BadInput("bias dtype", bad, f"{op}: bias must be torch.float32, got torch.float64")
    bad = (x, x, w, w, mean[:5], rstd, *more)
    yield BadInput("mean shape", bad, f"{op}: mean must hold 6 elements of torch.float32, got 5 of torch.float32")
    bad = (x, x, w, w, mean, rstd.double(), *more)
    yield BadInput("rstd dtype", bad, f"{op}: rstd must hold 6 elements of torch.float32, got 6 of torch.float64")
    good = (x, x, w, w, mean, rstd, *more)
    message = rf"{op}: residual must have the shape of input \(2, 6, 4\), got \(2, 6\)"
    yield BadInput("residual", good, message, {"residual": x[..., 0]})
    message = f"{op}: activation must be one of none, relu, silu, got 'gelu'"
    yield BadInput("activation", good, message, {"activation": "gelu"})


def _sums_cost(grad_output: Tensor, input: Tensor, *rest: Tensor | None, **kwargs: object) -> Cost:
    residual = kwargs.get("residual")
    moved = nbytes(grad_output, input, *rest, residual if isinstance(residual, Tensor) else None)
    return Cost(8 * input.numel(), moved + 8 * input.shape[1])


add(
    OpSpec(
        name="batch_norm_sums",
        family="sync_batch_norm",
        op=ops.batch_norm_sums,
        torch_op=_torch_sums,
        samples=lambda make: map(_sample, _backwards(make)),
        draw=lambda make, rng: _sample(_draw_backward(make, rng)),
        bad_inputs=lambda make: _backward_bad_inputs(make, "batch_norm_sums"),
        cost=_sums_cost,
        kernels=("batch_norm_sums",),
        gradcheck=False,
    )
)

# ---- batch_norm_input_grad ----


def _torch_input_grad(*args: Any, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
    *backward, sums, elements = args
    g, xhat, factor = _torch_parts(residual, activation, *backward)
    x, rstd = backward[1], backward[5]
    mean_grad, mean_dot = (_per_channel(total / elements, x) for total in sums)
    return ((g - mean_grad - xhat * mean_dot) * factor * _per_channel(rstd, x)).to(x.dtype)


def _with_sums(make: Make, sample: Sample) -> Sample:
    """Sums over more than the sample's own elements."""
    x = sample.args[1]
    channels, wide = x.shape[1], acc_dtype(make.dtype)
    count = x[:, :1].numel() if channels else 0
    sums = make.tensor(2, channels, low=-3, high=3, grad=False, dtype=wide)
    return Sample(sample.name, (*sample.args, sums, torch.full_like(sums[0], 2 * count + 3)), sample.kwargs)


def _input_grad_bad_inputs(make: Make) -> Iterator[BadInput]:
    op = "batch_norm_input_grad"
    sums = torch.zeros(2, 6, device=make.device)
    elements = torch.ones(6, device=make.device)
    yield from _backward_bad_inputs(make, op, sums, elements)
    x = make.tensor(2, 6, 4, grad=False)
    rest = (x, x, None, None, *_statistics(x))
    yield BadInput("sums shape", (*rest, sums[0], elements), rf"{op}: sums must have shape \(2, 6\), got \(6,\)")
    message = f"{op}: sums must hold 12 elements of torch.float32, got 12 of torch.float64"
    yield BadInput("sums dtype", (*rest, sums.double(), elements), message)
    message = f"{op}: elements must hold 6 elements of torch.float32, got 1 of torch.float32"
    yield BadInput("elements", (*rest, sums, elements[:1]), message)


def _input_grad_cost(grad_output: Tensor, input: Tensor, *rest: Tensor | None, **kwargs: object) -> Cost:
    read = _sums_cost(grad_output, input, *rest, **kwargs)
    return Cost(12 * input.numel(), read.bytes + nbytes(input))


add(
    OpSpec(
        name="batch_norm_input_grad",
        family="sync_batch_norm",
        op=ops.batch_norm_input_grad,
        torch_op=_torch_input_grad,
        samples=lambda make: (_with_sums(make, _sample(b)) for b in _backwards(make)),
        draw=lambda make, rng: _with_sums(make, _sample(_draw_backward(make, rng))),
        bad_inputs=_input_grad_bad_inputs,
        cost=_input_grad_cost,
        kernels=("batch_norm_input_grad",),
        gradcheck=False,
    )
)
