"""The search behind `warpwright tune`: every configuration of a launch once, the best few again and longer.

What may win: a configuration whose results agree with the default's, whose median beats the default's by more than the
spread of either, and with which the op is within its error bound against float64. Otherwise the default stays. All
that was measured is saved at once, so that a search can be stopped at any point and goes on where it was.

A launch is one of a Triton kernel with a configuration, or a product of the C++ kernels, of matrices or of a
convolution, with a plan.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Protocol

import torch
from torch import Tensor

import warpwright
from warpwright import _gemm_plans, _info, ops
from warpwright._backend import triton_missing, use_backend
from warpwright.bench.case import Case
from warpwright.bench.checks import Accuracy
from warpwright.bench.clocks import Clock
from warpwright.bench.runner import last_level_cache, sets_of_inputs
from warpwright.bench.timing import Candidate, Timing, measure
from warpwright.testing import evaluate
from warpwright.tuning import launches, products
from warpwright.tuning.launches import TUNABLE_OPS, load_kernels
from warpwright.tuning.products import PRODUCT_OPS
from warpwright.tuning.selector import gpu_name, reload
from warpwright.tuning.tables import Config, Entry, Problem, Store, Unfinished

#: Configurations that are timed in turns with the default; what is measured is saved after each such group.
_GROUP = 8
_FINALISTS = 6
_DEFAULT = "default"
_FAILED, _WRONG = "failed", "wrong"


class Launch(Protocol):
    """What is searched for: `warpwright.tuning.Launch` of Triton's kernels, `products.Product` of the C++ ones."""

    @property
    def problem(self) -> Problem:
        """What tables have its outcome under."""

    @property
    def sources(self) -> str:
        """Hash of the kernel's source files."""

    @property
    def default(self) -> Config:
        """The configuration without a table."""

    @property
    def candidates(self) -> list[Config]:
        """The others that are tried."""

    @property
    def terms(self) -> int:
        """Of the sum that an element of the results is."""

    @property
    def written(self) -> tuple[Tensor, ...]:
        """The results of the latest run."""

    def run(self, config: Config) -> None:
        """Launches it."""

    def forced(self, config: Config) -> AbstractContextManager[None]:
        """The op's kernels have this configuration meanwhile, whatever their sizes."""


@dataclass
class Options:
    """How long to measure.

    Attributes:
        device: where the kernels run.
        backend: whose kernels: "triton", "native" or, in the tests, "emulated".
        seconds: for each finalist; the first pass takes a tenth of it for each configuration.
        spread: the relative width of the confidence intervals at which measuring may end before.
        deadline: the time.monotonic() after which no group of configurations is started.
        clock: None for the device's own.
    """

    device: torch.device
    seconds: float = 0.3
    spread: float = 0.01
    deadline: float = float("inf")
    clock: Clock | None = None
    backend: str = "triton"


@dataclass(frozen=True)
class Step:
    """What a search says after each group of configurations; `total` counts the problem's configurations.

    Attributes:
        problem: what is searched for.
        done, total: configurations.
        best: the shortest time so far / the default's, or None.
    """

    problem: Problem
    done: int
    total: int
    best: float | None


class OutOfTime(Exception):
    """The deadline has passed; everything measured is saved."""


def missing(backend: str) -> str | None:
    """Why the kernels of a backend cannot be tuned here, or None when they can."""
    return triton_missing() if backend == "triton" else products.missing(backend)


def tunable_ops(backend: str) -> tuple[str, ...]:
    """The ops that stand on tunable kernels."""
    return TUNABLE_OPS if backend == "triton" else PRODUCT_OPS


def _record(case: Case, options: Options, seed: int = 0, *, run: bool = True) -> Sequence[Launch]:
    if options.backend == "triton":
        return launches.record(case, options.device, seed, run=run)
    return products.record(case, options.device, options.backend, seed, run=run)


def problems_of(case: Case, options: Options) -> dict[Problem, list[Config]]:
    """The problems of a case and the configurations that would be tried; nothing tunable is launched."""
    found = {launch.problem: launch for launch in _record(case, options, run=False)}
    return {problem: launch.candidates for problem, launch in found.items()}


def unused(problem: Problem, entry: Entry) -> str | None:
    """Why an entry of a table is not used, or None when it is."""
    if problem.backend != "triton":
        return products.unused(problem, entry)
    if importlib.util.find_spec("triton") is None:
        return triton_missing()
    if problem.kernel not in (known := load_kernels()):
        return "no such kernel"
    return None if entry.sources == known[problem.kernel].sources else "the kernel's source has changed"


def sources_of(problem: Problem) -> str | None:
    """Hash of the sources of a problem's kernel."""
    if problem.backend != "triton":
        return products.sources_of(problem.backend)
    return load_kernels()[problem.kernel].sources


