"""OpSpecs of the optim family."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from warpwright import ops
from warpwright.testing.spec import HALF_TYPES, BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies with the same strides and offsets, to be written to; what overlaps itself is none's to write and stays."""

    def copy(tensor: Tensor) -> Tensor:
        if not all(tensor.stride()) and tensor.numel():
            return tensor
        # Dynamo traces no offsets, and no layout is compiled.
        offset = 0 if torch.compiler.is_compiling() else tensor.storage_offset()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        room = torch.empty(offset + max(last, 0) + 1, dtype=tensor.dtype, device=tensor.device)
        return room.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)

    return [copy(tensor) for tensor in tensors]


def _adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    masters: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[Tensor, ...]:
    """warpwright.ops.adamw_ on copies, which it returns."""
    written = [_copies(tensors) for tensors in (params, exp_avgs, exp_avg_sqs, masters)]
    ops.adamw_(written[0], grads, written[1], written[2], steps, masters=written[3], **options)
    return tuple(t for tensors in written for t in tensors)


def _torch_adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    masters: Sequence[Tensor] = (),
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """torch's own single-tensor step, in the dtype of the moments: on the masters, where there are some."""
    values = [t.to(m.dtype, copy=True) for t, m in zip(masters or params, exp_avgs, strict=True)]
    first, second = [t.clone() for t in exp_avgs], [t.clone() for t in exp_avg_sqs]
    if found_inf is None or not found_inf.item():
        scale = 1.0 if grad_scale is None else grad_scale
        adamw(
            values, [(g.to(v.dtype) / scale).to(v.dtype) for g, v in zip(grads, values, strict=True)], first, second,
            [], [(s - 1).cpu() for s in steps], foreach=False, amsgrad=False, beta1=beta1, beta2=beta2, lr=lr,
            weight_decay=weight_decay, eps=eps, maximize=maximize,
        )  # fmt: skip
        new = [v.to(p.dtype) for v, p in zip(values, params, strict=True)]
    else:
        new = list(params)
    return (*new, *first, *second, *(values if masters else ()))


def _call(make: Make, *shapes: tuple[int, ...], step: float = 3, masters: bool = False, state: Any = None) -> Sample:
    """Random parameters, gradients and moments; `state` is the dtype of the moments."""
    state = torch.float32 if masters else state or make.dtype

    def each(low: float, high: float, dtype: torch.dtype | None = None) -> list[Tensor]:
        return [make.tensor(*shape, low=low, high=high, grad=False, dtype=dtype) for shape in shapes]

    copies = each(-1, 1, torch.float32)
    params = [c.to(make.dtype) for c in copies] if masters else each(-1, 1)
    counts = [torch.tensor(step + i, dtype=torch.float32, device=make.device) for i in range(len(shapes))]
    # Moments as of gradients up to 1; the second stays off 0, where a step is the quotient of two roundings.
    args = (params, each(-1, 1), each(-0.5, 0.5, state), each(0.1, 0.5, state), counts)
    return Sample("", args, {"masters": copies} if masters else {})


def _samples(make: Make) -> Iterator[Sample]:
    def sample(name: str, call: Sample, **options: Any) -> Sample:
        return Sample(name, call.args, call.kwargs | options)

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=make.device)

    yield sample("three tensors", _call(make, (5, 7), (33,), ()))
    yield sample("first step", _call(make, (40,), step=1), lr=0.1, weight_decay=0.0)
    yield sample("maximize, other betas", _call(make, (3, 4)), maximize=True, beta1=0.8, beta2=0.95, eps=1e-3)
    yield sample("grad_scale", _call(make, (6, 5)), grad_scale=scalar(8), found_inf=scalar(0))
    yield sample("found_inf", _call(make, (6, 5)), grad_scale=scalar(8), found_inf=scalar(1))
    yield sample("more than a chunk", _call(make, (16385,), (3,)), lr=0.05)
    yield sample("more than a launch", _call(make, *[(2,)] * 50), lr=0.05)
    yield sample("an empty one", _call(make, (0, 3), (2, 2)))
    if make.dtype in HALF_TYPES:
        yield sample("masters", _call(make, (5, 7), (33,), masters=True), lr=1e-4)
        yield sample("masters, found_inf", _call(make, (9,), masters=True), found_inf=scalar(2))
        yield sample("float32 moments", _call(make, (5, 7), state=torch.float32), lr=0.05)


