"""OpSpecs of the losses that teach one model by another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.ops.pointwise_loss import KL_REDUCTIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _call(make: Make, rows: tuple[int, ...], features: int, teacher_features: int, classes: int) -> tuple[Tensor, ...]:
    """(input, weight, teacher_input, teacher_weight)"""
    teacher = make.tensor(*rows, teacher_features, grad=False), make.tensor(classes, teacher_features, grad=False)
    return make.tensor(*rows, features), make.tensor(classes, features), *teacher


def _samples(make: Make) -> Iterator[Sample]:
    biases = make.tensor(9), make.tensor(9, grad=False)
    yield Sample("batchmean", (*_call(make, (7,), 5, 6, 9), *biases), {"chunk_rows": 3})
    yield Sample("none", _call(make, (2, 4), 5, 5, 9), {"reduction": "none", "chunk_rows": 3})
    yield Sample("sum, warm", _call(make, (7,), 6, 8, 8), {"reduction": "sum", "temperature": 2.0})
    yield Sample("mean, cold", _call(make, (2, 3), 6, 4, 7), {"reduction": "mean", "temperature": 0.25})
    yield Sample("none with bias", (*_call(make, (6,), 4, 5, 7), make.tensor(7)), {
        "reduction": "none", "temperature": 4.0})  # fmt: skip
    yield Sample("teacher's bias alone", (*_call(make, (5,), 4, 4, 6), None, make.tensor(6, grad=False)))
    yield Sample("one row without batch", _call(make, (), 5, 6, 9))
    yield Sample("one class", _call(make, (4,), 5, 5, 1))
    yield Sample("one class, warm", _call(make, (4,), 5, 5, 1), {"reduction": "none", "temperature": 3.0})
    yield Sample("many classes", _call(make, (5,), 33, 40, 1037), {"chunk_rows": 2})
    input, weight, *_ = _call(make, (6,), 5, 5, 8)
    yield Sample("its own teacher", (input, weight, input.detach(), weight.detach()), {"reduction": "none"})
    yield Sample("no rows, sum", (*_call(make, (0,), 4, 5, 6), make.tensor(6)), {"reduction": "sum"})
    yield Sample("no rows", _call(make, (0,), 4, 5, 6))
    input, weight, *teacher = _call(make, (4,), 5, 6, 7)
    yield Sample("frozen weight", (input, weight.detach(), *teacher))
    yield Sample("frozen input", (input.detach(), weight, *teacher), {"chunk_rows": 3})


def _draw(make: Make, rng: random.Random) -> Sample:
    rows = tuple(draw_size(rng, 20) for _ in range(rng.randint(1, 2)))
    features, teacher_features, classes = draw_size(rng) + 1, draw_size(rng) + 1, draw_size(rng, 200) + 1
    kwargs = {
        "reduction": rng.choice(KL_REDUCTIONS),
        "temperature": rng.choice([1.0, 1.0, 0.5, 3.0]),
        "chunk_rows": rng.choice([None, 1, 5]),
    }
    biases = rng.choice([None, make.tensor(classes)]), rng.choice([None, make.tensor(classes, grad=False)])
    name = f"{rows} {features} {teacher_features} {classes} {kwargs}"
    return Sample(name, (*_call(make, rows, features, teacher_features, classes), *biases), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w, y, v = _call(make, (4,), 5, 7, 6)
    yield BadInput("input rank", (x.sum(), w, y, v), "input must have at least 1 dimension, got 0")
    yield BadInput("input dtype", (x.long(), w, y, v), "input must be float32, .* got torch.int64")
    yield BadInput("weight rank", (x, w[0], y, v), "weight must have 2 dimensions, got 1")
    yield BadInput("features", (x, make.tensor(6, 4), y, v), "weight has 4 input features, input has 5")
    yield BadInput("no class", (x, make.tensor(0, 5), y, v), r"weight must have at least 1 class, .* \(0, 5\)")
    yield BadInput("bias shape", (x, w, y, v, make.tensor(5)), r"bias must have shape \(6,\), got \(5,\)")
    yield BadInput("teacher dtype", (x, w, y.half(), v), "teacher_input must have the dtype of input")
    yield BadInput("teacher rows", (x, w, y[:3], v), r"teacher_input must have the shape of input .* got \(3, 7\)")
    yield BadInput("teacher rank", (x, w, y[None], v), r"teacher_input must have the shape of input .* \(1, 4, 7\)")
    yield BadInput("teacher weight rank", (x, w, y, v[0]), "teacher_weight must have 2 dimensions, got 1")
    yield BadInput("teacher weight dtype", (x, w, y, v.half()), "teacher_weight must have the dtype of input")
    yield BadInput("teacher features", (x, w, y, v[:, :3]), "teacher_weight has 3 input features, teacher_input has 7")
    yield BadInput("teacher classes", (x, w, y, v[:3]), "teacher_weight has 3 classes, weight has 6")
    bias = make.tensor(5)
    yield BadInput("teacher bias", (x, w, y, v, None, bias), r"teacher_bias must have shape \(6,\), got \(5,\)")
    for name, value, message in (
        ("temperature", 0.0, "must be positive, got 0"), ("chunk_rows", 0, "must be positive, got 0"),
        ("reduction", "max", "must be one of none, mean, sum, batchmean, got 'max'"),
    ):  # fmt: skip
        yield BadInput(name, (x, w, y, v), f"{name} {message}", {name: value})


def _torch_linear_kl_div(
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    chunk_rows: int | None = None,
) -> Tensor:
    student = (F.linear(input, weight, bias) / temperature).log_softmax(-1)
    teacher = (F.linear(teacher_input, teacher_weight, teacher_bias) / temperature).log_softmax(-1).detach()
    elements = F.kl_div(student, teacher, reduction="none", log_target=True)
    rows, classes = input.shape[:-1].numel(), weight.shape[0]
    if reduction == "none":
        return elements.sum(-1)
    return elements.sum() / {"batchmean": rows, "mean": rows * classes}.get(reduction, 1)


def _cost(
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    reduction: str = "batchmean",
    **_: Any,
) -> Cost:
    """The products and the loss; logits are neither written nor read."""
    rows, classes = input.shape[:-1].numel(), weight.shape[0]
    flops = 2 * rows * classes * (weight.shape[1] + teacher_weight.shape[1]) + 10 * rows * classes
    read = nbytes(input, weight, teacher_input, teacher_weight, bias, teacher_bias)
    return Cost(flops, read + (rows if reduction == "none" else 1) * input.element_size())


add(
    OpSpec(
        name="linear_kl_div",
        family="distillation",
        op=ops.linear_kl_div,
        torch_op=_torch_linear_kl_div,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("linear_kl_div", "linear_kl_div_backward", "linear_loss_backward"),
    )
)
