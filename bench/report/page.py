"""The page: one HTML file with its styles, scripts and data inside, which asks no network for anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warpwright.bench.report import charts, lanes
from warpwright.bench.report.axes import Chart
from warpwright.bench.report.data import Data, Entry, chosen, curves, dig, gather, split, standing, verdict
from warpwright.bench.report.style import FOLDER, exact, looks, number, times
from warpwright.bench.rows import Results, Row

_ARROWS = {"faster": "▲", "slower": "▼", "alike": "≈", "": ""}


def _interval(low: float | None, high: float | None, factor: float = 1.0) -> str:
    return "" if low is None or high is None else f"{number(low * factor)} – {number(high * factor)}"


def _scaled(value: float | None, factor: float, digits: int = 4) -> str:
    return "" if value is None else number(value * factor, digits)


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{_ARROWS[verdict(row)]} {times(row.ratio)}"


def _notes(entry: Entry) -> str:
    row = entry.row
    notes = [
        row.reason,
        "stale: the kernel's sources have changed since" if entry.stale else None,
        "older: measured again later" if entry.older else None,
        "not settled: time ran out" if row.settled is False else None,
        f"checked at {row.checked}" if row.checked else None,
    ]
    return "; ".join(filter(None, notes))


@dataclass(frozen=True)
class Column:
    """One column of the large table: its key for the scripts, its title, what it means, its text."""

    key: str
    title: str
    about: str
    text: Callable[[Entry], str]
    number: bool = False


COLUMNS = (
    Column("suite", "suite", "", lambda e: e.row.suite),
    Column("op", "op", "", lambda e: e.row.op),
    Column("case", "case", "", lambda e: e.row.case),
    Column("dtype", "dtype", "", lambda e: e.row.dtype),
    Column("direction", "direction", "", lambda e: e.row.direction),
    Column("provider", "provider", "", lambda e: e.row.provider),
    Column("status", "status", "timed, wrong, failed or missing", lambda e: e.row.status),
    Column("p50", "p50, µs", "median time of a call", lambda e: _scaled(e.row.p50, 1e6), True),
    Column("interval", "95 %, µs", "confidence interval of p50", lambda e: _interval(e.row.low, e.row.high, 1e6), True),
    Column("ratio", "ratio", "the baseline's time / this time, above 1 is faster", lambda e: _ratio(e.row), True),
    Column("ratios", "95 %, ratio", "confidence interval of the ratio",
           lambda e: _interval(e.row.ratio_low, e.row.ratio_high), True),
    Column("ceiling", "ceiling, %", "share of the measured ceiling", lambda e: _scaled(e.row.ceiling, 100, 3), True),
    Column("tflops", "TFLOP/s", "of the least work", lambda e: number(e.row.tflops), True),
    Column("gbytes", "GB/s", "of the least traffic", lambda e: number(e.row.gbytes), True),
    Column("spread", "p20 – p80, µs", "how calls differ", lambda e: _interval(e.row.p20, e.row.p80, 1e6), True),
    Column("memory", "peak, MB", "memory beside the inputs", lambda e: _scaled(e.row.peak_memory, 1e-6), True),
    Column("loss", "loss", "of training: after a fixed number of steps", lambda e: number(e.row.loss, 4), True),
    Column("host", "host, µs", "the CPU's work for a call", lambda e: _scaled(e.row.host, 1e6), True),
    Column("error", "error", "largest error / allowed error, 1 is the limit", lambda e: number(e.row.error, 2), True),
    Column("note", "note", "", _notes),
    Column("run", "run", "which environment, see the end of the page", lambda e: str(e.run + 1)),
)  # fmt: skip

#: Columns with a choice above the table.
CHOICES = ("suite", "op", "dtype", "direction", "provider", "status", "run")


@dataclass
class _Charts:
    """Hands each chart an id and keeps what the script draws."""

    figures: dict[str, Any] = field(default_factory=dict)

    def place(self, chart: Chart | None) -> dict[str, Any] | None:
        """For the template."""
        if chart is None:
            return None
        name = f"chart-{len(self.figures) + 1}"
        self.figures[name] = [figure for _, figure in chart.choices] or [chart.figure]
        labels = [label for label, _ in chart.choices]
        height = chart.figure["layout"]["height"]
        words = {"title": chart.title, "about": chart.about, "alt": chart.alt, "note": chart.note}
        return {"id": name, "choices": labels, "height": height, **words}

    def section(self, groups: Iterator[tuple[str, Sequence[Chart | None]]]) -> list[dict[str, Any]]:
        """Titles with the charts under them, without those that have none."""
        found = [(title, [self.place(chart) for chart in made if chart is not None]) for title, made in groups]
        return [{"title": title, "charts": placed} for title, placed in found if placed]


def _rooflines(data: Data) -> Iterator[tuple[str, Sequence[Chart | None]]]:
    for machine in data.machines:
        dtypes = chosen(e.row.dtype for e in data.current if e.machine == machine)
        yield machine, [charts.roofline(data, machine, dtype) for dtype in dtypes]


def _speedups(data: Data) -> Iterator[tuple[str, Sequence[Chart | None]]]:
    for (machine, suite), _ in split(data.current, lambda e: (e.machine, e.row.suite)).items():
        title = f"{suite} on {machine}" if len(data.machines) > 1 else suite
        yield title, lanes.speedups(data, machine, suite)


def _scaling(data: Data) -> Iterator[tuple[str, Sequence[Chart | None]]]:
    by_chart: dict[tuple[str, ...], list[Any]] = {}
    for curve in curves(data.current):
        by_chart.setdefault(curve.group, []).append(curve)
    by_title: dict[str, list[Chart]] = {}
    for group, alternatives in by_chart.items():
        title = f"{group[1]} on {group[0]}" if len(data.machines) > 1 else group[1]
        by_title.setdefault(title, []).append(charts.scaling(data, alternatives))
    yield from by_title.items()


def _each_machine(
    data: Data, make: Callable[[Data, str], Chart | None]
) -> Iterator[tuple[str, Sequence[Chart | None]]]:
    for machine in data.machines:
        yield machine, [make(data, machine)]


def _standings(data: Data) -> list[dict[str, Any]]:
    """A line for each machine, suite and provider."""
    lines = []
    for (machine, suite), entries in split(data.current, lambda e: (e.machine, e.row.suite)).items():
        for provider in data.providers:
            if any(e.row.provider == provider for e in entries):
                found = standing(entries, provider)
                lines.append({"machine": machine, "suite": suite, "standing": found, "base": provider == data.baseline})
    return lines


def _troubles(data: Data) -> dict[str, int]:
    counts = Counter(e.row.status for e in data.current)
    found = {status: counts[status] for status in ("wrong", "failed", "missing")}
    found["stale"] = sum(e.stale for e in data.current)
    found["older"] = len(data.entries) - len(data.current)
    found["not settled"] = sum(e.row.settled is False for e in data.current)
    return found


def _with_what(environment: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """One line: where and with what these rows were measured."""
    words = chosen(e.machine for e in entries)
    for label, path in (
        ("driver", ("info", "driver")), ("torch", ("info", "torch")), ("CUDA", ("info", "torch_cuda")),
        ("triton", ("info", "triton")), ("warpwright", ("info", "version")), ("commit", ("info", "commit")),
    ):  # fmt: skip
        value = dig(environment, *path)
        words += [f"{label} {value}"] if value else []
    return ", ".join(words)


def _when(environment: Mapping[str, Any]) -> str:
    return str(dig(environment, "time") or "")


def _run(environment: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    return "; ".join(filter(None, (_with_what(environment, entries), _when(environment))))


def _heads(data: Data, by_run: Mapping[int, Sequence[Entry]]) -> list[str]:
    """The runs in short: those with the same machine and versions in one line."""
    alike: dict[str, list[int]] = {}
    for run, entries in sorted(by_run.items()):
        if run >= 0:
            alike.setdefault(_with_what(data.environments[run], entries), []).append(run)
    lines = []
    for words, runs in alike.items():
        times = sorted(filter(None, (_when(data.environments[run]) for run in runs)))
        span = " to ".join(dict.fromkeys((times[0], times[-1]))) if times else ""
        rows = exact(sum(len(by_run[run]) for run in runs))
        count = f" ({len(runs)} run{'s' if len(runs) > 1 else ''}, {rows} rows)" if len(by_run) > 1 else ""
        lines.append("; ".join(filter(None, (words, span))) + count)
    return lines


def write_report(
    results: Sequence[Results],
    path: Path,
    *,
    title: str | None = None,
    now_sources: Callable[[Row], str | None] | None = None,
) -> Path:
    """Writes one HTML page, which needs nothing else, of what runs have measured.

    Args:
        results: from `read_results` or `collect`; at least one row among them.
        path: of the page; its folder is made.
        title: the heading; by default it names the machines.
        now_sources: the hash that `row.sources` would have if it were measured now, None where that is not known; rows
            with another one are marked as stale.

    Returns:
        `path`.

    Raises:
        RuntimeError: no rows, or Jinja or Plotly is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise RuntimeError(f"warpwright: bench: report: needs {error.name} (pip install 'warpwright[bench]')") from None
    data = gather(results, now_sources)
    made = _Charts()
    sections = {
        "roofline": made.section(_rooflines(data)),
        "speedups": made.section(_speedups(data)),
        "scaling": made.section(_scaling(data)),
        "memory": made.section(_each_machine(data, lanes.memory)),
        "errors": made.section(_each_machine(data, lanes.errors)),
    }
    by_run = split(data.entries, lambda e: e.run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"exact": exact, "times": times, "verdict": verdict}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    page = environment.get_template("page.html.j2").render(
        title=title or f"Benchmarks on {', '.join(data.machines)}",
        data=data,
        looks=looks(data.providers),
        sections=sections,
        figures=made.figures,
        standings=_standings(data),
        troubles=_troubles(data),
        columns=COLUMNS,
        choices=[(i, c, chosen(map(c.text, data.entries))) for i, c in enumerate(COLUMNS) if c.key in CHOICES],
        heads=_heads(data, by_run),
        runs=[(_run(e, by_run.get(i, [])), len(by_run.get(i, [])), e) for i, e in enumerate(data.environments)],
        plotly=get_plotlyjs(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
