"""Does this tool see, on this machine, what it is for? Planted kernels are slower by a known share, wrong, or cheat.

They are run as anyone's kernels are, beside PyTorch's softmax. A slow-down that is not seen says that the machine is
too noisy for the time that it was given; a wrong kernel that is timed says that the checks are broken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from warpwright.bench.case import PROVIDERS, Case, Provider
from warpwright.bench.clocks import EventClock
from warpwright.bench.rows import Row
from warpwright.bench.runner import collect, run
from warpwright.bench.timing import Candidate
from warpwright.bench.verdict import decide

Softmax = Callable[..., Tensor]

#: Rows of 1024 elements: some tenths of a millisecond.
_ROWS = {"cpu": 512, "cuda": 65536}
#: As in `warpwright bench compare`.
_TOLERANCE = 0.01
#: Intervals of half that width tell 2% from nothing with room to spare.
_SPREAD = 0.004


@dataclass(frozen=True)
class Finding:
    """What was planted, what should come of it, what did, and whether that is right."""

    name: str
    expected: str
    found: str
    ok: bool


# ---- planted kernels ----


def _same() -> Softmax:
    return lambda input, dim=-1: torch.softmax(input, dim)


def _slower(share: float) -> Softmax:
    """Keeps the processor busy for this share of each call's time in addition."""
    cycles: dict[torch.Size, int] = {}

    def softmax(input: Tensor, dim: int = -1) -> Tensor:
        if input.is_cuda:
            if input.shape not in cycles:
                cycles[input.shape] = round(share * _gpu_cycles(input, dim))
            result = torch.softmax(input, dim)
            torch.cuda._sleep(cycles[input.shape])
            return result
        start = time.perf_counter()
        result = torch.softmax(input, dim)
        now = time.perf_counter()
        end = now + share * (now - start)
        while time.perf_counter() < end:
            pass
        return result

    return softmax


def _gpu_cycles(input: Tensor, dim: int) -> float:
    """A softmax in cycles of `torch.cuda._sleep`."""
    clock, spins = EventClock(), 1 << 22
    spin, softmax = Candidate(lambda i: torch.cuda._sleep(spins)), Candidate(lambda i: torch.softmax(input, dim))
    for candidate in (spin, softmax):
        clock.time(candidate, 0, 50)
    return clock.time(softmax, 0, 50) / clock.time(spin, 0, 50) * spins


def _wrong() -> Softmax:
    return lambda input, dim=-1: torch.softmax(input, dim) * 1.001


def _remembers() -> Softmax:
    """Takes the same address for the same numbers."""
    results: dict[tuple[int, torch.Size], Tensor] = {}

    def softmax(input: Tensor, dim: int = -1) -> Tensor:
        key = (input.data_ptr(), input.shape)
        if key not in results:
            results[key] = torch.softmax(input, dim)
        return results[key]

    return softmax


def _writes_once() -> Softmax:
    """Has one output for each shape, and fills it in the first call."""
    outputs: dict[torch.Size, Tensor] = {}

    def softmax(input: Tensor, dim: int = -1) -> Tensor:
        if input.shape not in outputs:
            outputs[input.shape] = torch.softmax(input, dim)
        return outputs[input.shape]

    return softmax


def _tires() -> Softmax:
    """Is honest for some calls, until it thinks that nobody looks any more."""
    calls, last = 0, {}

    def softmax(input: Tensor, dim: int = -1) -> Tensor:
        nonlocal calls
        calls += 1
        if calls < 50 or input.shape not in last:
            last[input.shape] = torch.softmax(input, dim)
        return last[input.shape]

    return softmax


#: Name -> (maker, planted slow-down).
_TIMED: dict[str, tuple[Callable[[], Softmax], float]] = {
    "the same kernel": (_same, 0.0),
    "2% slower": (lambda: _slower(0.02), 0.02),
    "10% slower": (lambda: _slower(0.10), 0.10),
}
#: Name -> maker.
_CAUGHT: dict[str, Callable[[], Softmax]] = {
    "wrong by 0.1%": _wrong,
    "remembers results by address": _remembers,
    "writes its output once": _writes_once,
    "stops working after 50 calls": _tires,
}


def _provider(name: str, make: Callable[[], Softmax]) -> Provider:
    return Provider(name, "planted", lambda device: None, lambda op, device: make())


# ---- what came out ----


def run_selftest(
    device: torch.device | str, *, seconds: float = 1.0, on_step: Callable[[str], None] = lambda what: None
) -> list[Finding]:
    """Runs planted kernels beside PyTorch's on this machine.

    Args:
        device: cpu or cuda.
        seconds: for each kernel, at most.
        on_step: told what comes next.

    Returns:
        A finding for each planted kernel.
    """
    device = torch.device(device)
    makers = {name: make for name, (make, _) in _TIMED.items()} | _CAUGHT
    planted = [_provider(name, make) for name, make in makers.items()]
    case = Case("selftest", "softmax", torch.float32, ("forward",), {"rows": _ROWS[device.type], "width": 1024})
    records = run(
        [case], device=device, providers=[PROVIDERS["torch"], *planted], seconds=seconds, spread=_SPREAD,
        ceilings=False, on_step=on_step,
    )  # fmt: skip
    rows = {row.provider: row for row in collect(records).rows}
    timed = [_timed(name, share, rows[name]) for name, (_, share) in _TIMED.items()]
    return timed + [_caught(name, rows[name]) for name in _CAUGHT]


def _timed(name: str, share: float, row: Row) -> Finding:
    expected = f"SLOWER, {share:+.0%}" if share else "SAME"
    if row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return Finding(name, expected, f"{row.status}: {row.reason}", ok=False)
    change, low, high = (-math.log(ratio) for ratio in (row.ratio, row.ratio_high, row.ratio_low))
    verdict = decide(change, low, high, _TOLERANCE)
    found = f"{verdict}, {math.expm1(change):+.2%} ({math.expm1(low):+.2%} to {math.expm1(high):+.2%})"
    right = share / 2 < math.expm1(change) < 2 * share if share else True
    return Finding(name, expected, found, ok=verdict == expected.split(",")[0] and right)


def _caught(name: str, row: Row) -> Finding:
    found = f"timed: {row.p50:.3g} s" if row.p50 is not None else f"{row.status}: {row.reason}"
    return Finding(name, "wrong, not timed", found, ok=row.status == "wrong")
