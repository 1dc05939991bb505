"""Verdicts about pairs of runs on a simulated machine, with planted changes and none."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_clock import SimulatedClock, busy_machine, jitter, lasts

from warpwright.bench.rows import Ceiling, Results, Row
from warpwright.bench.timing import measure
from warpwright.bench.verdict import compare_results

ENVIRONMENT = {"torch": "2.13.0", "device": {"name": "a machine"}, "threads": {"threads": 2, "load": 0.1},
               "time": "now", "info": {"commit": "a", "cpu": "b"}, "options": {"baseline": "torch"}}  # fmt: skip


quiet = jitter(0.01)


def row(provider: str = "ours", **values: Any) -> Row:
    timed = {"p50": 1.0, "low": 0.999, "high": 1.001, "clock": "host"}
    return Row("suite", "op", "8 x 8", "float32", "forward", provider, "cpu", **(timed | values))


def results(*rows: Row, ceilings: tuple[Ceiling, ...] = (), **environment: Any) -> Results:
    found = Results()
    for record in (ENVIRONMENT | environment, *ceilings, *rows):
        found.add(record)
    return found


def simulated_run(seed: int, factor: float, noise: Any, machine: float = 1.0, seconds: float = 0.4) -> Results:
    """A run in which `ours` takes 2 ms * factor beside torch's 3 ms, on a machine that is slower by a factor."""
    times = {"torch": 0.003 * machine, "ours": 0.002 * machine * factor}
    candidates = {name: lasts(t) for name, t in times.items()}
    timings = measure(candidates, "cpu", clock=SimulatedClock(noise, seed), seconds=seconds, spread=0.005)
    return results(
        *(row(name, p50=t.p50, low=t.low, high=t.high, ratio=t.ratio, ratio_low=t.ratio_low, ratio_high=t.ratio_high)
          for name, t in timings.items())
    )  # fmt: skip


def verdicts(factor: float, noise: Any, pairs: int = 150, drift: float = 0.0, by: str = "auto", **o: Any) -> Counter:
    rng, found = np.random.default_rng(7), Counter()
    for pair in range(pairs):
        machines = np.exp(drift * rng.standard_normal(2)).tolist()
        before = simulated_run(2 * pair, 1.0, noise, machines[0], **o)
        after = simulated_run(2 * pair + 1, factor, noise, machines[1], **o)
        comparison = compare_results(before, after, by=by)
        found.update(v.verdict for v in comparison.verdicts if v.after.provider == "ours")
    return found


# ---- what the statistics promise ----


@pytest.mark.parametrize("by", ["auto", "time"])
def test_equal_runs_are_the_same(by):
    found = verdicts(1.0, quiet, by=by)
    assert found["SAME"] >= 0.9 * 150
    assert found["SLOWER"] + found["FASTER"] <= 0.01 * 150


def test_a_change_within_the_tolerance_is_not_called():
    found = verdicts(1.003, quiet)
    assert found["SLOWER"] + found["FASTER"] <= 0.01 * 150


@pytest.mark.parametrize("noise", [quiet, busy_machine])
def test_equal_runs_on_machines_that_differ_are_not_told_apart(noise):
    found = verdicts(1.0, noise, drift=0.05)
    assert found["SLOWER"] + found["FASTER"] <= 0.05 * 150


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_two_percent_are_called(drift):
    assert verdicts(1.02, quiet, drift=drift)["SLOWER"] >= 0.95 * 150
    assert verdicts(1 / 1.02, quiet, pairs=50, drift=drift)["FASTER"] >= 0.95 * 50


def test_ten_percent_are_called_on_a_busy_machine():
    found = verdicts(1.10, busy_machine, pairs=100, drift=0.05)
    assert found["SLOWER"] >= 0.95 * 100
    assert found["FASTER"] == 0


def test_two_percent_on_a_busy_machine_are_never_called_the_wrong_way():
    found = verdicts(1.02, busy_machine, pairs=100, drift=0.05, seconds=0.2)
    assert found["FASTER"] == 0
    assert found["SAME"] <= 5


# ---- the rule ----


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ({"p50": 1.02, "low": 1.018, "high": 1.022}, "SLOWER"),
        ({"p50": 0.98, "low": 0.978, "high": 0.982}, "FASTER"),
        ({"p50": 1.003, "low": 1.002, "high": 1.004}, "SAME"),
        ({"p50": 1.02, "low": 0.99, "high": 1.05}, "UNCLEAR"),
        ({"p50": 1.009, "low": 1.006, "high": 1.014}, "UNCLEAR"),
        ({"p50": 1.0, "low": 0.95, "high": 1.05}, "UNCLEAR"),
    ],
)
def test_the_rule(after, verdict):
    (found,) = compare_results(results(row()), results(row(**after))).verdicts
    assert found.verdict == verdict
    assert found.change == pytest.approx(after["p50"] - 1)
    assert found.low < found.change < found.high
    assert found.by == "time"


def test_half_widths_are_added_as_squares():
    before, after = row(p50=1.0, low=0.97, high=1.0), row(p50=1.0, low=1.0, high=1.04)
    (found,) = compare_results(results(before), results(after)).verdicts
    assert math.log1p(found.high) == pytest.approx(math.hypot(math.log(0.97), math.log(1.04)))
    assert found.low == pytest.approx(0.0)


