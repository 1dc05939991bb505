"""Random bits as csrc/kernels/philox.h makes them: Philox4x32-10 (Salmon et al., 2011), in torch's int64."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_RAISE = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low half of a product of 32-bit words, in halves: 64 bits without a sign do not fit int64."""
    low, high = factor * (word & 0xFFFF), factor * (word >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(key: tuple[int | Tensor, int | Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Four words for each counter; all are 32-bit words held in int64."""
    c0, c1, c2, c3 = counter
    key_a, key_b = key
    for _ in range(_ROUNDS):
        a_high, a_low = _multiply(_MULTIPLY[0], c0)
        b_high, b_low = _multiply(_MULTIPLY[1], c2)
        c0, c1, c2, c3 = b_high ^ c1 ^ key_a, b_low, a_high ^ c3 ^ key_b, a_low
        key_a, key_b = (key_a + _RAISE[0]) & _LOW, (key_b + _RAISE[1]) & _LOW
    return [c0, c1, c2, c3]


def random_words(seed: Tensor, rows: int, cols: int, offset: int) -> Tensor:
    """The words of a tensor, (rows, cols), from 0 to 2^32 - 1 in int64. seed: one int64."""
    device = seed.device
    row = torch.arange(rows, device=device).unsqueeze(1)
    quad = torch.arange((cols + 3) // 4, device=device).unsqueeze(0) + 0 * row
    key = (seed.reshape(()) & _LOW, (seed.reshape(()) >> 32) & _LOW)
    words = philox(key, (quad & _LOW, (row & _LOW) + 0 * quad, (row >> 32) + 0 * quad, quad * 0 + (offset & _LOW)))
    return torch.stack(words, -1).flatten(1)[:, :cols]


def dropout_threshold(p: float) -> int:
    """The smallest word that is kept, as csrc/kernels/philox.h's."""
    return min(int(p * 4294967296.0), _LOW)
