"""Timing with clocks whose durations, noise, drift and bursts are planted; threads; memory. Nothing here is timed."""

from __future__ import annotations

import gc
import math
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from simulated_clock import SimulatedClock, busy_machine, jitter, lasts

from warpwright.bench import clocks, timing
from warpwright.bench.clocks import EventClock, GraphClock, HostClock
from warpwright.bench.threads import choose_cpus, pinned, steady, topology
from warpwright.bench.timing import Candidate, Timing, measure, peak_memory


def run(clock: SimulatedClock, times: dict[str, float], **options: Any) -> dict[str, Timing]:
    return measure({name: lasts(t) for name, t in times.items()}, "cpu", clock=clock, **options)


# ---- what comes out ----


def test_planted_times_come_back():
    found = run(SimulatedClock(jitter(0.01)), {"a": 0.002, "b": 0.001})
    assert found["a"].p50 == pytest.approx(0.002, rel=0.01)
    assert found["b"].p50 == pytest.approx(0.001, rel=0.01)
    assert found["b"].ratio == pytest.approx(2.0, rel=0.01)
    assert (found["a"].ratio, found["a"].ratio_low, found["a"].ratio_high) == (1.0, 1.0, 1.0)
    for t in found.values():
        assert t.low <= t.p50 <= t.high
        assert t.p20 < t.p50 < t.p80
        assert (t.clock, t.host, t.settled) == ("simulated", None, True)


def test_intervals_hold_the_planted_times_although_measuring_ends_when_they_are_narrow():
    held = [
        t.low <= 0.001 <= t.high
        for seed in range(300)
        for t in run(SimulatedClock(jitter(0.03), seed), {"a": 0.001}, spread=0.02).values()
    ]
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize("noise", [jitter(0.03), busy_machine])
def test_equals_are_seldom_told_apart(noise):
    alarms = []
    for seed in range(300):
        b = run(SimulatedClock(noise, seed), {"a": 0.002, "b": 0.002}, seconds=0.2)["b"]
        alarms.append(not b.ratio_low <= 1 <= b.ratio_high)
    assert np.mean(alarms) <= 0.05


@pytest.mark.parametrize(("slower", "seconds"), [(1.02, 1.0), (1.10, 0.2)])
def test_a_slower_candidate_is_told_apart_on_a_busy_machine(slower, seconds):
    found, held = [], []
    for seed in range(100):
        b = run(SimulatedClock(busy_machine, seed), {"a": 0.002, "b": 0.002 * slower}, seconds=seconds, spread=0.005)[
            "b"
        ]
        found.append(b.ratio_high < 1)
        held.append(b.ratio_low <= 1 / slower <= b.ratio_high)
    assert np.mean(found) >= 0.95
    assert np.mean(held) >= 0.93


# ---- when it ends ----


def test_a_quiet_machine_is_not_measured_longer_than_it_takes():
    clock = SimulatedClock(jitter(0.001))
    found = run(clock, {"a": 0.002, "b": 0.002}, seconds=10)
    assert found["a"].settled
    assert found["a"].repeats == timing._FIRST_LOOK
    assert clock.now() < 0.3


def test_time_runs_out_on_a_noisy_one():
    clock = SimulatedClock(jitter(0.2))
    found = run(clock, {"a": 0.002, "b": 0.002}, seconds=0.2, spread=0.001)
    assert not found["a"].settled
    assert clock.now() < 2 * 2 * 0.2 + 0.1
    slow = run(SimulatedClock(jitter(0.2)), {"a": 60.0}, seconds=0.2)["a"]
    assert (slow.repeats, slow.settled) == (timing.MIN_REPEATS, False)
    fast = run(SimulatedClock(jitter(0.2)), {"a": 1e-6}, seconds=10, spread=1e-9)["a"]
    assert fast.repeats == timing.MAX_REPEATS


def test_warming_up_goes_on_until_times_stand_still():
    def cold(rng: np.random.Generator, now: float) -> float:
        return (1 + 0.5 * math.exp(-now / 0.1)) * math.exp(0.002 * rng.standard_normal())

    found = run(SimulatedClock(cold), {"a": 0.002, "b": 0.001}, seconds=1)
    assert found["a"].settled
    assert found["a"].p50 == pytest.approx(0.002, rel=0.03)
    assert found["b"].ratio == pytest.approx(2.0, rel=0.01)

    def ever_slower(rng: np.random.Generator, now: float) -> float:
        return 1 + 10 * now

    assert not run(SimulatedClock(ever_slower), {"a": 0.002}, seconds=1)["a"].settled


# ---- batches ----


class Recording(SimulatedClock):
    least, whole = 0.002, 0.004

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Candidate, int, int]] = []

    def time(self, candidate: Candidate, first: int, count: int) -> float:
        self.batches.append((candidate, first, count))
        return super().time(candidate, first, count)


