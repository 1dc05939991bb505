"""What all charts of the page are made of, as the JSON that Plotly draws: text, and axes with ticks that people read.

Colours of text, grid and paper are left to the page's style, which knows light, dark and print. A trace's `meta` is its
provider, and its `customdata` the table lines of its points: the page's script makes what is shown under the pointer
from them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Lines and ticks, seen on white and on black.
GREY = "#7D838C"


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        title: above it.
        alt: what it shows, in words.
        figure: data and layout for Plotly.
        about: beside the title, or None.
        choices: (what is fixed in it, figure) of several alternatives, the figure itself first; empty without any.
        note: what is not in it, or None.
    """

    title: str
    alt: str
    figure: dict[str, Any]
    about: str | None = None
    choices: Sequence[tuple[str, dict[str, Any]]] = ()
    note: str | None = None


def text(value: str) -> str:
    """For Plotly, which reads tags in text."""
    return html.escape(value, quote=False)


def rounded(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def log_range(low: float, high: float, margin: float = 0.06) -> list[float]:
    """The range of a logarithmic axis."""
    a, b = math.log10(low), math.log10(high)
    return [rounded(a - margin * (b - a), 4), rounded(b + margin * (b - a), 4)]


def _powers(low: float, high: float, base: float) -> list[float]:
    """Powers of `base` from low to high, at most seven."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    step = max(1, math.ceil((last - first) / 6))
    return [rounded(base**k) for k in range(first, last + 1) if k % step == 0]


def around_one(low: float, high: float) -> list[float]:
    """Ticks of an axis of ratios: powers of two, or finer steps where those are too few."""
    ticks = _powers(low, high, 2.0)
    for step in (0.5, 0.25, 0.1, 0.05, 0.02):
        if len(ticks) >= 4:
            break
        ticks = [rounded(k * step) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return ticks if len(ticks) <= 9 else ticks[:: math.ceil(len(ticks) / 9)]


def apart(values: Sequence[float], share: float = 0.15) -> list[float]:
    """Ticks at some of these values, from the largest down, so far apart on a logarithmic axis that labels fit."""
    least = share * math.log(values[-1] / values[0])
    found = [values[-1]]
    for value in reversed(values):
        if math.log(found[-1] / value) >= least:
            found.append(value)
    return found[::-1]


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, or 1, 2 and 5 times them where those are too few."""
    tens = _powers(low, high, 10.0)
    if len(tens) >= 4:
        return tens
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [rounded(m * 10.0**k) for k in range(first, last + 1) for m in (1, 2, 5)]
    inside = [t for t in ticks if low <= t <= high]
    return inside if len(inside) <= 6 or len(tens) < 2 else tens


def ticks(values: Sequence[float], words: Callable[[float], str]) -> dict[str, Any]:
    return {"tickvals": list(values), "ticktext": [words(v) for v in values]}


def line(axis: str, at: float) -> dict[str, Any]:
    """A line across the chart at x or y = `at`."""
    other = "y" if axis == "x" else "x"
    place = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    return {"type": "line", "line": {"color": GREY, "width": 1.5}, **place}