def is_tuned(problem: Problem, sources: str | None, entries: Mapping[Problem, Entry]) -> bool:
    """Whether a table has an outcome for the kernel as it is now."""
    entry = entries.get(problem)
    return entry is not None and entry.sources == sources


def tune(case: Case, store: Store, options: Options, on_step: Callable[[Step], None]) -> Iterator[Entry]:
    """Searches for every launch of a case that has no outcome yet; yields outcomes as soon as they are saved.

    Raises:
        OutOfTime: the deadline has passed.
        RuntimeError: the default configuration cannot run, or its table is damaged.
    """
    entries = store.entries()
    noted = _record(case, options, run=False)
    open_problems = {n.problem for n in noted if not is_tuned(n.problem, n.sources, entries)}
    del noted
    if not open_problems:
        return
    try:
        if options.backend != "triton":
            _gemm_plans.suspend(options.backend)
        yield from _tune(case, open_problems, store, options, on_step)
    finally:
        reload()


def _tune(
    case: Case, open_problems: set[Problem], store: Store, options: Options, on_step: Callable[[Step], None]
) -> Iterator[Entry]:
    meta = case.sample("meta")
    nbytes = max(1, sum(t.numel() * t.element_size() for t in meta.tensors()))
    # The times of interpreted kernels mean nothing, whatever a cache holds.
    count = sets_of_inputs(nbytes, last_level_cache(options.device)) if options.device.type == "cuda" else 1
    sets: dict[Problem, list[Launch]] = {}
    for seed in range(count):
        drawn: dict[Problem, Launch] = {}
        for launch in _record(case, options, seed):
            drawn.setdefault(launch.problem, launch)
        for problem, launch in drawn.items():
            sets.setdefault(problem, []).append(launch)
    truth = _Truth(case, options)
    for problem, drawn_launches in sets.items():
        if problem in open_problems:
            yield _Search(drawn_launches, store, options, truth, on_step).run()


@dataclass
class _Truth:
    """The case against float64, with one kernel's configuration forced; computed only once somebody may win."""

    case: Case
    options: Options

    @cached_property
    def accuracy(self) -> Accuracy:
        backward = any(direction != "forward" for direction in self.case.directions)
        return Accuracy.of(self.case, "both" if backward else "forward", self.options.device)

    def holds(self, launch: Launch, config: Config) -> bool:
        with use_backend(self.options.backend), launch.forced(config):
            ours = evaluate(getattr(ops, self.case.op), self.accuracy.sample)
        return all(comparison.ok for comparison in self.accuracy.expected.compare(ours))


