"""Runs cases: checks each provider's result, times the providers side by side, and says what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from warpwright.bench.cases import Case
from warpwright.bench.timing import measure
from warpwright.testing import SPECS, Make, OpSpec, Sample
from warpwright.testing import compare as compare_with_float64

#: The baseline comes first.
PROVIDERS = ("eager", "compile", "warpwright")
DIRECTIONS = ("forward", "forward+backward")
#: Inputs are drawn as often as it takes to exceed any last-level cache, within reason.
_ROTATED_BYTES, _MAX_COPIES = 256 << 20, 6


@dataclass(frozen=True)
class Row:
    """One provider on one case.

    Attributes:
        op, case, dtype, direction, provider, device: what was measured.
        p20, p50, p80: seconds of a call, over `repeats` repeats.
        tflops, gbytes: TFLOP/s and GB/s of the forward pass's least work; None with a backward pass.
        ratio: the baseline's p50 / this p50, above 1 is faster; None for the baseline's own absence.
        error: largest error / allowed error against float64 (1 is the limit); None where it was not compared.
        failure: why it was not timed, or None.
    """

    op: str
    case: str
    dtype: str
    direction: str
    provider: str
    device: str
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    repeats: int = 0
    tflops: float | None = None
    gbytes: float | None = None
    ratio: float | None = None
    error: float | None = None
    failure: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class Rows(list[Row]):
    """Rows that print as a table."""

    def __str__(self) -> str:
        lines = []
        for row in self:
            what = f"{row.op:<18} {row.case:<34} {row.dtype:<9} {row.direction:<17} {row.provider:<12}"
            if row.p50 is None:
                lines.append(f"{what} {row.failure}")
                continue
            ratio = "" if row.ratio is None else f" {row.ratio:6.2f}x"
            lines.append(f"{what} {row.p50 * 1e6:10.1f} us{ratio}")
        return "\n".join(lines)


def _provider(name: str, spec: OpSpec) -> Callable[..., Any]:
    if name == "warpwright":
        return spec.op
    return torch.compile(spec.torch_op, dynamic=False) if name == "compile" else spec.torch_op


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for t in value if isinstance(t, Tensor)]


def _call(op: Callable[..., Any], samples: Sequence[Sample], backward: bool) -> Callable[[int], Any]:
    """call(i): the op on the i-th set of inputs, with its backward pass if wanted."""
    if not backward:
        frozen = [s.map(Tensor.detach) for s in samples]

        def forward(i: int) -> Any:
            sample = frozen[i % len(frozen)]
            return op(*sample.args, **sample.kwargs)

        return forward
    leaves = [[t for t in s.tensors() if t.requires_grad] for s in samples]
    outputs = [t for t in _tensors(op(*samples[0].args, **samples[0].kwargs)) if t.requires_grad]
    cotangents = [torch.ones_like(t) for t in outputs]

    def both(i: int) -> Any:
        k = i % len(samples)
        found = [t for t in _tensors(op(*samples[k].args, **samples[k].kwargs)) if t.requires_grad]
        return torch.autograd.grad(found, leaves[k], cotangents)

    return both


def _error(name: str, spec: OpSpec, sample: Sample, op: Callable[..., Any], backward: bool) -> float | None:
    """Largest error / allowed error; PyTorch's own sets what is allowed, so only others are compared."""
    if name == "eager":
        return None
    from warpwright.testing import evaluate

    sample = sample if backward else sample.map(Tensor.detach)
    return max((c.ratio for c in compare_with_float64(spec, sample, evaluate(op, sample))), default=0.0)


