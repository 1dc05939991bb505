"""How providers and numbers look: the same everywhere on the page, in the PNGs and in the demo's report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Where the page's template, styles and scripts are; the demo's page includes some of them.
FOLDER = Path(__file__).parent

#: Okabe and Ito's colours, which everyone tells apart, and grey; those that show on white and on black.
_BLUE, _GREEN, _VERMILLION, _ORANGE, _PURPLE, _SKY, _GREY = (
    "#0072B2", "#009E73", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#8A8F98",
)  # fmt: skip

_KNOWN = {
    "torch": _BLUE, "compile": _GREEN, "warpwright": _VERMILLION, "warpwright-cpu": _VERMILLION,
    "warpwright-cuda": _VERMILLION, "warpwright-triton": _ORANGE,
}  # fmt: skip
_OTHERS = (_PURPLE, _SKY, _GREY, _ORANGE, _GREEN, _BLUE, _VERMILLION)

#: Plotly's name, Matplotlib's and the character; where colours repeat, these differ.
_SYMBOLS = (
    ("circle", "o", "●"), ("square", "s", "■"), ("diamond", "D", "◆"), ("triangle-up", "^", "▲"),
    ("triangle-down", "v", "▼"), ("star", "*", "★"), ("cross", "P", "✚"), ("hexagon", "h", "⬢"),
)  # fmt: skip

_DTYPES = {
    "float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8 e4m3",
    "float8_e5m2": "fp8 e5m2",
}  # fmt: skip

DIRECTIONS = {"forward": "forward", "backward": "backward", "both": "forward and backward"}


@dataclass(frozen=True)
class Look:
    """A provider's colour, and its symbol in Plotly, in Matplotlib and as a character."""

    colour: str
    symbol: str
    marker: str
    character: str


def looks(providers: Iterable[str]) -> dict[str, Look]:
    """Each provider's look. PyTorch and warpwright have the same on every page, others in alphabetical order."""
    names = list(dict.fromkeys(providers))
    order = [name for name in _KNOWN if name in names] + sorted(set(names) - set(_KNOWN))
    others = 0
    found = {}
    for i, name in enumerate(order):
        colour = _KNOWN.get(name)
        if colour is None:
            colour = _OTHERS[others % len(_OTHERS)]
            others += 1
        found[name] = Look(colour, *_SYMBOLS[i % len(_SYMBOLS)])
    return found


def short(dtype: str) -> str:
    """ "bf16" for "bfloat16"."""
    return _DTYPES.get(dtype, dtype)


def number(value: float | None, digits: int = 4) -> str:
    """To so many significant digits, never with an exponent for what people read: "12,300", "0.0123"; "" for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.2g}" if places > digits + 4 else f"{round(value, places):,.{max(0, min(places, digits + 4))}f}"


def exact(value: float) -> str:
    """A number that stands for itself: "16,384", "0.5"."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def seconds(value: float) -> str:
    """ "20 µs" for 2e-5."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def rate(value: float, unit: str) -> str:
    """ "4.3 TB/s" for 4.3e12 of "B/s"."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{number(value / factor, 3)} {prefix}{unit}"
    return f"{number(value, 3)} {unit}"


def times(ratio: float) -> str:
    """ "1.42x", with the sign that people write."""
    return f"{number(ratio, 3)}×"
