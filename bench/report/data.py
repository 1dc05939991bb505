"""What the page and the PNGs show: rows with their machine, and what follows from them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warpwright.bench.rows import DIRECTIONS, Results, Row
from warpwright.bench.statistics import geometric_mean


@dataclass(frozen=True)
class Entry:
    """A row in its place.

    Attributes:
        row: what was measured.
        number: its line in the page's table, from 0.
        run: the index of its environment.
        machine: the processor or GPU that it ran on.
        stale: the kernel's sources are others now.
        older: the same was measured again later, on the same machine; it is shown, and counts no more.
    """

    row: Row
    number: int
    run: int
    machine: str
    stale: bool
    older: bool


@dataclass
class Data:
    """All that was handed in.

    Attributes:
        entries: every row, in the order in which they were given.
        environments: of all results.
        ceilings: (machine, "copy" or "matmul", dtype) -> the most that was reached.
        baseline: the provider that ratios are relative to.
    """

    entries: list[Entry] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[tuple[str, str, str], float] = field(default_factory=dict)
    baseline: str = "torch"

    @property
    def current(self) -> list[Entry]:
        """Entries that were not measured again later."""
        return [e for e in self.entries if not e.older]

    @property
    def machines(self) -> list[str]:
        return list(dict.fromkeys(e.machine for e in self.entries))

    @property
    def providers(self) -> list[str]:
        """The baseline first, then in the order of the rows."""
        found = dict.fromkeys(e.row.provider for e in self.entries)
        return sorted(found, key=lambda name: name != self.baseline)


def dig(value: Any, *path: str) -> Any:
    """value[path[0]][path[1]]...; None where something is missing or of another kind."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def machine_of(environment: Mapping[str, Any], device: str) -> str:
    """The name of what computes, such as "NVIDIA H200" or "AMD EPYC, 2 threads"."""
    if device != "cpu":
        gpus = dig(environment, "info", "gpus")
        first = gpus[0] if isinstance(gpus, list) and gpus else None
        return str(dig(environment, "gpu", "name") or dig(first, "name") or device)
    name = str(dig(environment, "info", "cpu") or device)
    threads = dig(environment, "threads", "threads") or dig(environment, "info", "threads")
    if not isinstance(threads, int) or isinstance(threads, bool):
        return name
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def gather(results: Sequence[Results], now_sources: Callable[[Row], str | None] | None = None) -> Data:
    """Puts results beside each other; what was measured twice on one machine counts as it was measured last."""
    if not any(found.rows for found in results):
        raise RuntimeError("warpwright: bench: report: results must hold at least one row, got none")
    data = Data()
    placed: list[tuple[Row, int, str]] = []
    for found in results:
        first = len(data.environments)
        data.environments += found.environments
        machines: dict[str, set[str]] = defaultdict(set)
        for row, place in zip(found.rows, found.environment_of, strict=True):
            machine = machine_of(found.environments[place] if place >= 0 else {}, row.device)
            machines[row.device].add(machine)
            placed.append((row, first + place, machine))
        for ceiling in found.ceilings:
            for machine in machines[ceiling.device]:
                key = (machine, ceiling.name, ceiling.dtype)
                data.ceilings[key] = max(ceiling.value, data.ceilings.get(key, 0.0))
    last: dict[tuple[str, ...], tuple[str, int]] = {}
    for number, (row, run, machine) in enumerate(placed):
        when = (str(dig(data.environments[run], "time") if run >= 0 else ""), number)
        last[(machine, *row.key)] = max(when, last.get((machine, *row.key), when))
    kept = {number for _, number in last.values()}
    for number, (row, run, machine) in enumerate(placed):
        now = now_sources(row) if now_sources is not None and row.sources is not None else None
        stale = now is not None and now != row.sources
        data.entries.append(Entry(row, number, run, machine, stale, number not in kept))
    data.baseline = _baseline(data)
    return data


def _baseline(data: Data) -> str:
    named = [dig(environment, "options", "baseline") for environment in data.environments]
    known = {e.row.provider for e in data.entries}
    found = [name for name in named if isinstance(name, str) and name in known]
    return (
        Counter(found).most_common(1)[0][0] if found else "torch" if "torch" in known else data.entries[0].row.provider
    )


def chosen(values: Iterable[str]) -> list[str]:
    """Different values, in their first order."""
    return list(dict.fromkeys(values))


def directions(entries: Iterable[Entry]) -> list[str]:
    present = {e.row.direction for e in entries}
    return [direction for direction in DIRECTIONS if direction in present]


# ---- summary ----


