"""Every op, every dtype, every backend, forward and backward, against float64.

Where thinning.py says so, each sample is run in one dtype (by the emulated kernels in the first and, unless it has many
rows, in one other), has one memory layout in one dtype, and is repeated in one dtype.
"""

from __future__ import annotations

import functools

import pytest
import torch
from thinning import many_rows, thinned

import warpwright
from warpwright.testing import LAYOUTS, SPECS, Make, compare, evaluate, evaluate_in_place, relayout

CASES = [pytest.param(s, d, id=f"{s.name}-{str(d).removeprefix('torch.')}") for s in SPECS.values() for d in s.dtypes]


@pytest.mark.parametrize(("spec", "dtype"), CASES)
def test_samples_are_within_twice_torchs_error(matrix, spec, dtype):
    """And inputs are as they were."""
    wrong, place = [], spec.dtypes.index(dtype)
    emulated = warpwright.current_backend() == "emulated"
    for i, sample in enumerate(spec.samples(Make(dtype, matrix))):
        if emulated:
            chosen = place == 0 or (i % (len(spec.dtypes) - 1) == place - 1 and not many_rows(sample))
        else:
            chosen = i % len(spec.dtypes) == place
        if thinned(matrix) and not chosen:
            continue
        before = [t.detach().clone() for t in sample.tensors()]
        ours = evaluate_in_place(spec.op, sample)
        wrong += [f"{sample.name}: {c}" for c in compare(spec, sample, ours) if not c.ok]
        for tensor, copy in zip(sample.tensors(), before, strict=True):
            assert torch.equal(_bits(tensor.detach()), _bits(copy)), sample.name
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("spec", "dtype"), CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same(matrix, spec, dtype, layout):
    place, turn = spec.dtypes.index(dtype), list(LAYOUTS).index(layout)
    wrong = []
    for i, sample in enumerate(spec.samples(Make(dtype, matrix))):
        # The dtype changes after a round of layouts: each of them meets each dtype.
        here = i % len(LAYOUTS) == turn and i // len(LAYOUTS) % len(spec.dtypes) == place
        if thinned(matrix) and (not here or many_rows(sample)):
            continue
        moved = sample.map(lambda t: relayout(t, layout))
        ours = evaluate_in_place(spec.op, moved)
        wrong += [f"{sample.name}: {c}" for c in compare(spec, sample, ours) if not c.ok]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("spec", "dtype"), CASES)
def test_two_runs_are_bitwise_equal(matrix, monkeypatch, spec, dtype):
    """On the emulator in another order of blocks, threads and whatever is asynchronous."""
    backend = warpwright.current_backend()
    if matrix == "cpu" and backend == "triton":
        pytest.skip("Triton's interpreter runs one program after the other: there is nothing that could differ")
    for i, sample in enumerate(spec.samples(Make(dtype, matrix))):
        if thinned(matrix) and i % len(spec.dtypes) != spec.dtypes.index(dtype):
            continue
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", "0")
        first = evaluate_in_place(spec.op, sample)
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", "1")
        second = evaluate_in_place(spec.op, sample)
        for name, value in first.items():
            assert torch.equal(_bits(value), _bits(second[name])), (sample.name, name)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _bad_cases():
    for spec in SPECS.values():
        for bad in spec.bad_inputs(Make(spec.dtypes[0])):
            yield pytest.param(spec, bad.name, id=f"{spec.name}-{bad.name}")


@pytest.mark.parametrize(("spec", "name"), list(_bad_cases()))
def test_bad_input_names_the_op_and_the_argument(matrix, spec, name):
    bad = next(b for b in spec.bad_inputs(Make(spec.dtypes[0], matrix)) if b.name == name)
    with pytest.raises(RuntimeError, match=bad.message) as error:
        spec.op(*bad.args, **bad.kwargs)
    assert str(error.value).startswith(f"warpwright: {spec.name}: ")


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.gradcheck], ids=lambda s: s.name)
def test_gradcheck_in_float64(spec):
    small = [
        s
        for s in spec.samples(Make(torch.float64))
        if sum(t.numel() for t in s.tensors()) <= 400 and _finite(s.tensors())
    ]
    assert small, "the numeric Jacobian takes minutes for large samples: a spec needs small ones"
    for sample in small:
        leaves = [t for t in sample.tensors() if t.requires_grad]
        call = functools.partial(_call_with, spec, sample, leaves)
        if not _finite(evaluate(spec.op, sample).values()):
            continue
        assert torch.autograd.gradcheck(call, leaves), sample.name


def _finite(tensors) -> bool:
    """Differences of infinities and NaNs say nothing about a gradient."""
    return all(bool(t.isfinite().all()) for t in tensors)


def _call_with(spec, sample, leaves, *values):
    """The sample's call with `values` in the place of `leaves`."""
    replaced = {id(old): new for old, new in zip(leaves, values, strict=True)}
    moved = sample.map(lambda tensor: replaced.get(id(tensor), tensor))
    return spec.op(*moved.args, **moved.kwargs)


def test_evaluate_leaves_the_sample_alone():
    spec = SPECS["rms_norm"]
    sample = next(iter(spec.samples(Make(torch.float32))))
    evaluate(spec.op, sample)
    assert all(t.grad is None for t in sample.tensors())
