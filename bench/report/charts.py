"""The roofline and the scaling curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from warpwright.bench.report.axes import GREY, Chart, apart, decades, log_range, rounded, text, ticks
from warpwright.bench.report.data import Curve, Data, Entry
from warpwright.bench.report.style import DIRECTIONS, Look, exact, looks, number, rate, seconds, short

# ---- roofline ----


def roofline(data: Data, machine: str, dtype: str) -> Chart | None:
    """Throughput over arithmetic intensity, under what this machine reached; None where no work is known."""
    entries = [e for e in data.current if e.machine == machine and e.row.dtype == dtype and e.row.status == "timed"]
    known = [e for e in entries if e.row.tflops and e.row.bytes]
    if not known:
        return None
    intensity = [e.row.flops / e.row.bytes for e in known]
    reached = [e.row.tflops for e in known]
    copy = data.ceilings.get((machine, "copy", ""))
    product = data.ceilings.get((machine, "matmul", dtype))
    low, high = min(intensity) / 1.5, max(intensity) * 1.5
    if copy and product:
        low, high = min(low, product / copy / 4), max(high, product / copy * 4)
    roof = _roof(low, high, copy, product)
    traces = [
        {
            "type": "scatter", "mode": "lines", "x": [rounded(x) for x, _ in roof], "y": [rounded(y) for _, y in roof],
            "line": {"color": GREY, "width": 2}, "hoverinfo": "skip",
        }
    ] * bool(roof)  # fmt: skip
    traces += _points(known, intensity, reached, looks(data.providers), data.providers)
    bottom, top = min(reached) / 1.2, max([y for _, y in roof] + reached) * 1.2
    figure = {
        "data": traces,
        "layout": {
            "height": 420,
            "xaxis": {"type": "log", "title": {"text": "FLOP / byte"}, "range": log_range(low, high, 0),
                      **ticks(decades(low, high), exact)},
            "yaxis": {"type": "log", "title": {"text": "TFLOP/s"}, "range": log_range(bottom, top, 0),
                      **ticks(decades(bottom, top), exact)},
        },
    }  # fmt: skip
    words = [
        f"copy {rate(copy, 'B/s')}" if copy else "",
        f"matrix product {rate(product, 'FLOP/s')}" if product else "",
    ]
    best = max(known, key=lambda e: e.row.ceiling or 0)
    ceilings = ", ".join(filter(None, words))
    alt = f"Roofline of {short(dtype)} on {machine}: {len(known)} points; ceilings: {ceilings or 'none'}."
    if best.row.ceiling:
        row = best.row
        alt += f" Nearest to a ceiling: {row.provider} on {row.op} {row.case}, {number(100 * row.ceiling, 3)} % of it."
    left = len(entries) - len(known)
    note = f"Not drawn, without a count of operations: {left} timed." if left else None
    return Chart(short(dtype), alt, figure, about=ceilings, note=note)


def _roof(low: float, high: float, copy: float | None, product: float | None) -> list[tuple[float, float]]:
    """The corners of the roof in TFLOP/s, from left to right."""
    roof: list[tuple[float, float]] = []
    ridge = product / copy if copy and product else high if copy else low
    if copy:
        roof += [(low, low * copy / 1e12), (ridge, ridge * copy / 1e12)]
    if product:
        roof += [(ridge, product / 1e12), (high, product / 1e12)]
    return roof


def _points(
    entries: Sequence[Entry], x: Sequence[float], y: Sequence[float], styles: dict[str, Look], providers: Sequence[str]
) -> list[dict[str, Any]]:
    """One trace a provider."""
    traces = []
    for provider in providers:
        own = [i for i, e in enumerate(entries) if e.row.provider == provider]
        if own:
            look = styles[provider]
            traces.append({
                "type": "scatter", "mode": "markers", "meta": text(provider),
                "customdata": [entries[i].number for i in own],
                "x": [rounded(x[i]) for i in own], "y": [rounded(y[i]) for i in own],
                "marker": {"color": look.colour, "symbol": look.symbol, "size": 7, "opacity": 0.75},
            })  # fmt: skip
    return traces


# ---- scaling ----


def scaling(data: Data, curves: Sequence[Curve]) -> Chart:
    """Time and throughput as one parameter grows; `curves` have the same varying parameter, and others fixed."""
    first = curves[0]
    figures = [(curve.fixed, _growth(data, curve)) for curve in curves]
    title = f"{short(first.dtype)}, {DIRECTIONS[first.direction]}"
    words = []
    for provider, line in first.points.items():
        (_, a), (_, b) = line[0], line[-1]
        words.append(f"{provider} from {number(a.row.p50 * 1e6)} to {number(b.row.p50 * 1e6)} µs")
    values = [value for line in first.points.values() for value, _ in line]
    at = f"at {first.fixed}" if first.fixed else ""
    span = f"{first.varying} from {exact(min(values))} to {exact(max(values))} {at}".rstrip()
    alt = f"Time and throughput of {first.op}, {title}, for {span}: {'; '.join(words)}."
    if len(figures) > 1:
        return Chart(title, alt, figures[0][1], choices=figures)
    return Chart(title, alt, figures[0][1], about=at)


def _growth(data: Data, curve: Curve) -> dict[str, Any]:
    styles = looks(data.providers)
    rows = [e.row for line in curve.points.values() for _, e in line]
    compute = sum(r.bound == "compute" for r in rows) > len(rows) / 2
    unit = "TFLOP/s" if compute and all(r.tflops for r in rows) else "GB/s"
    traces = []
    for provider in data.providers:
        line = curve.points.get(provider)
        if not line:
            continue
        look = styles[provider]
        both = {
            "type": "scatter", "mode": "lines+markers", "meta": text(provider),
            "customdata": [e.number for _, e in line], "x": [v for v, _ in line],
            "line": {"color": look.colour, "width": 1.5},
            "marker": {"symbol": look.symbol, "size": 6, "color": look.colour},
        }  # fmt: skip
        traces.append({**both, "y": [rounded(e.row.p50) for _, e in line]})
        rates = [e.row.tflops if unit == "TFLOP/s" else e.row.gbytes for _, e in line]
        if any(r is not None for r in rates):
            traces.append({**both, "y": [r and rounded(r) for r in rates], "yaxis": "y2"})
    values = sorted({v for line in curve.points.values() for v, _ in line})
    low, high = min(r.p50 for r in rows) / 1.05, max(r.p50 for r in rows) * 1.05
    has_rate = any("yaxis" in t for t in traces)
    layout: dict[str, Any] = {
        "height": 360 if has_rate else 230,
        "margin": {"t": 8, "r": 10, "l": 58},
        "xaxis": {"type": "log", "title": {"text": text(curve.varying)}, "range": log_range(values[0], values[-1], 0.1),
                  "anchor": "y2" if has_rate else "y", **ticks(apart(values), exact)},
        "yaxis": {"type": "log", "title": {"text": "time"}, "range": log_range(low, high, 0.08),
                  "domain": [0.54, 1] if has_rate else [0, 1], **ticks(decades(low, high), seconds)},
    }  # fmt: skip
    if has_rate:
        layout["yaxis2"] = {"title": {"text": unit}, "domain": [0, 0.46], "rangemode": "tozero", "nticks": 5}
    return {"data": traces, "layout": layout}
