"""The gradient of a convolution's bias, found by the kernel of the weight's gradient in what it reads anyway."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import pytest
import torch
from torch import Tensor

import warpwright
from warpwright import ops
from warpwright._conv import in_format
from warpwright.testing import Make
from warpwright.triton_kernels import conv

#: The kernel, then dtype, channels last, and batch, channels, filters, size, kernel, groups.
LAYERS = {
    "hopper": ("conv_wgrad_wgmma", torch.bfloat16, True, (2, 64, 72, (9, 8), 3, 1)),
    "hopper, float16": ("conv_wgrad_wgmma", torch.float16, True, (2, 72, 136, (7, 9), 1, 1)),
    "hopper, 64 filters": ("conv_wgrad_wgmma", torch.float16, True, (3, 264, 40, (5, 9), 1, 1)),
    "hopper, parts": ("conv_wgrad_wgmma", torch.bfloat16, True, (2, 64, 136, (40, 39), 1, 1)),
    "vectors": ("conv_wgrad_mma", torch.bfloat16, True, (2, 16, 72, (9, 8), 3, 1)),
    "vectors, float16": ("conv_wgrad_mma", torch.float16, True, (1, 16, 200, (33, 31), 3, 1)),
    "elements": ("conv_wgrad_mma", torch.bfloat16, False, (2, 5, 13, (11, 12), 3, 1)),
    "groups": ("conv_wgrad_mma", torch.float16, False, (2, 24, 40, (13, 12), 3, 2)),
    "parts": ("conv_wgrad_mma", torch.bfloat16, False, (2, 16, 72, (33, 31), 3, 1)),
    "depthwise": ("conv_depthwise_wgrad", torch.float32, True, (2, 16, 16, (9, 10), 3, 16)),
    "depthwise, parts": ("conv_depthwise_wgrad", torch.bfloat16, True, (2, 72, 72, (40, 33), 5, 72)),
    "depthwise, rows": ("conv_depthwise_wgrad", torch.float16, False, (3, 13, 13, (9, 10), 7, 13)),
}


def layer(matrix: str, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Input, weight, bias, the output's gradient in whole numbers, whose sums are exact, and groups."""
    _, dtype, last, (batch, channels, filters, size, kernel, groups) = LAYERS[name]
    make = Make(dtype, matrix)
    x = in_format(make.tensor(batch, channels, *size, grad=False), last)
    weight = in_format(make.tensor(filters, channels // groups, kernel, kernel, grad=False), last).requires_grad_()
    with torch.no_grad():
        like = torch.nn.functional.conv2d(x, weight, None, 1, kernel // 2, 1, groups)
    grad = in_format((make.tensor(*like.shape, grad=False) * 2).round(), last)
    return x, weight, make.tensor(filters), grad, groups


def found(name: str, layer: tuple[Tensor, Tensor, Tensor, Tensor, int], activation: str | None = None) -> Tensor:
    x, weight, bias, grad, groups = layer
    output = ops.conv2d(x, weight, bias, 1, weight.shape[2] // 2, 1, groups, activation=activation)
    return torch.autograd.grad(output, [t for t in (weight, bias) if t.requires_grad], grad)[-1]


@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_exact(matrix, name):
    given = layer(matrix, name)
    exact = given[3].double().sum((0, 2, 3)).to(given[3].dtype)
    assert exact.abs().max() > 2
    assert torch.equal(found(name, given), exact)


@pytest.mark.parametrize("name", ["hopper", "elements", "depthwise"])
def test_of_no_images_they_are_zero(matrix, name):
    """Written, not left as they were found in memory."""
    x, weight, bias, grad, groups = layer(matrix, name)
    freed = [torch.full_like(bias, 7.0) for _ in range(16)]
    del freed
    assert torch.equal(found(name, (x[:0], weight, bias, grad[:0], groups)), torch.zeros_like(bias))


@pytest.fixture
def on_emulator() -> Iterator[None]:
    if (reason := emulated.missing()) is not None:
        pytest.skip(reason)
    emulated.activate()
    with warpwright.use_backend("emulated"):
        yield


def passes() -> int:
    return sum(emulated.launches(f"epilogue_backward_{way}") for way in ("rows", "cols"))


@pytest.mark.parametrize("name", LAYERS)
def test_the_weights_gradient_finds_them(on_emulator, name):
    """Without a pass of its own."""
    kernel, given = LAYERS[name][0], layer("cpu", name)
    before, launched = passes(), emulated.launches(kernel)
    found(name, given)
    assert (passes() - before, emulated.launches(kernel) - launched) == (0, 1)


@pytest.mark.parametrize("name", ["hopper", "vectors", "depthwise"])
def test_the_activations_pass_finds_them(on_emulator, name):
    before, given = passes(), layer("cpu", name)
    found(name, given, "relu")
    assert passes() - before == 1


@pytest.mark.parametrize("name", ["hopper", "vectors", "depthwise"])
def test_without_the_weights_gradient_a_pass_does(on_emulator, name):
    x, weight, *rest = layer("cpu", name)
    given = (x, weight.detach(), *rest)
    before = passes()
    assert torch.equal(found(name, given), given[3].double().sum((0, 2, 3)).to(given[3].dtype))
    assert passes() - before == 1


def test_tf32_does_not_round_a_bias(on_emulator):
    """Its products read what was rounded: the sum is a pass's."""
    x, weight, bias = (t.requires_grad_() for t in (torch.ones(1, 16, 8, 8), torch.ones(16, 16, 1, 1), torch.ones(16)))
    grad = torch.full((1, 16, 8, 8), 1 + 2.0**-20)
    with warpwright.float32_precision("tf32"):
        before, launched = passes(), emulated.launches("conv_wgrad_mma")
        *_, bias_grad = torch.autograd.grad(ops.conv2d(x, weight, bias), (x, weight, bias), grad)
        assert (passes() - before, emulated.launches("conv_wgrad_mma") - launched) == (1, 1)
    assert torch.equal(bias_grad, grad.sum((0, 2, 3)))


def test_an_infinite_gradient_stays_where_it_is(matrix):
    """One of 16 filters: the others' sums are products with the same ones."""
    x, weight, bias, grad, groups = layer(matrix, "vectors")
    grad[1, 3, 2, 2] = float("inf")
    bias_grad = found("vectors", (x, weight, bias, grad, groups))
    assert bias_grad.isinf().nonzero().flatten().tolist() == [3]
    assert not bias_grad.isnan().any()


def test_tritons_weights_gradient_finds_them(monkeypatch):
    """In 16 bits and depthwise: epilogue_grads is not called."""
    calls = []
    whole = conv.epilogue_grads
    monkeypatch.setattr(conv, "epilogue_grads", lambda *args: calls.append(args) or whole(*args))
    with warpwright.use_backend("triton"):
        for name in ("elements", "groups", "depthwise"):
            found(name, layer("cpu", name))
        assert calls == []
        found("elements", layer("cpu", "elements"), "relu")
        assert len(calls) == 1
