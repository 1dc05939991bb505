"""Random bits as csrc/kernels/philox.h makes them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def random_words(seed, row, start, offset, BLOCK: tl.constexpr):
    """The words of elements [start, start + BLOCK) of a row, (BLOCK,) uint32. seed, row and start: int64 scalars, start
    and BLOCK multiples of 4; offset: an int."""
    quad = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = quad * 0
    low = zero + (row & 0xFFFFFFFF).to(tl.uint32)
    high = zero + ((row >> 32) & 0xFFFFFFFF).to(tl.uint32)
    a, b, c, d = tl.philox(seed, quad, low, high, zero + tl.cast(offset, tl.uint32))
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(BLOCK)