def test_the_tolerance_decides_what_counts():
    after = row(p50=1.02, low=1.019, high=1.021)
    (found,) = compare_results(results(row()), results(after), tolerance=0.03).verdicts
    assert found.verdict == "SAME"


def beside(torch: float, ours: float) -> tuple[Row, Row]:
    ratio = torch / ours
    return (
        row("torch", p50=torch, low=torch * 0.999, high=torch * 1.001, ratio=1.0, ratio_low=1.0, ratio_high=1.0),
        row("ours", p50=ours, low=ours * 0.999, high=ours * 1.001, ratio=ratio, ratio_low=ratio * 0.999,
            ratio_high=ratio * 1.001),
    )  # fmt: skip


def test_ratios_are_compared_where_both_runs_have_the_same_baseline():
    before, after = results(*beside(1.0, 0.5)), results(*beside(1.2, 0.6))
    torch, ours = compare_results(before, after).verdicts
    assert (ours.verdict, ours.by) == ("SAME", "ratio")
    assert (torch.verdict, torch.by, torch.is_baseline) == ("SLOWER", "time", True)
    assert compare_results(before, after).regressions == []
    assert [v.verdict for v in compare_results(before, after, by="time").verdicts] == ["SLOWER", "SLOWER"]
    assert len(compare_results(before, after, by="time").regressions) == 2
    (only,) = compare_results(before, after, by="ratio").verdicts
    assert only.after.provider == "ours"
    slower = results(*beside(1.2, 0.63))
    ours = compare_results(before, slower).verdicts[1]
    assert (ours.verdict, ours.by) == ("SLOWER", "ratio")
    assert ours.change == pytest.approx(0.05)
    assert ours.low < 0.05 < ours.high


def test_times_are_compared_where_the_baseline_may_have_changed():
    before = results(*beside(1.0, 0.5))
    other_torch = results(*beside(1.2, 0.6), torch="2.14.0")
    assert [v.by for v in compare_results(before, other_torch).verdicts] == ["time", "time"]
    other_baseline = results(*beside(1.2, 0.6), options={"baseline": "compile"})
    assert [v.by for v in compare_results(before, other_baseline).verdicts] == ["time", "time"]
    without_it = results(beside(1.0, 0.5)[1])
    assert [v.by for v in compare_results(before, without_it).verdicts] == ["time"]


def test_another_clock_is_unclear():
    (found,) = compare_results(results(row(clock="events")), results(row(p50=2.0, clock="graph"))).verdicts
    assert found.verdict == "UNCLEAR"
    assert "its clock was events and is graph now" in found.reason


def test_a_change_without_a_change_of_the_sources_is_remarked_on():
    before, after = row(sources="abc", settled=True), row(p50=2.0, low=1.99, high=2.01, sources="abc", settled=False)
    (found,) = compare_results(results(before), results(after)).verdicts
    assert found.verdict == "SLOWER"
    assert found.reason == "its kernel's sources did not change; its times had not settled"


# ---- rows that are not in both ----


def test_rows_that_are_no_longer_timed_are_regressions():
    before = results(row("a"), row("b"), row("c"), row("d", status="failed", p50=None), row("e"))
    after = results(row("a", status="wrong", reason="planted", p50=None), row("b"), row("d"), row("f"),
                    row("e", status="missing", p50=None))  # fmt: skip
    found = compare_results(before, after)
    assert [r.provider for r in found.regressions] == ["a"]
    assert "no longer timed: a on op 8 x 8 float32 forward: wrong: planted" in found.lines()
    assert [new.provider for _, new in found.gained] == ["d"]
    assert [r.provider for r in found.only_before] == ["c", "e"]
    assert [r.provider for r in found.only_after] == ["f"]
    assert json.loads(json.dumps(found.as_dict()))["lost"][0]["reason"] == "planted"


def test_of_several_measurements_the_last_counts():
    (found,) = compare_results(results(row(p50=9.0), row()), results(row())).verdicts
    assert found.verdict == "SAME"


def test_geometric_means_for_each_suite_and_provider():
    before = results(row("a"), row("b"), replace(row("a"), suite="other"))
    after = results(row("a", p50=2.0), row("b", p50=0.5), replace(row("a"), suite="other", p50=4.0))
    means = compare_results(before, after).means
    assert means == pytest.approx(
        {("suite", ""): 0.0, ("suite", "a"): 1.0, ("suite", "b"): -0.5, ("other", ""): 3.0, ("other", "a"): 3.0}
    )


def test_machines_that_differ_are_warned_of():
    copy = Ceiling("copy", "", 1e10, "64 MiB", "cpu")
    before = results(row(), ceilings=(copy,))
    assert compare_results(before, results(row(), ceilings=(replace(copy, value=1.02e10),))).warnings == []
    after = results(row(), ceilings=(replace(copy, value=0.8e10),), device={"name": "another"}, time="later",
                    info={"commit": "z", "cpu": "b"},
                    threads={"threads": 1, "load": 0.7})  # fmt: skip
    assert compare_results(before, after).warnings == [
        "device.name was 'a machine' and is 'another' now",
        "the ceiling cpu copy changed by -20.0%",
        "threads.threads was 2 and is 1 now",
    ]


@pytest.mark.parametrize(
    ("options", "message"), [({"by": "luck"}, "by must be one of auto"), ({"tolerance": -1.0}, "tolerance must be")]
)
def test_bad_options_meet_an_error(options, message):
    with pytest.raises(RuntimeError, match=message):
        compare_results(results(), results(), **options)