@dataclass(frozen=True)
class Standing:
    """One provider beside the baseline, over some rows.

    Attributes:
        provider: who.
        mean: geometric mean of the ratios, None without any.
        entries: those with a ratio.
        faster, slower: rows whose whole confidence interval lies above or below 1.
        counts: status -> rows.
    """

    provider: str
    mean: float | None
    entries: list[Entry]
    faster: int
    slower: int
    counts: Counter[str]

    @property
    def troubles(self) -> list[str]:
        """Such as ["2 wrong", "1 failed"]."""
        return [f"{self.counts[s]} {s}" for s in ("wrong", "failed", "missing") if self.counts[s]]

    @property
    def alike(self) -> int:
        return len(self.entries) - self.faster - self.slower


def verdict(row: Row) -> str:
    """ "faster" or "slower" where the whole interval of the ratio says so, "alike" otherwise, "" without a ratio."""
    if row.ratio is None:
        return ""
    low = row.ratio if row.ratio_low is None else row.ratio_low
    high = row.ratio if row.ratio_high is None else row.ratio_high
    return "faster" if low > 1 else "slower" if high < 1 else "alike"


def standing(entries: Iterable[Entry], provider: str) -> Standing:
    """How `provider` stands in `entries`."""
    own = [e for e in entries if e.row.provider == provider]
    timed = [e for e in own if e.row.status == "timed" and e.row.ratio]
    verdicts = Counter(verdict(e.row) for e in timed)
    mean = geometric_mean([e.row.ratio for e in timed]) if timed else None
    counts = Counter(e.row.status for e in own)
    return Standing(provider, mean, timed, verdicts["faster"], verdicts["slower"], counts)


def split(entries: Iterable[Entry], key: Callable[[Entry], Any]) -> dict[Any, list[Entry]]:
    """Entries by key, in the order in which keys come up."""
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return found


# ---- scaling ----


@dataclass(frozen=True)
class Curve:
    """Times of one op as one parameter grows and the others stay.

    Attributes:
        machine, op, dtype, direction: what was measured.
        varying: the parameter, or "M = N = K" for several that are equal and grow together.
        fixed: the others, as text; "" without any.
        points: provider -> (the parameter's value, entry), by value.
    """

    machine: str
    op: str
    dtype: str
    direction: str
    varying: str
    fixed: str
    points: Mapping[str, list[tuple[float, Entry]]]

    @property
    def group(self) -> tuple[str, ...]:
        """Curves with the same one are alternatives of one chart."""
        return (self.machine, self.op, self.dtype, self.direction, self.varying)


def _numbers(row: Row) -> dict[str, float]:
    return {k: v for k, v in row.parameters.items() if type(v) in (int, float) and v > 0}


def _equal(numbers: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Names of equal numbers, together."""
    return [tuple(k for k, v in numbers.items() if v == value) for value in dict.fromkeys(numbers.values())]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _vary(entries: Sequence[Entry], ways: Callable[[Row], Iterable[tuple[str, ...]]], least: int) -> list[Curve]:
    groups: dict[tuple[str, ...], dict[str, dict[float, Entry]]] = {}
    for entry in entries:
        row = entry.row
        for names in ways(row):
            fixed = ", ".join(f"{k} = {_text(v)}" for k, v in row.parameters.items() if k not in names)
            key = (entry.machine, row.op, row.dtype, row.direction, " = ".join(names), fixed)
            points = groups.setdefault(key, {}).setdefault(row.provider, {})
            points[row.parameters[names[0]]] = entry
    found = []
    for key, by_provider in groups.items():
        lines = {p: sorted(points.items()) for p, points in by_provider.items() if len(points) >= least}
        if lines:
            found.append(Curve(*key, lines))
    return found


def curves(entries: Iterable[Entry], least: int = 3) -> list[Curve]:
    """Every curve of at least `least` points; of those with the same `group`, the one with most points first."""
    timed = [e for e in entries if e.row.status == "timed"]
    found = _vary(timed, lambda row: [(name,) for name in _numbers(row)], least)
    used = {e.number for curve in found for line in curve.points.values() for _, e in line}
    together = _vary(timed, lambda row: [names for names in _equal(_numbers(row)) if len(names) > 1], least)
    # Where one parameter at a time has shown all of these points, they need no second chart.
    found += [c for c in together if any(e.number not in used for line in c.points.values() for _, e in line)]
    order = {curve.group: i for i, curve in reversed(list(enumerate(found)))}
    size = {id(curve): sum(map(len, curve.points.values())) for curve in found}
    return sorted(found, key=lambda curve: (order[curve.group], -size[id(curve)]))
