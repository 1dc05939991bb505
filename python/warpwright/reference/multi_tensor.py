"""Definitions of the multi_tensor family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def _found_inf(tensors: list[Tensor]) -> Tensor:
    return torch.stack([(~t.isfinite()).any() for t in tensors]).any().float()


def multi_tensor_norm(tensors: list[Tensor], order: float) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(tensors[0].dtype)
    # Contiguous: PyTorch adds the elements of others one after the other.
    norms = [torch.linalg.vector_norm(t.to(acc).contiguous(), order) for t in tensors if t.numel()]
    norm = torch.linalg.vector_norm(torch.stack(norms), order) if norms else tensors[0].new_zeros((), dtype=acc)
    return norm, _found_inf(tensors)


def multi_tensor_scale_(tensors: list[Tensor], multiplier: Tensor, found_inf: Tensor | None) -> None:
    if found_inf is not None:
        found_inf.copy_(torch.maximum(found_inf, _found_inf(tensors).reshape(found_inf.shape)))
    for tensor in tensors:
        tensor.copy_(tensor.to(multiplier.dtype) * multiplier.reshape(()))
