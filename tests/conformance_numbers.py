"""Random elements of every type that the tensor cores multiply, small enough that sums of products are exact.

Then the order in which the hardware adds does not matter, and results are compared bit by bit. They are integers times
a power of two; 8-bit floats are the smaller ones, because Hopper adds their products with fewer bits than float32 has.
"""

from __future__ import annotations

import numpy as np
import torch

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
BYTES = {"float16": 2, "bfloat16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "int8": 1, "uint8": 1}
#: Powers of two: the first is 1, the other makes subnormal numbers of the type, where such are exact in a sum.
SCALES = {
    "float16": (0, -24),
    "bfloat16": (0, -60),
    "tf32": (0, -70),
    "e4m3": (0, -9),
    "e5m2": (0, -16),
    "int8": (0, 0),
    "uint8": (0, 0),
}
PAIRS = [
    *((dtype, dtype) for dtype in ("float16", "bfloat16", "tf32")),
    *((a, b) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
    *((a, b) for a in ("int8", "uint8") for b in ("int8", "uint8")),
]


def is_integer(dtype: str) -> bool:
    return dtype in ("int8", "uint8")


def encode(dtype: str, values: np.ndarray) -> np.ndarray:
    """The bits of numbers that the type holds exactly, in words of its width."""
    if is_integer(dtype):
        return values.astype(dtype).view(np.uint8)
    if dtype == "tf32":
        return values.astype(np.float32).view(np.uint32)
    encoded = torch.from_numpy(values).to(FLOATS[dtype])
    return encoded.view(torch.int16 if BYTES[dtype] == 2 else torch.uint8).numpy().view(WORDS[BYTES[dtype]])


def elements(dtype: str, random: np.random.Generator, shape: tuple[int, ...], scaled: bool):
    """(values as float64, their bits, the power of two that all of them are multiples of)."""
    if is_integer(dtype):
        low, high = (-128, 128) if dtype == "int8" else (0, 256)
    else:
        limit = 4 if BYTES[dtype] == 1 else 64
        low, high = -limit, limit + 1
    scale = 2.0 ** SCALES[dtype][scaled]
    values = random.integers(low, high, shape) * scale
    return values, encode(dtype, values), scale


def sums(dtype: str, random: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """What products are added to: float32 multiples of `scale`, or int32."""
    if is_integer(dtype):
        return random.integers(-(1 << 31), 1 << 31, shape).astype(np.int32)
    limit = 1 << (8 if BYTES[dtype] == 1 else 12)
    return (random.integers(-limit, limit, shape) * scale).astype(np.float32)


def add(products: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Exact products (float64) and sums, in the type of the sums: int32 wraps around."""
    if sums.dtype == np.int32:
        return (products.astype(np.int64) + sums).astype(np.int32)
    return (products + sums).astype(np.float32)


def sparse_elements(dtype: str, random: np.random.Generator, shape: tuple[int, int], scaled: bool):
    """A (rows, k) matrix of which two of each four neighbours of a row are kept: 9.7.14.6.1, "Sparse matrix storage".

    (values with zeros for the others, the kept ones' bits, which of the four they are as (rows, k / 4, 2), scale)."""
    values, bits, scale = elements(dtype, random, shape, scaled)
    rows, k = shape
    pairs = np.array([(i, j) for i in range(4) for j in range(i + 1, 4)])
    places = pairs[random.integers(0, len(pairs), (rows, k // 4))]
    index = (np.arange(k // 4)[:, None] * 4 + places).reshape(rows, k // 2)
    kept = np.zeros_like(values)
    np.put_along_axis(kept, index, np.take_along_axis(values, index, 1), 1)
    return kept, np.take_along_axis(bits, index, 1), places, scale


def sparse_metadata(places: np.ndarray, selector: int, random: np.random.Generator) -> np.ndarray:
    """The metadata of 16 rows of 32 elements, a word for each lane of a warp: the figure "metadata layout for
    .f16/.bf16 type" of m16n8k32 and of m64nNk32. A lane has 16 columns, 8 kept elements, of a row in its low half and
    of the row 8 further down in its high half. Lanes that the selector leaves out hold something else."""
    fields = places.reshape(16, 2, 8).astype(np.uint32) << 2 * np.arange(8, dtype=np.uint32)
    halves = fields.sum(axis=2, dtype=np.uint32)
    metadata = random.integers(0, 1 << 32, 32, dtype=np.uint32)
    for lane in range(32):
        if lane % 4 // 2 == selector:
            metadata[lane] = halves[lane // 4, lane % 2] | halves[lane // 4 + 8, lane % 2] << np.uint32(16)
    return metadata
