"""Charts with a lane for each provider under each op: speed-ups, memory and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from warpwright.bench.report.axes import Chart, around_one, line, log_range, rounded, text, ticks
from warpwright.bench.report.data import Data, Entry, Standing, directions, split, standing
from warpwright.bench.report.style import DIRECTIONS, exact, looks, number, short, times
from warpwright.bench.statistics import median


@dataclass(frozen=True)
class _Lane:
    y: float
    provider: str
    label: str
    entries: list[Entry]


_ALL = "all cases"

#: Height of a lane in pixels, and the room between groups of them.
_LANE, _GAP = 17, 0.7


def _lanes(groups: dict[str, list[Entry]], providers: Sequence[str]) -> tuple[list[_Lane], dict[str, float], float]:
    """Lanes, the height of each group's label, and the height of all."""
    lanes, labels, y = [], {}, 0.0
    for label, entries in groups.items():
        own = [p for p in providers if any(e.row.provider == p for e in entries)]
        for i, provider in enumerate(own):
            lanes.append(_Lane(y + i, provider, label, [e for e in entries if e.row.provider == provider]))
        labels[label] = y + (len(own) - 1) / 2
        y += len(own) + _GAP
    return lanes, labels, y - _GAP


def _lane_layout(
    labels: dict[str, float], height: float, notes: list[dict[str, Any]], xaxis: dict[str, Any]
) -> dict[str, Any]:
    longest = max((len(n["text"]) for n in notes), default=0)
    return {
        "height": round(height * _LANE + 75),
        "margin": {"r": 14 + 6.6 * longest, "t": 8},
        "xaxis": {"type": "log", **xaxis},
        "yaxis": {
            "tickvals": list(labels.values()),
            "ticktext": [f"<b>{text(label)}</b>" if label == _ALL else text(label) for label in labels],
            "showgrid": False,
            "range": [height - 0.3, -0.7], "fixedrange": True,
        },
        "shapes": [line("x", 1)],
        "annotations": notes,
    }  # fmt: skip


def _note(lane: _Lane, words: str) -> dict[str, Any]:
    """Beside the lane, on the right."""
    return {"text": words, "name": text(lane.provider), "x": 1, "xref": "paper", "xanchor": "left", "xshift": 6,
            "y": lane.y, "showarrow": False, "font": {"size": 12}}  # fmt: skip


def _spread(count: int, room: float = 0.3) -> list[float]:
    """Offsets that keep dots apart, the same every time."""
    return [room * (((i * 0.618034) % 1) * 2 - 1) for i in range(count)]


def _dots(lanes: Sequence[_Lane], value: Callable[[Entry], float | None], data: Data) -> list[dict[str, Any]]:
    """A dot for each entry that has a value: hollow when timed, a cross when wrong."""
    styles = looks(data.providers)
    traces = []
    for provider in data.providers:
        x: list[float] = []
        y: list[float] = []
        entries: list[Entry] = []
        for lane in lanes:
            own = [e for e in lane.entries if value(e) is not None] if lane.provider == provider else []
            x += [rounded(value(e) or 0) for e in own]
            y += [rounded(lane.y + offset, 4) for offset in _spread(len(own))]
            entries += own
        if entries:
            colour = styles[provider].colour
            wrong = [e.row.status == "wrong" for e in entries]
            traces.append({
                "type": "scatter", "mode": "markers", "meta": text(provider), "customdata": [e.number for e in entries],
                "x": x, "y": y,
                "marker": {
                    "color": [colour if w else "#FFFFFF" for w in wrong] if any(wrong) else "#FFFFFF",
                    "line": {"color": colour, "width": 1.5},
                    "size": [9 if w else 6 for w in wrong] if any(wrong) else 6,
                    "symbol": ["x" if w else "circle" for w in wrong] if any(wrong) else "circle",
                },
            })  # fmt: skip
    return traces


def _op_and_dtype(entry: Entry) -> str:
    return f"{entry.row.op} {short(entry.row.dtype)}"


def speedups(data: Data, machine: str, suite: str) -> list[Chart]:
    """One chart a direction: the geometric mean of each op as a bar, and every case as a dot."""
    entries = [e for e in data.current if e.machine == machine and e.row.suite == suite]
    return [
        chart
        for direction in directions(entries)
        if (chart := _speedup(data, suite, direction, [e for e in entries if e.row.direction == direction]))
    ]


def _speedup(data: Data, suite: str, direction: str, entries: list[Entry]) -> Chart | None:
    providers = [p for p in data.providers if p != data.baseline and any(e.row.provider == p for e in entries)]
    ratios = [e.row.ratio for e in entries if e.row.ratio and e.row.provider != data.baseline]
    if not providers or not ratios:
        return None
    groups = split(entries, _op_and_dtype)
    if len(groups) > 1:
        groups = {_ALL: entries, **groups}
    lanes, labels, height = _lanes(groups, providers)
    styles = looks(data.providers)
    traces, notes, words = [], [], []
    for provider in providers:
        bars = [(lane, standing(lane.entries, provider)) for lane in lanes if lane.provider == provider]
        drawn = [(lane, found) for lane, found in bars if found.mean]
        traces.append({
            "type": "bar", "orientation": "h", "meta": text(provider), "base": [1] * len(drawn),
            "x": [rounded(found.mean - 1) for _, found in drawn], "y": [lane.y for lane, _ in drawn], "width": 0.86,
            "marker": {"color": styles[provider].colour}, "hoverinfo": "text",
            "hovertext": [text(_mean_in_words(lane, found)) for lane, found in drawn],
        })  # fmt: skip
        for lane, found in bars:
            notes.append(_note(lane, ", ".join([*([times(found.mean)] if found.mean else []), *found.troubles])))
        words.append(_mean_in_words(*bars[0]))
    traces += _dots([lane for lane in lanes if lane.label != _ALL], lambda e: e.row.ratio, data)
    low, high = min(0.95, *ratios) / 1.03, max(1.05, *ratios) * 1.03
    layout = _lane_layout(labels, height, notes, {
        "title": {"text": f"times as fast as {text(data.baseline)}"}, "range": log_range(low, high, 0.02),
        **ticks(around_one(low, high), lambda t: f"{exact(t)}×"),
    })  # fmt: skip
    alt = f"Speed-ups of suite {suite}, {DIRECTIONS[direction]}, over {data.baseline}: {'; '.join(words)}."
    return Chart(DIRECTIONS[direction], alt, {"data": [t for t in traces if t["x"]], "layout": layout})


