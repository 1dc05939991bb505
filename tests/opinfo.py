"""PyTorch's own samples of an op, run through ours and held to the bound of warpwright.testing.compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.backends import flags_frozen
from torch.testing._internal.common_methods_invocations import op_db

from warpwright.testing import Sample
from warpwright.testing.compare import Expected, evaluate

# What comes with it forbids torch.backends' flags to everyone in the process: other tests set them.
flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

DTYPES = (torch.float32, torch.bfloat16)


def samples(name: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Those of the op that op_db calls `name`, forward and backward, on the CPU."""
    found = [info for info in op_db if info.name == name and not info.variant_test_name]
    assert len(found) == 1, f"op_db has {len(found)} ops called {name}"
    torch.manual_seed(0)
    for i, given in enumerate(found[0].sample_inputs("cpu", dtype, requires_grad=True)):
        shapes = [tuple(a.shape) for a in (given.input, *given.args) if isinstance(a, torch.Tensor)]
        options = {k: "tensor" if isinstance(v, torch.Tensor) else v for k, v in given.kwargs.items()}
        yield Sample(f"{i}: {shapes} {options}", (given.input, *given.args), given.kwargs)


def wrong(
    op: Callable[..., Any],
    torch_op: Callable[..., Any],
    name: str,
    dtype: torch.dtype,
    not_taken: Callable[[Sample], str | None] = lambda sample: None,
) -> list[str]:
    """A line for each result outside its bound. `not_taken` names why a sample is none of ours, or None."""
    lines, taken = [], 0
    for sample in samples(name, dtype):
        if not_taken(sample) is not None:
            continue
        taken += 1
        compared = Expected.of(torch_op, sample).compare(evaluate(op, sample))
        lines += [f"{sample.name}: {c}" for c in compared if not c.ok]
    assert taken > 0, f"no sample of {name} was taken"
    return lines
