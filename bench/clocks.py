"""The clocks that calls are timed with. All answer the same questions, so that tests can plant times of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from warpwright.bench.timing import Candidate


class Clock(Protocol):
    """
    Attributes:
        name: as in `bench.rows.Row.clock`.
        least: seconds that a batch of calls should last at least, for what the clock resolves.
        whole: seconds that a batch may last so as to go through all sets of inputs; batches that need longer do not.
        most: calls in a batch, at most.
    """

    name: str
    least: float
    whole: float
    most: int

    def now(self) -> float:
        """Seconds since some moment, for the time that measuring takes."""
        ...

    def time(self, candidate: Candidate, first: int, count: int) -> float:
        """Seconds for call(first) ... call(first + count - 1)."""
        ...

    def host(self, candidate: Candidate, first: int, count: int) -> float | None:
        """Seconds of the CPU's work for one of these calls; None where that is the call itself."""
        ...


class HostClock:
    """The monotonic clock: for calls that have done their work when they return."""

    name = "host"
    # Thousands of times what the clock resolves, and longer than an interrupt; but shorter than the time slices of
    # other processes, so that some batches meet none.
    least = 0.002
    whole = 0.004
    most = 1_000_000

    def now(self) -> float:
        return time.perf_counter()

    def time(self, candidate: Candidate, first: int, count: int) -> float:
        call, numbers = candidate.call, range(first, first + count)
        with candidate.scope():
            start = time.perf_counter()
            for i in numbers:
                call(i)
            return time.perf_counter() - start

    def host(self, candidate: Candidate, first: int, count: int) -> float | None:
        return None


class EventClock:
    """CUDA events around a batch that waits behind a backlog, so that gaps between launches are not timed.

    The GPU spins for twice the time that the host took to enqueue the batch before. Where the batch began before all of
    it was in the queue, it is timed again behind a longer backlog.
    """

    name = "events"
    least = 0.0005
    whole = 0.005
    # The queue has room for about a thousand launches, and a call may be several.
    most = 128
    #: Of the backlog, in cycles of the GPU: about 50 us to 50 ms, at a rate that is about right.
    _SHORTEST, _LONGEST, _RATE = 1 << 17, 1 << 27, 2e9
    #: A call that waits for the GPU begins before its batch is enqueued, however long the backlog is.
    _TRIES = 3

    def __init__(self) -> None:
        self._backlog: dict[int, int] = {}  # By the candidate's identity: callables need not be hashable.

    def now(self) -> float:
        return time.perf_counter()

    def time(self, candidate: Candidate, first: int, count: int) -> float:
        cycles, seconds = self._backlog.get(id(candidate), self._SHORTEST), 0.0
        for _ in range(self._TRIES):
            seconds, enqueueing, hidden = self._batch(candidate, first, count, cycles)
            cycles = min(self._LONGEST, max(self._SHORTEST, round(2 * enqueueing * self._RATE)))
            self._backlog[id(candidate)] = cycles
            if hidden:
                return seconds
        self._backlog[id(candidate)] = self._SHORTEST
        return seconds

    def _batch(self, candidate: Candidate, first: int, count: int, cycles: int) -> tuple[float, float, bool]:
        """Seconds on the GPU, seconds that enqueueing took, and whether it had ended before the first call began."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with candidate.scope():
            torch.cuda._sleep(cycles)
            begin.record()
            start = time.perf_counter()
            self._enqueue(candidate, first, count)
            enqueueing = time.perf_counter() - start
            end.record()
        hidden = not begin.query()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, enqueueing, hidden

    def _enqueue(self, candidate: Candidate, first: int, count: int) -> None:
        call = candidate.call
        for i in range(first, first + count):
            call(i)

    def host(self, candidate: Candidate, first: int, count: int) -> float | None:
        with candidate.scope():
            torch.cuda.synchronize()  # An empty queue has room for all of it.
            start = time.perf_counter()
            EventClock._enqueue(self, candidate, first, count)
            seconds = time.perf_counter() - start
            torch.cuda.synchronize()
        return seconds / count


class GraphClock(EventClock):
    """Replays of a CUDA graph of a batch: nothing but the kernels is timed, however short they are."""

    name = "graph"
    least = 0.002
    # The inputs of a captured batch stay the same in each replay: if it has not got all of them, they fit the cache.
    whole = 0.02
    most = 1 << 30

    def __init__(self, graph: torch.cuda.CUDAGraph):
        super().__init__()
        self._graph = graph

    @classmethod
    def capture(cls, candidate: Candidate, count: int) -> GraphClock | None:
        """A clock for this candidate and number of calls; None where the calls cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that fails leaves its own stream behind as the current one.
            with torch.cuda.stream(torch.cuda.current_stream()), candidate.scope(), torch.cuda.graph(graph):
                for i in range(count):
                    candidate.call(i)
            graph.replay()
            torch.cuda.synchronize()
        except Exception:
            # Calls that wait for the GPU, or that need a stream of before: events do for them.
            return None
        return cls(graph)

    def _enqueue(self, candidate: Candidate, first: int, count: int) -> None:
        self._graph.replay()
