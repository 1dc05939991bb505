"""The search behind `warpwright tune`: every configuration of a launch once, the best few again and longer.

What may win: a configuration whose results agree with the default's, whose median beats the default's by more than the
spread of either, and with which the op is within its error bound against float64. Otherwise the default stays. All
that was measured is saved at once, so that a search can be stopped at any point and goes on where it was.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor

import warpwright
from warpwright import _info, ops
from warpwright._backend import use_backend
from warpwright.bench.case import Case
from warpwright.bench.checks import Accuracy
from warpwright.bench.clocks import Clock
from warpwright.bench.runner import last_level_cache, sets_of_inputs
from warpwright.bench.timing import Candidate, Timing, measure
from warpwright.testing import evaluate
from warpwright.tuning.launches import TUNABLE_OPS, record
from warpwright.tuning.selector import Launch, Tunable, gpu_name, intercept, limits_of, reload
from warpwright.tuning.tables import Config, Entry, Problem, Store, Unfinished

#: Configurations that are timed in turns with the default; what is measured is saved after each such group.
_GROUP = 8
_FINALISTS = 6
_DEFAULT = "default"
_FAILED, _WRONG = "failed", "wrong"


@dataclass
class Options:
    """How long to measure.

    Attributes:
        device: where the kernels run.
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


def tunable_cases(cases: Sequence[Case]) -> list[Case]:
    """The cases whose op stands on a tunable kernel."""
    return [case for case in cases if case.op in TUNABLE_OPS]


def problems_of(case: Case, device: torch.device) -> dict[Problem, list[Config]]:
    """The problems of a case and the configurations that would be tried; nothing tunable is launched."""
    found = {launch.problem: launch for launch in record(case, device, run=False)}
    return {problem: _candidates(launch) for problem, launch in found.items()}


def _candidates(launch: Launch) -> list[Config]:
    every = launch.tunable.configs(launch.problem, launch.dtype, limits_of(launch.device))
    return [config for config in every if config != launch.default]


def is_tuned(problem: Problem, sources: str, entries: Mapping[Problem, Entry]) -> bool:
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
    noted = record(case, options.device, run=False)
    open_problems = {n.problem for n in noted if not is_tuned(n.problem, n.tunable.sources, entries)}
    del noted
    if not open_problems:
        return
    meta = case.sample("meta")
    nbytes = max(1, sum(t.numel() * t.element_size() for t in meta.tensors()))
    # The times of interpreted kernels mean nothing, whatever a cache holds.
    count = sets_of_inputs(nbytes, last_level_cache(options.device)) if options.device.type == "cuda" else 1
    sets: dict[Problem, list[Launch]] = {}
    for seed in range(count):
        drawn: dict[Problem, Launch] = {}
        for launch in record(case, options.device, seed):
            drawn.setdefault(launch.problem, launch)
        for problem, launch in drawn.items():
            sets.setdefault(problem, []).append(launch)
    truth = _Truth(case, options.device)
    for problem, launches in sets.items():
        if problem in open_problems:
            yield _Search(launches, store, options, truth, on_step).run()


@dataclass
class _Truth:
    """The case against float64, with one kernel's configuration forced; computed only once somebody may win."""

    case: Case
    device: torch.device

    @cached_property
    def accuracy(self) -> Accuracy:
        backward = any(direction != "forward" for direction in self.case.directions)
        return Accuracy.of(self.case, "both" if backward else "forward", self.device)

    def holds(self, tunable: Tunable, config: Config) -> bool:
        def force(launch: Launch) -> None:
            launch.run(config if launch.tunable is tunable else launch.choice.config)

        with use_backend("triton"), intercept(force):
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
        problem, sources = self.first.problem, self.first.tunable.sources
        search = self.store.unfinished(problem, sources)
        self.first.run(self.first.default)
        self.expected = [t.detach().clone() for t in self.first.written]
        self._quick_pass(search)
        entry = self._final(search)
        for launch in self.launches:  # Other launches of the case read what this one writes.
            launch.run(launch.default)
        self.store.add(entry)
        reload()
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
        configs = {_text(config): config for config in _candidates(self.first)}
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
        configs = {_text(config): config for config in _candidates(self.first)}
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
        for tensor in self.first.written:
            tensor.fill_(float("nan"))
        try:
            self.first.run(config)
            self._wait()
        except Exception:
            return _FAILED
        agrees = all(
            _agree(ours.detach(), theirs, self._terms)
            for ours, theirs in zip(self.first.written, self.expected, strict=True)
        )
        return None if agrees else _WRONG

    @property
    def _terms(self) -> int:
        sizes = dict(self.first.problem.sizes)
        terms = 1
        for name in self.first.tunable.summed:
            terms *= sizes[name]
        return terms

    def _holds(self, config: Config) -> bool:
        _ = self.truth.accuracy  # What keeps PyTorch from computing it is not the configuration's fault.
        try:
            return self.truth.holds(self.first.tunable, config)
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
            sources=self.first.tunable.sources,
        )


def _spread(timing: Timing) -> float:
    return timing.p80 - timing.p20


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


def gpu_of(device: torch.device) -> str:
    """The name of the table. Raises RuntimeError where nothing can be tuned."""
    name = gpu_name(device)
    if name is None:
        raise RuntimeError("warpwright: tune: kernels on the CPU are tuned with TRITON_INTERPRET=1 only")
    return name
