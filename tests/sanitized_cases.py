"""What runs under the sanitizers, for tests/sanitize.py: every call's name is printed before it is made."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import emulated
import pytest
import torch
from forked import report_of
from torch import Tensor

import warpwright
from warpwright import _library
from warpwright.testing import LAYOUTS, SPECS, Make, OpSpec, Sample, evaluate_in_place, relayout

Call = tuple[str, Callable[[], object]]

#: Random calls of an op in each dtype.
CPU_DRAWS, EMULATED_DRAWS = 12, 2
#: Samples that take the emulator longest, by op: there in one dtype and layout only.
LONG = {"cross_entropy": "more rows than a partial sum", "linear": "a long sum"}
#: Tests of what no sample holds, such as targets that are no class.
TESTS = ("test_loss.py", "test_quantize.py", "test_optim.py")

_POISON = ctypes.CDLL(None).__asan_poison_memory_region
_POISON.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_POISON.restype = None
_MALLOC = ctypes.CDLL(None).malloc
_MALLOC.argtypes = [ctypes.c_size_t]
_MALLOC.restype = ctypes.c_void_p


def _expanded(tensor: Tensor) -> Tensor:
    """The first row in the place of all."""
    if tensor.dim() == 0 or tensor.shape[0] == 0:
        return tensor
    return tensor.detach()[:1].expand_as(tensor).requires_grad_(tensor.requires_grad)


def _tight(tensor: Tensor) -> Tensor:
    """The same values, strides and offset in an allocation that ends with the last element."""
    if tensor.numel() == 0:
        return tensor
    flat = tensor.detach()
    end = flat.storage_offset() + sum((n - 1) * s for n, s in zip(flat.shape, flat.stride(), strict=True)) + 1
    room = flat.as_strided((end,), (1,), 0).clone()
    return room.as_strided(flat.shape, flat.stride(), flat.storage_offset()).requires_grad_(tensor.requires_grad)


def _forbid_gaps(tensor: Tensor) -> None:
    """Poisons what the layout "padded" leaves between two rows, which start at multiples of 8 elements."""
    cols, stride, size = tensor.shape[-1], (tensor.shape[-1] // 8 + 1) * 8, tensor.element_size()
    rows = tensor.numel() // cols if cols > 0 else 0
    for row in range(rows - 1):  # The last one ends the allocation.
        _POISON(tensor.data_ptr() + (row * stride + cols) * size, (stride - cols) * size)


def _moved(sample: Sample, layouts: Iterator[str]) -> Sample:
    def move(tensor: Tensor) -> Tensor:
        layout = next(layouts)
        if layout == "expanded":
            return _expanded(tensor)
        moved = _tight(tensor if layout == "contiguous" else relayout(tensor, layout))
        if layout == "padded" and tensor.dim() > 0:
            _forbid_gaps(moved)
        return moved

    return sample.map(move)


def _calls_of(spec: OpSpec, emulated: bool) -> Iterator[Call]:
    """Every sample in every dtype and layout, the emulator a dtype for each layout; random calls; bad inputs."""
    layouts = ["contiguous", *LAYOUTS]
    if not spec.name.endswith("_"):  # What is written to cannot be expanded.
        layouts.append("expanded")
    dtypes = spec.dtypes if emulated else (*spec.dtypes, torch.float64)
    if spec.name in LONG:
        assert any(sample.name == LONG[spec.name] for sample in spec.samples(Make(spec.dtypes[0])))
    for i, layout in enumerate(layouts):
        some = dtypes if layout == "contiguous" or not emulated else (dtypes[i % len(dtypes)],)
        for dtype in some:
            for sample in spec.samples(Make(dtype)):
                if emulated and sample.name == LONG.get(spec.name) and (layout, dtype) != (layouts[0], dtypes[0]):
                    continue
                call = _evaluation(spec, sample, itertools.repeat(layout), emulated, dtype not in spec.dtypes)
                yield f"{sample.name}, {dtype}, {layout}", call
    for dtype in spec.dtypes:
        for seed in range(EMULATED_DRAWS if emulated else CPU_DRAWS):
            rng = random.Random(seed)
            sample = spec.draw(Make(dtype, seed=seed), rng)
            mixed = iter(lambda rng=rng: rng.choice(layouts), None)
            yield f"{sample.name}, {dtype}, draw {seed}", _evaluation(spec, sample, mixed, emulated)
    for bad in spec.bad_inputs(Make(spec.dtypes[0])):
        yield f"bad input: {bad.name}", lambda bad=bad: _refused(spec, bad)


def _evaluation(
    spec: OpSpec, sample: Sample, layouts: Iterator[str], emulated: bool, may_refuse: bool = False
) -> Callable[[], object]:
    def call() -> None:
        moved = _moved(sample, layouts)
        try:
            evaluate_in_place(spec.op, moved)
        except RuntimeError as error:
            # What is made of at most float32 refuses float64: 8-bit numbers, their products and moments.
            if may_refuse and re.match(rf"warpwright: {spec.name}: .*float64", str(error)):
                return
            raise
        # On the CPU other kernels may run where nothing is kept for backward.
        if not emulated and any(t.requires_grad for t in moved.tensors()):
            evaluate_in_place(spec.op, moved.map(Tensor.detach))

    return call


def _refused(spec: OpSpec, bad) -> None:
    try:
        spec.op(*bad.args, **bad.kwargs)
    except RuntimeError as error:
        if re.search(bad.message, str(error)):
            return
        raise
    raise AssertionError("was not refused")


def _longer_than_allocated(dtype: torch.dtype, cols: int) -> Tensor:
    """Two rows whose last element lies outside their allocation."""
    size = torch.empty((), dtype=dtype).element_size()
    memory = _MALLOC((2 * cols - 1) * size)
    claimed = (ctypes.c_char * (2 * cols * size)).from_address(memory)
    return torch.frombuffer(claimed, dtype=dtype).view(2, cols)


def prove(backend: str, isa: str) -> None:
    """These libraries' own kernels are watched: a read past the end is reported, by whole vectors and by tails."""
    for dtype, cols in itertools.product((torch.float32, torch.bfloat16, torch.float16), (64, 5)):
        wrong = _longer_than_allocated(dtype, cols)
        code, text = report_of(lambda wrong=wrong, cols=cols: warpwright.ops.rms_norm(wrong, (cols,)))
        if backend == "emulated":
            expected = r"warpwright emulator: kernel rms_norm, .*row\.cuh:\d+: read of \d+ bytes, to \d+ bytes past"
        else:
            expected = rf"AddressSanitizer: .*READ of size .* warpwright::cpu::{isa}::.*norm\.cpp:.* \d+-byte region"
        reported = code != 0 and re.search(expected, text, re.DOTALL)
        assert reported, f"{dtype}, {cols}: a read past the end is not reported: {text}"


def _tests(backend: str) -> None:
    """pytest on the same libraries; uncaptured, so that a report that ends the process is not lost."""
    chosen = "emulated" if backend == "emulated" else "not emulated and not triton and not reference and not cuda"
    files = [str(Path(__file__).parent / name) for name in TESTS]
    assert pytest.main(["-v", "-s", "-p", "no:cacheprovider", "-k", chosen, *files]) == pytest.ExitCode.OK


def run_all(backend: str, share: int, shares: int) -> None:
    """Everything on one backend; of the emulated one each `shares`-th call."""
    isa = os.environ["WARPWRIGHT_CPU_ISA"]
    if backend == "emulated":
        emulated.activate()
    else:
        assert _library.cpu_isa() == isa
    with warpwright.use_backend(backend):
        prove(backend, isa)
        for spec in SPECS.values():
            calls = _calls_of(spec, backend == "emulated")
            for name, call in itertools.islice(calls, share, None, shares if backend == "emulated" else 1):
                print(f"{spec.name}: {name}")
                call()
    if share == 0:
        _tests(backend)
