"""The summary charts as PNGs for a README: the same bytes for the same rows and Matplotlib, the rows' hash inside."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from warpwright.bench.report.data import Data, Entry, chosen, directions, gather, split, standing
from warpwright.bench.report.style import DIRECTIONS, exact, looks, rate, short, times
from warpwright.bench.rows import Results

#: The key of the hash in the PNG's text.
HASH_KEY = "warpwright-rows"

#: A README is some 900 pixels wide; twice that is sharp on every screen.
_WIDTH, _DPI = 8.0, 200

# White paper of its own: GitHub shows the same file on white and on black.
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": "#8A8F98", "axes.labelcolor": "#1B1F24",
    "text.color": "#1B1F24", "xtick.color": "#1B1F24", "ytick.color": "#1B1F24", "axes.grid": True,
    "grid.color": "#D6DAE0",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white", "axes.facecolor": "white",
}  # fmt: skip


def rows_hash(results: Sequence[Results]) -> str:
    """A hash of all rows and ceilings, in their order: the same after they were written and read, and when rows have
    got a field that these do not have."""
    records = [
        [{key: value for key, value in row.as_dict().items() if value is not None} for row in found.rows]
        + [asdict(c) for c in found.ceilings]
        for found in results
    ]
    text = json.dumps(records, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def png_hash(path: Path) -> str | None:
    """The hash of the rows that a PNG was made from; None where it has none."""
    from PIL import Image

    with Image.open(path) as image:
        return getattr(image, "text", {}).get(HASH_KEY)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unnamed"


def write_pngs(results: Sequence[Results], folder: Path) -> list[Path]:
    """Writes a chart of speed-ups for each suite and machine, and a roofline for each machine.

    Args:
        results: from `read_results` or `collect`; at least one row among them.
        folder: made where there is none.

    Returns:
        The files: speedup-<suite>-<machine>.png and roofline-<machine>.png.

    Raises:
        RuntimeError: no rows, or Matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(f"warpwright: bench: report: needs {error.name} (pip install 'warpwright[bench]')") from None
    data = gather(results)
    stamp = {"Software": None, HASH_KEY: rows_hash(results)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []

    def save(figure: Figure, name: str) -> None:
        path = folder / f"{name}.png"
        if path in paths:
            raise RuntimeError(
                f"warpwright: bench: report: two suites or machines would both be written to {path.name}"
            )
        figure.savefig(path, dpi=_DPI, metadata=stamp)
        paths.append(path)

    with mpl.rc_context(_STYLE):
        for (machine, suite), entries in split(data.current, lambda e: (e.machine, e.row.suite)).items():
            if any(e.row.ratio for e in entries if e.row.provider != data.baseline):
                save(_speedups(data, suite, machine, entries), f"speedup-{_slug(suite)}-{_slug(machine)}")
        for machine in data.machines:
            own = [e for e in data.current if e.machine == machine and e.row.tflops and e.row.bytes]
            if own:
                save(_rooflines(data, machine, own), f"roofline-{_slug(machine)}")
    return paths


def _label(entry: Entry) -> str:
    return f"{entry.row.op} {short(entry.row.dtype)}"


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _legend(figure: Any, data: Data, providers: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    styles = looks(data.providers)
    marks = [Line2D([], [], linestyle="", marker=styles[p].marker, color=styles[p].colour, label=p) for p in providers]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(5, len(marks)), frameon=False)


def _speedups(data: Data, suite: str, machine: str, entries: Sequence[Entry]) -> Any:
    """Bars of geometric means with every case as a dot; a column of axes for each direction."""
    found = directions(entries)
    labels = chosen(_label(e) for e in entries)
    providers = [p for p in data.providers if p != data.baseline and any(e.row.provider == p for e in entries)]
    figure = _figure(1.3 + 0.16 * len(labels) * (len(providers) + 0.6))
    columns = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    for axes, direction in zip(columns, found, strict=True):
        own = [e for e in entries if e.row.direction == direction]
        _bars(axes, data, labels, providers, own)
        axes.set_title(DIRECTIONS[direction], fontsize=9)
    ratios = [e.row.ratio for e in entries if e.row.ratio]
    low, high = min(0.95, *ratios), max(1.05, *ratios)
    # Shared by all columns; on the right there is room for the numbers.
    columns[0].set_xlim(low / 1.03, high * (high / low) ** 0.4)
    columns[0].invert_yaxis()
    figure.suptitle(f"{suite}: times as fast as {data.baseline}, {machine}", fontsize=10, parse_math=False)
    _legend(figure, data, providers)
    return figure


def _bars(axes: Any, data: Data, labels: Sequence[str], providers: Sequence[str], entries: Sequence[Entry]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    styles = looks(data.providers)
    height = 0.86 / len(providers)
    for k, provider in enumerate(providers):
        for i, label in enumerate(labels):
            cases = standing([e for e in entries if _label(e) == label], provider)
            place = i + (k - (len(providers) - 1) / 2) * height
            ratios = [e.row.ratio for e in cases.entries]
            if cases.mean is not None:
                colour = styles[provider].colour
                axes.barh(place, cases.mean - 1, height * 0.92, left=1, color=colour)
                axes.plot(ratios, [place] * len(ratios), "o", ms=2.2, mfc="white", mec=colour, mew=0.6)
            words = ", ".join([*([times(cases.mean)] if cases.mean else []), *cases.troubles])
            where = (max([1.0, *ratios]), place)
            axes.annotate(words, where, (4, 0), textcoords="offset points", va="center", fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1, color="#59616B", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{exact(value)}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _rooflines(data: Data, machine: str, entries: Sequence[Entry]) -> Any:
    """A panel for each dtype."""
    dtypes = chosen(e.row.dtype for e in entries)
    across = min(2, len(dtypes))
    down = math.ceil(len(dtypes) / across)
    figure = _figure(0.8 + 3.2 * down)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    styles = looks(data.providers)
    providers = [p for p in data.providers if any(e.row.provider == p for e in entries)]
    intensities = [e.row.flops / e.row.bytes for e in entries]
    for axes, dtype in zip(panels, dtypes, strict=False):
        copy, product = data.ceilings.get((machine, "copy", "")), data.ceilings.get((machine, "matmul", dtype))
        low, high = min(intensities) / 1.5, max(intensities) * 1.5
        ridge = product / copy if copy and product else high
        if copy:
            axes.plot([low, ridge], [low * copy / 1e12, ridge * copy / 1e12], color="#59616B", linewidth=1.2)
        if product:
            axes.plot(
                [ridge if copy else low, max(high, ridge * 2)], [product / 1e12] * 2, color="#59616B", linewidth=1.2
            )
        for provider in providers:
            own = [e.row for e in entries if e.row.provider == provider and e.row.dtype == dtype]
            axes.plot([r.flops / r.bytes for r in own], [r.tflops for r in own], linestyle="", ms=4, alpha=0.75, mew=0,
                      marker=styles[provider].marker, color=styles[provider].colour)  # fmt: skip
        roofs = [
            f"copy {rate(copy, 'B/s')}" if copy else "",
            f"matrix product {rate(product, 'FLOP/s')}" if product else "",
        ]
        axes.set_title(
            "\n".join(filter(None, (short(dtype), ", ".join(filter(None, roofs))))), fontsize=8, parse_math=False
        )
        axes.set(xscale="log", yscale="log", xlabel="FLOP / byte")
    for axes in list(panels)[len(dtypes):]:  # fmt: skip
        axes.set_visible(False)
    figure.axes[0].set_ylabel("TFLOP/s")
    figure.suptitle(machine, fontsize=10, parse_math=False)
    _legend(figure, data, providers)
    return figure
