"""How long a call takes, beside others in the same minute: the machines that benchmarks run on are shared and noisy.

Candidates take turns within each repeat, in an order that is drawn anew, so that a slow second hurts all of them alike;
their ratio is taken within each repeat. Measuring ends when the confidence intervals of the medians and of the ratios
are narrow, or when time is up, and the result says which.
"""

from __future__ import annotations

import gc
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from warpwright.bench.clocks import Clock, EventClock, GraphClock, HostClock
from warpwright.bench.statistics import median, median_interval, quantile
from warpwright.bench.threads import steady

MIN_REPEATS, MAX_REPEATS = 7, 500
#: Intervals are looked at after so many repeats, and then at each growth by this factor: looking after every one would
#: end at the first that is narrow by chance.
_FIRST_LOOK, _NEXT_LOOK = 15, 1.3
#: Batches of slow candidates have as many calls as those of fast ones, unless that makes them so many times as long.
_EQUAL = 10
#: Warm-up: times have settled when the medians of two successive blocks of rounds agree this well, or to their noise; a
#: block is so many rounds, and lasts so many seconds, at least.
_SETTLED, _BLOCK, _BLOCK_S = 0.02, 5, 0.04
#: A GPU's clocks take this long to come down from where they start.
_GPU_LOAD_S = 3.0
#: Launch latency is no longer hidden under kernels below this: they are timed as a CUDA graph.
_GRAPH_BELOW_S = 100e-6

_loaded: set[torch.device] = set()


@dataclass(frozen=True)
class Candidate:
    """What is timed.

    Attributes:
        call: call(i); i counts up, so that a call may take turns on sets of inputs and find none of them in a cache.
        scope: entered around each batch of calls, for what must be set while they run.
    """

    call: Callable[[int], Any]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        p20, p50, p80: over `repeats` means of `calls` calls each.
        low, high: 95% confidence interval of p50.
        repeats, calls: see above.
        clock: "host", "events" or "graph".
        settled: whether times stood still after the warm-up, and the intervals became as narrow as was asked for.
        host: seconds of the CPU's work for a call, where that is not the call itself.
        ratio: the first candidate's time / this one's: the median over repeats, each of which timed both.
        ratio_low, ratio_high: 95% confidence interval of `ratio`.
    """

    p20: float
    p50: float
    p80: float
    low: float
    high: float
    repeats: int
    calls: int
    clock: str
    settled: bool
    host: float | None
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass
class _Lane:
    """A candidate while it is measured."""

    candidate: Candidate
    clock: Clock
    calls: int = 1
    next: int = 0
    samples: list[float] = field(default_factory=list)

    def batch(self) -> float:
        """Seconds of a call, as the mean over one batch."""
        seconds = self.clock.time(self.candidate, self.next, self.calls)
        self.next += self.calls
        return seconds / self.calls


def measure(
    candidates: Mapping[str, Candidate],
    device: torch.device | str,
    *,
    seconds: float = 0.5,
    spread: float = 0.01,
    clock: Clock | None = None,
    sets: int = 1,
) -> dict[str, Timing]:
    """Times each candidate beside the others.

    Args:
        candidates: name -> what to time; the first is the one that the ratios refer to.
        device: where they run.
        seconds: for each candidate, at most, on top of a warm-up of at most that; seven repeats are always made.
        spread: enough once each confidence interval is narrower than this share of its value.
        clock: None for the device's own: the monotonic clock on the CPU; CUDA events on a GPU, or replays of a CUDA
            graph where a candidate is so fast that launching it would show.
        sets: how many sets of inputs the calls go through; batches go through all of them, unless that takes long.

    Returns:
        A Timing for each candidate. Whatever a candidate raises is passed on.
    """
    device = torch.device(device)
    own = clock or (EventClock() if device.type == "cuda" else HostClock())
    lanes = {name: _Lane(candidate, own) for name, candidate in candidates.items()}
    if not lanes:
        return {}
    with _undisturbed(device):
        for lane in lanes.values():
            lane.clock.time(lane.candidate, 0, 1)  # Compilers, allocators and libraries do their first work here.
        with steady():
            settled = _warm_up(list(lanes.values()), device, seconds, sets, choose=clock is None)
            narrow = _repeat(list(lanes.values()), seconds, spread)
            host = {name: _host_time(lane) for name, lane in lanes.items()}
    base = next(iter(lanes.values()))
    return {name: _timing(lane, base, settled and narrow, host[name]) for name, lane in lanes.items()}


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Without the garbage collector, which may run at any allocation; on the right GPU."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        if enabled:
            gc.enable()


# ---- warm-up ----


def _warm_up(lanes: Sequence[_Lane], device: torch.device, seconds: float, sets: int, choose: bool) -> bool:
    """Sets each lane's clock and number of calls, and runs them until their times stand still; whether they did."""
    _set_calls(lanes, [_estimate(lane) for lane in lanes], sets)
    graphs = choose and device.type == "cuda" and _choose_graphs(lanes, sets)
    now, least = lanes[0].clock.now, 0.0
    if device.type == "cuda" and device not in _loaded:
        _loaded.add(device)
        least = _GPU_LOAD_S
    start = now()
    end = start + max(least, seconds * len(lanes))
    last: list[list[float]] = []
    fastest = [math.inf] * len(lanes)
    settled = False
    while not (settled and now() >= start + least):
        rounds: list[list[float]] = []
        began = now()
        while not rounds or (now() < end and (len(rounds) < _BLOCK or now() < began + _BLOCK_S)):
            rounds.append([lane.batch() for lane in lanes])
        block = [list(times) for times in zip(*rounds, strict=True)]
        settled = bool(last) and all(map(_agree, last, block))
        last, fastest = block, [min(known, *times) for known, times in zip(fastest, block, strict=True)]
        if now() >= end:
            break
    if not graphs:
        _set_calls(lanes, fastest, sets)  # The estimates of before had no time to be good.
    return settled


