"""TMA copies the boxes that the PTX ISA and the driver's documentation describe: see test_conformance.py.

Coordinates, sizes and boxes run from the innermost dimension on, as there; NumPy's axes run the other way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import conformance_library
import numpy as np
import pytest

TARGETS = [t for t in conformance_library.TARGETS if conformance_library.runs_hopper(t)]
pytestmark = pytest.mark.skipif(not TARGETS, reason="neither the emulator nor a GPU of compute capability 9.0 is here")

# csrc/kernels/common.h's DType and its bytes.
DTYPES = {
    "float64": (0, 8),
    "float32": (1, 4),
    "float16": (2, 2),
    "bfloat16": (3, 2),
    "float8_e4m3": (4, 1),
    "float8_e5m2": (5, 1),
    "int64": (6, 8),
    "int32": (7, 4),
}
SWIZZLES = {"none": 0, "32": 1, "64": 2, "128": 3}  # CUtensorMapSwizzle.
MOST_BOXES = 8


@pytest.fixture(scope="module", params=TARGETS)
def library(request):
    return conformance_library.library(request.param)


@pytest.fixture(params=range(3))
def seed(request, monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(request.param))
    return request.param


@dataclass
class Tensor:
    """A tensor in memory with rows that begin at multiples of 16 bytes, and bytes of nobody's between them."""

    dtype: str
    size: list[int]
    memory: np.ndarray = field(init=False)
    stride: list[int] = field(init=False)  # In elements.

    def __init__(self, dtype: str, size: list[int], random: np.random.Generator):
        self.dtype, self.size, self.stride = dtype, size, [1]
        aligned = 16 // self.bytes
        for extent in size[:-1]:
            least = -(-self.stride[-1] * extent // aligned)
            self.stride.append((least + int(random.integers(0, 3))) * aligned)
        count = sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True)) + 1
        self.memory = random.integers(0, 256, (count + 2 * aligned) * self.bytes, dtype=np.uint8)

    @property
    def bytes(self) -> int:
        return DTYPES[self.dtype][1]

    def view(self, memory: np.ndarray) -> np.ndarray:
        """The elements that `memory` has as unsigned integers, outermost dimension first."""
        words = memory.view(f"u{self.bytes}")
        strides = [s * self.bytes for s in reversed(self.stride)]
        return np.lib.stride_tricks.as_strided(words, tuple(reversed(self.size)), strides)

    def numbers(self) -> list[int]:
        return [DTYPES[self.dtype][0], len(self.size), *self.size, *self.stride]


