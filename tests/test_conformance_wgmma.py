"""wgmma reads shared memory and writes registers where the PTX ISA says: see test_conformance.py.

Results are compared bit by bit: see conformance_numbers.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from conformance_numbers import BYTES, PAIRS, add, elements, sparse_elements, sparse_metadata, sums

M = 64
K_BYTES = 32  # 9.7.15.2, "Matrix Shape": K of every type.
BITS = {"none": 0, "32": 1, "64": 2, "128": 3}  # b of Swizzle<b, 4, 3>.
TMA_MODE = {"none": 0, "32": 1, "64": 2, "128": 3}  # CUtensorMapSwizzle.
SEEDS = 2


def swizzled(address: np.ndarray, bits: int) -> np.ndarray:
    """Swizzle<bits, 4, 3>: address bits from 4 on are xor-ed with those 3 above them."""
    return address ^ ((address >> 3) & (((1 << bits) - 1) << 4))


def canonical(swizzle: str, along_k: bool, row: np.ndarray, k: np.ndarray, lbo: int, sbo: int, T: int) -> np.ndarray:
    """The table of 9.7.15.5.1.2.1.3, "Canonical Layouts": the element's index before the swizzle; offsets in elements.

    A shape (a, b, ...) of a coordinate takes it apart, the first part running fastest. T elements have 128 bits.
    """
    width = (1 << BITS[swizzle]) * T
    if along_k:
        if swizzle == "none":  # ((8,m),(T,2k)):((1T,SBO),(1,LBO))
            return row % 8 * T + row // 8 * sbo + k % T + k // T * lbo
        return row % 8 * width + row // 8 * sbo + k % T + k // T * T  # ((8,m),(T,2k)):((wT,SBO),(1,T))
    if swizzle == "none":  # ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
        return row % T + row // T * sbo + k % 8 * T + k // 8 * lbo
    # ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO))
    return row % T + row // T % (width // T) * T + row // width * lbo + k % 8 * width + k // 8 * sbo


@dataclass
class Packed:
    start: list[int]  # Of each step along k.
    leading: int
    stride: int
    swizzle: str

    def numbers(self) -> list[int]:
        starts = [*self.start, *([0] * (4 - len(self.start)))]
        return [*starts, self.leading, self.stride, TMA_MODE[self.swizzle]]


def pack(image, start: int, matrix: np.ndarray, swizzle: str, along_k: bool, random, k_bytes=K_BYTES):
    """Lays the bits of a matrix (rows, k) into shared memory from `start` on; (how, where it ends).
    An instruction takes `k_bytes` of k.

    Both offsets are random: larger than they need be, and either of them the larger one.
    """
    rows, depth = matrix.shape
    size = matrix.itemsize
    together, step = 16 // size, k_bytes // size
    span = 16 << BITS[swizzle]
    pattern = max(8 * span, 128)  # The atom's bytes; unswizzled atoms are 8 times 16 bytes.
    gap = [pattern * int(x) for x in random.integers(0, 2, 2)]
    if along_k and swizzle != "none":
        # Atoms are 8 rows by a span; steps within a span start inside the atom, the next span is a matrix of its own.
        stride, leading = pattern + gap[0], 16 * int(random.integers(0, 64))  # Leading: "not used".
        column = (rows // 8 - 1) * stride + pattern + gap[1]
        starts = [start + at // span * column + at % span for at in range(0, size * depth, k_bytes)]
        end = start + -(-size * depth // span) * column
    else:
        # Atoms repeat along the rows and along k: `inner` is the offset of the direction whose atoms are neighbours.
        along_rows = rows * size // span if not along_k else rows // 8
        along_depth = depth // (together if along_k else 8)
        rows_first = bool(random.integers(0, 2))
        inner = pattern + gap[0]
        outer = inner * (along_rows if rows_first else along_depth) + gap[1]
        of_rows, of_k = (inner, outer) if rows_first else (outer, inner)
        # LBO and SBO change their meaning between the rows of the table.
        leading, stride = (of_k, of_rows) if swizzle == "none" else (of_rows, of_k)
        starts = [start + i * k_bytes // 16 * of_k for i in range(depth // step)]
        end = start + outer * (along_depth if rows_first else along_rows)
    row, k = np.meshgrid(np.arange(rows), np.arange(depth), indexing="ij")
    within = canonical(swizzle, along_k, row, k % step, leading // size, stride // size, together)
    # A start inside a swizzled atom is an address like any other: the swizzle is a function of the whole address.
    address = swizzled(np.array(starts)[k // step] + size * within, BITS[swizzle])
    words = image.view(matrix.dtype)
    assert len(np.unique(address)) == address.size
    assert (words[address // size] == np.iinfo(words.dtype).max).all()
    words[address // size] = matrix
    return Packed(starts, leading, stride, swizzle), -(-end // 1024) * 1024


def fragment(n: int) -> tuple[np.ndarray, np.ndarray]:
    """9.7.15.5.1.1.1, Figure 149: row and column of d_i of each thread of the warpgroup, (128, n / 2)."""
    thread, i = np.arange(128)[:, None], np.arange(n // 2)[None, :]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    return row, 8 * (i // 4) + 2 * (thread % 4) + i % 2


def a_registers(bits: np.ndarray) -> np.ndarray:
    """9.7.15.5.1.1, "Register Fragments": A of each step and thread, a register's elements from its low bits on,
    (steps, 128, 4) words: Figures 148 (16 bits), 150 (TF32) and 152 (8 bits)."""
    together = 4 // bits.itemsize
    thread, i = np.arange(128)[:, None], np.arange(4 * together)[None, :]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // together % 2)
    col = together * (thread % 4) + i % together + 4 * together * (i // (2 * together))
    steps = [bits[row, 8 * together * step + col] for step in range(bits.shape[1] // (8 * together))]
    return np.ascontiguousarray(np.stack(steps)).view(np.uint32)


def check(hopper, monkeypatch, seed, dtypes, n, swizzles, along_k, accumulate, steps, registers=False) -> None:
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(seed))
    random = np.random.default_rng([seed, n, steps, *map(int, along_k)])
    k = K_BYTES // BYTES[dtypes[0]] * steps
    a, a_bits, scale_a = elements(dtypes[0], random, (M, k), seed == 0)
    b, b_bits, scale_b = elements(dtypes[1], random, (n, k), seed == 1)
    # Whoever reads between the elements spoils the sum: these bits are a NaN of the floats, and no zero.
    image = np.full(1 << 18, 0xFF, dtype=np.uint8)
    end = 0
    a_packed = Packed([0], 0, 0, "none")
    if not registers:
        a_packed, end = pack(image, end, a_bits, swizzles[0], along_k[0], random)
    b_packed, end = pack(image, end, b_bits, swizzles[1], along_k[1], random)
    row, col = fragment(n)
    c = sums(dtypes[0], random, (M, n), scale_a * scale_b)
    # Where d is not added to, it holds NaN beforehand.
    unused = np.full((M, n), 0x7FFFFFFF, dtype=np.uint32).view(c.dtype)
    before = np.ascontiguousarray((c if accumulate else unused)[row, col])
    given = [image[:end], before.reshape(-1).view(np.uint8)]
    if registers:
        given.append(a_registers(a_bits).reshape(-1).view(np.uint8))
    numbers = [n, *map(int, along_k), end, steps, int(accumulate), *a_packed.numbers(), *b_packed.numbers(), 0]
    name = ("wgmma_registers_{}_{}" if registers else "wgmma_{}_{}").format(*dtypes)
    out = hopper.run(name, np.concatenate(given), np.zeros((128, n // 2), dtype=c.dtype), numbers)
    expected = add(a @ b.T, c if accumulate else np.zeros_like(c))
    assert np.array_equal(out, expected[row, col])


MAJORS = [(True, True), (True, False), (False, True), (False, False)]
DTYPES = ["float16", "bfloat16"]
STEPS = {"none": 2, "32": 2, "64": 2, "128": 4}


def majors_id(majors) -> str:
    return "".join("k" if along_k else "m" for along_k in majors)


@pytest.mark.parametrize("majors", MAJORS, ids=majors_id)
@pytest.mark.parametrize("swizzle", BITS)
@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_operands_from_shared_memory(hopper, monkeypatch, dtype, n, swizzle, majors):
    """9.7.15.5.2, "wgmma.mma_async", over one step and over as many as a span of the swizzle holds."""
    for seed in range(SEEDS):
        steps = 1 if seed == 0 else STEPS[swizzle]
        accumulate = (seed + n // 64 + len(swizzle)) % 2 == 0
        check(hopper, monkeypatch, seed, (dtype, dtype), n, (swizzle, swizzle), majors, accumulate, steps)


@pytest.mark.parametrize("majors", MAJORS, ids=majors_id)
@pytest.mark.parametrize("swizzles", [(x, y) for x in BITS for y in BITS if x != y], ids="-".join)
def test_operands_of_two_layouts(hopper, monkeypatch, swizzles, majors):
    for accumulate in (False, True):
        check(hopper, monkeypatch, int(accumulate), ("bfloat16", "bfloat16"), 64, swizzles, majors, accumulate, 2)


@pytest.mark.parametrize("along_k", [True, False], ids=["k", "n"])
@pytest.mark.parametrize("swizzle", BITS)
@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_from_registers(hopper, monkeypatch, dtype, n, swizzle, along_k):
    for seed in range(SEEDS):
        accumulate = (seed + n // 64) % 2 == 0
        majors = (True, along_k)
        check(hopper, monkeypatch, seed, (dtype, dtype), n, ("none", swizzle), majors, accumulate, 2, registers=True)


@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("swizzle", BITS)
@pytest.mark.parametrize("n", [24, 64, 256])
@pytest.mark.parametrize("dtypes", [pair for pair in PAIRS if pair[0] not in DTYPES], ids="-".join)
def test_types_whose_k_lies_together(hopper, monkeypatch, dtypes, n, swizzle, registers):
    for seed in range(SEEDS):
        steps = 2 if registers or seed == 0 else STEPS[swizzle]
        accumulate = (seed + n // 8) % 2 == 0
        swizzles, majors = (swizzle, swizzle), (True, True)
        check(hopper, monkeypatch, seed, dtypes, n, swizzles, majors, accumulate, steps, registers)


@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("n", [8, 24, *range(16, 257, 16)])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_each_n(hopper, monkeypatch, dtype, n, registers):
    """Each N has an instruction of its own, with as many registers: of floats and of integers."""
    for seed in range(SEEDS):
        swizzles = ("128", [*BITS][(n // 8 + seed) % 4])
        check(hopper, monkeypatch, seed, (dtype, dtype), n, swizzles, (True, True), seed == 0, 2, registers)


@pytest.mark.parametrize("n", [64, 128, 256])
@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("b_along_k", [True, False], ids=["k", "n"])
@pytest.mark.parametrize("swizzle", ["none", "64", "128"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_is", ["k", "m", "registers"])
def test_sparse_a(hopper, monkeypatch, a_is, dtype, swizzle, b_along_k, selector, n):
    """9.7.15.6, "Asynchronous wgmma.mma_async.sp", over two steps: 9.7.15.6.2.1, "Matrix Fragments for sparse
    wgmma.mma_async.m64nNk32". The kept elements of A lie like a matrix half as wide."""
    registers, majors = a_is == "registers", (a_is != "m", b_along_k)
    seed = n // 64 % 2
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(n // 64))
    random = np.random.default_rng([n, selector, *map(int, majors)])
    a, kept, places, scale_a = sparse_elements(dtype, random, (M, 64), seed == 0)
    b, b_bits, scale_b = elements(dtype, random, (n, 64), seed == 1)
    image = np.full(1 << 18, 0xFF, dtype=np.uint8)
    end = 0
    a_packed = Packed([0], 0, 0, "none")
    if not registers:
        a_packed, end = pack(image, end, kept, swizzle, majors[0], random)
    b_packed, end = pack(image, end, b_bits, swizzle, majors[1], random, k_bytes=64)
    row, col = fragment(n)
    c = sums(dtype, random, (M, n), scale_a * scale_b)
    # Each warp of each step has the metadata of 16 rows, 8 chunks of 4.
    metadata = [
        sparse_metadata(places[16 * warp : 16 * warp + 16, 8 * step : 8 * step + 8], selector, random)
        for step in range(2)
        for warp in range(4)
    ]
    words = [np.ascontiguousarray(c[row, col]).view(np.uint32).reshape(-1), a_registers(kept).reshape(-1), *metadata]
    given = np.concatenate([image[:end], np.concatenate(words).view(np.uint8)])
    numbers = [n, *map(int, majors), end, 2, 1, *a_packed.numbers(), *b_packed.numbers(), selector]
    name = f"wgmma_sp_registers_{dtype}" if registers else f"wgmma_sp_{dtype}"
    out = hopper.run(name, given, np.zeros((128, n // 2), dtype=np.float32), numbers)
    assert np.array_equal(out, add(a @ b.T, c)[row, col])
