"""Losses: `rows` targets among `classes`."""

from __future__ import annotations

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import draw_weight, halve_largest, suffix
from warpwright.testing import Sample


@operator("cross_entropy", smaller=halve("rows"))
def cross_entropy(draw: Draw, *, rows: int, classes: int, label_smoothing: float = 0.0) -> Sample:
    args = (draw.tensor(rows, classes, low=-4, high=4), draw.integers(rows, low=0, high=classes))
    if not label_smoothing:
        return Sample(f"{rows} x {classes}", args)
    label = f"{rows} x {classes}, smoothing {label_smoothing:g}"
    return Sample(label, args, {"label_smoothing": label_smoothing})


@operator("linear_cross_entropy", smaller=halve_largest("rows", "classes"))
def linear_cross_entropy(draw: Draw, *, rows: int, width: int, classes: int, reduction: str = "mean") -> Sample:
    """The mean of so many losses moves less than bfloat16 rounds when all of them are drawn anew: where the loss is all
    that a call returns, "none" shows whether it followed."""
    weight = draw_weight(draw, classes, width, fan_in=width)
    return Sample(
        f"{rows} x {width} -> {classes}" + suffix(none=reduction == "none"),
        (draw.tensor(rows, width), weight, draw.integers(rows, low=0, high=classes)),
        {} if reduction == "mean" else {"reduction": reduction},
    )


@operator("linear_kl_div", smaller=halve_largest("rows", "classes"))
def linear_kl_div(
    draw: Draw, *, rows: int, width: int, teacher_width: int, classes: int, reduction: str = "batchmean"
) -> Sample:
    """For the reduction see linear_cross_entropy."""
    weight = draw_weight(draw, classes, width, fan_in=width)
    teacher_weight = draw_weight(draw, classes, teacher_width, fan_in=teacher_width).detach()
    return Sample(
        f"{rows} x {width} -> {classes}, teacher {teacher_width}" + suffix(none=reduction == "none"),
        (draw.tensor(rows, width), weight, draw.tensor(rows, teacher_width, grad=False), teacher_weight),
        {"reduction": reduction},
    )


@operator("nll_loss", smaller=halve("rows"))
def nll_loss(draw: Draw, *, rows: int, classes: int) -> Sample:
    return Sample(f"{rows} x {classes}", (draw.tensor(rows, classes), draw.integers(rows, low=0, high=classes)))


@operator("binary_cross_entropy_with_logits", smaller=halve("rows"))
def binary_cross_entropy_with_logits(draw: Draw, *, rows: int, width: int) -> Sample:
    target = draw.tensor(rows, width, low=0, grad=False)
    return Sample(f"{rows} x {width}", (draw.tensor(rows, width, low=-4, high=4), target))


@operator("kl_div", smaller=halve("rows"))
def kl_div(draw: Draw, *, rows: int, classes: int) -> Sample:
    target = draw.tensor(rows, classes, low=-4, high=0, grad=False)
    kwargs = {"reduction": "batchmean", "log_target": True}
    return Sample(f"{rows} x {classes}", (draw.tensor(rows, classes, low=-4, high=0), target), kwargs)
