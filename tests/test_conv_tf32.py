"""float32 convolutions on the tensor cores: rounded to TF32, or as three products of TF32 parts. PyTorch's CPU has
neither, so what is exact and what is not is chosen here."""

from __future__ import annotations

import emulated
import pytest
import torch

import warpwright
from warpwright import _arithmetic, ops
from warpwright.testing import SPECS, Make, Sample, compare

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

#: Channels, filters, kernel, stride, padding, dilation, groups: whole vectors of four channels, and others.
LAYERS = {
    "vectors": (16, 24, 3, 1, 1, 1, 1),
    "more than a tile": (8, 72, 3, 2, 1, 1, 1),
    "three channels": (3, 16, 5, 2, 2, 1, 1),
    "odd channels": (7, 9, 3, 1, 2, 2, 1),
    "groups": (16, 16, 3, 1, 1, 1, 2),
    "1x1": (40, 16, 1, 1, 0, 1, 1),
}
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.fixture
def on_emulator():
    emulated.activate()
    with warpwright.use_backend("emulated"):
        yield


def _layer(name: str, layout: torch.memory_format):
    channels, filters, kernel, *geometry, groups = LAYERS[name]
    make = Make(torch.float32)
    x = make.tensor(2, channels, 11, 9).detach().contiguous(memory_format=layout).requires_grad_()
    w = make.tensor(filters, channels // groups, kernel, kernel).detach().contiguous(memory_format=layout)
    return (x, w.requires_grad_(), make.tensor(filters), *geometry, groups)


def _kernels() -> list[int]:
    return [emulated.launches(f"conv_{name}_mma") for name in ("fprop", "dgrad", "wgrad")]


def run_every_kernel() -> None:
    """Forward and backward in both layouts, on the current backend."""
    with warpwright.float32_precision("tf32"):
        for layout in LAYOUTS.values():
            args = _layer("vectors", layout)
            output = ops.conv2d(*args)
            torch.autograd.grad(output, args[:2], torch.ones_like(output))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_three_products_have_float32s_own_error(on_emulator, name, layout):
    before = _kernels()
    with warpwright.float32_precision("tf32x3"):
        compared = compare(SPECS["conv2d"], Sample(name, _layer(name, LAYOUTS[layout]), {"activation": "silu"}))
    assert all(c.ok for c in compared), compared
    assert all(now > then for now, then in zip(_kernels(), before, strict=True))


def test_transposed_convolutions_too(on_emulator):
    make = Make(torch.float32)
    sample = Sample("stride 2", (make.tensor(1, 8, 5, 6), make.tensor(8, 12, 3, 3), None, 2, 1, 1))
    with warpwright.float32_precision("tf32x3"):
        compared = compare(SPECS["conv_transpose2d"], sample)
    assert all(c.ok for c in compared), compared


def _ones_and_a_little(shape: tuple[int, ...], layout: torch.memory_format) -> torch.Tensor:
    """1 to TF32, whose next number is 1 + 2^-10."""
    return torch.full(shape, 1 + 2**-12).contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_operands_are_rounded_to_tf32_and_by_tf32_alone(on_emulator, precision, layout):
    """Forward, and both gradients in the forward pass's precision, whatever is chosen since."""
    x = _ones_and_a_little((1, 8, 6, 6), LAYOUTS[layout])
    w = _ones_and_a_little((8, 8, 3, 3), LAYOUTS[layout])
    with warpwright.float32_precision(precision):
        y = ops.conv2d(x, w)
    cotangent = torch.full_like(y, 1 + 2**-12)
    with warpwright.float32_precision("ieee" if precision == "tf32" else "tf32"):
        dx, dw = torch.autograd.grad(y, (x, w), cotangent)
    term = 1.0 if precision == "tf32" else (1 + 2**-12) ** 2
    for found, terms in ((y, 72), (dx[:, :, 2:4, 2:4], 72), (dw, 16)):
        torch.testing.assert_close(found, torch.full_like(found, terms * term), rtol=1e-6, atol=0)


def test_the_weights_gradient_is_the_same_however_often(on_emulator):
    """More pixels than one part sums."""
    make = Make(torch.float32)
    x, w = make.tensor(2, 4, 40, 33, grad=False), make.tensor(8, 4, 3, 3)
    with warpwright.float32_precision("tf32x3"):
        grads = [torch.autograd.grad(ops.conv2d(x, w, None, 1, 1).square().sum(), w)[0] for _ in range(2)]
        compared = compare(SPECS["conv2d"], Sample("many pixels", (x, w, None, 1, 1)))
    assert torch.equal(*grads)
    assert all(c.ok for c in compared), compared


def test_without_a_choice_pytorchs_own_is_followed(monkeypatch):
    tensor = torch.zeros(1)
    assert _arithmetic.convolution_precision_of(tensor) == "ieee"
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert _arithmetic.convolution_precision_of(tensor) == precision
        assert _arithmetic.convolution_precision_of(tensor.half()) == "ieee"
    with warpwright.float32_precision("tf32x3"):
        assert _arithmetic.convolution_precision_of(tensor) == "tf32x3"
