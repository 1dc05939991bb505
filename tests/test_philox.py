"""The random bits that every backend shares. Ops that use them compare their backends; here the definition is held to
the published vectors of Random123 (kat_vectors, philox4x32 10)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from warpwright.reference._philox import dropout_threshold, philox, random_words
from warpwright.triton_kernels._philox import random_words as triton_words

VECTORS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    words = philox(tuple(key), tuple(torch.tensor(c) for c in counter))
    assert [int(w) for w in words] == expected


def _numpy_word(seed: int, row: int, col: int, offset: int) -> int:
    """Word by word in Python's own integers."""
    c = [col // 4, row & 0xFFFFFFFF, row >> 32, offset]
    k = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return c[col % 4]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
def test_a_tensor_takes_its_words_by_row_and_column(seed):
    words = random_words(torch.tensor([seed]), 3, 7, 5)
    expected = [[_numpy_word(seed % 2**64, row, col, 5) for col in range(7)] for row in range(3)]
    assert words.tolist() == expected


@triton.jit
def _words_kernel(seed_ptr, output_ptr, row, start, offset, BLOCK: tl.constexpr):
    words = triton_words(tl.load(seed_ptr), tl.cast(row, tl.int64), tl.cast(start, tl.int64), offset, BLOCK)
    tl.store(output_ptr + tl.arange(0, BLOCK), words.to(tl.int64))


@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
@pytest.mark.parametrize("row", [0, 3, 2**33 + 1])
def test_triton_makes_the_same(seed, row):
    device = "cuda" if torch.cuda.is_available() else "cpu"  # Interpreted there.
    output = torch.empty(32, dtype=torch.int64, device=device)
    _words_kernel[(1,)](torch.tensor([seed], device=device), output, row, 16, 2, BLOCK=32)
    assert output.tolist() == [_numpy_word(seed % 2**64, row, 16 + i, 2) for i in range(32)]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_a_threshold_loses_its_share(p):
    words = random_words(torch.tensor([7]), 100, 1000, 0).numpy()
    lost = float(np.mean(words < dropout_threshold(p)))
    assert abs(lost - p) < 4 * np.sqrt(p * (1 - p) / words.size) + 1e-6
