"""What every op promises beside its numbers: opcheck, torch.compile, torch.export, threads, autocast, any layout."""

from __future__ import annotations

import inspect
import itertools
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from thinning import many_rows, thinned
from torch.utils._python_dispatch import TorchDispatchMode

import warpwright
from warpwright import _registry
from warpwright.testing import (
    ERROR_FACTOR,
    LAYOUTS,
    SPECS,
    Comparison,
    Make,
    Sample,
    compare,
    evaluate,
    evaluate_in_place,
    relayout,
)

ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
#: opcheck and tracing look at schemas and metadata: a few samples with different branches are enough.
FEW = 4


def _traced(spec, device: str) -> list[Sample]:
    """What is traced is the same Python for all backends: of those that are thinned one sample is enough."""
    return list(spec.samples(Make(torch.float32, device)))[: 1 if thinned(device) else FEW]


class _Recorder(TorchDispatchMode):
    """Notes every call of a warpwright operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("warpwright"):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def _recorded(spec, make: Make) -> list[tuple[str, Any, tuple[Any, ...]]]:
    calls = []
    for sample in list(spec.samples(make))[:FEW]:
        wants = {t.data_ptr() for t in sample.tensors() if t.requires_grad and t.numel()}
        with _Recorder() as recorder:
            evaluate_in_place(spec.op, sample)
        for func, args in recorder.calls:
            # Below autograd the arguments have lost requires_grad: the forward operator gets it back.
            forward = func._schema.name.split("::")[1] == spec.kernels[0] and not func._schema.is_mutable

            def restore(tensor, wants=wants, forward=forward):
                grad = forward and tensor.data_ptr() in wants and tensor.is_floating_point()
                return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(grad)

            calls.append((sample.name, func, Sample("", args).map(restore).args))
    return calls


def _checks(args: tuple[Any, ...], device: str) -> tuple[str, ...]:
    """opcheck's tests. That of the schema compares inputs with allclose, which PyTorch lacks for 8-bit floats; the
    test of two runs below holds their inputs to be unchanged. What is traced with symbols is the same on every backend.
    """
    every = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    if thinned(device):
        every = every[:-1]
    float8 = any(isinstance(a, torch.Tensor) and a.is_floating_point() and a.element_size() == 1 for a in args)
    return every[1:] if float8 else every


@ALL
def test_opcheck(matrix, spec):
    calls = _recorded(spec, Make(torch.float32, matrix))
    assert {func._schema.name.split("::")[1] for _, func, _ in calls} == set(spec.kernels)
    if thinned(matrix):
        calls = list({func: (name, func, args) for name, func, args in calls}.values())
    for name, func, args in calls:
        try:
            torch.library.opcheck(func, args, test_utils=_checks(args, matrix))
        except Exception as error:
            raise AssertionError(f"{name}: {func}") from error


@ALL
def test_fake_says_what_the_kernel_does(matrix, spec):
    """Shapes, dtypes and strides of every output, for every sample."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for sample in spec.samples(Make(torch.float32, matrix)):
        if thinned(matrix) and many_rows(sample):
            continue
        real = spec.op(*sample.args, **sample.kwargs)
        with FakeTensorMode() as mode:
            moved = sample.map(mode.from_tensor)
            fake = spec.op(*moved.args, **moved.kwargs)
        for r, f in zip(_tensors(real), _tensors(fake), strict=True):
            assert (r.shape, r.dtype, r.device, r.requires_grad) == (f.shape, f.dtype, f.device, f.requires_grad)
            if r.numel():
                assert r.stride() == f.stride(), sample.name


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for t in value if t is not None]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str) -> None:
    assert set(ours) == set(expected), name
    for key, value in expected.items():
        assert same_bits(ours[key], value), (name, key)


@ALL
def test_compile_fullgraph_gives_the_same(matrix, spec):
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, backend="aot_eager", dynamic=False)
    for sample in _traced(spec, matrix):
        _same(evaluate(compiled, sample), evaluate(spec.op, sample), sample.name)


@ALL
def test_compile_inductor_gives_the_same(spec):
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True)
    sample = next(iter(spec.samples(Make(torch.float32))))
    _same(evaluate(compiled, sample), evaluate(spec.op, sample), sample.name)


