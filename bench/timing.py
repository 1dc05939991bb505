"""How long a call takes, next to others in the same minute: the machines that benchmarks run on are shared and noisy.

Providers take turns within each repeat, and the order turns too, so that a slow second hurts all of them alike. Each
repeat is long enough for the clock; the spread over repeats is reported with the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: A repeat lasts at least this long: a thousand times what the clock resolves.
MIN_REPEAT_S = 0.002
MIN_REPEATS, MAX_REPEATS = 7, 200
WARM_UP_S = 0.03


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the 20th, 50th and 80th percentile over `repeats` means of `calls` calls each."""

    p20: float
    p50: float
    p80: float
    repeats: int
    calls: int


def _clock(device: torch.device) -> Callable[[Callable[[int], Any], int], float]:
    """clock(call, n): seconds for call(0) ... call(n - 1), on the device."""

    def on_cpu(call: Callable[[int], Any], count: int) -> float:
        start = time.perf_counter()
        for i in range(count):
            call(i)
        return time.perf_counter() - start

    def on_cuda(call: Callable[[int], Any], count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for i in range(count):
            call(i)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return on_cuda if device.type == "cuda" else on_cpu


def measure(calls: Mapping[str, Callable[[int], Any]], device: torch.device, seconds: float = 0.5) -> dict[str, Timing]:
    """Times each call for about `seconds`.

    Args:
        calls: name -> call(i); i counts up, so that a call may take turns on inputs and find none of them in a cache.
        device: whose clock: CUDA events on a GPU, the monotonic clock on the CPU.
        seconds: time for each call, warm-up excluded.
    """
    clock = _clock(device)
    counts: dict[str, int] = {}
    for name, call in calls.items():
        clock(call, 1)  # Compilers, allocators and libraries do their first work here.
        end = time.perf_counter() + WARM_UP_S
        once = clock(call, 1)
        while time.perf_counter() < end:
            once = min(once, clock(call, 1))
        counts[name] = max(1, round(MIN_REPEAT_S / max(once, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds * len(order)
    repeat = 0
    while repeat < MIN_REPEATS or (time.perf_counter() < end and repeat < MAX_REPEATS):
        for name in order:
            samples[name].append(clock(calls[name], counts[name]) / counts[name])
        order = order[1:] + order[:1]
        repeat += 1
    return {name: _timing(values, counts[name]) for name, values in samples.items()}


def _timing(values: list[float], calls: int) -> Timing:
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return Timing(*quantiles.tolist(), repeats=len(values), calls=calls)
