"""What `warpwright check` runs: one op, on one backend, in one dtype, against float64; no pytest needed."""

from __future__ import annotations

import itertools
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from warpwright._backend import use_backend
from warpwright._info import BackendState
from warpwright.testing.compare import compare
from warpwright.testing.spec import SPECS, Make, OpSpec


@dataclass(frozen=True)
class Case:
    """An op on a backend in a dtype; bad inputs are tried once for each op and backend."""

    spec: OpSpec
    state: BackendState
    dtype: torch.dtype
    bad_inputs: bool


@dataclass(frozen=True)
class Result:
    """What one case found.

    Attributes:
        op, backend, device, dtype: which case.
        samples: how many calls were compared, forward and backward.
        bad_inputs: how many bad calls were tried.
        worst_ratio: the largest error / bound of any output or gradient: 1 is the limit.
        seconds: how long it took; no benchmark.
        failures: one line each; empty when everything is right.
    """

    op: str
    backend: str
    device: str
    dtype: str
    samples: int
    bad_inputs: int
    worst_ratio: float
    seconds: float
    failures: list[str]


def plan(
    states: Sequence[BackendState], ops: Sequence[str] | None = None, dtypes: Sequence[torch.dtype] | None = None
) -> list[Case]:
    """The cases of these ops (None for all) in those of these dtypes (None for all) that each op takes."""
    cases = []
    for name in sorted(SPECS) if ops is None else ops:
        spec = SPECS[name]
        for state in states:
            for dtype in spec.dtypes:
                if dtypes is None or dtype in dtypes:
                    cases.append(Case(spec, state, dtype, bad_inputs=dtype == spec.dtypes[0]))
    return cases


def run(case: Case, most: int | None = None) -> Result:
    """Every sample of one case, or the first `most`, forward and backward, and its bad inputs. Never raises for what an
    op does."""
    start = time.perf_counter()
    failures: list[str] = []
    worst = 0.0
    samples = bad_inputs = 0
    with use_backend(case.state.backend), warnings.catch_warnings():
        # Remarks of PyTorch's own op, and of NumPy inside Triton's interpreter, on infinities that samples contain.
        warnings.filterwarnings("ignore", "Using padding='same'", UserWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.runtime\.interpreter")
        for sample in itertools.islice(case.spec.samples(Make(case.dtype, case.state.device)), most):
            samples += 1
            try:
                compared = compare(case.spec, sample)
            except Exception as error:
                failures.append(f"{sample.name}: {_line(error)}")
                continue
            worst = max([worst, *(c.ratio if c.ratio == c.ratio else float("inf") for c in compared)])
            failures += [
                f"{sample.name}: {c.name}: error {c.error:.3g}, allowed {c.bound:.3g}" for c in compared if not c.ok
            ]
        if case.bad_inputs:
            for failure in _try_bad_inputs(case):
                bad_inputs += 1
                failures += [] if failure is None else [failure]
    return Result(
        op=case.spec.name,
        backend=case.state.name,
        device=case.state.device,
        dtype=str(case.dtype).removeprefix("torch."),
        samples=samples,
        bad_inputs=bad_inputs,
        worst_ratio=worst,
        seconds=time.perf_counter() - start,
        failures=failures,
    )


def _try_bad_inputs(case: Case) -> Iterator[str | None]:
    """For each bad input what went wrong, or None when it met the promised error."""
    for bad in case.spec.bad_inputs(Make(case.dtype, case.state.device)):
        try:
            case.spec.op(*bad.args, **bad.kwargs)
        except Exception as error:
            named = isinstance(error, RuntimeError) and str(error).startswith(f"warpwright: {case.spec.name}: ")
            if named and re.search(bad.message, str(error)):
                yield None
            else:
                yield f"bad input '{bad.name}': expected an error matching {bad.message!r}, got {_line(error)}"
        else:
            yield f"bad input '{bad.name}': no error was raised"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