def test_batches_are_long_enough_and_go_through_all_inputs():
    clock = Recording()
    found = measure({"a": lasts(1e-4)}, "cpu", clock=clock, sets=7)["a"]
    assert found.calls == 21  # 20 last the 2 ms, and 21 is three times all seven inputs.
    assert found.p50 == pytest.approx(1e-4)
    tail = clock.batches[-found.repeats :]
    assert [first for _, first, _ in tail] == list(range(tail[0][1], tail[0][1] + 21 * found.repeats, 21))


def test_candidates_are_called_equally_often_unless_one_is_much_slower():
    candidates = {"a": lasts(1e-4), "b": lasts(3e-4), "c": lasts(2e-2)}
    found = measure(candidates, "cpu", clock=Recording(), sets=7)
    assert [t.calls for t in found.values()] == [21, 21, 1]


def test_slow_calls_take_turns_on_the_inputs_across_batches():
    seen: list[int] = []
    found = measure({"a": Candidate(lambda i: seen.append(i) or 0.05)}, "cpu", clock=Recording(), sets=7)["a"]
    assert found.calls == 1
    assert seen[-found.repeats :] == list(range(seen[-found.repeats], seen[-1] + 1))


def test_candidates_take_turns_in_changing_order():
    clock = Recording()
    candidates = {name: lasts(0.002) for name in "abc"}
    repeats = measure(candidates, "cpu", clock=clock)["a"].repeats
    names = {id(c): name for name, c in candidates.items()}
    order = "".join(names[id(c)] for c, _, _ in clock.batches[-3 * repeats :])
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert all(a == b[::-1] for a, b in zip(rounds[::2], rounds[1::2], strict=False))
    assert len(set(rounds)) > 2


def test_each_batch_runs_in_its_scope_without_the_garbage_collector():
    states: list[tuple[str, bool]] = []

    @contextmanager
    def scope():
        states.append(("in", gc.isenabled()))
        yield
        states.append(("out", gc.isenabled()))

    def call(i: int) -> float:
        assert states[-1][0] == "in"
        return 0.002

    assert gc.isenabled()
    measure({"a": Candidate(call, scope)}, "cpu", clock=SimulatedClock())
    assert states
    assert not any(enabled for _, enabled in states)
    assert gc.isenabled()


def test_what_a_candidate_raises_is_passed_on():
    def call(i: int) -> float:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        measure({"a": Candidate(call)}, "cpu", clock=SimulatedClock())
    assert gc.isenabled()
    assert measure({}, "cpu") == {}


def test_the_host_clock_makes_the_calls_it_is_asked_for():
    seen: list[int] = []
    took = HostClock().time(Candidate(seen.append), 5, 3)
    assert seen == [5, 6, 7]
    assert took > 0
    assert HostClock().host(Candidate(seen.append), 0, 1) is None


# ---- CUDA's clocks, on a GPU that is played ----


