"""wgmma reads shared memory and writes registers where the PTX ISA says: see test_conformance.py.

All values are integers times a power of two, small enough that every product and sum is exact in float32. So the order
in which the hardware adds does not matter, and results are compared bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

M, K = 64, 16
T = 128 // 16  # 9.7.15.5.1.2.1.3: elements of 16 bits in 128.
BITS = {"none": 0, "32": 1, "64": 2, "128": 3}  # b of Swizzle<b, 4, 3>.
TMA_MODE = {"none": 0, "32": 1, "64": 2, "128": 3}  # CUtensorMapSwizzle.
SEEDS = 2


def swizzled(address: np.ndarray, bits: int) -> np.ndarray:
    """Swizzle<bits, 4, 3>: address bits from 4 on are xor-ed with those 3 above them."""
    return address ^ ((address >> 3) & (((1 << bits) - 1) << 4))


def canonical(swizzle: str, along_k: bool, row: np.ndarray, k: np.ndarray, lbo: int, sbo: int) -> np.ndarray:
    """The table of 9.7.15.5.1.2.1.3, "Canonical Layouts": the element's index before the swizzle; offsets in elements.

    A shape (a, b, ...) of a coordinate takes it apart, the first part running fastest.
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


def pack(image: np.ndarray, start: int, matrix: np.ndarray, swizzle: str, along_k: bool, random) -> tuple[Packed, int]:
    """Lays a matrix (rows, k) of 16-bit words into shared memory from `start` on; (how, where it ends).

    Both offsets are random: larger than they need be, and either of them the larger one.
    """
    rows, depth = matrix.shape
    span = 16 << BITS[swizzle]
    pattern = max(8 * span, 128)  # The atom's bytes; unswizzled atoms are 8 times 16 bytes.
    gap = [pattern * int(x) for x in random.integers(0, 2, 2)]
    if along_k and swizzle != "none":
        # Atoms are 8 rows by a span; steps within a span start inside the atom, the next span is a matrix of its own.
        stride, leading = pattern + gap[0], 16 * int(random.integers(0, 64))  # Leading: "not used".
        column = (rows // 8 - 1) * stride + pattern + gap[1]
        starts = [start + 2 * k // span * column + 2 * k % span for k in range(0, depth, K)]
        end = start + (2 * depth + span - 1) // span * column
    else:
        # Atoms repeat along the rows and along k: `inner` is the offset of the direction whose atoms are neighbours.
        along_rows = rows * 2 // span if not along_k else rows // 8
        along_depth = depth // 8
        rows_first = bool(random.integers(0, 2))
        inner = pattern + gap[0]
        outer = inner * (along_rows if rows_first else along_depth) + gap[1]
        of_rows, of_k = (inner, outer) if rows_first else (outer, inner)
        # LBO and SBO change their meaning between the rows of the table.
        leading, stride = (of_k, of_rows) if swizzle == "none" else (of_rows, of_k)
        starts = [start + step * 2 * of_k for step in range(depth // K)]
        end = start + outer * (along_depth if rows_first else along_rows)
    row, k = np.meshgrid(np.arange(rows), np.arange(depth), indexing="ij")
    within = canonical(swizzle, along_k, row, k % K, leading // 2, stride // 2)
    # A start inside a swizzled atom is an address like any other: the swizzle is a function of the whole address.
    address = swizzled(np.array(starts)[k // K] + 2 * within, BITS[swizzle])
    words = image.view(np.uint16)
    assert len(np.unique(address)) == address.size
    assert (words[address // 2] == POISON).all()
    words[address // 2] = matrix
    return Packed(starts, leading, stride, swizzle), -(-end // 1024) * 1024


POISON = 0xFFFF  # A NaN in both types: whoever reads between the elements spoils the sum.


def numbers_of(dtype: str, random, *shape: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Random integers times `scale`: (as float64, as the dtype's bits)."""
    limit = 64
    values = random.integers(-limit, limit + 1, shape).astype(np.float64) * scale
    if dtype == "float16":
        return values, values.astype(np.float16).view(np.uint16)
    return values, (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def scales(dtype: str, seed: int) -> tuple[float, float]:
    """Of A and B. float16's smallest step makes subnormal numbers of them."""
    if seed == 0:
        return 1.0, 1.0
    return (2.0**-24, 2.0**5) if dtype == "float16" else (2.0**-60, 2.0**40)


def fragment(n: int) -> tuple[np.ndarray, np.ndarray]:
    """9.7.15.5.1.1.1, Figure 149: row and column of d_i of each thread of the warpgroup, (128, n / 2)."""
    thread, i = np.arange(128)[:, None], np.arange(n // 2)[None, :]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    return row, 8 * (i // 4) + 2 * (thread % 4) + i % 2


def a_registers(bits: np.ndarray) -> np.ndarray:
    """9.7.15.5.1.1.1, Figure 148: a_0 to a_7 of each step and thread, two to a register, (steps, 128, 4)."""
    thread, i = np.arange(128)[:, None], np.arange(8)[None, :]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    col = 2 * (thread % 4) + i % 2 + 8 * (i // 4)
    steps = [bits[row, K * step + col] for step in range(bits.shape[1] // K)]
    return np.ascontiguousarray(np.stack(steps)).view(np.uint32)


def check(hopper, monkeypatch, seed, dtype, n, swizzles, along_k, accumulate, steps, registers=False) -> None:
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(seed))
    random = np.random.default_rng([seed, n, steps, *map(int, along_k)])
    scale_a, scale_b = scales(dtype, seed)
    a, a_bits = numbers_of(dtype, random, M, K * steps, scale=scale_a)
    b, b_bits = numbers_of(dtype, random, n, K * steps, scale=scale_b)
    image = np.full(1 << 18, 0xFF, dtype=np.uint8)
    end = 0
    unused = Packed([0], 0, 0, "none")
    a_packed = unused
    if not registers:
        a_packed, end = pack(image, end, a_bits, swizzles[0], along_k[0], random)
    b_packed, end = pack(image, end, b_bits, swizzles[1], along_k[1], random)
    row, col = fragment(n)
    c = random.integers(-(1 << 12), 1 << 12, (M, n)) * (scale_a * scale_b)
    # Where d is not added to, it holds NaN beforehand.
    before = np.where(accumulate, c[row, col], np.nan).astype(np.float32)
    given = [image[:end], before.reshape(-1).view(np.uint8)]
    if registers:
        given.append(a_registers(a_bits).reshape(-1).view(np.uint8))
    numbers = [n, *map(int, along_k), end, steps, int(accumulate), *a_packed.numbers(), *b_packed.numbers()]
    name = f"wgmma_registers_{dtype}" if registers else f"wgmma_{dtype}"
    out = hopper.run(name, np.concatenate(given), np.zeros((128, n // 2), dtype=np.float32), numbers)
    expected = (a @ b.T + (c if accumulate else 0)).astype(np.float32)
    assert np.array_equal(out, expected[row, col])


MAJORS = [(True, True), (True, False), (False, True), (False, False)]
DTYPES = ["float16", "bfloat16"]


def majors_id(majors) -> str:
    return "".join("k" if along_k else "m" for along_k in majors)


@pytest.mark.parametrize("majors", MAJORS, ids=majors_id)
@pytest.mark.parametrize("swizzle", BITS)
@pytest.mark.parametrize("n", [64, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_operands_from_shared_memory(hopper, monkeypatch, dtype, n, swizzle, majors):
    """9.7.15.5.2, "wgmma.mma_async", over one step and over as many as a span of the swizzle holds."""
    for seed in range(SEEDS):
        steps = 1 if seed == 0 else {"none": 2, "32": 2, "64": 2, "128": 4}[swizzle]
        accumulate = (seed + n // 64 + len(swizzle)) % 2 == 0
        check(hopper, monkeypatch, seed, dtype, n, (swizzle, swizzle), majors, accumulate, steps)


@pytest.mark.parametrize("majors", MAJORS, ids=majors_id)
@pytest.mark.parametrize("swizzles", [(x, y) for x in BITS for y in BITS if x != y], ids="-".join)
def test_operands_of_two_layouts(hopper, monkeypatch, swizzles, majors):
    for accumulate in (False, True):
        check(hopper, monkeypatch, int(accumulate), "bfloat16", 64, swizzles, majors, accumulate, 2)


@pytest.mark.parametrize("along_k", [True, False], ids=["k", "n"])
@pytest.mark.parametrize("swizzle", BITS)
@pytest.mark.parametrize("n", [64, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_from_registers(hopper, monkeypatch, dtype, n, swizzle, along_k):
    for seed in range(SEEDS):
        accumulate = (seed + n // 64) % 2 == 0
        check(hopper, monkeypatch, seed, dtype, n, ("none", swizzle), (True, along_k), accumulate, 2, registers=True)
