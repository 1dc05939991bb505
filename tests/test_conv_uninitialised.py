"""Convolutions that oneDNN gets wrong, while all freed memory is full of NaN: what no one has written is not read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import warpwright
from warpwright import ops

PLAIN = [F.conv1d, F.conv2d, F.conv3d]
TRANSPOSED = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
OURS = {
    f: getattr(ops, f"conv{part}{d + 1}d")
    for part, fs in (("", PLAIN), ("_transpose", TRANSPOSED))
    for d, f in enumerate(fs)
}

# Input, weight, stride, padding, dilation, groups. In torch 2.13 each is wrong in bfloat16 on CPUs with AMX; the one
# of few frames is wrong in float32, on CPUs with AVX-512.
CASES = {
    "one column": ((2, 32, 14, 3), (48, 32, 2, 2), 2, 0, 1, 1),
    "one column, dilated": ((3, 16, 14, 3), (16, 16, 3, 3), 2, 1, 2, 1),
    "one column, grouped": ((3, 20, 5, 2), (32, 10, 5, 3), 3, 1, 1, 2),
    "patches of four channels": ((2, 4, 48, 48), (8, 4, 16, 16), 16, 0, 1, 1),
    "a column of 64": ((1, 8, 16, 16), (4, 8, 8, 1), 1, 0, 1, 1),
    "a row of 96": ((2, 12, 40), (8, 12, 8), 1, 0, 1, 1),
    "one position": ((2, 15, 2), (6, 5, 2), 3, 1, 1, 3),
    "fewer columns than a stride": ((1, 15, 1), (40, 15, 3), 2, 2, 1, 1),
    "fewer columns than a stride, two dimensions": ((2, 2, 16, 3), (4, 2, 7, 3), 4, 2, 1, 1),
    "a volume of one column": ((2, 8, 8, 8, 1), (16, 8, 3, 3, 3), 2, 1, 1, 1),
    "a volume of depth one": ((1, 10, 1, 5, 17), (4, 5, 5, 5, 5), 1, 2, 1, 2),
    "a filter for each channel of a volume": ((2, 5, 4, 9, 4), (5, 1, 7, 7, 7), 1, 3, 1, 5),
    "a stride past the filter": ((2, 16, 15, 8, 12), (2, 16, 3, 2, 4), 4, 0, 1, 1),
    "a rest behind the last window": ((1, 3, 15, 8, 20), (1, 3, 4, 4, 4), 4, 0, 1, 1),
    "few frames": ((2, 3, 7, 8, 8), (8, 3, 7, 3, 3), 2, (3, 1, 1), 1, 1),
}
TRANSPOSED_CASES = {
    "one column": ((1, 2, 9, 1), (2, 3, 3, 3), 3, 1, 1, 1),
    "patches of four channels": ((2, 8, 3, 3), (8, 4, 16, 16), 16, 0, 1, 1),
    "one position": ((2, 16, 1), (16, 16, 7), 2, 3, 1, 1),
    "a filter for each channel": ((1, 2, 2, 1), (2, 1, 3, 3), 2, 1, 1, 2),
    "a volume of depth one": ((3, 96, 1, 8, 8), (96, 1, 3, 3, 3), 1, 1, 1, 3),
}


def _fill_free_memory() -> None:
    """Blocks of all sizes, freed while they are full of NaN: who asks for memory next gets them."""
    blocks = [torch.full((n,), float("nan")) for n in (2**i for i in range(4, 18)) for _ in range(3)]
    del blocks


def _results(function, tensors, cotangent, *args) -> list[torch.Tensor]:
    x, w = (t.detach().requires_grad_() for t in tensors)
    _fill_free_memory()
    y = function(x, w, None, *args)
    _fill_free_memory()
    (grad_x,) = torch.autograd.grad(y, x, cotangent.to(y.dtype), retain_graph=True)
    _fill_free_memory()
    return [y.detach(), grad_x, *torch.autograd.grad(y, w, cotangent.to(y.dtype))]


def _check(function, dtype, x_size, w_size, *args) -> None:
    torch.manual_seed(0)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(x_size))
    for layout in filter(None, (torch.contiguous_format, last)):
        x, w = (torch.rand(size).to(dtype).contiguous(memory_format=layout) for size in (x_size, w_size))
        cotangent = torch.rand_like(function(x.double(), w.double(), None, *args)).to(dtype)
        exact = _results(function, (x.double(), w.double()), cotangent, *args)
        for _ in range(2):
            found = _results(OURS[function], (x, w), cotangent, *args)
            for name, a, b in zip(("output", "input's gradient", "weight's gradient"), found, exact, strict=True):
                off = float((a.double() - b).abs().max() / b.abs().max())
                assert off < (2**-7 if dtype == torch.bfloat16 else 2**-18), (name, layout, off)


# With a bias, in which torch 2.13 crashes: in float32 and channels last on CPUs with AVX-512, or in bfloat16 with AMX.
BETWEEN_TAPS = {
    "one column": ((3, 8, 7, 1), (40, 8, 2, 1), (1, 2), (0, 1), (1, 2), 1),
    "two taps": ((2, 4, 9, 1), (8, 4, 2, 2), (1, 2), (3, 3), (2, 2), 1),
    "two columns": ((3, 4, 3, 2), (20, 4, 1, 1), (2, 3), (1, 1), (2, 3), 1),
    "one row": ((2, 8, 1, 14), (8, 8, 2, 1), (1, 2), (1, 1), (2, 3), 1),
    "two rows": ((3, 20, 2, 9), (64, 20, 2, 7), (1, 1), (1, 1), (3, 1), 1),
    "one row, grouped": ((1, 8, 1, 7), (40, 2, 4, 3), (1, 1), (3, 3), (2, 2), 4),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("name", BETWEEN_TAPS)
def test_inputs_that_fit_between_two_taps(name, layout, dtype):
    x_size, w_size, *args = BETWEEN_TAPS[name]
    torch.manual_seed(0)
    x, w = (torch.rand(size, dtype=dtype).contiguous(memory_format=layout) for size in (x_size, w_size))
    leaves = [t.requires_grad_() for t in (x, w, torch.rand(w_size[0], dtype=dtype))]
    found, exact = ops.conv2d(*leaves, *args), F.conv2d(*(t.double() for t in leaves), *args)
    cotangent = torch.rand(exact.shape).to(dtype)
    pairs = zip(
        (found, *torch.autograd.grad(found, leaves, cotangent)),
        (exact, *torch.autograd.grad(exact, leaves, cotangent.double())),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs.to(dtype))


def _layers(count: int):
    """Random ones, in bfloat16: a name of `ops` and its arguments."""
    generator = torch.Generator().manual_seed(0)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    while count > 0:
        dims, transposed = draw(1, 2, 3), draw(False, True)
        groups = draw(1, 1, 2, 4)
        channels, filters = groups * draw(1, 1, 4, 8, 16), groups * draw(1, 1, 8, 20)
        kernel = [draw(1, 2, 3, 4, 8) for _ in range(dims)]
        x = torch.zeros(draw(1, 2), channels, *[draw(1, 2, 3, 7, 9, 16) for _ in range(dims)], dtype=torch.bfloat16)
        w = torch.zeros(filters, channels // groups, *kernel, dtype=torch.bfloat16)
        stride, padding, dilation = ([draw(1, 1, 2, 3) for _ in range(dims)] for _ in range(3))
        args = [x, w, None, stride, padding, dilation, groups]
        if transposed:
            args = [x, w.new_zeros(channels, filters // groups, *kernel), None, stride, padding, 0, groups, dilation]
        name = f"conv{'_transpose' * transposed}{dims}d"
        try:
            output = getattr(F, name)(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
        except RuntimeError:
            continue  # The filter is larger than the input.
        if output.numel() > 0:
            count -= 1
            yield name, args


def test_explain_tells_which_are_computed_in_float32():
    told = set()
    for name, args in _layers(200):
        with torch.profiler.profile() as profile:
            getattr(ops, name)(*args)
        widened = "aten::_to_copy" in {event.key for event in profile.key_averages()}
        found = warpwright.explain(name, *args)
        sizes = [list(a.shape) if isinstance(a, torch.Tensor) else a for a in args]
        assert ("in float32" in found.kernel) is widened, (name, sizes)
        assert all(facts.copied is (True if widened else None) for facts in found.inputs[:2])
        told.add((name, widened))
    assert len(told) == 2 * len(OURS)


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with warpwright.use_backend("native"):
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_convolutions(name, dtype):
    x, w, *args = CASES[name]
    _check(PLAIN[len(x) - 3], dtype, x, w, *args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", TRANSPOSED_CASES)
def test_transposed_convolutions(name, dtype):
    x, w, stride, padding, dilation, groups = TRANSPOSED_CASES[name]
    _check(TRANSPOSED[len(x) - 3], dtype, x, w, stride, padding, 0, groups, dilation)
