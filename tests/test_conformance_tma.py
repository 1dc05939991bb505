"""TMA copies the boxes that the PTX ISA and the driver's documentation describe: see test_conformance.py.

Coordinates, sizes and boxes run from the innermost dimension on, as there; NumPy's axes run the other way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import conformance_library
import numpy as np
import pytest

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
    "int8": (8, 1),
    "uint8": (9, 1),
}
TO_TF32 = {"tf32": (-1, 4)}  # float32 whose loads are rounded.
SWIZZLES = {"none": 0, "32": 1, "64": 2, "128": 3}  # CUtensorMapSwizzle.
MOST_BOXES = 8


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
        return (DTYPES | TO_TF32)[self.dtype][1]

    def view(self, memory: np.ndarray) -> np.ndarray:
        """The elements that `memory` has as unsigned integers, outermost dimension first."""
        words = memory.view(f"u{self.bytes}")
        strides = [s * self.bytes for s in reversed(self.stride)]
        return np.lib.stride_tricks.as_strided(words, tuple(reversed(self.size)), strides)

    def numbers(self) -> list[int]:
        return [(DTYPES | TO_TF32)[self.dtype][0], len(self.size), *self.size, *self.stride]


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
def test_tiled_loads(hopper, rank, dtype, swizzle, emulator_seed):
    """9.7.9.27.1.2, "cp.async.bulk.tensor" in .tile mode, and 5.5.3."""
    random = np.random.default_rng([emulator_seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
    box, step = draw_box(random, rank, DTYPES[dtype][1], swizzle)
    tensor = Tensor(dtype, draw_size(random, box, step), random)
    corners = draw_corners(random, tensor.size, box, step)
    expected = [in_shared_memory(loaded(tensor, at, box, step), swizzle) for at in corners]
    out = np.full((len(corners), expected[0].size), 0xEE, dtype=np.uint8)
    numbers = numbers_of(tensor, swizzle, [*box, *step], expected[0].size, 0, corners)
    hopper.run("tma_load", tensor.memory, out, numbers)
    for got, wanted in zip(out, expected, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_loads_round_to_tf32(hopper, rank, swizzle, emulator_seed):
    """CUDA driver API, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32. How it rounds is not documented: assumed is to nearest, to
    even."""
    random = np.random.default_rng([emulator_seed, rank, SWIZZLES[swizzle]])
    box, step = draw_box(random, rank, 4, swizzle)
    tensor = Tensor("tf32", draw_size(random, box, step), random)
    bits = tensor.memory.view(np.uint32)
    bits[::3] = bits[::3] & 0xFFFFE000 | 0x1000  # Ties.
    bits[1::7] |= 0x7F800000  # Mostly NaN.
    corners = draw_corners(random, tensor.size, box, step)
    out = np.zeros((len(corners), int(np.prod(box)) * 4), dtype=np.uint8)
    hopper.run("tma_load", tensor.memory, out, numbers_of(tensor, swizzle, [*box, *step], out.shape[1], 0, corners))
    for got, at in zip(out, corners, strict=True):
        raw = loaded(tensor, at, box, step)
        with np.errstate(invalid="ignore", over="ignore"):
            number = raw.view(np.float32).astype(np.float64)
            step_size = 2.0 ** (np.maximum(np.frexp(number)[1] - 1, -126) - 10)
            rounded = (np.rint(number / step_size) * step_size).astype(np.float32).view(np.uint32)
        expected = np.where(np.isfinite(number), rounded, raw)
        assert np.array_equal(got, in_shared_memory(expected, swizzle))


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["before", "after", "piecewise"])
@pytest.mark.parametrize("phases", [1, 2, 4])
def test_a_phase_ends_with_the_last_byte_announced(hopper, phases, mode, emulator_seed):
    """9.7.13.15.5, expect-tx and complete-tx: the bytes may come before they are announced, as long as an arrival is
    pending; 9.7.13.15.6: a phase needs both counts to be zero."""
    random = np.random.default_rng([emulator_seed, phases, mode])
    box, step = [16, 9], [1, 2]
    tensor = Tensor("float16", [70, 50], random)
    corners = [[int(random.integers(-20, 70)), int(random.integers(-10, 50))] for _ in range(2 * phases)]
    boxes = [in_shared_memory(loaded(tensor, at, box, step), "32") for at in corners]
    out = np.full(sum(b.size for b in boxes) + 2 * phases, 0xEE, dtype=np.uint8)
    numbers = numbers_of(tensor, "32", [*box, *step], boxes[0].size, mode, corners)
    hopper.run("tma_transactions", tensor.memory, out, numbers)
    assert np.array_equal(out[: -2 * phases], np.concatenate(boxes))
    assert out[-2 * phases :].tolist() == [0, 1] * phases


def draw_masks(random, blocks: int) -> list[int]:
    return [int(random.integers(1, 1 << blocks)) for _ in range(blocks)]


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("to", ["all", "others", "random"])
def test_multicast_reaches_the_blocks_of_the_mask(hopper, blocks, to, swizzle, emulator_seed):
    """9.7.9.27.1.2, .multicast::cluster: bit i of the mask is the block of %cluster_ctarank i, the box and its bytes'
    completion are at the same offsets there."""
    random = np.random.default_rng([emulator_seed, blocks, SWIZZLES[swizzle]])
    every = (1 << blocks) - 1
    masks = {"all": [every] * blocks, "others": [every ^ 1 << r for r in range(blocks)]}.get(to)
    masks = masks or draw_masks(random, blocks)
    box, step = [(16 << SWIZZLES[swizzle]) // 2, int(random.integers(1, 20))], [1, 1]
    tensor = Tensor("bfloat16", [100, 60], random)
    corners = [[int(random.integers(-20, 100)), int(random.integers(-10, 60))] for _ in range(blocks)]
    boxes = [in_shared_memory(loaded(tensor, at, box, step), swizzle) for at in corners]
    out = np.zeros((2, blocks, blocks, boxes[0].size), dtype=np.uint8)
    numbers = numbers_of(tensor, swizzle, [*box, *step], boxes[0].size, 0, corners, masks)
    hopper.run("tma_multicast", tensor.memory, out, numbers)
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
def test_tiled_stores(hopper, rank, dtype, swizzle, emulator_seed):
    """9.7.9.27.1.2 from shared::cta to global: what lies outside is dropped, what lies between is left alone;
    9.7.9.27.2: wait_group.read lets the memory be used again, and the writes come by the end at the latest."""
    random = np.random.default_rng([emulator_seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
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
    numbers = numbers_of(tensor, swizzle, [*box, *step], boxes[0].size, emulator_seed % 2, corners)
    assert np.array_equal(hopper.run("tma_store", given, tensor.memory.copy(), numbers), expected)


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
def test_reductions_add_each_element(hopper, rank, dtype, swizzle, emulator_seed):
    """9.7.9.27.1.3, "cp.reduce.async.bulk.tensor", .add; the same box twice adds twice."""
    random = np.random.default_rng([emulator_seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
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
    numbers = numbers_of(tensor, swizzle, [*box, *step], given[0].size, emulator_seed % 2, corners)
    assert np.array_equal(hopper.run("tma_add", given, tensor.memory.copy(), numbers), expected)


def im2col_positions(size: list[int], lower: list[int], upper: list[int], step: list[int]) -> list[list[int]]:
    """5.5.4.1: where filter bases lie along width, height and depth: from the lower corner to the upper one, which
    counts from the last element on, in traversal strides (5.5.4.2)."""
    return [list(range(lo, n + up, s)) for n, lo, up, s in zip(size, lower, upper, step, strict=True)]


def unrolled(tensor: Tensor, at: list[int], offsets: list[int], channels: int, pixels: int, positions) -> np.ndarray:
    """`pixels` rows of `channels`. Bases follow each other along the width first, then height, depth, batch; what is
    read lies at the base plus the offsets, and is zero outside the tensor or past the last batch (5.5.4.3)."""
    view = tensor.view(tensor.memory)
    counts = [len(along) for along in positions]
    places = [along.index(x) for along, x in zip(positions, at[1:-1], strict=True)]
    first = int(np.ravel_multi_index([at[-1], *places[::-1]], [1 << 20, *counts[::-1]]))
    result = np.zeros((pixels, channels), dtype=view.dtype)
    of_row, of_tensor = where(tensor.size[0], at[0], channels, 1)
    for pixel in range(pixels):
        batch, *place = np.unravel_index(first + pixel, [1 << 20, *counts[::-1]])
        base = [along[i] for along, i in zip(positions, place[::-1], strict=True)]
        spot = [b + o for b, o in zip(base, offsets, strict=True)] + [int(batch)]
        if all(0 <= x < n for x, n in zip(spot, tensor.size[1:], strict=True)):
            result[pixel, of_row] = view[tuple(spot[::-1])][of_tensor]
    return result


@dataclass
class Im2col:
    channels: int
    pixels: int
    lower: list[int]
    upper: list[int]
    step: list[int]  # Of width, height, depth.

    def numbers(self) -> list[int]:
        return [self.channels, self.pixels, *self.lower, *self.upper, 1, *self.step, 1]


def check_im2col(hopper, tensor: Tensor, box: Im2col, swizzle: str, loads) -> None:
    """`loads`: pairs of coordinates and offsets."""
    positions = im2col_positions(tensor.size[1:-1], box.lower, box.upper, box.step)
    expected = [
        in_shared_memory(unrolled(tensor, at, offsets, box.channels, box.pixels, positions), swizzle)
        for at, offsets in loads
    ]
    size = expected[0].size
    out = np.full((len(loads), size), 0xEE, dtype=np.uint8)
    both = [[*at, *offsets] for at, offsets in loads]
    hopper.run("tma_im2col", tensor.memory, out, numbers_of(tensor, swizzle, box.numbers(), size, 0, both))
    for got, wanted in zip(out, expected, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_im2col_loads(hopper, rank, dtype, swizzle, emulator_seed):
    """9.7.9.27.1.2 in .im2col mode: convolutions with padding, stride and dilation; each tap is an offset."""
    random = np.random.default_rng([emulator_seed, rank, *DTYPES[dtype], SWIZZLES[swizzle]])
    spatial, item = rank - 2, DTYPES[dtype][1]
    taps, padding = random.integers(1, 4, spatial), random.integers(0, 3, spatial)
    stride, dilation = random.integers(1, 4, spatial), random.integers(1, 4, spatial)
    reach = (taps - 1) * dilation
    size = [int(x) for x in np.maximum(reach - 2 * padding, 0) + random.integers(1, 9, spatial)]
    inner = 16 << SWIZZLES[swizzle] if swizzle != "none" else 16 * int(random.integers(1, 5))
    box = Im2col(
        inner // item,
        int(random.integers(8, 65)),
        *([int(x) for x in part] for part in (-padding, padding - reach, stride)),
    )
    tensor = Tensor(dtype, [int(random.integers(1, 3 * box.channels)), *size, int(random.integers(1, 4))], random)
    positions = im2col_positions(size, box.lower, box.upper, box.step)
    loads = []
    for _ in range(6):
        base = [int(random.choice(along)) for along in positions]
        channel = int(random.integers(-box.channels // 2, tensor.size[0] + box.channels))
        offsets = [int(x) for x in random.integers(0, taps) * dilation]
        loads.append(([channel, *base, int(random.integers(0, tensor.size[-1] + 1))], offsets))
    check_im2col(hopper, tensor, box, swizzle, loads)


@pytest.mark.parametrize(("corner", "end", "offsets"), [(-1, -1, [0, 0]), (0, -2, [2, 2])], ids=["1", "2"])
def test_the_examples_of_im2col(hopper, corner, end, offsets, emulator_seed):
    """5.5.4.1, examples 1 and 2."""
    tensor = Tensor("float16", [64, 9, 14, 64], np.random.default_rng(emulator_seed))
    box = Im2col(8, 64, [corner] * 2, [end] * 2, [1, 1])
    # The second example's filter base, 7, is beyond its own bounding box; its last column is 6.
    check_im2col(hopper, tensor, box, "none", [([7, 7 if corner else 6, 4, 0], offsets)])


GOOD = {"dtype": "float16", "stride": 64, "box": [32, 8], "step": [1, 1], "swizzle": "none"}
BAD_TILES = [
    ({"box": [32, 257]}, "the box of dimension 1 is 257, expected 1 to 256"),
    ({"box": [32, 0]}, "the box of dimension 1 is 0, expected 1 to 256"),
    ({"step": [1, 9]}, "the step of dimension 1 is 9, expected 1 to 8"),
    ({"step": [2, 1]}, "the step of dimension 0 is 2, expected 1 to 1"),
    ({"box": [32, 129], "step": [1, 2]}, "the box times the step of dimension 1 is 258, expected 1 to 256"),
    ({"box": [31, 8]}, "the box' innermost dimension has 62 bytes, expected a multiple of 16"),
    ({"swizzle": "32"}, "innermost dimension has 64 bytes, expected at most the 32 of the swizzle's span"),
    ({"stride": 60}, "the stride of dimension 1 is 60, expected a multiple of 8 elements, below 2^40 bytes"),
    ({"size": [64, 0]}, "the size of dimension 1 is 0, expected 1 to 2^32 - 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD_TILES, ids=[m.split(", ")[0] for _, m in BAD_TILES])
def test_a_tiled_map_that_the_driver_refuses_is_refused(hopper, change, message):
    """CUDA driver API, cuTensorMapEncodeTiled; boxDim there counts the elements that are stepped over."""
    given = {"size": [64, 64], **GOOD, **change}
    numbers = [DTYPES[given["dtype"]][0], 2, *given["size"], 1, given["stride"], SWIZZLES[given["swizzle"]]]
    numbers += [*given["box"], *given["step"], 16, 0, 1, 0, 0, 0]
    assert message in hopper.message("tma_load", np.zeros(64 * 64 * 2, np.uint8), np.zeros(1 << 15, np.uint8), numbers)


BAD_IM2COL = [
    (Im2col(8, 1025, [0, 0], [0, 0], [1, 1]), "the number of pixels is 1025, expected 1 to 1024"),
    (Im2col(264, 8, [0, 0], [0, 0], [1, 1]), "the number of channels is 264, expected 1 to 256"),
    (Im2col(8, 8, [-129, 0], [0, 0], [1, 1]), "the lower corner of dimension 1 is -129, expected -128 to 127"),
    (Im2col(8, 8, [0, 0], [0, 128], [1, 1]), "the upper corner of dimension 2 is 128, expected -128 to 127"),
    (Im2col(8, 8, [0, 0], [0, -9], [1, 1]), "the pixel box has 0 elements of dimension 2, expected 1"),
    (Im2col(8, 8, [0, 0], [0, 0], [1, 9]), "the step of dimension 2 is 9, expected 1 to 8"),
]


@pytest.mark.parametrize(("box", "message"), BAD_IM2COL, ids=[m.split(", ")[0] for _, m in BAD_IM2COL])
def test_an_im2col_map_that_the_driver_refuses_is_refused(hopper, box, message):
    """CUDA driver API, cuTensorMapEncodeIm2col."""
    tensor = Tensor("float16", [512, 9, 9, 2], np.random.default_rng(0))
    numbers = numbers_of(tensor, "none", box.numbers(), 16, 0, [[0] * 6])
    assert message in hopper.message("tma_im2col", tensor.memory, np.zeros(1 << 12, np.uint8), numbers)


@pytest.mark.skipif("emulated" not in conformance_library.TARGETS, reason="a GPU says nothing of these")
@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([0, 8, 0, 0, 0, 0], "coordinate 1 of an im2col load is 8, expected one within the pixel box, -1 to 7"),
        ([0, 0, -2, 0, 0, 0], "coordinate 2 of an im2col load is -2, expected one within the pixel box, -1 to 7"),
        ([0, 0, 0, 0, 0, 256], "im2col offset 1 is 256, expected at most 255"),
    ],
)
def test_the_emulator_refuses_im2col_coordinates_outside_the_box(at, message):
    """5.5.4.1: the filter corner must be within the bounding box, and the range of offsets."""
    tensor = Tensor("float16", [64, 9, 9, 2], np.random.default_rng(0))
    box = Im2col(8, 8, [-1, -1], [-1, -1], [1, 1])
    numbers = numbers_of(tensor, "none", box.numbers(), 128, 0, [at])
    emulator = conformance_library.library("emulated")
    assert message in emulator.message("tma_im2col", tensor.memory, np.zeros(128, np.uint8), numbers)


@pytest.mark.skipif("emulated" not in conformance_library.TARGETS, reason="a GPU says nothing of these")
@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3", "float8_e5m2", "int64"])
def test_the_emulator_refuses_to_add_what_tma_cannot(dtype):
    """The table of 9.7.9.27.1.3; .u64 has no dtype here."""
    tensor = Tensor(dtype, [64], np.random.default_rng(0))
    numbers = numbers_of(tensor, "none", [16, 1], 16 * tensor.bytes, 0, [[0]])
    emulator = conformance_library.library("emulated")
    message = emulator.message("tma_add", np.zeros(16 * tensor.bytes, np.uint8), tensor.memory, numbers)
    assert "TMA: add is for float32, float16, bfloat16 and int32" in message
