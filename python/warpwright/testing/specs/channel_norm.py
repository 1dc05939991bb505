"""OpSpecs of the channel norms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import HALF_TYPES, BadInput, Cost, Make, OpSpec, Sample, add, nbytes

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda x: x, "relu": torch.relu, "silu": F.silu}
#: Operations per element.
ACTIVATION_FLOPS = {None: 0, "relu": 1, "silu": 4}


def _wide(make: Make) -> torch.dtype:
    """What parameters beside a tensor of half precision may be in."""
    return torch.float32 if make.dtype in HALF_TYPES else make.dtype


def lying_last(tensor: Tensor) -> Tensor:
    """The same leaf with its channels closest in memory."""
    moved = tensor.detach().movedim(1, -1).contiguous().movedim(-1, 1)
    return moved.requires_grad_(tensor.requires_grad)


def _draw_shape(rng: random.Random) -> list[int]:
    """(channels, positions...): no cell of a handful of elements, which can be almost equal; torch's error is then
    luck."""
    channels = rng.choice([4, 6, 8, 12, 24, 40])
    return [channels, *rng.choice([[9], [7, 3], [33], [8, 8], [2, 3, 4], [130], [16, 5]])]


# ---- group_norm ----


def _torch_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    if weight is None and bias is not None:  # PyTorch's kernel for half precision does not take that.
        weight = torch.ones_like(bias)
    return ACTIVATIONS[activation](torch.group_norm(input, num_groups, weight, bias, eps))


def _group_norm_samples(make: Make) -> Iterator[Sample]:
    def affine(channels: int) -> tuple[Tensor, Tensor]:
        return make.tensor(channels), make.tensor(channels)

    yield Sample("plain", (make.tensor(2, 6, 3, 4), 3, *affine(6)))
    yield Sample("channels last", (lying_last(make.tensor(2, 8, 3, 4)), 2, *affine(8)), {"activation": "silu"})
    yield Sample("no affine", (make.tensor(3, 4, 5), 2))
    yield Sample("no positions", (make.tensor(2, 24), 2, *affine(24)), {"activation": "relu"})
    yield Sample("one group", (lying_last(make.tensor(1, 7, 3, 5)), 1, *affine(7), 1e-3))
    wide = (make.tensor(16, dtype=_wide(make)), make.tensor(16, dtype=_wide(make)))
    yield Sample("float32 parameters", (lying_last(make.tensor(1, 16, 4, 4)), 4, *wide))
    yield Sample("bias only", (make.tensor(2, 4, 8), 2, None, make.tensor(4)), {"activation": "silu"})
    yield Sample("weight only", (lying_last(make.tensor(2, 4, 8)), 2, make.tensor(4)), {"activation": "silu"})
    yield Sample("more than a slab", (make.tensor(1, 2, 2056), 1, *affine(2)), {"activation": "silu"})
    yield Sample("more than a slab, last", (lying_last(make.tensor(1, 8, 275)), 4, *affine(8)), {"activation": "silu"})
    yield Sample("channels of two tiles", (lying_last(make.tensor(1, 72, 5)), 8, *affine(72)))
    # A mean a thousand times the deviation: the difference of two large sums would have no digit left.
    yield Sample("large mean", (make.tensor(2, 4, 40, low=999, high=1001), 2, *affine(4)))
    yield Sample("large mean, last", (lying_last(make.tensor(2, 4, 40, low=999, high=1001)), 2, *affine(4)))
    yield Sample("one of a sample", (make.tensor(1, 20, 3, 1), 4, *affine(20)))
    yield Sample("no samples", (make.tensor(0, 4, 3), 2, *affine(4)))


def _draw_group_norm(make: Make, rng: random.Random) -> Sample:
    shape = _draw_shape(rng)
    groups = rng.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
    x = make.tensor(rng.choice([0, 1, 2, 3]), *shape)
    weight, bias = (make.tensor(shape[0]) if rng.random() < 0.7 else None for _ in range(2))
    args = (lying_last(x) if rng.random() < 0.5 else x, groups, weight, bias)
    return Sample(f"{list(x.shape)} g{groups}", args, {"activation": rng.choice(list(ACTIVATIONS))})


def _group_norm_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w = make.tensor(2, 6, 4), make.tensor(6)
    yield BadInput("groups", (x, 4, w), "num_groups must divide the 6 channels of input, got 4")
    yield BadInput("no groups", (x, 0, w), "num_groups must divide the 6 channels of input, got 0")
    yield BadInput("rank", (make.tensor(6), 2), "input must have at least 2 dimensions, got 1")
    yield BadInput("weight shape", (x, 3, make.tensor(3)), r"weight must have shape \(6,\), got \(3,\)")
    yield BadInput("weight dtype", (x, 3, w.detach().double()), "weight must be torch.float32, got torch.float64")
    yield BadInput("bias shape", (x, 3, w, make.tensor(6, 1)), r"bias must have shape \(6,\), got \(6, 1\)")
    yield BadInput("input dtype", (x.detach().long(), 3), r"input must be float32, .* got torch.int64")
    other = {"activation": "gelu"}
    yield BadInput("activation", (x, 3, w), "activation must be one of none, relu, silu, got 'gelu'", other)


def _group_norm_cost(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Cost:
    """As layer_norm's, and the activation."""
    return Cost((7 + ACTIVATION_FLOPS[activation]) * input.numel(), 2 * nbytes(input) + nbytes(weight, bias))


