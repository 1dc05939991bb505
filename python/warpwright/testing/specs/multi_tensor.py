"""OpSpecs of the multi_tensor family."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes
from warpwright.testing.specs.optim import copies


def _each(make: Make, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [make.tensor(*shape, grad=False) for shape in shapes]


def _with(tensors: list[Tensor], value: float) -> list[Tensor]:
    """The last element of the last tensor is `value`."""
    tensors[-1].view(-1)[-1] = value
    return tensors


def _lists(make: Make) -> Iterator[tuple[str, list[Tensor]]]:
    yield "three tensors", _each(make, (5, 7), (33,), ())
    yield "more than a chunk", _each(make, (16391,), (3,))
    yield "more than a launch", _each(make, *[(3,)] * 200)
    yield "an infinity", _with(_each(make, (4, 9), (40,)), -math.inf)
    yield "a NaN", _with(_each(make, (17,), (4, 9)), math.nan)
    yield "an empty one", _each(make, (0, 3), (2, 2))
    yield "nothing in them", _each(make, (0, 3), (0,))


def _bad_tensors(make: Make) -> Iterator[tuple[str, list[Tensor], str]]:
    tensors = _each(make, (2, 3), (4,))
    yield "none", [], "tensors must hold at least 1 tensor, got 0"
    yield "dtype", [t.long() for t in tensors], r"tensors\[0\] must be float32, "
    mixed = [tensors[0], tensors[1].double()]
    yield "mixed", mixed, r"tensors\[1\] must have the dtype of tensors\[0\] \(torch.float32\), got torch.float64"


# ---- multi_tensor_norm ----


def _torch_norm(tensors: Sequence[Tensor], order: float = 2.0) -> tuple[Tensor, Tensor]:
    found = torch.stack([(~t.isfinite()).any() for t in tensors]).any()
    norms = [torch.linalg.vector_norm(t, order) for t in tensors if t.numel()]
    norm = torch.linalg.vector_norm(torch.stack(norms), order) if norms else tensors[0].new_zeros(())
    return norm, found.float()


def _norm_samples(make: Make) -> Iterator[Sample]:
    for name, tensors in _lists(make):
        yield Sample(name, (tensors,))
        yield Sample(f"{name}, inf", (tensors, math.inf))


def _norm_draw(make: Make, rng: random.Random) -> Sample:
    shapes = [tuple(draw_size(rng, 20) for _ in range(rng.randint(0, 3))) for _ in range(rng.randint(1, 4))]
    order = rng.choice([2.0, math.inf])
    return Sample(f"{shapes}, {order}", (_each(make, *shapes), order))


def _norm_bad_inputs(make: Make) -> Iterator[BadInput]:
    for name, tensors, message in _bad_tensors(make):
        yield BadInput(name, (tensors,), message)
    yield BadInput("order", (_each(make, (3,)), 1.0), "order must be 2 or inf, got 1")


def _norm_cost(tensors: Sequence[Tensor], order: float = 2.0) -> Cost:
    return Cost(2 * sum(t.numel() for t in tensors), nbytes(*tensors))


add(
    OpSpec(
        name="multi_tensor_norm",
        family="multi_tensor",
        op=ops.multi_tensor_norm,
        torch_op=_torch_norm,
        samples=_norm_samples,
        draw=_norm_draw,
        bad_inputs=_norm_bad_inputs,
        cost=_norm_cost,
        kernels=("multi_tensor_norm",),
        gradcheck=False,
    )
)

# ---- multi_tensor_scale_ ----


def _scale(tensors: Sequence[Tensor], multiplier: Tensor, *, found_inf: Tensor | None = None) -> tuple[Tensor, ...]:
    """warpwright.ops.multi_tensor_scale_ on copies, which it returns."""
    written = copies(tensors)
    found = None if found_inf is None else found_inf.clone()
    ops.multi_tensor_scale_(written, multiplier, found_inf=found)
    return (*written, *(() if found is None else (found,)))


def _torch_scale(
    tensors: Sequence[Tensor], multiplier: Tensor, *, found_inf: Tensor | None = None
) -> tuple[Tensor, ...]:
    scaled = [(t * multiplier).to(t.dtype) for t in tensors]
    if found_inf is None:
        return tuple(scaled)
    return (*scaled, torch.maximum(found_inf, _torch_norm(tensors)[1].to(found_inf.dtype)))


def _number(make: Make, value: float) -> Tensor:
    dtype = torch.float64 if make.dtype == torch.float64 else torch.float32
    return torch.tensor(value, dtype=dtype, device=make.device)


def _flag(make: Make, value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=make.device)


def _scale_samples(make: Make) -> Iterator[Sample]:
    for name, tensors in _lists(make):
        yield Sample(name, (tensors, _number(make, 0.3)))
        yield Sample(f"{name}, found_inf", (tensors, _number(make, 1 / 3)), {"found_inf": _flag(make, 0)})
    yield Sample("found before", (_each(make, (3,)), _number(make, 2)), {"found_inf": _flag(make, 1)})


def _scale_draw(make: Make, rng: random.Random) -> Sample:
    call = _norm_draw(make, rng)
    return Sample(call.name, (call.args[0], _number(make, rng.uniform(-2, 2))))


def _scale_bad_inputs(make: Make) -> Iterator[BadInput]:
    for name, tensors, message in _bad_tensors(make):
        yield BadInput(name, (tensors, _number(make, 1)), message)
    good = _each(make, (3,))
    two = torch.zeros(2, device=make.device)
    yield BadInput("multiplier", (good, two), "multiplier must be 1 element of torch.float32, got 2 of torch.float32")
    yield BadInput("found_inf", (good, _number(make, 1)), "found_inf must be 1 element of torch.float32, got 2",
                   {"found_inf": two})  # fmt: skip
    yield BadInput("expanded", ([good[0][:1].expand(4)], _number(make, 1)), r"tensors\[0\] must not be expanded")


def _scale_cost(tensors: Sequence[Tensor], multiplier: Tensor, *, found_inf: Tensor | None = None) -> Cost:
    return Cost(sum(t.numel() for t in tensors), 2 * nbytes(*tensors))


add(
    OpSpec(
        name="multi_tensor_scale_",
        family="multi_tensor",
        op=_scale,
        torch_op=_torch_scale,
        samples=_scale_samples,
        draw=_scale_draw,
        bad_inputs=_scale_bad_inputs,
        cost=_scale_cost,
        kernels=("multi_tensor_scale_",),
        gradcheck=False,
    )
)
