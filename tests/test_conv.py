"""Convolutions beyond the samples: the layers of the benchmark suites, layouts, split sums, padding."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F
from thinning import thinned

import warpwright
from warpwright import fallbacks, nn, ops
from warpwright._backend import call
from warpwright.bench.case import Case
from warpwright.bench.suite import load_suite
from warpwright.testing import SPECS, Make, Sample, compare

SUITES = (
    "conv-resnet50", "conv-grouped", "conv-depthwise", "conv-large-kernel", "conv-diffusion", "conv-video",
    "conv-transposed", "conv-deepbench", "conv-audio",
)  # fmt: skip
CHANNELS = ("channels", "filters")


def _numbers(value: object) -> list[int]:
    return [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]


def _small(case: Case) -> Case:
    """With few pixels, and of the channels what they leave over 8 and their order: which kernels and tails are met."""
    p = dict(case.parameters)
    dims = int(case.op[-2])
    kernel, dilation = ((_numbers(p.get(name, 1)) * dims)[:dims] for name in ("kernel", "dilation"))
    padded = p.get("padding") is None
    reach = [d * (k - 1) // (2 if padded else 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    room = max(_numbers(p.get("stride", 1))) + 1
    p["size"] = [low + room + i for i, low in enumerate(reach)] if dims > 1 else reach[0] + room
    p["batch"] = 2
    groups = min(p.get("groups", 1), 2)
    for name in CHANNELS:
        if p.get(name) is not None:
            p[name] = p[name] if p[name] < 8 else groups * (8 + p[name] % 8 + 8 * (p[name] >= 512))
    if p.get("depthwise"):
        p["channels"] = 8
    if "groups" in p:
        p["groups"] = groups
    return replace(case, parameters=p)


def _cases() -> dict[str, Case]:
    """By label; many large layers become the same small one."""
    found = {}
    for suite in SUITES:
        for case in load_suite(suite, "cuda", full=True):
            small = _small(case)
            found[f"{small.op} {small.label}"] = small
    return found


CASES = _cases()
LARGEST = max(CASES, key=lambda label: max(_numbers(CASES[label].parameters["kernel"])))


@pytest.mark.parametrize("label", CASES)
def test_layers_of_the_suites_are_right(matrix, label):
    """Forward, and the gradients of input, weight and bias."""
    case = CASES[label]
    taps = prod((_numbers(case.parameters["kernel"]) * 3)[: int(case.op[-2])])
    if thinned(matrix) and warpwright.current_backend() == "triton" and taps > 200 and label != LARGEST:
        pytest.skip(
            "the interpreter takes a hundredth of a second for each tap: the largest kernel shows that all are met"
        )
    sample = case.sample(matrix)
    args = list(sample.args)
    if args[2] is None:
        args[2] = torch.rand(args[1].shape[1 if "transpose" in case.op else 0], dtype=args[0].dtype).requires_grad_()
    compared = compare(SPECS[case.op], Sample(label, tuple(args), sample.kwargs))
    assert all(c.ok for c in compared), compared


ODD = {
    "one channel": (1, 3, 3, 1, 0, 1, 1),
    "three channels, a large stride": (3, 5, 7, 2, 3, 1, 1),
    "five channels": (5, 7, 3, 1, 1, 2, 1),
    "one filter": (6, 1, 3, 1, 1, 1, 1),
    "stride past the filter": (4, 4, 2, 5, 0, 1, 1),
    "dilation with padding": (4, 4, 3, 1, 4, 4, 1),
    "eight channels": (8, 8, 3, 1, 1, 1, 1),
    "sixteen to forty": (16, 40, 3, 2, 1, 1, 1),
    "groups of eight": (16, 16, 3, 1, 1, 1, 2),
    "groups of four": (16, 8, 3, 2, 1, 1, 4),
    "depthwise": (16, 16, 3, 1, 1, 1, 16),
    "depthwise, odd channels, stride and dilation": (13, 13, 3, 2, 2, 3, 13),
    "depthwise, two filters a channel": (8, 16, 3, 1, 1, 1, 8),
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", ODD)
def test_odd_layers_in_both_layouts(matrix, name, last, dtype):
    """What is written lies as the input does, and so do the gradients."""
    channels, filters, kernel, stride, padding, dilation, groups = ODD[name]
    if thinned(matrix) and dtype == torch.float16:
        pytest.skip("bfloat16 stands for both half types on slow backends")
    make = Make(dtype, matrix)
    layout = torch.channels_last if last else torch.contiguous_format
    x = make.tensor(2, channels, 9, 10).detach().contiguous(memory_format=layout).requires_grad_()
    w = make.tensor(filters, channels // groups, kernel, kernel).detach().contiguous(memory_format=layout)
    args = (x, w.requires_grad_(), make.tensor(filters), stride, padding, dilation, groups)
    compared = compare(SPECS["conv2d"], Sample(name, args, {"activation": "silu"}))
    assert all(c.ok for c in compared), compared
    if x.is_contiguous() and last:  # One channel lies both ways.
        return
    result = ops.conv2d(*args)
    assert result.is_contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(result.sum(), x)
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_many_pixels_meet_in_a_weights_gradient(matrix, last):
    """More than one part of the sum, and tiles of 128: in whole numbers nothing is rounded, so the sum is exact."""
    make = Make(torch.bfloat16, matrix)
    layout = torch.channels_last if last else torch.contiguous_format
    x = (make.tensor(2, 16, 33, 31, grad=False) * 2).round().contiguous(memory_format=layout)
    w = (make.tensor(72, 16, 3, 3, grad=False) * 2).round().contiguous(memory_format=layout).requires_grad_()
    cotangent = (make.tensor(2, 72, 33, 31, grad=False)).round()
    (found,) = torch.autograd.grad(ops.conv2d(x, w, None, 1, 1), w, cotangent)
    exact = torch.ops.aten.convolution_backward(
        cotangent.double(), x.double(), w.detach().double(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [False, True, False],
    )[1]  # fmt: skip
    assert torch.equal(found, exact.to(torch.bfloat16))


def test_strided_and_expanded_tensors_are_read_in_place(matrix):
    """Slices, transposed and expanded tensors of half precision."""
    make = Make(torch.bfloat16, matrix)
    x = make.tensor(2, 12, 12, 20, grad=False)[:, ::2, 1:9, ::2]
    w = make.tensor(3, 3, 6, 8, grad=False).permute(3, 2, 0, 1)
    bias = make.tensor(1, grad=False).expand(8)
    sample = Sample("views", (x.requires_grad_(), w.requires_grad_(), bias, 1, 1))
    assert all(c.ok for c in compare(SPECS["conv2d"], sample))


def test_padding_that_differs_is_torchs_padding_of_the_input(matrix):
    """The operator takes both sides; the public functions meet it by "same"."""
    make = Make(torch.float32, matrix)
    x, w = make.tensor(1, 3, 6, 7, grad=False), make.tensor(4, 3, 3, 2, grad=False)
    args = ([2, 1], [0, 2, 3, 1], [1, 1], False, [], 1, "none", "ieee", False)
    found = call("convolution", x, w, None, None, *args)[0]
    torch.testing.assert_close(found, F.conv2d(F.pad(x, (2, 1, 0, 3)), w, None, (2, 1)))


def test_a_transposed_layer_takes_an_output_size():
    theirs, ours = torch.nn.ConvTranspose2d(3, 4, 3, 3), nn.ConvTranspose2d(3, 4, 3, 3)
    ours.load_state_dict(theirs.state_dict())
    x = Make(torch.float32).tensor(2, 3, 4, 4, grad=False)
    assert ours(x, output_size=[13, 14]).shape == (2, 4, 13, 14)
    torch.testing.assert_close(ours(x, [13, 14]), theirs(x, [13, 14]))
    assert not fallbacks()
