"""Quantiles, and the coverage of the intervals in simulations whose true median is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpwright.bench.statistics import geometric_mean, inefficiency, median, median_interval, quantile

SERIES = 400


def lognormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(0.05 * rng.standard_normal(n))


def bursts(rng: np.random.Generator, n: int) -> np.ndarray:
    """A neighbour comes for four repeats in thirty on average, and slows them by a heavy-tailed factor."""
    values = 1 + 0.01 * rng.standard_normal(n)
    busy = False
    for i in range(n):
        busy = rng.random() < (0.75 if busy else 0.04)
        values[i] += 0.1 * rng.pareto(1.5) if busy else 0.0
    return values


def drift(correlation: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    def values(rng: np.random.Generator, n: int) -> np.ndarray:
        state, found = rng.standard_normal(), np.empty(n)
        for i in range(n):
            found[i] = state
            state = correlation * state + math.sqrt(1 - correlation**2) * rng.standard_normal()
        return 1 + 0.02 * found

    return values


def coverage(draw: Callable[[np.random.Generator, int], np.ndarray], n: int) -> float:
    rng = np.random.default_rng(0)
    truth = float(np.median(draw(rng, 200_000)))
    intervals = [median_interval(draw(rng, n).tolist()) for _ in range(SERIES)]
    return sum(low <= truth <= high for low, high in intervals) / SERIES


@pytest.mark.parametrize(
    ("draw", "n"),
    [(lognormal, 7), (lognormal, 30), (lognormal, 200), (bursts, 30), (bursts, 150), (drift(0.5), 30),
     (drift(0.7), 100), (drift(0.9), 300)],
)  # fmt: skip
def test_intervals_hold_the_median_as_often_as_they_promise(draw, n):
    assert coverage(draw, n) >= 0.93


def test_intervals_are_not_wider_than_they_need_to_be():
    rng = np.random.default_rng(1)
    widths = [np.subtract(*median_interval(lognormal(rng, 200).tolist())[::-1]) for _ in range(SERIES)]
    # 2 * 1.96 * 1.2533 sigma / sqrt(n), the textbook interval of the median of normal values.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 1.2533 * 0.05 / math.sqrt(200), rel=0.2)


def test_paired_ratios_of_equals_seldom_exclude_one():
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(SERIES):
        common = drift(0.9)(rng, 60)
        ratios = common * lognormal(rng, 60) / (common * lognormal(rng, 60))
        low, high = median_interval(ratios.tolist())
        alarms += not low <= 1 <= high
    assert alarms / SERIES <= 0.05


def test_inefficiency_knows_correlated_series():
    rng = np.random.default_rng(3)
    assert np.mean([inefficiency(lognormal(rng, 200).tolist()) for _ in range(50)]) < 1.4
    assert np.mean([inefficiency(drift(0.9)(rng, 400).tolist()) for _ in range(50)]) > 6
    assert inefficiency([2.0] * 9) == 1.0
    assert median_interval([2.0] * 9) == (2.0, 2.0)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_numpys(values, share):
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9)
    low, high = median_interval(values)
    assert min(values) <= low <= median(values) * (1 + 1e-12)
    assert median(values) * (1 - 1e-12) <= high <= max(values)


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