add(
    OpSpec(
        name="group_norm",
        family="channel_norm",
        op=ops.group_norm,
        torch_op=_torch_group_norm,
        samples=_group_norm_samples,
        draw=_draw_group_norm,
        bad_inputs=_group_norm_bad_inputs,
        cost=_group_norm_cost,
        kernels=("group_norm", "group_norm_backward"),
    )
)

# ---- batch_norm ----


def keeping_running(
    function: Callable[..., Tensor], input: Tensor, mean: Tensor | None, var: Tensor | None, *rest: object
) -> Tensor | tuple[Tensor, ...]:
    """The output, and the running statistics as they are afterwards: the function writes to copies of them."""
    copies = [None if t is None else t.detach().clone() for t in (mean, var)]
    output = function(input, *copies, *rest)
    return (output, *(t for t in copies if t is not None))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    def run(*args: object) -> Tensor:
        return ops.batch_norm(*args, residual=residual, activation=activation)  # type: ignore[arg-type]

    if not training or (running_mean is None and running_var is None):
        return run(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return keeping_running(run, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    def run(*args: object) -> Tensor:
        normal = F.batch_norm(*args)  # type: ignore[arg-type]
        return ACTIVATIONS[activation](normal if residual is None else normal + residual)

    if not training or (running_mean is None and running_var is None):
        return run(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return keeping_running(run, input, running_mean, running_var, weight, bias, training, momentum, eps)


def running_statistics(make: Make, channels: int) -> tuple[Tensor, Tensor]:
    dtype = _wide(make)
    return (
        make.tensor(channels, grad=False, dtype=dtype),
        make.tensor(channels, low=0.5, high=2, grad=False, dtype=dtype),
    )


def affine_parameters(make: Make, channels: int) -> tuple[Tensor, Tensor]:
    """Of one dtype with the running statistics, as PyTorch wants them."""
    return make.tensor(channels, dtype=_wide(make)), make.tensor(channels, dtype=_wide(make))


def _batch_norm_samples(make: Make) -> Iterator[Sample]:
    none = (None, None)
    x = make.tensor(4, 3, 2, 3)
    yield Sample("training", (x, *running_statistics(make, 3), *affine_parameters(make, 3), True, 0.3))
    fused = {"residual": lying_last(make.tensor(3, 8, 2, 3)), "activation": "relu"}
    yield Sample("residual", (lying_last(make.tensor(3, 8, 2, 3)), *none, *affine_parameters(make, 8), True), fused)
    fused = {"residual": make.tensor(2, 4, 5), "activation": "silu"}
    yield Sample("inference", (make.tensor(2, 4, 5), *running_statistics(make, 4), *affine_parameters(make, 4)), fused)
    yield Sample("inference, plain", (lying_last(make.tensor(2, 4, 5)), *running_statistics(make, 4)))
    yield Sample("no affine", (make.tensor(3, 4, 6), *none, None, None, True))
    plain = {"residual": make.tensor(6, 5)}
    yield Sample(
        "no positions", (make.tensor(6, 5), *running_statistics(make, 5), *affine_parameters(make, 5), True), plain
    )
    narrow = (make.tensor(8), make.tensor(8))
    yield Sample(
        "parameters like input", (lying_last(make.tensor(2, 8, 3)), *none, *narrow, True), {"activation": "relu"}
    )
    # The residual lies another way than the input.
    fused = {"residual": lying_last(make.tensor(3, 4, 2, 3)), "activation": "relu"}
    yield Sample("two layouts", (make.tensor(3, 4, 2, 3), *none, *affine_parameters(make, 4), True), fused)
    fused = {"residual": make.tensor(3, 4, 2, 3), "activation": "relu"}
    yield Sample(
        "two layouts, last", (lying_last(make.tensor(3, 4, 2, 3)), *none, *affine_parameters(make, 4), True), fused
    )
    yield Sample("many rows", (make.tensor(131, 6), *none, *affine_parameters(make, 6), True))
    yield Sample("large mean", (make.tensor(4, 3, 20, low=999, high=1001), *none, *affine_parameters(make, 3), True))
    one = (make.tensor(1, 4), *running_statistics(make, 4), *affine_parameters(make, 4))
    yield Sample("inference of one", one, {"activation": "relu"})


def _draw_batch_norm(make: Make, rng: random.Random) -> Sample:
    shape = _draw_shape(rng)
    x = make.tensor(rng.choice([1, 2, 3]), *shape)
    training = rng.random() < 0.6
    running = running_statistics(make, shape[0]) if not training or rng.random() < 0.5 else (None, None)
    affine = affine_parameters(make, shape[0]) if rng.random() < 0.7 else (None, None)
    kwargs: dict[str, object] = {"activation": rng.choice(list(ACTIVATIONS))}
    if rng.random() < 0.5:
        residual = make.tensor(*x.shape)
        kwargs["residual"] = lying_last(residual) if rng.random() < 0.5 else residual
    args = (lying_last(x) if rng.random() < 0.5 else x, *running, *affine, training)
    return Sample(f"{list(x.shape)} {training=}", args, kwargs)


def _batch_norm_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w = make.tensor(2, 6, 4), make.tensor(6)
    running = running_statistics(make, 6)
    yield BadInput("no statistics", (x, None, None), "running_mean and running_var must be given unless training")
    single = (make.tensor(1, 6), None, None, None, None, True)
    yield BadInput("single", single, r"input must have more than one value per channel in training, got shape \(1, 6\)")
    yield BadInput("rank", (make.tensor(6), *running), "input must have at least 2 dimensions, got 1")
    bad = (x, running[0][:5], running[1])
    yield BadInput("running shape", bad, r"running_mean must have shape \(6,\), got \(5,\)")
    training = (x, *running_statistics(make, 5), None, None, True)
    yield BadInput("running shape in training", training, r"running_mean must have shape \(6,\), got \(5,\)")
    yield BadInput("running dtype", (x, running[0], running[1].double()), "running_var must be torch.float32, got")
    yield BadInput("weight shape", (x, *running, make.tensor(3)), r"weight must have shape \(6,\), got \(3,\)")
    yield BadInput("bias dtype", (x, *running, w, w.detach().double()), "bias must be torch.float32, got torch.float64")
    yield BadInput("input dtype", (x.detach().long(), *running), r"input must be float32, .* got torch.int64")
    residual = {"residual": make.tensor(2, 6)}
    yield BadInput("residual", (x, *running), r"residual must have the shape of input \(2, 6, 4\), got", residual)
    other = {"activation": "gelu"}
    yield BadInput("activation", (x, *running), "activation must be one of none, relu, silu, got 'gelu'", other)


def _batch_norm_cost(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Cost:
    """In training as layer_norm's; in inference each channel has one factor and one summand."""
    each = (7 if training else 2) + ACTIVATION_FLOPS[activation] + (residual is not None)
    moved = 2 * nbytes(input) + nbytes(residual, running_mean, running_var, weight, bias)
    return Cost(each * input.numel(), moved)


add(
    OpSpec(
        name="batch_norm",
        family="channel_norm",
        op=_batch_norm,
        torch_op=_torch_batch_norm,
        samples=_batch_norm_samples,
        draw=_draw_batch_norm,
        bad_inputs=_batch_norm_bad_inputs,
        cost=_batch_norm_cost,
        kernels=("batch_norm", "batch_norm_backward"),
    )
)

# ---- instance_norm ----


def _instance_norm_by(function: Callable[..., Tensor]) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    def instance_norm(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | tuple[Tensor, ...]:
        rest = (weight, bias, use_input_stats, momentum, eps)
        if not use_input_stats or (running_mean is None and running_var is None):
            return function(input, running_mean, running_var, *rest)
        return keeping_running(function, input, running_mean, running_var, *rest)

    return instance_norm


def _instance_norm_samples(make: Make) -> Iterator[Sample]:
    none = (None, None)
    yield Sample("plain", (make.tensor(2, 3, 3, 4), *none, *affine_parameters(make, 3)))
    yield Sample(
        "running",
        (lying_last(make.tensor(3, 4, 2, 5)), *running_statistics(make, 4), *affine_parameters(make, 4), True, 0.3),
    )
    yield Sample("inference", (make.tensor(2, 4, 5), *running_statistics(make, 4), *affine_parameters(make, 4), False))
    yield Sample("no affine", (make.tensor(2, 4, 7),))
    yield Sample("volume", (lying_last(make.tensor(1, 8, 2, 3, 3)), *none, *affine_parameters(make, 8)))
    yield Sample("large mean", (make.tensor(2, 3, 40, low=999, high=1001), *none, *affine_parameters(make, 3)))


def _draw_instance_norm(make: Make, rng: random.Random) -> Sample:
    shape = _draw_shape(rng)
    x = make.tensor(rng.choice([1, 2, 3]), *shape)
    own = rng.random() < 0.7
    running = running_statistics(make, shape[0]) if not own or rng.random() < 0.5 else (None, None)
    affine = affine_parameters(make, shape[0]) if rng.random() < 0.7 else (None, None)
    return Sample(f"{list(x.shape)} {own=}", (lying_last(x) if rng.random() < 0.5 else x, *running, *affine, own))


def _instance_norm_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(2, 6, 4)
    none = (None, None)
    yield BadInput("rank", (make.tensor(6),), "input must have at least 2 dimensions, got 1")
    yield BadInput("single", (make.tensor(2, 6, 1),), r"input must have more than one value per channel and sample")
    yield BadInput("no statistics", (x, *none, *none, False), "running_mean and running_var must be given without")
    bad = (x, *running_statistics(make, 5))
    yield BadInput("running shape", bad, r"running_mean must have shape \(6,\), got \(5,\)")
    yield BadInput("weight shape", (x, *none, make.tensor(3)), r"weight must have shape \(6,\), got \(3,\)")
    yield BadInput("input dtype", (x.detach().long(),), r"input must be float32, .* got torch.int64")


def _instance_norm_cost(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Cost:
    """As batch_norm's."""
    moved = 2 * nbytes(input) + nbytes(running_mean, running_var, weight, bias)
    return Cost((7 if use_input_stats else 2) * input.numel(), moved)


add(
    OpSpec(
        name="instance_norm",
        family="channel_norm",
        op=_instance_norm_by(ops.instance_norm),
        torch_op=_instance_norm_by(F.instance_norm),
        samples=_instance_norm_samples,
        draw=_draw_instance_norm,
        bad_inputs=_instance_norm_bad_inputs,
        cost=_instance_norm_cost,
        kernels=("group_norm", "group_norm_backward", "batch_norm", "batch_norm_backward"),
    )
)
