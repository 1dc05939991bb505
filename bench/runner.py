"""Runs cases: checks each provider, times the providers side by side, checks them again, and says what came out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from warpwright.bench.case import PROVIDERS, Case, Provider
from warpwright.bench.ceilings import measure_ceilings, share
from warpwright.bench.checks import Accuracy, Calls, Freshness
from warpwright.bench.environment import environment
from warpwright.bench.providers import DEFAULT_PROVIDERS, find
from warpwright.bench.rows import Ceiling, Results, Row
from warpwright.bench.threads import pinned
from warpwright.bench.timing import Candidate, Timing, measure, peak_memory
from warpwright.testing import Cost, Sample

#: What `run` yields, in the order of a results file.
Record = dict[str, Any] | Ceiling | Row

#: Inputs are drawn as often as it takes to exceed the last-level cache this many times, up to so many sets and bytes.
_CACHES, _MAX_SETS, _MAX_BYTES = 2, 64, 4 << 30
#: Below this size a call is the host's work and latency; a few sets keep its inputs changing.
_TINY_BYTES, _TINY_SETS = 1 << 16, 4


def last_level_cache(device: torch.device) -> int:
    """Bytes; what a Linux kernel or the CUDA driver says, 32 MiB where they say nothing."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 32 << 20
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=32 << 20)