@ALL
def test_export_gives_the_same(matrix, spec):
    class Module(torch.nn.Module):
        def __init__(self, dtypes: dict[int, torch.dtype], options: dict[str, Any]):
            super().__init__()
            self.dtypes, self.options = dtypes, options  # Export does not take dtypes as inputs.

        def forward(self, *args, **tensors):
            args = [self.dtypes.get(i, arg) for i, arg in enumerate(args)]
            return spec.op(*args, **tensors, **self.options)

    for sample in _traced(spec, matrix):
        frozen = sample.map(torch.Tensor.detach)
        tensors = {k: v for k, v in frozen.kwargs.items() if isinstance(v, torch.Tensor)}
        options = {k: v for k, v in frozen.kwargs.items() if k not in tensors}
        dtypes = {i: arg for i, arg in enumerate(frozen.args) if isinstance(arg, torch.dtype)}
        args = tuple(None if i in dtypes else arg for i, arg in enumerate(frozen.args))
        program = torch.export.export(Module(dtypes, options), args, tensors)
        ours = _tensors(program.module()(*args, **tensors))
        for a, b in zip(ours, _tensors(spec.op(*frozen.args, **frozen.kwargs)), strict=True):
            assert same_bits(a, b), sample.name


@ALL
def test_eight_threads_at_once_give_what_one_gives(spec):
    samples = list(spec.samples(Make(torch.float32)))[:FEW]
    alone = [evaluate(spec.op, sample) for sample in samples]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            together = list(pool.map(lambda i: evaluate(spec.op, samples[i % len(samples)]), range(8)))
            for i, values in enumerate(together):
                _same(values, alone[i % len(samples)], samples[i % len(samples)].name)


@ALL
def test_meta_tensors_have_the_shape_of_the_result(spec):
    for sample in spec.samples(Make(torch.float32)):
        moved = sample.map(lambda t: t.to("meta"))
        for real, meta in zip(
            _tensors(spec.op(*sample.args, **sample.kwargs)),
            _tensors(spec.op(*moved.args, **moved.kwargs)),
            strict=True,
        ):
            assert (real.shape, real.dtype) == (meta.shape, meta.dtype), sample.name


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.gradcheck], ids=lambda s: s.name)
def test_a_second_gradient_is_refused_in_words(spec):
    sample = next(iter(spec.samples(Make(torch.float32))))
    outputs = [t for t in _tensors(spec.op(*sample.args, **sample.kwargs)) if t.requires_grad]
    leaves = [t for t in sample.tensors() if t.requires_grad]
    # Cotangents that require grad: the backward of an op that is linear depends on nothing else.
    cotangents = [torch.ones_like(t, requires_grad=True) for t in outputs]
    grads = torch.autograd.grad(outputs, leaves, cotangents, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match=r"warpwright: .*_backward: gradients of gradients are not supported"):
        sum((g * g).sum() for g in grads if g is not None).backward()