def where(size: int, start: int, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """What a box touches along one dimension: (its elements that lie inside, their indices in the tensor).

    5.5.3.2, "Traversal-Stride"; 5.5.3.3, "Out of Boundary Access".
    """
    index = start + step * np.arange(count)
    inside = (index >= 0) & (index < size)
    return np.flatnonzero(inside), index[inside]


def selections(tensor: Tensor, at: list[int], box: list[int], step: list[int]):
    """The same of all dimensions: (of the box, of the tensor), for NumPy to index with."""
    along = [where(*each) for each in zip(tensor.size, at, box, step, strict=True)][::-1]
    return np.ix_(*(a for a, _ in along)), np.ix_(*(b for _, b in along))


def loaded(tensor: Tensor, at: list[int], box: list[int], step: list[int]) -> np.ndarray:
    result = np.zeros(tuple(reversed(box)), dtype=f"u{tensor.bytes}")
    of_box, of_tensor = selections(tensor, at, box, step)
    result[of_box] = tensor.view(tensor.memory)[of_tensor]
    return result


# 5.5.7, "Swizzling Modes": which 16 bytes lie where in the lines of 128 bytes; the pattern repeats.
PATTERNS = {
    "none": ["01234567"],
    "32": ["01234567", "10325476"],
    "64": ["01234567", "10325476", "23016745", "32107654"],
    "128": ["01234567", "10325476", "23016745", "32107654", "45670123", "54761032", "67452301", "76543210"],
}


def in_shared_memory(box: np.ndarray, swizzle: str) -> np.ndarray:
    """The bytes of a box in shared memory, from a multiple of 1024 on: dense, then swizzled."""
    pattern = PATTERNS[swizzle]
    chunks = box.reshape(-1).view(np.uint8).reshape(-1, 16)
    result = np.empty_like(chunks)
    for i, chunk in enumerate(chunks):
        line, place = divmod(i, 8)
        result[8 * line + pattern[line % len(pattern)].index(str(place))] = chunk
    return result.reshape(-1)


def draw_box(random: np.random.Generator, rank: int, item: int, swizzle: str) -> tuple[list[int], list[int]]:
    """(box, traversal strides) of at most 8 KiB. The innermost dimension fills the swizzle's span."""
    inner = 16 << SWIZZLES[swizzle] if swizzle != "none" else 16 * int(random.integers(1, 5))
    box, step = [inner // item], [1]
    rows = 8192 // inner
    for _ in range(rank - 1):
        box.append(int(random.integers(1, min(rows, 9 if rank < 4 else 4) + 1)))
        rows //= box[-1]
        step.append(int(random.choice([1, 1, 2, 3, 8])))
    # Whole lines of 128 bytes in the longest dimension, so that patterns are seen from end to end.
    if rank > 1 and rows >= 8:
        box[1] = 8 * box[1] if 8 * box[1] * step[1] <= 256 else box[1]
    return box, step


def draw_corners(random, size: list[int], box: list[int], step: list[int]) -> list[list[int]]:
    """Coordinates inside, across either end of each dimension, at random, and outside altogether."""
    extent = [(b - 1) * s + 1 for b, s in zip(box, step, strict=True)]
    middle = [int(random.integers(0, max(n - e, 0) + 1)) for n, e in zip(size, extent, strict=True)]
    corners = [middle]
    low, high = list(middle), list(middle)
    for d, (n, e) in enumerate(zip(size, extent, strict=True)):
        if random.integers(0, 2) or d == len(size) - 1:
            low[d] = -int(random.integers(1, max(e, 2)))
            high[d] = n - int(random.integers(1, max(e, 2)))
    corners += [low, high]
    corners.append([int(random.integers(-e, n + 1)) for n, e in zip(size, extent, strict=True)])
    corners.append([-e if d == 0 else m for d, (e, m) in enumerate(zip(extent, middle, strict=True))])
    corners.append([n if d == len(size) - 1 else m for d, (n, m) in enumerate(zip(size, middle, strict=True))])
    return corners


def draw_size(random, box: list[int], step: list[int]) -> list[int]:
    """Some of a box to some boxes, and hardly ever a multiple of one."""
    return [max(1, int(b * s * random.uniform(0.6, 2.5))) for b, s in zip(box, step, strict=True)]


def numbers_of(tensor: Tensor, swizzle: str, box: list[int], size: int, mode: int, corners, masks=()) -> list[int]:
    """What tma_cases.cu takes; `box` with its traversal strides."""
    result = [*tensor.numbers(), SWIZZLES[swizzle], *box, size, mode, len(corners)]
    for i, at in enumerate(corners):
        result += [*at, masks[i] if masks else 0]
    return result


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_tiled_loads(library, rank, dtype, swizzle, seed):
    """9.7.9.27.1.2, "cp.async.bulk.tensor" in .tile mode, and 5.5.3."""
    random = np.random.default_rng([seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
    box, step = draw_box(random, rank, DTYPES[dtype][1], swizzle)
    tensor = Tensor(dtype, draw_size(random, box, step), random)
    corners = draw_corners(random, tensor.size, box, step)
    expected = [in_shared_memory(loaded(tensor, at, box, step), swizzle) for at in corners]
    out = np.full((len(corners), expected[0].size), 0xEE, dtype=np.uint8)
    numbers = numbers_of(tensor, swizzle, [*box, *step], expected[0].size, 0, corners)
    library.run("tma_load", tensor.memory, out, numbers)
    for got, wanted in zip(out, expected, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["before", "after", "piecewise"])
@pytest.mark.parametrize("phases", [1, 2, 4])
def test_a_phase_ends_with_the_last_byte_announced(library, phases, mode, seed):
    """9.7.13.15.5, expect-tx and complete-tx: the bytes may come before they are announced, as long as an arrival is
    pending; 9.7.13.15.6: a phase needs both counts to be zero."""
    random = np.random.default_rng([seed, phases, mode])
    box, step = [16, 9], [1, 2]
    tensor = Tensor("float16", [70, 50], random)
    corners = [[int(random.integers(-20, 70)), int(random.integers(-10, 50))] for _ in range(2 * phases)]
    boxes = [in_shared_memory(loaded(tensor, at, box, step), "32") for at in corners]
    out = np.full(sum(b.size for b in boxes) + 2 * phases, 0xEE, dtype=np.uint8)
    numbers = numbers_of(tensor, "32", [*box, *step], boxes[0].size, mode, corners)
    library.run("tma_transactions", tensor.memory, out, numbers)
    assert np.array_equal(out[: -2 * phases], np.concatenate(boxes))
    assert out[-2 * phases :].tolist() == [0, 1] * phases


def draw_masks(random, blocks: int) -> list[int]:
    return [int(random.integers(1, 1 << blocks)) for _ in range(blocks)]


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("to", ["all", "others", "random"])
def test_multicast_reaches_the_blocks_of_the_mask(library, blocks, to, swizzle, seed):
    """9.7.9.27.1.2, .multicast::cluster: bit i of the mask is the block of %cluster_ctarank i, the box and its bytes'
    completion are at the same offsets there."""
    random = np.random.default_rng([seed, blocks, SWIZZLES[swizzle]])
    every = (1 << blocks) - 1
    masks = {"all": [every] * blocks, "others": [every ^ 1 << r for r in range(blocks)]}.get(to)
    masks = masks or draw_masks(random, blocks)
    box, step = [(16 << SWIZZLES[swizzle]) // 2, int(random.integers(1, 20))], [1, 1]
    tensor = Tensor("bfloat16", [100, 60], random)
    corners = [[int(random.integers(-20, 100)), int(random.integers(-10, 60))] for _ in range(blocks)]
    boxes = [in_shared_memory(loaded(tensor, at, box, step), swizzle) for at in corners]
    out = np.zeros((2, blocks, blocks, boxes[0].size), dtype=np.uint8)
    numbers = numbers_of(tensor, swizzle, [*box, *step], boxes[0].size, 0, corners, masks)
    library.run("tma_multicast", tensor.memory, out, numbers)
    for cluster in range(2):
        for block in range(blocks):
            for sender in range(blocks):
                sent = masks[sender] >> block & 1
                expected = boxes[sender] if sent else np.full(boxes[0].size, 0xA5, dtype=np.uint8)
                assert np.array_equal(out[cluster, block, sender], expected)


def draw_neighbours(random, tensor: Tensor, box: list[int], step: list[int]) -> list[list[int]]:
    """Coordinates of boxes beside each other along one dimension, from before the tensor's begin to past its end."""
    axis = int(random.integers(0, len(box)))
    extent = box[axis] * step[axis]
    first = -int(random.integers(0, extent))
    others = [int(random.integers(-b // 2, max(1, n - b // 2))) for n, b in zip(tensor.size, box, strict=True)]
    count = min(MOST_BOXES, (tensor.size[axis] - first) // extent + 2)
    return [[first + i * extent if d == axis else o for d, o in enumerate(others)] for i in range(count)]


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_tiled_stores(library, rank, dtype, swizzle, seed):
    """9.7.9.27.1.2 from shared::cta to global: what lies outside is dropped, what lies between is left alone;
    9.7.9.27.2: wait_group.read lets the memory be used again, and the writes come by the end at the latest."""
    random = np.random.default_rng([seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
    box, step = draw_box(random, rank, DTYPES[dtype][1], swizzle)
    tensor = Tensor(dtype, draw_size(random, box, step), random)
    corners = draw_neighbours(random, tensor, box, step)
    shape = tuple(reversed(box))
    boxes = [random.integers(0, 256, np.prod(box) * tensor.bytes, dtype=np.uint8) for _ in corners]
    expected = tensor.memory.copy()
    for at, values in zip(corners, boxes, strict=True):
        of_box, of_tensor = selections(tensor, at, box, step)
        tensor.view(expected)[of_tensor] = values.view(f"u{tensor.bytes}").reshape(shape)[of_box]
    given = np.stack([in_shared_memory(values, swizzle) for values in boxes])
    numbers = numbers_of(tensor, swizzle, [*box, *step], boxes[0].size, seed % 2, corners)
    assert np.array_equal(library.run("tma_store", given, tensor.memory.copy(), numbers), expected)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16, ties to even; as bits."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def addends(random, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers as bits. Their exponents lie close together, so that a sum of two is exact in float64."""
    values = random.standard_normal(shape) * 2.0 ** random.integers(-2, 3, shape)
    if dtype == "int32":
        return random.integers(0, 1 << 32, shape, dtype=np.uint32)
    if dtype == "bfloat16":
        return to_bfloat16(values)
    return values.astype(dtype).view(f"u{DTYPES[dtype][1]}")


def added(a: np.ndarray, b: np.ndarray, dtype: str) -> np.ndarray:
    """The sum of bits as bits, rounded once to the nearest; int32 wraps."""
    if dtype == "int32":
        return a + b
    if dtype == "bfloat16":
        return to_bfloat16(from_bfloat16(a) + from_bfloat16(b))
    exact = a.view(dtype).astype(np.float64) + b.view(dtype).astype(np.float64)
    return exact.astype(dtype).view(a.dtype)


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_reductions_add_each_element(library, rank, dtype, swizzle, seed):
    """9.7.9.27.1.3, "cp.reduce.async.bulk.tensor", .add; the same box twice adds twice."""
    random = np.random.default_rng([seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
    box, step = draw_box(random, rank, DTYPES[dtype][1], swizzle)
    tensor = Tensor(dtype, draw_size(random, box, step), random)
    tensor.view(tensor.memory)[...] = addends(random, dtype, tuple(reversed(tensor.size)))
    corners = draw_neighbours(random, tensor, box, step)[: MOST_BOXES - 1]
    corners.append(corners[0])
    boxes = [addends(random, dtype, tuple(reversed(box))) for _ in corners[:-1]]
    boxes.append(boxes[0])
    expected = tensor.memory.copy()
    for at, values in zip(corners, boxes, strict=True):
        of_box, of_tensor = selections(tensor, at, box, step)
        seen = tensor.view(expected)
        seen[of_tensor] = added(np.ascontiguousarray(seen[of_tensor]), np.ascontiguousarray(values[of_box]), dtype)
    given = np.stack([in_shared_memory(values, swizzle) for values in boxes])
    numbers = numbers_of(tensor, swizzle, [*box, *step], given[0].size, seed % 2, corners)
    assert np.array_equal(library.run("tma_add", given, tensor.memory.copy(), numbers), expected)
