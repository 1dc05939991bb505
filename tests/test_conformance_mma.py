"""mma.sync, mma.sp and the rounding to TF32 are what the PTX ISA says: see test_conformance.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conformance_numbers import BYTES, PAIRS, add, elements, encode, sparse_elements, sparse_metadata, sums

LANE = np.arange(32)[:, None]
GROUP, THREAD = LANE // 4, LANE % 4


def a_fragment(together: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of a_i of each lane, (32, 4 x together): the figures "fragment layout for matrix A" of m16n8k8
    with .tf32 (together = 1), of m16n8k16 with 16-bit floats (2) and of m16n8k32 with 8 bits (4)."""
    i = np.arange(4 * together)[None, :]
    row = GROUP + np.where(i // together % 2 == 0, 0, 8)
    return row, THREAD * together + i % together + np.where(i < 2 * together, 0, 4 * together)


def b_fragment(together: int, registers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of b_i of each lane, (32, registers x together)."""
    i = np.arange(registers * together)[None, :]
    return THREAD * together + i % together + i // together * 4 * together, np.broadcast_to(GROUP, (32, i.size))


def c_fragment() -> tuple[np.ndarray, np.ndarray]:
    """Row and column of c_i of each lane, (32, 4): the same for all shapes."""
    i = np.arange(4)[None, :]
    return GROUP + np.where(i < 2, 0, 8), THREAD * 2 + i % 2


def registers(bits: np.ndarray) -> np.ndarray:
    """Elements of each lane as words, the first element in the low bits."""
    return np.ascontiguousarray(bits).view(np.uint32)


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
def test_mma(conformance, dtypes, emulator_seed):
    """9.7.14.5.7, .8 and .10, "Matrix Fragments for mma.m16n8k8", "m16n8k16" and "m16n8k32"."""
    if dtypes[0] in ("e4m3", "e5m2") and not conformance.float8_mma:
        pytest.skip("mma of 8-bit floats needs a GPU of compute capability 8.9")
    random = np.random.default_rng(emulator_seed)
    together = 4 // BYTES[dtypes[0]]
    a, a_bits, scale_a = elements(dtypes[0], random, (16, 8 * together), emulator_seed == 1)
    b, b_bits, scale_b = elements(dtypes[1], random, (8 * together, 8), emulator_seed == 2)
    c = sums(dtypes[0], random, (16, 8), scale_a * scale_b)
    words = [registers(a_bits[a_fragment(together)]), registers(b_bits[b_fragment(together)])]
    given = np.concatenate([*words, c[c_fragment()].view(np.uint32)], axis=1)
    out = conformance.run("mma_{}_{}".format(*dtypes), given, np.zeros((32, 4), dtype=c.dtype))
    assert np.array_equal(out, add(a @ b, c)[c_fragment()])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma_rounds_like_float32(conformance, dtype, emulator_seed):
    """Numbers whose sums are not exact; the hardware's own order and rounding are not specified."""
    generator = torch.Generator().manual_seed(emulator_seed)
    kind = getattr(torch, dtype)
    a, b = (torch.randn(shape, generator=generator).to(kind).double().numpy() for shape in ((16, 16), (16, 8)))
    c = torch.randn(16, 8, generator=generator).numpy()
    words = [registers(encode(dtype, a)[a_fragment(2)]), registers(encode(dtype, b)[b_fragment(2)])]
    given = np.concatenate([*words, c[c_fragment()].view(np.uint32)], axis=1)
    out = conformance.run(f"mma_{dtype}_{dtype}", given, np.zeros((32, 4), dtype=np.float32))
    # The sum of 17 terms of about 1 in float32.
    assert np.abs(out - (a @ b + c)[c_fragment()]).max() < 17 * 4 * 2.0**-23


@pytest.mark.parametrize("dtype", ["e4m3", "e5m2"])
def test_every_finite_8_bit_float(conformance, dtype, emulator_seed):
    """5.2.3, "Alternate Floating-Point Data Formats", as the instruction reads them: A's columns 8 i to 8 i + 7 times
    the identity, so that each element of the result is one of A."""
    if not conformance.float8_mma:
        pytest.skip("mma of 8-bit floats needs a GPU of compute capability 8.9")
    codes = np.arange(256)
    exponent_bits, mantissa_bits, bias = {"e4m3": (4, 3, 7), "e5m2": (5, 2, 15)}[dtype]
    exponent, mantissa = codes >> mantissa_bits & (1 << exponent_bits) - 1, codes & (1 << mantissa_bits) - 1
    fraction = mantissa / (1 << mantissa_bits)
    magnitude = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    values = np.where(codes < 128, magnitude, -magnitude)
    finite = (codes & 0x7F) != 0x7F if dtype == "e4m3" else exponent != (1 << exponent_bits) - 1
    chosen = np.random.default_rng(emulator_seed).permutation(np.resize(codes[finite], 512)).reshape(16, 32)
    for first in range(0, 32, 8):
        b = np.zeros((32, 8))
        b[first : first + 8] = np.eye(8)
        a_words = registers(chosen.astype(np.uint8)[a_fragment(4)])
        given = np.concatenate([a_words, registers(encode(dtype, b)[b_fragment(4)]), np.zeros((32, 4), np.uint32)], 1)
        out = conformance.run(f"mma_{dtype}_{dtype}", given, np.zeros((32, 4), dtype=np.float32))
        assert np.array_equal(out, values[chosen[:, first : first + 8]].astype(np.float32)[c_fragment()])


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma_sp_m16n8k32(conformance, dtype, selector, emulator_seed):
    """9.7.14.6.2, "Matrix fragments for multiply-accumulate operation with sparse matrix A", m16n8k32 with .f16 and
    .bf16."""
    random = np.random.default_rng(emulator_seed)
    a, kept, places, scale_a = sparse_elements(dtype, random, (16, 32), emulator_seed == 1)
    b, b_bits, scale_b = elements(dtype, random, (32, 8), emulator_seed == 2)
    c = sums(dtype, random, (16, 8), scale_a * scale_b)
    metadata = sparse_metadata(places, selector, random)
    words = [registers(kept[a_fragment(2)]), registers(b_bits[b_fragment(2, 4)]), c[c_fragment()].view(np.uint32)]
    given = np.concatenate([*words, metadata[:, None]], axis=1)
    out = conformance.run(f"mma_sp_{dtype}_{selector}", given, np.zeros((32, 4), dtype=np.float32))
    assert np.array_equal(out, add(a @ b, c)[c_fragment()])


def test_metadata_out_of_order_are_refused(conformance):
    """9.7.14.6.1: with .sp::ordered_metadata the indices of four elements must be in ascending order."""
    given = np.zeros((32, 13), dtype=np.uint32)
    given[:, 12] = 0x44444441
    message = conformance.message("mma_sp_float16_0", given, np.zeros((32, 4), dtype=np.float32))
    assert "the metadata of four elements of a sparse matrix must name two of them in their order" in message


def test_round_to_tf32(conformance, emulator_seed):
    """9.7.9.21, "cvt": .rna rounds to nearest, ties away from zero; TF32 has 10 bits of mantissa."""
    random = np.random.default_rng(emulator_seed)
    bits = random.integers(0, 1 << 32, 32, dtype=np.uint32)
    bits[:8] = bits[:8] & 0xFFFFE000 | 0x1000  # Ties.
    bits[8:16] = bits[8:16] & 0x807FFFFF  # Subnormal numbers.
    bits[16:20] = [0x7F7FFFFF, 0xFF7FF000, 0x7F7FEFFF, 0x00000FFF]  # To infinity, the largest and zero.
    bits[20:23] = [0x7F800000, 0xFF800000, 0x7F800001]
    given = bits.view(np.float32)
    out = conformance.run("round_to_tf32", given, np.zeros(32, dtype=np.float32))
    finite = np.isfinite(given)
    with np.errstate(invalid="ignore"):
        exact = np.abs(given.astype(np.float64))
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.where(finite & (exact > 0), exact, 1.0))), -126) - 10)
    rounded = np.where(finite, np.floor(exact / step + 0.5) * step, exact)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.copysign(rounded, given).astype(np.float32)
    assert np.array_equal(out, expected, equal_nan=True)
    assert (out.view(np.uint32)[~np.isnan(given)] & 0x1FFF == 0).all()
    assert np.array_equal(np.signbit(out)[~np.isnan(given)], np.signbit(given)[~np.isnan(given)])