@pytest.mark.parametrize("name", ["linear", "cross_entropy", "linear_cross_entropy", "linear_kl_div", "group_norm"])
def test_no_zeros_are_made_for_what_has_no_gradient(name):
    """Statistics and what an activation saves are outputs of the operators, some as large as the result."""
    spec = SPECS[name]
    for sample in list(spec.samples(Make(torch.float32)))[:FEW]:
        result = _tensors(spec.op(*sample.args, **sample.kwargs))[0]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            result.backward(torch.ones_like(result))
        assert not [e for e in profile.events() if e.name == "aten::zeros"], sample.name


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.gradcheck], ids=lambda s: s.name)
def test_an_expanded_gradient_is_read_in_place(matrix, spec):
    """`.sum().backward()` hands down a gradient whose strides are all 0."""
    for sample in list(spec.samples(Make(torch.float32, matrix)))[: FEW if thinned(matrix) else None]:
        leaves = [t for t in sample.tensors() if t.requires_grad]
        outputs = [t for t in _tensors(spec.op(*sample.args, **sample.kwargs)) if t.requires_grad]
        ones, expanded = (
            torch.autograd.grad(outputs, leaves, [cotangent(t) for t in outputs], retain_graph=True, allow_unused=True)
            for cotangent in (torch.ones_like, lambda t: t.new_ones(()).expand(t.shape))
        )
        # Kernels may add up in another order where they read no packs. A sum's rounding is bounded by what its terms
        # come to without their signs (Higham, Accuracy and Stability, 4.2): for the weight of a norm, whose terms
        # are 1 in root mean square and cancel, that is their number, however small the sum.
        most = max(t.numel() for t in outputs)
        for leaf, a, b in zip(leaves, ones, expanded, strict=True):
            terms = max(1.0, most / max(1, leaf.numel()))
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-6, atol=1e-6 * terms, equal_nan=True), (
                sample.name
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@ALL
def test_autocast_follows_the_ambient_dtype(spec, dtype):
    """An op whose rule casts gives what it gives on inputs cast by hand; gradients have the leaves' dtype."""
    rule = _registry.OPS[spec.kernels[0]].autocast
    for sample in list(spec.samples(Make(torch.float32)))[:FEW]:
        with torch.autocast("cpu", dtype=dtype):
            outputs = _tensors(spec.op(*sample.args, **sample.kwargs))
        leaves = [t for t in sample.tensors() if t.requires_grad]
        if rule is _registry.cast_to_ambient:
            cast = sample.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
            for ours, expected in zip(outputs, _tensors(spec.op(*cast.args, **cast.kwargs)), strict=True):
                assert ours.dtype == dtype
                assert torch.equal(ours, expected), sample.name
        rooted = [t for t in outputs if t.requires_grad]
        if leaves and rooted:
            grads = torch.autograd.grad(sum(t.float().sum() for t in rooted), leaves, allow_unused=True)
            assert all(g is None or g.dtype == leaf.dtype for g, leaf in zip(grads, leaves, strict=True))


@ALL
def test_backward_inside_an_autocast_region_keeps_the_dtypes_of_forward(matrix, spec):
    """torch's own ops inside a backward kernel would be recast to half precision there, silently."""
    for sample in _traced(spec, matrix):
        leaves = [t for t in sample.tensors() if t.requires_grad]
        rooted = [t for t in _tensors(spec.op(*sample.args, **sample.kwargs)) if t.requires_grad]
        if not leaves or not rooted:
            continue
        total = sum(t.float().sum() for t in rooted)
        expected = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        with torch.autocast(matrix, dtype=torch.bfloat16):
            found = torch.autograd.grad(total, leaves, allow_unused=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs), sample.name


@ALL
def test_any_shape_and_layout(matrix, spec):
    """Drawn sizes (empty, one, odd, large), dtypes and a memory layout for each tensor.

    Not drawn by Hypothesis: it mixes constants of whatever modules are loaded into its numbers, so that they depend on
    the tests before, derandomised or not. WARPWRIGHT_TEST_DRAWS sets how many there are.
    """
    wrong = []
    for seed in range(int(os.environ.get("WARPWRIGHT_TEST_DRAWS", 4 if thinned(matrix) else 40))):
        rng = random.Random(seed)
        dtype, layouts = rng.choice(spec.dtypes), rng.choices(["contiguous", *LAYOUTS], k=8)
        state, found = rng.getstate(), []
        for fill in range(2 if thinned(matrix) else 3):
            rng.setstate(state)
            sample = spec.draw(Make(dtype, matrix, 1000 * fill + seed), rng)
            kinds = itertools.cycle(layouts)
            ours = evaluate_in_place(spec.op, sample.map(lambda t, kinds=kinds: _laid(t, next(kinds))))
            found.append(compare(spec, sample, ours))
        wrong += [
            f"{seed}, {dtype}, {layouts}, {sample.name}: {each}" for each in zip(*found, strict=True) if _worse(each)
        ]
    assert not wrong, "\n".join(wrong)


def _laid(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    return tensor if layout == "contiguous" else relayout(tensor, layout)


def _worse(each: tuple[Comparison, ...]) -> bool:
    """The largest error against the largest of PyTorch's, for the same call on several numbers: what is drawn is often
    one element, of which PyTorch's error is luck."""
    theirs = max(c.torch_error for c in each)
    floor = max(c.bound - ERROR_FACTOR * c.torch_error for c in each)
    return not all(c.error <= ERROR_FACTOR * theirs + floor for c in each)


def test_every_schema_belongs_to_an_op_spec():
    """An operator without an OpSpec would be tested by nothing."""
    covered = {kernel for spec in SPECS.values() for kernel in spec.kernels}
    assert covered == set(_registry.OPS)


def test_every_schema_in_cpp_is_defined_in_python():
    from torch._C import _dispatch_get_all_op_names

    names = {n.split("::")[1].split(".")[0] for n in _dispatch_get_all_op_names() if n.startswith("warpwright::")}
    assert names == set(_registry.OPS)


def test_public_functions_are_those_with_an_op_spec():
    functions = {name for name in warpwright.ops.__all__ if inspect.isfunction(getattr(warpwright.ops, name))}
    assert functions == set(SPECS)
