"""A machine for the tests of timing: what calls return is how long they take, and its noise is planted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from warpwright.bench.timing import Candidate

#: The factor of a batch that starts at this moment.
Noise = Callable[[np.random.Generator, float], float]


class SimulatedClock:
    """Of a machine on which call(i) takes the seconds that it returns, times `noise(rng, now)` for each batch."""

    name, least, whole, most = "simulated", 0.0, 0.0, 1000

    def __init__(self, noise: Noise = lambda rng, now: 1.0, seed: int = 0):
        self.noise, self.rng, self.seconds = noise, np.random.default_rng(seed), 0.0

    def now(self) -> float:
        return self.seconds

    def time(self, candidate: Candidate, first: int, count: int) -> float:
        with candidate.scope():
            planted = sum(candidate.call(i) for i in range(first, first + count))
        took = planted * self.noise(self.rng, self.seconds)
        self.seconds += took
        return took

    def host(self, candidate: Candidate, first: int, count: int) -> float | None:
        return None


def lasts(seconds: float) -> Candidate:
    return Candidate(lambda i: seconds)


def jitter(size: float) -> Noise:
    return lambda rng, now: math.exp(size * rng.standard_normal())


def busy_machine(rng: np.random.Generator, now: float) -> float:
    """Jitter of 2%, clocks that wander by 5%, and neighbours that come for some milliseconds."""
    wander = 1 + 0.05 * math.sin(now * 9) + 0.02 * math.sin(now * 71)
    neighbour = 1.3 if math.sin(now * 40 + 3 * math.sin(now * 7)) > 0.9 else 1.0
    return wander * neighbour * math.exp(0.02 * rng.standard_normal())


class Measure:
    """Stands in for bench.timing.measure: seconds(config) decides; the default takes one second."""

    def __init__(self, seconds, stop_at: int | None = None, spread: float = 0.001):
        self.seconds, self.stop_at, self.spread = seconds, stop_at, spread
        self.passes: list[list[str]] = []

    def __call__(self, candidates, device, *, seconds, spread, clock, sets):
        assert next(iter(candidates)) == "default"
        if len(self.passes) == self.stop_at:
            raise KeyboardInterrupt
        self.passes.append([name for name in candidates if name != "default"])
        found = {}
        for name, candidate in candidates.items():
            candidate.call(0)
            time = 1.0 if name == "default" else self.seconds(json.loads(name))
            half = self.spread / 2
            found[name] = SimpleNamespace(p20=time - half, p50=time, p80=time + half, ratio_low=(1 - half) / time)
        return found

    @property
    def quick(self) -> list[str]:
        """What the first passes timed: all but the last, which times the finalists again."""
        return [name for names in self.passes[:-1] for name in names]