def sets_of_inputs(nbytes: int, cache: int) -> int:
    """How many sets of inputs of so many bytes are rotated through, so that no call finds its own in a cache."""
    if nbytes < _TINY_BYTES:
        return _TINY_SETS
    wanted = 1 + -(-_CACHES * cache // nbytes)
    return max(1, min(wanted, _MAX_SETS, _MAX_BYTES // nbytes))


def work(case: Case, direction: str) -> Cost:
    """The least work of one call. A backward pass reads the inputs and the outputs' gradients, writes a gradient for
    each differentiable input, and computes twice what the forward pass does: exact for products and convolutions."""
    sample = case.sample("meta")
    forward = case.operator.cost(*sample.args, **sample.kwargs)
    gradients = sum(t.numel() * t.element_size() for t in sample.tensors() if t.requires_grad)
    backward = Cost(2 * forward.flops, forward.bytes + gradients)
    both = Cost(forward.flops + backward.flops, forward.bytes + backward.bytes)
    return {"forward": forward, "backward": backward, "both": both}[direction]


@dataclass
class _Trial:
    """One case in one direction: which providers are still in it, and what is known of those that are not."""

    case: Case
    direction: str
    device: torch.device
    functions: dict[str, tuple[Provider, Callable[..., Any]]] = field(default_factory=dict)
    calls: dict[str, tuple[Provider, Callable[[int], Any]]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    out: dict[str, tuple[str, str]] = field(default_factory=dict)
    checked: str | None = None

    def drop(self, name: str, status: str, reason: str) -> None:
        self.out[name] = (status, reason)
        self.functions.pop(name, None)
        self.calls.pop(name, None)

    def fail(self, name: str, error: Exception) -> None:
        self.drop(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def find_functions(self, providers: Sequence[Provider]) -> None:
        sample = self.case.sample("meta")
        for provider in providers:
            try:
                function = provider.function(self.case.op, self.device)
                reason = provider.accepts(self.case.op, sample)
            except Exception as error:
                self.fail(provider.name, error)
                continue
            if function is None:
                self.drop(provider.name, "missing", f"{provider.name} has no {self.case.op}")
            elif reason is not None:
                self.drop(provider.name, "missing", reason)
            else:
                self.functions[provider.name] = (provider, function)

    def check_accuracy(self) -> None:
        """Leaves out who fails, and who is wrong; only then are the inputs drawn that are timed."""
        compared = {n: f for n, f in self.functions.items() if n != "torch"}  # Whose own error sets the bound.
        if not compared:
            return
        accuracy = Accuracy.of(self.case, self.direction, self.device)
        self.checked = accuracy.checked
        for name, (provider, function) in compared.items():
            try:
                error = accuracy.error(provider, function)
            except Exception as failure:
                self.fail(name, failure)
                continue
            self.errors[name] = error
            if not error <= provider.limit:
                self.drop(name, "wrong", f"its error is {error:.3g} times the allowed one")

    def build_calls(self, calls: Calls) -> None:
        for name, (provider, function) in list(self.functions.items()):
            try:
                with provider.scope():
                    self.calls[name] = (provider, calls.of(function))
                    self.calls[name][1](0)
            except Exception as error:
                self.fail(name, error)

    def check_freshness(self, freshness: Freshness) -> None:
        for name, found in freshness.stale(dict(self.calls)).items():
            if isinstance(found, Exception):
                self.fail(name, found)
            else:
                self.drop(name, "wrong", found)

    def measure(self, options: _Options, sets: int) -> dict[str, Timing]:
        """Times who is still in; who raises meanwhile is left out, and the others are timed without it."""
        raised: list[str] = []

        @contextmanager
        def noting(provider: Provider) -> Iterator[None]:
            # Around a batch, where it costs the timed calls nothing.
            try:
                with provider.scope():
                    yield
            except Exception:
                raised.append(provider.name)
                raise

        while self.calls:
            candidates = {n: Candidate(call, partial(noting, provider)) for n, (provider, call) in self.calls.items()}
            try:
                return measure(candidates, self.device, seconds=options.seconds, spread=options.spread, sets=sets)
            except Exception as error:
                if not raised:
                    raise
                self.fail(raised[-1], error)  # Before it, captures of CUDA graphs may have failed, which is no harm.
        return {}


def _trial(case: Case, direction: str, providers: Sequence[Provider], options: _Options) -> list[Row]:
    """One row for each provider."""
    device = options.device
    trial = _Trial(case, direction, device)
    trial.find_functions(providers)
    timings: dict[str, Timing] = {}
    found: dict[str, dict[str, Any]] = {}
    if trial.functions:
        try:
            with _kept_graphs(direction):
                trial.check_accuracy()
                _time(trial, options, timings, found)
        except Exception as error:  # PyTorch itself cannot run the case: out of memory, say.
            for name in list(trial.functions):
                trial.fail(name, error)
    base = providers[0].name
    has_base = base in timings and base not in trial.out
    return [_row(trial, p, timings.get(p.name), found.get(p.name, {}), has_base, options) for p in providers]


def _kept_graphs(direction: str) -> AbstractContextManager[Any]:
    """A backward pass by itself is run again and again; compiled ones otherwise hand out what the forward has saved."""
    if direction != "backward":
        return nullcontext()
    import torch._functorch.config as config

    return config.patch(donated_buffer=False)


def _time(trial: _Trial, options: _Options, timings: dict[str, Timing], found: dict[str, dict[str, Any]]) -> None:
    """Fills `timings`, and in `found` what else a row has."""
    meta = trial.case.sample("meta")
    nbytes = max(1, sum(t.numel() * t.element_size() for t in meta.tensors()))
    sets = trial.case.operator.sets or sets_of_inputs(nbytes, options.cache)
    calls = Calls(trial.case, trial.direction, options.device, sets)
    trial.build_calls(calls)
    reference = calls.of(trial.case.operator.in_place or trial.case.operator.torch_op)
    freshness = Freshness(calls, reference)
    trial.check_freshness(freshness)
    timings |= trial.measure(options, len(calls.samples))
    trial.check_freshness(freshness)
    outcome = trial.case.operator.outcome
    for name, (provider, call) in list(trial.calls.items()):
        if outcome is None:
            found[name] = {"peak_memory": peak_memory(Candidate(call, provider.scope), options.device)}
            continue
        calls.restart()
        try:
            with provider.scope():
                found[name] = outcome(trial.functions[name][1], calls.samples[0], options.device)
        except Exception as error:
            trial.fail(name, error)


def _row(
    trial: _Trial,
    provider: Provider,
    timing: Timing | None,
    found: dict[str, Any],
    has_base: bool,
    options: _Options,
) -> Row:
    case = trial.case
    least = work(case, trial.direction)
    what: dict[str, Any] = {
        "suite": case.suite, "op": case.op, "case": case.label, "dtype": case.dtype_name, "direction": trial.direction,
        "provider": provider.name, "device": options.device.type, "parameters": case.parameters,
        "flops": least.flops, "bytes": least.bytes, "error": trial.errors.get(provider.name),
        "checked": trial.checked if provider.name in trial.errors else None,
        "sources": provider.sources(case.op, options.device),
    }  # fmt: skip
    if provider.name in trial.out or timing is None:
        status, reason = trial.out.get(provider.name, ("failed", "it was not timed"))
        return Row(**what, status=status, reason=reason)
    reached = share(least.flops, least.bytes, timing.p50, case.dtype_name, options.ceilings)
    ratios = (timing.ratio, timing.ratio_low, timing.ratio_high) if has_base else (None, None, None)
    return Row(
        **what, p20=timing.p20, p50=timing.p50, p80=timing.p80, low=timing.low, high=timing.high,
        repeats=timing.repeats, calls=timing.calls, clock=timing.clock, settled=timing.settled, host=timing.host,
        **found, ceiling=reached and reached[0], bound=reached and reached[1],
        ratio=ratios[0], ratio_low=ratios[1], ratio_high=ratios[2],
    )  # fmt: skip


@dataclass
class _Options:
    device: torch.device
    seconds: float
    spread: float
    cache: int
    ceilings: Sequence[Ceiling] = ()


def split(providers: Sequence[str | Provider], device: torch.device) -> tuple[list[Provider], dict[str, str]]:
    """(the providers that can run on `device`, the others' names and why they cannot)."""
    names = iter(find([p for p in providers if isinstance(p, str)]))
    found = [p if isinstance(p, Provider) else next(names) for p in providers]
    reasons = {p.name: p.missing(device) for p in found}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    return [p for p in found if p.name not in missing], missing


def run(
    cases: Sequence[Case],
    *,
    device: torch.device | str = "cpu",
    providers: Sequence[str | Provider] = DEFAULT_PROVIDERS,
    seconds: float = 0.4,
    spread: float = 0.03,
    threads: int | None = None,
    ceilings: bool = True,
    done: Collection[tuple[str, ...]] = (),
    on_step: Callable[[str], None] = lambda what: None,
) -> Iterator[Record]:
    """Measures each case, in each of its directions, with every provider.

    Args:
        cases: from `load_suite`, or your own.
        device: where.
        providers: names or your own; the first that can run is the baseline of the ratios.
        seconds: time for each provider of each case, at most; less where its spread is small before.
        spread: the relative width of the confidence intervals at which measuring ends.
        threads: of the CPU's kernels, each bound to a core; None for as many as torch uses now.
        ceilings: whether the copy and the large products are measured first, which takes some seconds.
        done: `Row.key` of rows that are there already; a case whose rows are all there is left out.
        on_step: told what comes next, once for each case and direction, for a progress bar.

    Yields:
        The environment, the ceilings, then a row for each provider of each case, as soon as they are known.

    Raises:
        RuntimeError: an unknown provider, or none that can run on the device.
    """
    device = torch.device(device)
    usable, missing = split(providers, device)
    if not usable:
        raise RuntimeError(f"warpwright: bench: no provider can run on {device}: {'; '.join(missing.values())}")
    scope: AbstractContextManager[Any] = pinned(threads) if device.type == "cpu" else nullcontext()
    with scope as report, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same'", UserWarning)
        yield environment(device, threads=report) | {
            "missing": missing,
            "options": {"seconds": seconds, "spread": spread, "baseline": usable[0].name},
        }
        options = _Options(device, seconds, spread, last_level_cache(device))
        if ceilings:
            on_step("ceilings: a copy, large products")
            options.ceilings = measure_ceilings(device, _dtypes(cases), seconds=max(seconds, 0.5))
            yield from options.ceilings
        for case in cases:
            for direction in case.directions:
                on_step(f"{case.op} {case.label} {case.dtype_name} {direction}")
                if _is_done(case, direction, usable, device, done):
                    continue
                yield from _trial(case, direction, usable, options)
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def _dtypes(cases: Sequence[Case]) -> list[torch.dtype]:
    return list(dict.fromkeys(case.dtype for case in cases))


def _is_done(
    case: Case, direction: str, providers: Sequence[Provider], device: torch.device, done: Collection[tuple[str, ...]]
) -> bool:
    what = (case.suite, case.op, case.label, case.dtype_name, direction)
    return bool(done) and all((*what, p.name, device.type) in done for p in providers)


def steps(cases: Sequence[Case], ceilings: bool = True) -> int:
    """How often `run` calls `on_step`."""
    return sum(len(case.directions) for case in cases) + int(ceilings)


def collect(records: Iterator[Record]) -> Results:
    """All of `run`'s records."""
    found = Results()
    for record in records:
        found.add(record)
    return found


def compare(functions: Mapping[str, Callable[..., Any]], *args: Any, seconds: float = 0.5, **kwargs: Any) -> Results:
    """Times your own functions beside each other on the same inputs, without gradients; the first is the baseline.

    Args:
        functions: name -> function(*args, **kwargs).
        *args, **kwargs: the inputs; the device of the first tensor decides which clock is used.
        seconds: for each function, at most.

    Returns:
        A row for each function; `print(results)` shows them. Results are not compared with anything: for that, use
        `warpwright.bench.kernel`.
    """
    sample = Sample("yours", args, kwargs)
    tensors = sample.tensors()
    if not tensors:
        raise RuntimeError("warpwright: bench: compare needs at least one tensor among its inputs")
    device = tensors[0].device
    frozen = sample.map(torch.Tensor.detach)

    def call(function: Callable[..., Any]) -> Callable[[int], Any]:
        return lambda i: function(*frozen.args, **frozen.kwargs)

    found = Results(environments=[environment(device)])
    with torch.no_grad():
        timings = measure({n: Candidate(call(f)) for n, f in functions.items()}, device, seconds=seconds)
    shapes = ", ".join(" x ".join(map(str, t.shape)) for t in tensors)
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    for name, t in timings.items():
        found.add(
            Row("yours", "yours", shapes, dtype, "forward", name, device.type, p20=t.p20, p50=t.p50, p80=t.p80,
                low=t.low, high=t.high, repeats=t.repeats, calls=t.calls, clock=t.clock, settled=t.settled, host=t.host,
                ratio=t.ratio, ratio_low=t.ratio_low, ratio_high=t.ratio_high)
        )  # fmt: skip
    return found


def sources_now(row: Row) -> str | None:
    """The hash that `row.sources` would have if it were measured now; None where that is not known."""
    provider = PROVIDERS.get(row.provider)
    return None if provider is None else provider.sources(row.op, torch.device(row.device))
