"""The definition of correct itself: what the bound of warpwright.testing.compare allows, and what it does not."""

from __future__ import annotations

import math

import pytest
import torch

from warpwright.testing import Expected, Sample


def test_a_number_that_pytorch_does_not_have_excuses_nothing():
    truth = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    theirs = torch.tensor([1.0, math.nan, 3.0])
    expected = Expected({"output0": truth}, {"output0": truth}, {"output0": theirs})

    def verdict(*values):
        (found,) = expected.compare({"output0": torch.tensor(values)})
        return found.ok

    assert verdict(1.0, 2.0, 3.0)
    assert not verdict(1.0, 2.01, 3.0)
    assert not verdict(1.0, math.nan, 3.0)
    assert not verdict(1.01, 2.0, 3.0)


def test_a_nan_that_the_truth_has_must_be_there():
    nan = torch.tensor([1.0, math.nan])
    expected = Expected({"output0": nan.double()}, {"output0": nan.double()}, {"output0": nan})
    assert expected.compare({"output0": nan})[0].ok
    assert not expected.compare({"output0": torch.tensor([1.0, 1.0])})[0].ok


@pytest.mark.parametrize("op", [lambda a, b: a - b, lambda a, b: a * (2**20 / b) - 2**20, lambda a, b: a + b - 2**21])
def test_the_sensitivity_of_a_single_number_is_not_left_to_one_draw_of_signs(op):
    """Two signs: in half of the draws what they do cancels, in the other half it is two units."""
    a, b = torch.tensor(2.0**20), torch.tensor(2.0**20)
    expected = Expected.of(op, Sample("cancels", (a, b)))
    ulp = 2**20 * torch.finfo(torch.float32).eps
    right, wrong = (expected.compare({"output0": torch.tensor(off * ulp)})[0] for off in (0.6, 1.5))
    assert right.ok
    assert not wrong.ok


def test_many_elements_are_nudged_once():
    """The largest of them is no luck."""
    calls = []

    def op(x):
        calls.append(x.dtype)
        return x * 3

    Expected.of(op, Sample("many", (torch.rand(50),)))
    assert calls == [torch.float32, torch.float64, torch.float64]
