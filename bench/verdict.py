"""Compares two runs row by row: FASTER, SLOWER, SAME or UNCLEAR.

A change is after / before - 1 of a row's time, with an interval made of both rows' confidence intervals: their
half-widths are added as squares, in logarithms. The verdict is

    SAME     the whole interval lies within the tolerance
    SLOWER   the change is beyond the tolerance, and the interval leaves out no change at all
    FASTER   likewise
    UNCLEAR  anything else: measure longer, or on a quieter machine

Two runs may have had different machines under them without anybody's doing: another clock rate, other neighbours. What
was timed beside the same baseline in both runs is therefore compared by its ratio to that, where such drift cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from warpwright.bench.rows import Results, Row
from warpwright.bench.statistics import geometric_mean

VERDICTS = ("FASTER", "SLOWER", "SAME", "UNCLEAR")
BY = ("auto", "time", "ratio")

#: Ceilings that differ by more than this say that the two runs had different machines under them.
_DRIFT = 0.05
#: What environments may differ in without a warning: when and how it was measured, and what is compared.
_INCIDENTAL = {
    "time", "load", "missing", "options", "cpus", "version", "commit", "build", "libraries", "backends",
}  # fmt: skip

_Key = tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of one row.

    Attributes:
        before, after: the row in each run.
        verdict: one of VERDICTS.
        change: after's time / before's - 1: 0.02 is 2% slower.
        low, high: 95% confidence interval of `change`.
        by: "time", or "ratio" where the ratios to the baseline were compared.
        is_baseline: whether the others are compared by their ratio to this row: its change is the machine's.
        reason: why it is UNCLEAR, or what else should be known; "" where there is nothing to say.
    """

    before: Row
    after: Row
    verdict: str
    change: float
    low: float
    high: float
    by: str
    is_baseline: bool
    reason: str


@dataclass
class Comparison:
    """Two runs beside each other.

    Attributes:
        verdicts: for each row that both runs timed.
        lost: (before, after) of rows that were timed and no longer are, because they are wrong or failed: regressions.
        gained: (before, after) of rows that are timed now and were not before.
        only_before, only_after: timed rows that the other run has not got.
        means: (suite, provider) -> the geometric mean of after's time / before's, minus 1; provider "" is all of them.
        warnings: how the machines differed.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    lost: list[tuple[Row, Row]] = field(default_factory=list)
    gained: list[tuple[Row, Row]] = field(default_factory=list)
    only_before: list[Row] = field(default_factory=list)
    only_after: list[Row] = field(default_factory=list)
    means: dict[tuple[str, str], float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[Row]:
        """Rows of the later run that are slower, the baseline's apart, or no longer timed."""
        slower = [v.after for v in self.verdicts if v.verdict == "SLOWER" and not v.is_baseline]
        return slower + [after for _, after in self.lost]

    def count(self, verdict: str) -> int:
        return sum(v.verdict == verdict for v in self.verdicts)

    def lines(self) -> list[str]:
        """The summary, in words."""
        found = [", ".join(f"{self.count(verdict)} {verdict}" for verdict in VERDICTS)]
        for (suite, provider), mean in self.means.items():
            found.append(f"{suite}{f', {provider}' if provider else ''}: {mean:+.2%} time in the geometric mean")
        found += [f"no longer timed: {_name(after)}: {after.status}: {after.reason}" for _, after in self.lost]
        found += [f"timed now: {_name(after)}" for _, after in self.gained]
        for name, rows in (("before", self.only_before), ("after", self.only_after)):
            if rows:
                found.append(f"only in {name}: {len(rows)} rows, such as {_name(rows[0])}")
        return found + [f"warning: {text}" for text in self.warnings]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "counts": {verdict: self.count(verdict) for verdict in VERDICTS},
            "rows": [
                _what(v.after) | {"verdict": v.verdict, "change": v.change, "low": v.low, "high": v.high, "by": v.by,
                                  "before": v.before.p50, "after": v.after.p50, "reason": v.reason}
                for v in self.verdicts
            ],
            "lost": [_what(after) | {"status": after.status, "reason": after.reason} for _, after in self.lost],
            "gained": [_what(after) for _, after in self.gained],
            "only_before": [_what(row) for row in self.only_before],
            "only_after": [_what(row) for row in self.only_after],
            "means": [{"suite": s, "provider": p or None, "change": mean} for (s, p), mean in self.means.items()],
            "warnings": self.warnings,
        }  # fmt: skip


def _what(row: Row) -> dict[str, str]:
    names = ("suite", "op", "case", "dtype", "direction", "provider", "device")
    return dict(zip(names, row.key, strict=True))


def _name(row: Row) -> str:
    return f"{row.provider} on {row.op} {row.case} {row.dtype} {row.direction}"


def compare_results(before: Results, after: Results, *, tolerance: float = 0.01, by: str = "auto") -> Comparison:
    """Compares the rows of two runs that are the same measurement; of several in one run, the last.

    Args:
        before, after: the runs.
        tolerance: changes up to this share count as none.
        by: "time" compares times; "ratio" the ratios to the baseline, for rows that have one in both runs; "auto"
            does that where both runs have the same baseline and the same PyTorch, and compares times elsewhere.

    Returns:
        Verdicts, and all that keeps the runs from being comparable.

    Raises:
        RuntimeError: `tolerance` is negative, or `by` is none of these.
    """
    if tolerance < 0:
        raise RuntimeError(f"warpwright: bench: tolerance must be at least 0, got {tolerance}")
    if by not in BY:
        raise RuntimeError(f"warpwright: bench: by must be one of {', '.join(BY)}, got {by!r}")
    old, new = _entries(before), _entries(after)
    found = Comparison(warnings=_warnings(before, after))
    for key, entry in old.items():
        if key not in new:
            if entry.row.status == "timed":
                found.only_before.append(entry.row)
            continue
        other = new[key]
        if entry.row.status == other.row.status == "timed":
            verdict = _judge(entry, other, tolerance, by)
            found.verdicts += [] if verdict is None else [verdict]
        elif entry.row.status == "timed" and other.row.status == "missing":
            found.only_before.append(entry.row)
        elif entry.row.status == "timed":
            found.lost.append((entry.row, other.row))
        elif other.row.status == "timed":
            found.gained.append((entry.row, other.row))
    found.only_after = [e.row for key, e in new.items() if key not in old and e.row.status == "timed"]
    found.means = _means(found.verdicts)
    return found


