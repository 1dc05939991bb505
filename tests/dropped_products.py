"""Runs the products of Hopper's other families with one statement after the other left out, in a process of its own.

    python dropped_products.py FAMILY SITE...    for test_dropped_products.py; WARPWRIGHT_LIBRARY_DIR has the library

Prints a JSON object: site -> what went wrong on the first seed that noticed, or "" where none did.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import torch
from torch import Tensor

import warpwright
from warpwright import ops
from warpwright._conv import in_format
from warpwright.testing import Make

SEEDS = 6


def _gated() -> Iterator[tuple[Any, ...]]:
    t = Make(torch.bfloat16).tensor
    weights = (t(200, 328), t(200, 328))
    yield ops.linear_swiglu, (t(136, 328), *weights), {}
    # The activation's output is kept, which relu's gradient is taken from.
    yield ops.linear_glu, (t(136, 72), t(72, 72), t(72, 72), t(72), t(72)), {"activation": "relu"}
    yield ops.linear_geglu, (t(72, 136).mT, t(72, 72).mT, t(72, 72).mT), {}


def _grouped() -> Iterator[tuple[Any, ...]]:
    t = Make(torch.float16).tensor
    ends = torch.tensor([0, 70, 70, 150], dtype=torch.int32)
    yield ops.grouped_matmul, (t(200, 136), t(4, 264, 136), ends), {"bias": t(4, 264), "activation": "gelu"}
    yield ops.grouped_matmul, (t(200, 328), t(4, 328, 72).mT, ends), {}


def _scaled() -> Iterator[tuple[Any, ...]]:
    t = Make(torch.bfloat16).tensor
    a, a_scale = ops.quantize_fp8(t(136, 1040, grad=False), block_size=128)
    b, b_scale = ops.quantize_fp8(t(200, 1040, grad=False), block_size=128)
    more = {"bias": t(200, grad=False), "residual": t(136, 200, grad=False), "activation": "gelu"}
    yield ops.scaled_matmul, (a, b, a_scale, b_scale), more
    rows, columns = torch.ones(136, 1), torch.ones(200, 1)
    yield ops.scaled_matmul, (a, b, rows, columns), {}
    integers = torch.randint(-128, 128, (336, 144), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    one = torch.ones(1)
    yield ops.scaled_matmul, (integers[:136], integers[136:], one, one), {"out_dtype": torch.float16}


def _sparse() -> Iterator[tuple[Any, ...]]:
    t = Make(torch.bfloat16).tensor
    weight = ops.prune_24(t(200, 448, grad=False))
    yield ops.linear_sparse24, (t(264, 448), weight, t(200)), {"residual": t(264, 200), "activation": "gelu"}
    yield ops.linear_sparse24, (t(448, 72).mT, weight), {}


def _conv() -> Iterator[tuple[Any, ...]]:
    def last(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
        return in_format(Make(dtype).tensor(*shape, grad=False), True).requires_grad_(grad)

    b, half = Make(torch.bfloat16).tensor(136), Make(torch.float16).tensor(72, grad=False)
    # The activation's derivative makes the gradient that the backward kernels read, channels last.
    silu = {"activation": "silu"}
    yield ops.conv2d, (last(2, 72, 9, 7), last(136, 72, 3, 2), b, 1, 1), silu
    strided = last(1, 64, 9, 8, dtype=torch.float16), last(40, 64, 2, 3, dtype=torch.float16)
    yield ops.conv2d, (*strided, None, (3, 2), 1), silu

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Without an activation, where the weight's gradient finds the bias's, somebody else makes it.
        y = ops.conv2d(x, weight, bias)
        y.register_hook(lambda grad: in_format(grad * torch.arange(grad.shape[3], dtype=grad.dtype), True))
        return y

    yield plain, (last(2, 72, 9, 7), last(136, 72, 3, 2), b), {}
    # A sum in two parts.
    long = last(1, 64, 48, 44, dtype=torch.float16, grad=False), last(40, 64, 1, 1, dtype=torch.float16)
    yield plain, (*long, half[:40].clone().requires_grad_()), {}
    w = last(72, 40, 1, 1, dtype=torch.float16, grad=False)
    norm, training = (half, half.abs() + 0.5, half, half, half), (None, None, None, None)
    yield ops.conv2d_batch_norm, (last(2, 40, 9, 8, dtype=torch.float16, grad=False), w, *norm), {}
    # So many tiles that a consumer has two of them, and so few that they are narrow.
    for batch, bias, filters in ((8, half, 72), (1, half, 72), (2, None, 24)):
        x = last(batch, 40, 9, 8, dtype=torch.float16, grad=False)
        yield ops.conv2d_batch_norm, (x, w[:filters], *training, bias, 1, 0, 1, 1, True), {}


CASES: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "gated": _gated,
    "grouped": _grouped,
    "scaled": _scaled,
    "sparse": _sparse,
    "conv": _conv,
}


def _results(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The output, and what of the backward pass a kernel of the family computes: all gradients."""
    output = op(*args, **kwargs)
    leaves = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(output.float().sum(), leaves) if output.requires_grad else ()
    return [output.detach(), *grads]


def main(family: str, sites: list[int]) -> None:
    emulated.activate()
    drop = ctypes.CDLL(str(emulated.library()), mode=os.RTLD_NOLOAD).drop_site
    found: dict[int, str] = {}
    with warpwright.use_backend("emulated"):
        cases = list(CASES[family]())
        expected = [_results(*case) for case in cases]
        for site in sites:
            drop(site)
            found[site] = _first_error(cases, expected)
    print(json.dumps(found))


def _first_error(cases: list[tuple[Any, ...]], expected: list[list[Tensor]]) -> str:
    for seed in range(SEEDS):
        os.environ["WARPWRIGHT_EMULATOR_SEED"] = str(seed)
        for case, right in zip(cases, expected, strict=True):
            try:
                ours = _results(*case)
            except RuntimeError as error:
                return str(error)
            # The order of a kernel's sums is fixed: the bits are, too.
            if not all(torch.equal(a, b) for a, b in zip(ours, right, strict=True)):
                return "wrong numbers"
    return ""


if __name__ == "__main__":
    main(sys.argv[1], [int(site) for site in sys.argv[2:]])
