"""Definitions of the sparse family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright.reference import matmul


def prune_24(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.unflatten(1, (weight.shape[1] // 4, 4))
    magnitudes = torch.where(groups.isnan(), torch.inf, groups.abs())
    # A stable sort leaves equal magnitudes in their order.
    places = magnitudes.sort(stable=True, dim=2, descending=True).indices[..., :2].sort(2).values
    nibbles = places[..., 0] | places[..., 1] << 2  # (n, k / 4)
    pairs = torch.nn.functional.pad(nibbles, (0, nibbles.shape[1] % 2)).unflatten(1, (-1, 2))
    metadata = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
    return groups.gather(2, places).flatten(1).contiguous(), metadata.contiguous()


def _columns(metadata: Tensor, kept: int) -> Tensor:
    """The dense column of each kept element: (n, kept)."""
    at = torch.arange(kept, device=metadata.device)
    places = metadata[:, at // 4].to(torch.int64) >> (at % 4 * 2) & 3
    return at // 2 * 4 + places


def dense_from_sparse24(values: Tensor, metadata: Tensor) -> Tensor:
    n, kept = values.shape
    return values.new_zeros(n, 2 * kept).scatter(1, _columns(metadata, kept), values)


def dense_from_sparse24_backward(grad_output: Tensor, metadata: Tensor) -> Tensor:
    return grad_output.gather(1, _columns(metadata, grad_output.shape[1] // 2)).contiguous()


def linear_sparse24(
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    weight = dense_from_sparse24(values, metadata)
    # BLAS adds up the float32 rows of a strided matrix one product after the other, and loses more digits of long ones.
    return matmul.linear(
        input.contiguous(), weight, bias, residual, activation, precision, batch_invariant, save_preact
    )


def linear_sparse24_backward(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    saved: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, ...]:
    weight = dense_from_sparse24(values, metadata)
    needs = need_input, need_values, need_bias, need_residual
    grads = matmul.linear_backward(grad_output, input, weight, saved, activation, precision, batch_invariant, *needs)
    grad_values = dense_from_sparse24_backward(grads[1], metadata) if need_values else grads[1]
    return grads[0], grad_values, *grads[2:]