@dataclass(frozen=True)
class _Entry:
    """A row with the environment it was measured in, and whether its group has that environment's baseline."""

    row: Row
    environment: Mapping[str, Any]
    baseline: str | None


def _entries(results: Results) -> dict[_Key, _Entry]:
    pairs = [(row, results.environments[i]) for row, i in zip(results.rows, results.environment_of, strict=True)]
    timed = {row.key for row in results.rows if row.status == "timed"}
    found = {}
    for row, environment in pairs:
        baseline = environment.get("options", {}).get("baseline")
        if row.ratio is None or (*row.group[:-1], baseline, row.device) not in timed:
            baseline = None
        found[row.key] = _Entry(row, environment, baseline)
    return found


def _judge(before: _Entry, after: _Entry, tolerance: float, by: str) -> Verdict | None:
    old, new = before.row, after.row
    shared = before.baseline is not None and before.baseline == after.baseline
    is_baseline = shared and new.provider == after.baseline
    same_torch = before.environment.get("torch") == after.environment.get("torch")
    if by == "ratio" and (is_baseline or not shared):
        return None
    by_ratio = shared and (by == "ratio" or (by == "auto" and same_torch))
    use_ratio = by_ratio and not is_baseline
    change, low, high = _log_change(old, new, use_ratio)
    verdict = decide(change, low, high, tolerance)
    reasons = [f"the interval is {math.expm1(low):+.1%} to {math.expm1(high):+.1%}"] if verdict == "UNCLEAR" else []
    if old.clock != new.clock:
        verdict = "UNCLEAR"
        reasons.append(f"its clock was {old.clock} and is {new.clock} now")
    if verdict in ("FASTER", "SLOWER"):
        if old.sources is not None and old.sources == new.sources:
            reasons.append("its kernel's sources did not change")
        if old.settled is False or new.settled is False:
            reasons.append("its times had not settled")
    return Verdict(
        before=old, after=new, verdict=verdict, change=math.expm1(change), low=math.expm1(low), high=math.expm1(high),
        by="ratio" if use_ratio else "time", is_baseline=by_ratio and is_baseline, reason="; ".join(reasons),
    )  # fmt: skip


def decide(change: float, low: float, high: float, tolerance: float) -> str:
    """The rule at the top of this file, for the logarithm of after's time / before's and its interval."""
    limit = math.log1p(tolerance)
    if -limit <= low and high <= limit:
        return "SAME"
    if abs(change) > limit and not low <= 0 <= high:
        return "SLOWER" if change > 0 else "FASTER"
    return "UNCLEAR"


def _log_change(before: Row, after: Row, by_ratio: bool) -> tuple[float, float, float]:
    """log(after's time / before's) with its interval."""
    (old, old_low, old_high), (new, new_low, new_high) = (_log_time(row, by_ratio) for row in (before, after))
    change = new - old
    below, above = math.hypot(new - new_low, old_high - old), math.hypot(new_high - new, old - old_low)
    return change, change - below, change + above


def _log_time(row: Row, by_ratio: bool) -> tuple[float, float, float]:
    """log(p50) with its interval; or of p50 in units of the baseline's, which is 1 / ratio."""
    if by_ratio:
        assert row.ratio is not None
        return -math.log(row.ratio), -math.log(row.ratio_high or row.ratio), -math.log(row.ratio_low or row.ratio)
    assert row.p50 is not None
    return math.log(row.p50), math.log(row.low or row.p50), math.log(row.high or row.p50)


def _means(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], float]:
    groups: dict[tuple[str, str], list[float]] = {}
    for v in verdicts:
        for provider in ("", v.after.provider):
            groups.setdefault((v.after.suite, provider), []).append(1 + v.change)
    return {key: geometric_mean(factors) - 1 for key, factors in groups.items()}


# ---- the machines ----


def _warnings(before: Results, after: Results) -> list[str]:
    found = []
    for name, old, new in _differences(_last(before), _last(after)):
        found.append(f"{name} was {old!r} and is {new!r} now")
    ceilings = [{(c.device, c.name, c.dtype): c.value for c in results.ceilings} for results in (before, after)]
    for key in ceilings[0].keys() & ceilings[1].keys():
        drift = ceilings[1][key] / ceilings[0][key] - 1
        if abs(drift) > _DRIFT:
            found.append(f"the ceiling {' '.join(filter(None, key))} changed by {drift:+.1%}")
    return sorted(found)


def _last(results: Results) -> Mapping[str, Any]:
    return results.environments[-1] if results.environments else {}


def _differences(before: Any, after: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(name, before, after) of each value that differs, in nested mappings."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [
            difference
            for key in sorted(before.keys() | after.keys())
            if key not in _INCIDENTAL
            for difference in _differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == after else [(name, before, after)]