def _agree(before: Sequence[float], after: Sequence[float]) -> bool:
    tolerance = max(_SETTLED * median(before), (quantile(after, 0.8) - quantile(after, 0.2)) / 2)
    return abs(median(after) - median(before)) <= tolerance


def _estimate(lane: _Lane) -> float:
    """Seconds of a call at its fastest, of a few."""
    clock, count = lane.clock, 1
    while True:
        took = clock.time(lane.candidate, 0, count)
        if took < _EQUAL * clock.least:
            took = min(took, *(clock.time(lane.candidate, 0, count) for _ in range(2)))
        if took >= clock.least or count >= clock.most:
            return took / count
        growth = min(10.0, max(2.0, clock.least / max(took, 1e-9)))
        count = min(clock.most, math.ceil(count * growth))


def _calls(times: Sequence[float], clock: Clock | type[GraphClock], sets: int) -> list[int]:
    """How many calls of each candidate make a batch, by the seconds that a call takes: enough for the clock, in whole
    rotations of the inputs, and of each as many as of the others, because where a call is disturbed now and then the
    mean of many is larger than the mean of few. Slow candidates have fewer.
    """

    def enough(each: float) -> int:
        count = max(1, min(clock.most, math.ceil(clock.least / max(each, 1e-12))))
        whole = sets * math.ceil(count / sets)
        return whole if whole * each <= clock.whole else count

    counts = [enough(each) for each in times]
    most = max(counts)
    return [most if most * t <= _EQUAL * clock.least else n for n, t in zip(counts, times, strict=True)]


def _set_calls(lanes: Sequence[_Lane], times: Sequence[float], sets: int) -> None:
    for lane, calls in zip(lanes, _calls(times, lanes[0].clock, sets), strict=True):
        lane.calls = calls


def _choose_graphs(lanes: Sequence[_Lane], sets: int) -> bool:
    """Graphs for all lanes where one is short, if all can be captured: what is compared has the same clock."""
    times = [min(lane.batch() for _ in range(3)) for lane in lanes]
    if min(times) >= _GRAPH_BELOW_S:
        return False
    counts = _calls(times, GraphClock, sets)
    graphs: list[GraphClock] = []
    for lane, count in zip(lanes, counts, strict=True):
        graph = GraphClock.capture(lane.candidate, count)
        if graph is None:
            return False
        graphs.append(graph)
    for lane, count, graph in zip(lanes, counts, graphs, strict=True):
        lane.clock, lane.calls = graph, count
    return True


# ---- repeats ----


def _repeat(lanes: Sequence[_Lane], seconds: float, spread: float) -> bool:
    """Fills the lanes' samples; whether the intervals became narrow."""
    now, order, shuffle = lanes[0].clock.now, list(lanes), random.Random(0).shuffle
    end = now() + seconds * len(lanes)
    look = _FIRST_LOOK
    for repeat in range(1, MAX_REPEATS + 1):
        # Each order is followed by its reverse, so that everyone comes early as often as late.
        if repeat % 2:
            shuffle(order)
        else:
            order.reverse()
        for lane in order:
            lane.samples.append(lane.batch())
        if repeat >= look:
            if _narrow(lanes, spread):
                return True
            look = math.ceil(look * _NEXT_LOOK)
        if repeat >= MIN_REPEATS and now() >= end:
            break
    return _narrow(lanes, spread)


def _narrow(lanes: Sequence[_Lane], spread: float) -> bool:
    series = [lane.samples for lane in lanes] + [_ratios(lanes[0], lane) for lane in lanes[1:]]
    return all(high - low <= spread * median(s) for s, (low, high) in ((s, median_interval(s)) for s in series))


def _ratios(base: _Lane, lane: _Lane) -> list[float]:
    return [a / b for a, b in zip(base.samples, lane.samples, strict=True)]


def _host_time(lane: _Lane) -> float | None:
    times = [lane.clock.host(lane.candidate, lane.next, min(lane.calls, 20)) for _ in range(5)]
    known = [t for t in times if t is not None]
    return median(known) if known else None


def _timing(lane: _Lane, base: _Lane, settled: bool, host: float | None) -> Timing:
    samples, ratios = lane.samples, _ratios(base, lane)
    low, high = median_interval(samples)
    ratio_low, ratio_high = median_interval(ratios)
    return Timing(
        p20=quantile(samples, 0.2), p50=median(samples), p80=quantile(samples, 0.8),
        low=low, high=high, repeats=len(samples), calls=lane.calls, clock=lane.clock.name, settled=settled, host=host,
        ratio=median(ratios), ratio_low=ratio_low, ratio_high=ratio_high,
    )  # fmt: skip


# ---- memory ----


def peak_memory(candidate: Candidate, device: torch.device | str) -> int | None:
    """Bytes that one call takes at most from torch's allocator, beside what is there already; after a first call."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with candidate.scope():
            result = candidate.call(0)
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    # Kineto, which reads this when it is first used, reports each start and stop on the terminal otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with candidate.scope(), torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        result = candidate.call(0)
    del result
    taken = peak = 0
    for event in sorted(profile.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
    return peak