def _draw(make: Make, rng: random.Random) -> Sample:
    shapes = [tuple(draw_size(rng, 20) for _ in range(rng.randint(0, 3))) for _ in range(rng.randint(1, 4))]
    half = make.dtype in HALF_TYPES
    masters = half and rng.random() < 0.5
    state = rng.choice([make.dtype, torch.float32])
    call = _call(make, *shapes, step=rng.choice([1, 2, 1000]), masters=masters, state=state)
    options = {"lr": rng.choice([0.0, 1e-3, 0.1]), "weight_decay": rng.choice([0.0, 0.1])}
    return Sample(f"{shapes} {options} masters={masters}", call.args, call.kwargs | options)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    call = _call(make, (2, 3), (4,))
    params, grads, m, v, steps = call.args
    yield BadInput("param dtype", ([p.long() for p in params], grads, m, v, steps), r"params\[0\] must be float32, ")
    mixed = [params[0], params[1].double()]
    yield BadInput(
        "mixed params", (mixed, grads, m, v, steps), r"params\[1\] must be torch.float32 of shape \(4,\) on "
    )
    yield BadInput("too few grads", (params, grads[:1], m, v, steps), "grads must hold 2 tensors, .*got 1")
    bad = [grads[0], grads[1][:3]]
    yield BadInput("grad shape", (params, bad, m, v, steps), r"grads\[1\] must be .*shape \(4,\) .*shape \(3,\)")
    yield BadInput("moment dtype", (params, grads, [t.half() for t in m], v, steps),
                   r"exp_avgs\[0\] must be torch.float32 or have the dtype of params, got torch.float16")  # fmt: skip
    yield BadInput("second moments", (params, grads, m, v[:1], steps), "exp_avg_sqs must hold 2 tensors, .*got 1")
    yield BadInput("masters", (params, grads, m, v, steps), "masters must be empty for torch.float32 params, got 2",
                   {"masters": params})  # fmt: skip
    yield BadInput("steps", (params, grads, m, v, [s.double() for s in steps]),
                   r"steps\[0\] must be 1 element of torch.float32, got 1 of torch.float64")  # fmt: skip
    expanded = [params[0], params[1][:1].expand(4)]
    yield BadInput("expanded", (expanded, grads, m, v, steps), r"params\[1\] must not be expanded")
    yield BadInput("found_inf", call.args, "found_inf must be 1 element of torch.float32, got 2",
                   {"found_inf": torch.zeros(2, device=make.device)})  # fmt: skip
    yield BadInput("lr", call.args, "lr must be at least 0, got -1", {"lr": -1.0})
    yield BadInput("beta1", call.args, r"beta1 must be in \[0, 1\), got 1", {"beta1": 1.0})
    yield BadInput("beta2", call.args, r"beta2 must be in \[0, 1\), got -0.5", {"beta2": -0.5})
    yield BadInput("eps", call.args, "eps must be at least 0, got -1e-08", {"eps": -1e-8})
    yield BadInput("weight_decay", call.args, "weight_decay must be at least 0, got -1", {"weight_decay": -1.0})


def _cost(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    masters: Sequence[Tensor] = (),
    **_: Any,
) -> Cost:
    elements = sum(p.numel() for p in params)
    # A parameter with a master is only written.
    moved = 2 * nbytes(*exp_avgs, *exp_avg_sqs, *masters) + nbytes(*grads) + nbytes(*params) * (1 if masters else 2)
    return Cost(14 * elements, moved)


add(
    OpSpec(
        name="adamw_",
        family="optim",
        op=_adamw,
        torch_op=_torch_adamw,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("adamw_",),
        gradcheck=False,
    )
)
