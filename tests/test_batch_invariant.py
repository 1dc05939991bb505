"""Rows under `warpwright.batch_invariant` have the bits that they have alone, in every product and on every backend."""

from __future__ import annotations

from collections.abc import Callable

import emulated
import pytest
import torch
from torch import Tensor

import warpwright
from warpwright import ops
from warpwright.testing import Make

ROWS = 130  # More than most tiles have; those of linear_sparse24 have more.
FEATURES, OUTPUTS = 192, 40


def _linear(x: Tensor, make: Make) -> Tensor:
    return ops.linear(x, make.tensor(OUTPUTS, FEATURES), make.tensor(OUTPUTS), activation="gelu")


def _matmul(x: Tensor, make: Make) -> Tensor:
    return ops.matmul(x, make.tensor(FEATURES, OUTPUTS))


def _linear_swiglu(x: Tensor, make: Make) -> Tensor:
    return ops.linear_swiglu(x, make.tensor(OUTPUTS, FEATURES), make.tensor(OUTPUTS, FEATURES))


def _mlp(x: Tensor, make: Make) -> Tensor:
    up, gate = make.tensor(OUTPUTS, FEATURES), make.tensor(OUTPUTS, FEATURES)
    return ops.mlp(x, up, make.tensor(FEATURES, OUTPUTS), gate_weight=gate)


def _grouped_matmul(x: Tensor, make: Make) -> Tensor:
    weight = make.tensor(3, OUTPUTS, FEATURES)
    # Two groups, of which the second grows with the number of rows, around an empty one.
    ends = torch.tensor([1, 1, x.shape[0]], dtype=torch.int32, device=x.device)
    return ops.grouped_matmul(x, weight, ends)


def _linear_w4a16(x: Tensor, make: Make) -> Tensor:
    return ops.linear_w4a16(x, ops.pack_weights(make.tensor(OUTPUTS, FEATURES, grad=False), bits=4, group_size=32))


def _linear_w8a16(x: Tensor, make: Make) -> Tensor:
    return ops.linear_w8a16(x, ops.pack_weights(make.tensor(OUTPUTS, FEATURES, grad=False), bits=8))


def _linear_sparse24(x: Tensor, make: Make) -> Tensor:
    return ops.linear_sparse24(x, ops.prune_24(make.tensor(OUTPUTS, FEATURES, grad=False)))


def _scaled_matmul(x: Tensor, make: Make) -> Tensor:
    values, scale = ops.quantize_fp8(x.detach())
    other, other_scale = ops.quantize_fp8(make.tensor(OUTPUTS, FEATURES, grad=False))
    return ops.scaled_matmul(values, other, scale, other_scale)


PRODUCTS: list[Callable[[Tensor, Make], Tensor]] = [
    _linear, _matmul, _linear_swiglu, _mlp, _grouped_matmul, _linear_w4a16, _linear_w8a16, _linear_sparse24,
    _scaled_matmul,
]  # fmt: skip

#: CUDA kernels that differ in how they add up. On the emulator their bits may be the same, on a GPU they are not.
KERNELS = [
    "gemm", "gemv_along_k", "gemv_across_k", "gemm_mma", "gemm_wgmma", "gated", "gated_mma", "gated_wgmma",
    "grouped", "grouped_mma", "grouped_wgmma", "linear_sparse24", "linear_sparse24_mma", "linear_sparse24_wgmma",
    "gemv_packed", "mma_packed", "scaled_mma", "scaled_wgmma",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.__name__[1:])
def test_a_row_does_not_notice_the_others(matrix, monkeypatch, product, dtype):
    backend = warpwright.current_backend()
    if backend == "reference":
        pytest.skip("the definitions are torch's products, whose sums depend on the number of rows")
    all_rows = 2 * ROWS if product is _linear_sparse24 else ROWS
    inputs = Make(dtype, matrix).tensor(all_rows, FEATURES, grad=False)

    def result(rows: int) -> tuple[Tensor, Tensor | None, list[str]]:
        """Of the first rows, the gradient of their sum, and the CUDA kernels that computed both."""
        before = launches()
        x = inputs[:rows].clone().requires_grad_()
        output = product(x, Make(dtype, matrix))  # The same weights every time.
        grad = torch.autograd.grad(output.sum(), x)[0] if output.requires_grad else None
        return output, grad, [name for name, count in launches().items() if count != before[name]]

    def launches() -> dict[str, int]:
        return {name: emulated.launches(name) for name in KERNELS} if backend == "emulated" else {}

    # So many multiprocessors that the tiles of all rows keep them busy, those of a few do not.
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_MULTIPROCESSORS", "4")
    for arch in ("90", "80") if backend == "emulated" else ("90",):
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", arch)
        with warpwright.batch_invariant():
            output, grad, kernels = result(all_rows)
            for rows in (1, 17):
                some_output, some_grad, some_kernels = result(rows)
                assert some_kernels == kernels, f"{rows} rows, sm_{arch}"
                assert torch.equal(some_output, output[:rows]), f"{rows} rows, sm_{arch}"
                assert grad is None or torch.equal(some_grad, grad[:rows]), f"the gradient of {rows} rows, sm_{arch}"