class PlayedGpu:
    """A queue in order: the host enqueues, the GPU works; `waits` makes calls wait for the GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: float, kernel: float, waits: bool = False):
        self.host_now, self.free, self.host, self.kernel, self.waits = 0.0, 0.0, host, kernel, waits
        self.sleeps: list[float] = []
        monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: self.host_now))
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep, raising=False)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: PlayedEvent(self))

    def work(self, seconds: float) -> None:
        self.free = max(self.free, self.host_now) + seconds

    def sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / 2e9)
        self.work(cycles / 2e9)

    def synchronize(self) -> None:
        self.host_now = max(self.host_now, self.free)

    def call(self, i: int) -> None:
        self.host_now += self.host
        self.work(self.kernel)
        if self.waits:
            self.synchronize()


class PlayedEvent:
    def __init__(self, gpu: PlayedGpu):
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.work(0.0)
        self.at = self.gpu.free

    def query(self) -> bool:
        return self.at <= self.gpu.host_now

    def synchronize(self) -> None:
        self.gpu.host_now = max(self.gpu.host_now, self.at)

    def elapsed_time(self, end: PlayedEvent) -> float:
        return (end.at - self.at) * 1e3


def test_events_time_the_kernels_and_not_the_gaps_between_launches(monkeypatch):
    gpu = PlayedGpu(monkeypatch, host=20e-6, kernel=3e-6)
    clock, candidate = EventClock(), Candidate(gpu.call)
    assert clock.time(candidate, 0, 100) / 100 == pytest.approx(3e-6)
    tries = len(gpu.sleeps)
    assert clock.time(candidate, 0, 100) / 100 == pytest.approx(3e-6)
    assert len(gpu.sleeps) == tries + 1
    assert clock.host(candidate, 0, 20) == pytest.approx(20e-6)


def test_calls_that_wait_for_the_gpu_are_timed_as_they_are(monkeypatch):
    gpu = PlayedGpu(monkeypatch, host=20e-6, kernel=3e-6, waits=True)
    clock, candidate = EventClock(), Candidate(gpu.call)
    for _ in range(5):
        assert clock.time(candidate, 0, 100) / 100 == pytest.approx(23e-6, rel=0.01)
    assert len(gpu.sleeps) == 5 * EventClock._TRIES
    assert sum(gpu.sleeps) < 0.2


def test_graphs_are_for_all_candidates_or_for_none(monkeypatch):
    captured: list[tuple[Candidate, int]] = []

    class Fake(GraphClock):
        @classmethod
        def capture(cls, candidate, count):
            captured.append((candidate, count))
            return None if candidate.call(0) == 30e-6 else cls(SimpleNamespace())

    monkeypatch.setattr(timing, "GraphClock", Fake)

    def choose(*times: float) -> list[Any]:
        lanes = [timing._Lane(lasts(t), SimulatedClock()) for t in times]
        assert timing._choose_graphs(lanes, sets=7) == (lanes[0].clock.name == "graph")
        return lanes

    assert [(lane.clock.name, lane.calls) for lane in choose(10e-6, 5e-3)] == [("graph", 203), ("graph", 1)]
    assert [lane.clock.name for lane in choose(10e-6, 30e-6)] == ["simulated", "simulated"]
    captured.clear()
    assert [lane.clock.name for lane in choose(1e-3, 5e-3)] == ["simulated", "simulated"]
    assert not captured


def test_a_capture_that_fails_gives_no_clock(monkeypatch):
    @contextmanager
    def graph(_):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    @contextmanager
    def stream(_):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    assert GraphClock.capture(lasts(1e-6), 3) is None


# ---- memory ----


def test_peak_memory_of_a_call_is_exact_on_the_cpu():
    x = torch.ones(1 << 16)
    assert peak_memory(Candidate(lambda i: torch.empty(1 << 16)), "cpu") == 4 << 16
    assert peak_memory(Candidate(lambda i: x.neg().neg()), "cpu") == 2 * (4 << 16)
    assert peak_memory(Candidate(lambda i: x.neg_()), "cpu") == 0


# ---- threads ----


def test_cores_are_chosen_before_their_siblings_and_on_one_package():
    # Two packages of four cores, two CPUs each; siblings are 8 apart.
    machine = {cpu: ((cpu % 8) // 4, (cpu % 8) % 4) for cpu in range(16)}
    assert choose_cpus(3, machine) == [1, 2, 3]
    assert choose_cpus(4, machine) == [1, 2, 3, 0]
    assert choose_cpus(8, machine) == [1, 2, 3, 0, 4, 5, 6, 7]
    assert sorted(choose_cpus(16, machine)) == list(range(16))
    assert len(choose_cpus(17, machine)) == 16
    assert choose_cpus(3, machine, busy={10: 0.5, 2: 0.1}) == [4, 5, 6]
    assert choose_cpus(7, machine, busy={10: 0.5}) == [4, 5, 6, 7, 1, 3, 0]
    assert choose_cpus(8, machine, busy={10: 0.5}) == [4, 5, 6, 7, 1, 3, 0, 2]
    assert choose_cpus(2, {5: (0, 1), 6: (1, 0), 7: (1, 1)}) == [6, 7]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads to cores")
@pytest.mark.parametrize("count", [1, 2])
def test_threads_are_bound_to_cores_of_their_own_and_freed_again(count):
    if len(choose_cpus(count, topology(os.sched_getaffinity(0)))) < count:
        pytest.skip(f"fewer than {count} CPUs")
    before, free = torch.get_num_threads(), os.sched_getaffinity(0)
    with pinned(count) as report:
        assert report["pinned"], report["reason"]
        assert (report["threads"], torch.get_num_threads()) == (count, count)
        assert len(set(report["cpus"])) == count
        assert os.sched_getaffinity(0) == free
        with steady():
            assert os.sched_getaffinity(0) == {report["cpus"][0]}
            masks = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
            assert all({cpu} in masks for cpu in report["cpus"])
        assert os.sched_getaffinity(0) == free
    assert torch.get_num_threads() == before
    assert all(os.sched_getaffinity(int(thread)) == free for thread in os.listdir("/proc/self/task"))


def test_threads_that_cannot_be_bound_are_no_error(monkeypatch):
    with pinned(4096) as report:
        assert not report["pinned"]
        assert "4096 threads on" in report["reason"] or "does not bind" in report["reason"]
        assert report["cpus"] == []
        with steady():
            pass

    def refuse(*_: Any) -> None:
        raise PermissionError("planted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, 2}, raising=False)
    with pinned(2) as report:
        assert not report["pinned"]
        assert "planted" in report["reason"]
    with pytest.raises(RuntimeError, match="threads must be at least 1, got 0"), pinned(0):
        pass


ALLOCATES = """
import resource
import torch
from warpwright.bench.threads import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages = (64 << 20) // resource.getpagesize()
assert keep_freed_memory()
faults()
assert faults() < pages // 8, "freed memory went back to the system"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", ALLOCATES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
