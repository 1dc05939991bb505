"""Medians and how far to trust them, without assuming a distribution: times are skewed, bursty and correlated.

The interval of a median is between two order statistics. Neighbouring repeats on a shared machine resemble each other,
so that n of them say less than n independent ones; how much less is estimated from which side of the median they fall
on, where an outlier counts no more than any other value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Of the normal distribution, for 95%.
Z95 = 1.959964


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of `values` lies, with linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values, at least one."""
    return math.exp(sum(map(math.log, values)) / len(values))


def inefficiency(values: Sequence[float]) -> float:
    """How many of these successive values say about their median what one independent value would: 1 or more.

    It is 1 + 2 (r1 + r2 + ...), where rk is the correlation of the signs of value - median at distance k. Pairs of
    correlations are added as long as they are positive (Geyer's initial positive sequence, 1992).
    """
    n, middle = len(values), median(values)
    signs = [(v > middle) - (v < middle) for v in values]
    power = sum(map(abs, signs))
    if power == 0:
        return 1.0
    limit = n / 2
    # Correlations come out too small by about inefficiency / n, since the median is that of the same values.
    found = 1.0
    for correct in (False, True, True):
        missing = found / n if correct else 0.0
        found = 1.0
        for k in range(1, n // 2 - 1, 2):
            products = sum(a * b for a, b in zip(signs, signs[k:], strict=False))
            products += sum(a * b for a, b in zip(signs, signs[k + 1 :], strict=False))
            pair = products / power + 2 * missing
            if pair <= 0 or found >= limit:
                break
            found += 2 * pair
    return min(found, limit)


def median_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float]:
    """Confidence interval of the median of a series, in the order in which it was measured; 95% unless `z` says other.

    Simulations in tests/test_bench_statistics.py show that at least 93% of such intervals hold the median, for skewed
    values, bursts and correlation 0.7 between neighbours from 50 values on (0.9 needs 200). Fewer than six values give
    their whole range, which holds it less often than that.
    """
    n, ordered = len(values), sorted(values)
    half = z * math.sqrt(n * inefficiency(values))
    low, high = math.floor((n - half) / 2) - 1, math.ceil((n + half) / 2)
    return ordered[max(0, low)], ordered[min(n - 1, high)]
