"""Losses: `rows` targets among `classes`."""

from __future__ import annotations

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import draw_weight, halve_largest
from warpwright.testing import Sample


@operator("cross_entropy", smaller=halve("rows"))
def cross_entropy(draw: Draw, *, rows: int, classes: int, label_smoothing: float = 0.0) -> Sample:
    args = (draw.tensor(rows, classes, low=-4, high=4), draw.integers(rows, low=0, high=classes))
    if not label_smoothing:
        return Sample(f"{rows} x {classes}", args)
    label = f"{rows} x {classes}, smoothing {label_smoothing:g}"
    return Sample(label, args, {"label_smoothing": label_smoothing})


@operator("linear_cross_entropy", smaller=halve_largest("rows", "classes"))
def linear_cross_entropy(draw: Draw, *, rows: int, width: int, classes: int) -> Sample:
    weight = draw_weight(draw, classes, width, fan_in=width)
    return Sample(
        f"{rows} x {width} -> {classes}",
        (draw.tensor(rows, width), weight, draw.integers(rows, low=0, high=classes)),
    )
