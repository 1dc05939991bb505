"""The shapes of the matmul family's benchmark suites on every backend, small: what a size leaves over 8 stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from warpwright.bench.case import Case
from warpwright.bench.suite import load_suite
from warpwright.testing import SPECS, compare, evaluate
from warpwright.testing.compare import to_float64

SUITES = ("matmul-square", "matmul-llm", "matmul-odd", "matmul-batched", "matmul-grouped", "matmul-epilogue")
SIZES = ("m", "n", "k", "tokens")
#: Of which few are enough.
COUNTS = {"batch": 3, "groups": 5}


def _small(name: str, value: object) -> object:
    if name in SIZES and isinstance(value, int) and value > 16:
        return 24 + value % 8
    return min(value, COUNTS[name]) if name in COUNTS and isinstance(value, int) else value


def _cases() -> dict[str, Case]:
    """By label; many large sizes become the same small one."""
    found = {}
    for suite in SUITES:
        for case in load_suite(suite, "cuda", full=True):
            small = replace(case, parameters={name: _small(name, v) for name, v in case.parameters.items()})
            found[f"{small.op} {small.label} {small.dtype_name}"] = small
    return found


CASES = _cases()


@pytest.mark.parametrize("label", CASES)
def test_it_is_right(matrix, label):
    case = CASES[label]
    compared = compare(SPECS[case.op], case.sample(matrix))
    assert all(c.ok for c in compared), compared


#: An exact sum under a transcendental activation is not exact any more.
EXACT = [label for label, case in CASES.items() if case.parameters.get("activation") in (None, "relu")]


@pytest.mark.parametrize("label", EXACT)
def test_small_integers_are_exact(matrix, label):
    """Whatever the order in which they are added up: sums and biases of small integers have no rounding."""
    spec = SPECS[CASES[label].op]
    sample = CASES[label].sample(matrix).map(_whole)
    assert spec.op(*sample.args, **sample.kwargs).double().equal(evaluate(spec.torch_op, to_float64(sample))["output0"])


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.detach() * 4).round().clamp(-2, 2) if tensor.is_floating_point() else tensor
