"""PyTorch's own samples of an operator, out of its OpInfo database, through ours, with the same rule of error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db

from warpwright.testing import Sample, evaluate
from warpwright.testing.compare import Expected

#: Says why a sample is not ours to take, or None where it is.
Refusal = Callable[[Sample], str | None]


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[Callable[..., Any], Sample]]:
    """PyTorch's function, and each of its samples on the CPU; inputs require gradients."""
    found = [info for info in op_db if info.name == name]
    assert found, f"PyTorch has no OpInfo of {name}"
    for info in found:
        for i, sample in enumerate(info.sample_inputs("cpu", dtype, requires_grad=True)):
            yield info.op, Sample(f"{name}, sample {i}", (sample.input, *sample.args), dict(sample.kwargs))


def held_to(
    name: str, ours: Callable[..., Any], dtype: torch.dtype, refused: Refusal = lambda sample: None
) -> Counter[str]:
    """Compares outputs and gradients of `ours`, called with PyTorch's arguments, with float64.

    Returns how often each reason of `refused` was given, and under "taken" how many samples were compared. Raises
    AssertionError with a line for each value that is further from float64 than twice PyTorch's own.
    """
    counts: Counter[str] = Counter()
    wrong = []
    for theirs, sample in samples(name, dtype):
        reason = refused(sample)
        counts[reason or "taken"] += 1
        if reason is not None:
            continue
        compared = Expected.of(theirs, sample).compare(evaluate(ours, sample))
        wrong += [f"{sample.name} {_shapes(sample)}: {c}" for c in compared if not c.ok]
    assert not wrong, "\n".join(wrong)
    return counts


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in sample.tensors()]