def _mean_in_words(lane: _Lane, found: Standing) -> str:
    if not found.entries:
        return f"{lane.provider}, {lane.label}: nothing timed"
    ratios = [e.row.ratio for e in found.entries]
    cases = f"{len(ratios)} case{'' if len(ratios) == 1 else 's'}"
    return (
        f"{lane.provider}, {lane.label}: {times(found.mean)} over {cases}, {times(min(ratios))} to {times(max(ratios))}"
    )


def _middle(lanes: Sequence[_Lane], value: Callable[[Entry], float | None], data: Data) -> list[dict[str, Any]]:
    """From the smallest to the largest value a line, and at the median a mark."""
    styles = looks(data.providers)
    traces = []
    for provider in data.providers:
        x: list[float | None] = []
        y: list[float | None] = []
        middle: list[tuple[float, float]] = []
        for lane in lanes:
            values = [v for e in lane.entries if (v := value(e)) is not None] if lane.provider == provider else []
            if values:
                x += [rounded(min(values)), rounded(max(values)), None]
                y += [lane.y, lane.y, None]
                middle.append((rounded(median(values)), lane.y))
        if middle:
            colour = styles[provider].colour
            both = {"type": "scatter", "meta": text(provider), "hoverinfo": "skip"}
            traces.append({**both, "mode": "lines", "x": x, "y": y, "line": {"color": colour, "width": 2}})
            marker = {"symbol": "line-ns-open", "size": 14, "color": colour, "line": {"width": 4}}
            traces.append({**both, "mode": "markers", "x": [m for m, _ in middle], "y": [y for _, y in middle],
                           "marker": marker})  # fmt: skip
    return traces


def _strip(
    data: Data, entries: list[Entry], value: Callable[[Entry], float | None], title: str, axis: str, unit: str
) -> Chart | None:
    """Values by op, dtype and provider on a logarithmic axis, where 1 means something."""
    known = [e for e in entries if value(e) is not None]
    if not known:
        return None
    values = [v for e in known if (v := value(e)) is not None]
    lanes, labels, height = _lanes(split(known, _op_and_dtype), data.providers)
    low, high = min(0.5, *values) / 1.1, max(1.5, *values) * 1.1
    notes, words = [], []
    for lane in lanes:
        notes.append(_note(lane, number(median([value(e) or 0 for e in lane.entries]), 2) + unit))
    for provider, own in split(known, lambda e: e.row.provider).items():
        found = [value(e) or 0 for e in own]
        words.append(
            f"{provider}: median {number(median(found), 3)}, {number(min(found), 3)} to {number(max(found), 3)}"
        )
    layout = _lane_layout(labels, height, notes, {
        "title": {"text": text(axis)}, "range": log_range(low, high, 0.02),
        **ticks(around_one(low, high), lambda t: exact(t) + unit),
    })  # fmt: skip
    figure = {"data": [*_middle(lanes, value, data), *_dots(lanes, value, data)], "layout": layout}
    return Chart(title, f"{title}, {axis}: {'; '.join(words)}.", figure)


def _within(value: float, low: float, high: float) -> float:
    """The nearest value that can be drawn; a NaN is as bad as can be."""
    return high if math.isnan(value) else min(max(value, low), high)


def memory(data: Data, machine: str) -> Chart | None:
    """Peak memory beside the baseline's; None where it was not measured."""
    entries = [e for e in data.current if e.machine == machine and e.row.peak_memory is not None]
    base = {e.row.group: e.row.peak_memory for e in entries if e.row.provider == data.baseline}

    def relative(entry: Entry) -> float | None:
        least = base.get(entry.row.group)
        if least is None or entry.row.provider == data.baseline:
            return None
        # CUDA hands memory out in blocks of 512 bytes: less is as good as nothing.
        return _within(max(entry.row.peak_memory, 512) / max(least, 512), 1 / 64, 64)

    chart = _strip(data, entries, relative, "Peak memory", f"relative to {data.baseline}", "×")
    alone = sum(e.row.group not in base for e in entries)
    if chart is None or not alone:
        return chart
    return replace(chart, note=f"{alone} rows have no measured {data.baseline} beside them.")


def errors(data: Data, machine: str) -> Chart | None:
    """Error relative to what is allowed; None where nothing was compared."""
    entries = [e for e in data.current if e.machine == machine and e.row.error is not None]
    return _strip(
        data, entries, lambda e: None if e.row.error is None else _within(e.row.error, 1 / 64, 64),
        "Error against float64", "largest error / allowed error", "",
    )  # fmt: skip
