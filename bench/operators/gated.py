"""Gated projections and MLPs: `rows` tokens of `width` features, `hidden` between."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import Activation, draw_weight, halve_largest, suffix
from warpwright.testing import Sample


def _projections(draw: Draw, rows: int, hidden: int, width: int, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and the weights of gate and up, which may be the halves of one tensor."""
    tokens, both = draw.tensor(rows, width), draw_weight(draw, 2 * hidden, width, fan_in=width).detach()
    gate, up = both.chunk(2) if packed else (half.clone() for half in both.chunk(2))
    return tokens, gate.requires_grad_(), up.requires_grad_()


@operator("linear_swiglu", smaller=halve_largest("rows", "hidden"))
def linear_swiglu(
    draw: Draw, *, rows: int, hidden: int, width: int, bias: bool = False, packed: bool = False
) -> Sample:
    biases = (draw.tensor(hidden), draw.tensor(hidden)) if bias else ()
    label = f"{rows} x {hidden} x {width}{suffix(bias=bias)}{', packed' if packed else ''}"
    return Sample(label, (*_projections(draw, rows, hidden, width, packed), *biases))


@operator("linear_geglu", smaller=halve_largest("rows", "hidden"))
def linear_geglu(
    draw: Draw, *, rows: int, hidden: int, width: int, approximate: Literal["none", "tanh"] = "none"
) -> Sample:
    named = None if approximate == "none" else approximate
    args = _projections(draw, rows, hidden, width, packed=False)
    return Sample(f"{rows} x {hidden} x {width}{suffix(approximate=named)}", args, {"approximate": approximate})


@operator("linear_glu", smaller=halve_largest("rows", "hidden"))
def linear_glu(draw: Draw, *, rows: int, hidden: int, width: int, activation: Activation = "sigmoid") -> Sample:
    args = _projections(draw, rows, hidden, width, packed=False)
    return Sample(f"{rows} x {hidden} x {width}{suffix(activation=activation)}", args, {"activation": activation})


@operator("mlp", smaller=halve_largest("rows", "hidden"))
def mlp(
    draw: Draw,
    *,
    rows: int,
    hidden: int,
    width: int,
    gated: bool = True,
    bias: bool = False,
    residual: bool = False,
    activation: Activation = "silu",
) -> Sample:
    tokens, gate, up = _projections(draw, rows, hidden, width, packed=False)
    down = draw_weight(draw, width, hidden, fan_in=hidden)
    kwargs: dict[str, Any] = {"activation": activation}
    if gated:
        kwargs["gate_weight"] = gate
    if bias:
        kwargs |= {"up_bias": draw.tensor(hidden), "down_bias": draw.tensor(width)}
    if residual:
        kwargs["residual"] = draw.tensor(rows, width)
    label = f"{rows} x {hidden} x {width}{suffix(gate=gated, bias=bias, residual=residual, activation=activation)}"
    return Sample(label, (tokens, up, down), kwargs)