def _run_case(
    case: Case, direction: str, providers: Sequence[str], device: torch.device, seconds: float
) -> Iterator[Row]:
    spec = SPECS[case.op]
    backward = direction != "forward"
    first = case.sample(Make(case.dtype, device))
    size = max(1, sum(t.numel() * t.element_size() for t in first.tensors()))
    copies = min(_MAX_COPIES, max(1, _ROTATED_BYTES // size)) if size > 1 << 20 else 1
    samples = [first, *(case.sample(Make(case.dtype, device, seed)) for seed in range(1, copies))]
    what = (case.op, case.label, str(case.dtype).removeprefix("torch."), direction)
    calls, errors, failures = {}, {}, {}
    for name in providers:
        op = _provider(name, spec)
        try:
            errors[name] = _error(name, spec, first, op, backward)
            # Compiled code may fuse away roundings of its own accord: its error is shown, not judged.
            if name == "warpwright" and not (errors[name] or 0.0) <= 1.0:
                failures[name] = f"wrong: error {errors[name]:.3g} times the allowed one"
                continue
            calls[name] = _call(op, samples, backward)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    timings = measure(calls, device, seconds) if calls else {}
    base = timings.get(providers[0])
    cost = spec.cost(*first.args, **first.kwargs)
    for name in providers:
        if name in failures:
            yield Row(*what, name, str(device), error=errors.get(name), failure=failures[name])
            continue
        t = timings[name]
        yield Row(
            *what, name, str(device), t.p20, t.p50, t.p80, t.repeats,
            tflops=None if backward else cost.flops / t.p50 / 1e12,
            gbytes=None if backward else cost.bytes / t.p50 / 1e9,
            ratio=None if base is None else base.p50 / t.p50,
            error=errors.get(name),
        )  # fmt: skip


def run(
    cases: Iterable[Case],
    *,
    device: torch.device | str = "cpu",
    providers: Sequence[str] = PROVIDERS,
    directions: Sequence[str] = DIRECTIONS,
    compiled_directions: Sequence[str] = DIRECTIONS,
    seconds: float = 0.3,
    on_step: Callable[[str], None] = lambda what: None,
) -> Rows:
    """Measures each case, in each direction, with every provider; the first provider is the baseline of the ratios.

    Args:
        cases: from `suite`, or your own.
        device: where.
        providers: of PROVIDERS.
        directions: of DIRECTIONS; cases without a backward pass have the first only.
        compiled_directions: where the "compile" provider takes part; it spends seconds on compiling.
        seconds: for each provider of each case.
        on_step: told what comes next, for a progress bar.
    """
    unknown = [p for p in providers if p not in PROVIDERS]
    if unknown or not providers:
        raise RuntimeError(f"warpwright: bench: providers must be of {', '.join(PROVIDERS)}, got {list(providers)}")
    rows = Rows()
    for case in cases:
        for direction in directions if case.backward else directions[:1]:
            on_step(f"{case.op} {str(case.dtype).removeprefix('torch.')} {direction}")
            taking = [p for p in providers if p != "compile" or direction in compiled_directions]
            rows += _run_case(case, direction, taking, torch.device(device), seconds)
    return rows


def compare(functions: Mapping[str, Callable[..., Any]], *args: Any, seconds: float = 0.5, **kwargs: Any) -> Rows:
    """Times your own functions beside each other on the same inputs, without gradients; the first is the baseline.

    Args:
        functions: name -> function(*args, **kwargs).
        *args, **kwargs: the inputs; the device of the first tensor decides which clock is used.
        seconds: for each function.

    Returns:
        A row for each function; `print(rows)` shows them.
    """
    sample = Sample("yours", args, kwargs)
    tensors = sample.tensors()
    if not tensors:
        raise RuntimeError("warpwright: bench: compare needs at least one tensor among its inputs")
    device = tensors[0].device
    with torch.no_grad():
        timings = measure({name: _call(f, [sample], False) for name, f in functions.items()}, device, seconds)
    base = next(iter(timings.values()))
    shapes = ", ".join(" x ".join(map(str, t.shape)) for t in tensors)
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    return Rows(
        Row("yours", shapes, dtype, "forward", name, str(device), t.p20, t.p50, t.p80, t.repeats,
            ratio=base.p50 / t.p50)
        for name, t in timings.items()
    )  # fmt: skip