@dataclass
class _Search:
    """One problem. `launches` are the same launch on several sets of inputs."""

    launches: list[Launch]
    store: Store
    options: Options
    truth: _Truth
    on_step: Callable[[Step], None]
    expected: list[Tensor] = field(default_factory=list)

    @property
    def first(self) -> Launch:
        return self.launches[0]

    def run(self) -> Entry:
        problem, sources = self.first.problem, self.first.sources
        search = self.store.unfinished(problem, sources)
        self.first.run(self.first.default)
        self.expected = [t.detach().clone() for t in self.first.written]
        self._quick_pass(search)
        entry = self._final(search)
        for launch in self.launches:  # Other launches of the case read what this one writes.
            launch.run(launch.default)
        self.store.add(entry)
        return entry

    def _check_device(self, failed: str) -> None:
        """A kernel that broke the CUDA context would make every other one fail, and nothing but a new process helps."""
        try:
            self.first.run(self.first.default)
            self._wait()
        except Exception as error:
            raise RuntimeError(
                f"warpwright: tune: {self.first.problem}: since {failed} failed, nothing runs any more; the next start "
                f"leaves it out: {error}"
            ) from error

    def _wait(self) -> None:
        if self.options.device.type == "cuda":
            torch.cuda.synchronize(self.options.device)

    # ---- the passes ----

    def _quick_pass(self, search: Unfinished) -> None:
        configs = {_text(config): config for config in self.first.candidates}
        left = [name for name in configs if name not in search.ratios]
        self._report(search, len(configs))
        for start in range(0, len(left), _GROUP):
            if time.monotonic() >= self.options.deadline:
                raise OutOfTime
            group = left[start : start + _GROUP]
            good = {}
            for name in group:
                verdict = self._try(configs[name])
                if verdict is None:
                    good[name] = configs[name]
                    continue
                search.ratios[name] = verdict
                if verdict == _FAILED:
                    self.store.keep(self.first.problem, search)
                    self._check_device(name)
            if good:
                timings = self._measure(good, self.options.seconds / 10)
                base = timings[_DEFAULT].p50
                search.ratios |= {name: timings[name].p50 / base for name in good}
            self.store.keep(self.first.problem, search)
            self._report(search, len(configs))

    def _report(self, search: Unfinished, total: int) -> None:
        times = [ratio for ratio in search.ratios.values() if isinstance(ratio, (int, float))]
        self.on_step(Step(self.first.problem, len(search.ratios), total, min(times, default=None)))

    def _final(self, search: Unfinished) -> Entry:
        times = {name: ratio for name, ratio in search.ratios.items() if isinstance(ratio, (int, float))}
        configs = {_text(config): config for config in self.first.candidates}
        finalists = [name for name in sorted(times, key=times.__getitem__) if name in configs][:_FINALISTS]
        good = {name: configs[name] for name in finalists}
        timings = self._measure(good, self.options.seconds)
        base = timings[_DEFAULT]
        for name in sorted(good, key=lambda name: timings[name].p50):
            spread = max(_spread(base), _spread(timings[name]))
            if base.p50 - timings[name].p50 <= spread or timings[name].ratio_low <= 1:
                continue
            # Compared with the default once more: a race may show only now and then.
            if self._try(good[name]) is None and self._holds(good[name]):
                return self._entry(good[name], timings[name], base, spread, search)
            search.ratios[name] = _WRONG
        return self._entry(None, base, base, _spread(base), search)

    def _measure(self, configs: Mapping[str, Config], seconds: float) -> dict[str, Timing]:
        launches, count = self.launches, len(self.launches)

        def candidate(config: Config) -> Candidate:
            return Candidate(lambda i: launches[i % count].run(config))

        every = {_DEFAULT: self.first.default} | dict(configs)
        return measure(
            {name: candidate(config) for name, config in every.items()},
            self.options.device,
            seconds=seconds,
            spread=self.options.spread,
            clock=self.options.clock,
            sets=count,
        )

    # ---- right or wrong ----

    def _try(self, config: Config) -> str | None:
        """None where the configuration runs and agrees with the default's results."""
        _spoil(self.first.written)
        try:
            self.first.run(config)
            self._wait()
        except Exception:
            return _FAILED
        agrees = all(
            _agree(ours.detach(), theirs, self.first.terms)
            for ours, theirs in zip(self.first.written, self.expected, strict=True)
        )
        return None if agrees else _WRONG

    def _holds(self, config: Config) -> bool:
        _ = self.truth.accuracy  # What keeps PyTorch from computing it is not the configuration's fault.
        try:
            return self.truth.holds(self.first, config)
        except Exception:
            return False

    def _entry(self, config: Config | None, timing: Timing, base: Timing, spread: float, search: Unfinished) -> Entry:
        verdicts = list(search.ratios.values())
        return Entry(
            problem=self.first.problem,
            config=config,
            seconds=timing.p50,
            default_seconds=base.p50,
            spread=spread,
            candidates=len(verdicts),
            failed=verdicts.count(_FAILED),
            wrong=verdicts.count(_WRONG),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            torch=torch.__version__,
            triton=_info._triton_version() or "unknown",
            warpwright=warpwright.__version__,
            commit=_commit(),
            sources=self.first.sources,
        )


def _spread(timing: Timing) -> float:
    return timing.p80 - timing.p20


def _spoil(tensors: Sequence[Tensor]) -> None:
    """What is not written again is seen to be wrong. Keeps no tensor alive."""
    for tensor in tensors:
        tensor.fill_(float("nan"))


def _text(config: Config) -> str:
    return json.dumps(config)


def _agree(ours: Tensor, theirs: Tensor, terms: int) -> bool:
    """Whether two results differ by no more than rounding: that of the result, and of a sum added up in another order,
    which grows with the root of the number of its terms."""
    if ours.numel() == 0:
        return True
    wide = torch.float64 if ours.dtype == torch.float64 else torch.float32
    largest = float(theirs.abs().max())
    error = float((ours.to(wide) - theirs.to(wide)).abs_().max())
    allowed = 2 * torch.finfo(ours.dtype).eps + 4 * terms**0.5 * torch.finfo(wide).eps
    return error <= allowed * largest  # False for NaN.


#: git is asked once.
_commit = cache(_info._commit)


def gpu_of(device: torch.device, backend: str) -> str:
    """The name of the table. Raises RuntimeError where nothing can be tuned."""
    if backend == "native" and device.type != "cuda":
        raise RuntimeError("warpwright: tune: the C++ kernels of a GPU are tuned on it: --device must be cuda")
    if backend != "triton":
        return products.gpu_name(device, backend)
    name = gpu_name(device)
    if name is None:
        raise RuntimeError("warpwright: tune: kernels on the CPU are tuned with TRITON_INTERPRET=1 only")
    return name
