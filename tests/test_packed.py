"""Packing keeps every integer, quantizing is off by half a step at most, and dequantized bits are torch's."""

from __future__ import annotations

import pytest
import torch
from thinning import thinned

import warpwright
from warpwright import ops
from warpwright.ops import PackedWeight, pack_quantized, pack_weights, unpack_weights
from warpwright.testing import Make
from warpwright.testing.specs.packed import _torch_dequantize

BITS = pytest.mark.parametrize("bits", [4, 8])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)


@BITS
@pytest.mark.parametrize("k", [0, 1, 31, 32, 45, 300])
def test_integers_survive_packing(bits, k):
    values = torch.randint(2**bits, (5, k), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
    packed = pack_quantized(values, torch.ones(5, -(-k // 32)), bits=bits, group_size=32)
    assert packed.shape == (5, k)
    assert packed.data.shape == (5, -(-k // 32) * 32 * bits // 8)
    assert torch.equal(unpack_weights(packed), values)
    assert torch.equal(packed.dequantize(), values.float() - 2 ** (bits - 1))


def test_the_layout_is_the_documented_one():
    """Element 2 j of a word in its bits 4 j, element 2 j + 1 sixteen bits above; 8-bit elements in order."""
    values = torch.arange(32, dtype=torch.uint8)[None] % 16
    data = pack_quantized(values, torch.ones(1, 1), bits=4, group_size=None).data
    words = [int.from_bytes(bytes(data[0, i : i + 4].tolist()), "little") for i in range(0, 16, 4)]
    for word, first in zip(words, (0, 8, 16, 24), strict=True):
        for element in range(8):
            assert word >> (element // 2 * 4 + element % 2 * 16) & 15 == (first + element) % 16
    data = pack_quantized(values, torch.ones(1, 1), bits=8, group_size=None).data
    assert torch.equal(data, values)


@DTYPES
@BITS
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
def test_no_element_is_off_by_more_than_half_a_step(dtype, bits, symmetric, group_size):
    make = Make(dtype)
    weight = make.tensor(12, 300, grad=False)
    weight[1] = weight[1].abs() + 1  # One sign only.
    weight[2] = -weight[2].abs()
    weight[3] *= 2.0**-20  # Scales of float16 are subnormal.
    weight[4] = 0
    packed = pack_weights(weight, bits, group_size, symmetric)
    size = group_size or 300
    step = packed.scale.double().repeat_interleave(size, 1)[:, :300]
    zero = 2 ** (bits - 1) if packed.zero is None else packed.zero.double().repeat_interleave(size, 1)[:, :300]
    exact = (unpack_weights(packed).double() - zero) * step
    assert ((exact - weight.double()).abs() <= step * (0.5 + 2.0**-10)).all()
    assert packed.scale.dtype == dtype
    assert (packed.zero is None) == symmetric
    assert not packed.dequantize()[4].any()
    assert packed.scale[4].eq(1).all()


@BITS
def test_the_steps_use_the_whole_range(bits):
    """Or the error would be small against a step that is too large."""
    weight = Make(torch.float32).tensor(4, 64, grad=False)
    for symmetric, used in ((True, 2 ** (bits - 1) - 1), (False, 2**bits - 1)):
        packed = pack_weights(weight, bits, None, symmetric)
        span = weight.abs().amax(1) if symmetric else weight.amax(1) - weight.amin(1)
        torch.testing.assert_close(packed.scale[:, 0], span / used)


@DTYPES
@BITS
@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantized_bits_are_those_of_torch(matrix, dtype, bits, symmetric):
    if dtype == torch.float64 and (matrix == "cuda" or warpwright.current_backend() == "emulated"):
        pytest.skip("CUDA kernels take no float64")
    if dtype == torch.bfloat16 and warpwright.current_backend() == "triton" and matrix == "cpu":
        pytest.skip("Triton's interpreter cuts float32 to bfloat16")
    for k, group_size in ((200, 64), (45, 32), (70, None)):
        packed = pack_weights(Make(dtype, matrix).tensor(9, k, grad=False), bits, group_size, symmetric)
        assert torch.equal(packed.dequantize(), _torch_dequantize(packed))


@DTYPES
@BITS
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantized_bits_are_those_of_the_packer(matrix, dtype, bits, symmetric):
    """Data, scales and zero points, of groups of every kind: scales that round, halves, subnormal numbers, zeros."""
    if dtype == torch.float64 and (matrix == "cuda" or warpwright.current_backend() == "emulated"):
        pytest.skip("CUDA kernels take no float64")
    weight = Make(dtype, matrix).tensor(9, 333, grad=False)
    weight[1] = weight[1].abs() + 1
    weight[2] = -weight[2].abs()
    weight[3] *= 2.0**-20
    weight[4] = 0
    weight[5] = (torch.arange(333) % 16 - 8) / 2  # Quotients half-way between integers.
    for group_size in (32, None) if thinned(matrix) else (32, 64, 256, 512, None):
        for moved in (weight, weight.t().contiguous().t(), weight[:, 1:70]):
            ours = ops.quantize_packed(moved, bits, group_size, symmetric)
            theirs = pack_weights(moved, bits, group_size, symmetric)
            for a, b in zip(ours[:3], theirs[:3], strict=True):
                assert (a is None and b is None) or torch.equal(a, b), group_size
            assert ours[3:] == theirs[3:]


def test_a_nan_spoils_its_group_alone(matrix):
    weight = Make(torch.bfloat16, matrix).tensor(2, 128, grad=False)
    weight[0, 5] = torch.nan
    for symmetric in (True, False):
        values = ops.quantize_packed(weight, 4, 64, symmetric).dequantize()
        assert values[0, :64].isnan().all()
        assert values[0, 64:].isfinite().all()
        assert values[1].isfinite().all()


def test_a_weight_goes_through_a_state_dict():
    """As buffers of a module: three tensors, and numbers that its constructor knows."""

    class Layer(torch.nn.Module):
        def __init__(self, packed: PackedWeight):
            super().__init__()
            self.register_buffer("data", packed.data)
            self.register_buffer("scale", packed.scale)
            self.register_buffer("zero", packed.zero)
            self.numbers = packed[3:]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ops.linear_w4a16(x, PackedWeight(self.data, self.scale, self.zero, *self.numbers))

    make = Make(torch.float32)
    weight, x = make.tensor(6, 40, grad=False), make.tensor(3, 40)
    layer = Layer(pack_weights(weight, 4, 32, False))
    other = Layer(pack_weights(torch.zeros_like(weight), 4, 32, False))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16, "the scales follow the module, the integers stay"
    assert layer.data.dtype == layer.zero.dtype == torch.uint8


def test_training_beside_a_frozen_weight_keeps_no_input():
    """The gradient of the input needs the weight alone: what is saved are the weight's tensors."""
    make = Make(torch.float32)
    x, packed = make.tensor(5, 64), pack_weights(make.tensor(7, 64, grad=False), 8, 32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        ops.linear_w8a16(x, packed)
    assert x.shape not in saved


def test_weights_move_with_to():
    packed = pack_weights(Make(torch.float32).tensor(6, 40, grad=False), 8, 32, False)
    moved = packed.to("meta", torch.float16)
    assert moved.zero is not None
    assert {t.device.type for t in (moved.data, moved.scale, moved.zero)} == {"meta"}
    assert (moved.data.dtype, moved.scale.dtype, moved.zero.dtype) == (torch.uint8, torch.float16, torch.uint8)
    assert moved.shape == packed.shape


SCALE = torch.ones(4, 2)
VALUES = torch.zeros(4, 40, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_weights(torch.ones(3), 4), "pack_weights: weight must have 2 dimensions, got 1"),
        (lambda: pack_weights(VALUES, 4), "pack_weights: weight must be float32, .*got torch.int32"),
        (lambda: pack_weights(torch.ones(3, 4), 3), "pack_weights: bits must be 4 or 8, got 3"),
        (lambda: pack_weights(torch.ones(3, 4), 4, 16), "group_size must be None or a power of two of at least 32"),
        (lambda: pack_weights(torch.ones(3, 4), 4, 96), "group_size must be None or a power of two .*got 96"),
        (lambda: pack_quantized(VALUES + 16, SCALE, group_size=32), "values must be from 0 to 15, got 16 to 16"),
        (lambda: pack_quantized(VALUES - 8, SCALE, group_size=32), "values must be from 0 to 15, got -8 to -8"),
        (lambda: pack_quantized(VALUES.float(), SCALE), "values must be integers, got torch.float32"),
        (lambda: pack_quantized(VALUES[0], SCALE), "values must have 2 dimensions, got 1"),
        (lambda: pack_quantized(VALUES, SCALE, group_size=64), r"scale must have shape \(4, 1\), got \(4, 2\)"),
        (lambda: pack_quantized(VALUES, SCALE, SCALE, group_size=32), "zero must be integers, got torch.float32"),
        (lambda: pack_quantized(VALUES, SCALE, SCALE.int() * 17, group_size=32), "zero must be from 0 to 16, got 17"),
        (lambda: pack_quantized(VALUES, SCALE, SCALE.int()[:3], group_size=32), r"zero must have shape \(4, 2\)"),
    ],
)
def test_what_cannot_be_packed_is_named(call, message):
    with pytest.raises(RuntimeError, match=f"warpwright: .*{message}"):
        call()


def test_operators_that_are_called_directly_check_bits(matrix):
    """The public functions know what they take; the operators are told."""
    x, packed = torch.ones(2, 40, device=matrix), pack_weights(torch.ones(6, 40, device=matrix), 4, 32)
    operator = warpwright._backend.resolve("linear_packed", x)
    arguments = packed.data, packed.scale, packed.zero, 5, 32, None, None, "none", "ieee", False, False
    with pytest.raises(RuntimeError, match="warpwright: linear_packed: bits must be 4 or 8, got 5"):
        operator(x, *arguments)


@BITS
@pytest.mark.parametrize("rows", [1, 4, 5, 33])
def test_a_row_of_zeros_is_zero_whatever_lies_beside_it(matrix, bits, rows):
    """Padding is multiplied by zeros: nothing of it, and no other row, may show."""
    packed = pack_weights(Make(torch.bfloat16, matrix).tensor(5, 40, grad=False), bits, None)
    packed.data[:, 40 * bits // 8 :] = 255
    x = torch.full((rows, 40), 1.0, dtype=torch.bfloat16, device=matrix)
    x[0] = 0
    result = getattr(ops, f"linear_w{bits}a16")(x, packed)
    assert not result[0].any()
    assert rows == 1 or torch.allclose(result[1].float(), packed.dequantize().float().sum(1), rtol=0.02, atol=0.1)
