"""Definitions of the embedding family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None, scale_grad_by_freq: bool) -> Tensor:
    num_embeddings, cols = weight.shape
    known = ((input >= 0) & (input < num_embeddings)).unsqueeze(-1)
    if num_embeddings == 0:
        return weight.new_full((*input.shape, cols), torch.nan)
    return torch.where(known, weight[torch.where(known.squeeze(-1), input, 0)], torch.nan).contiguous()


def embedding_backward(
    grad_output: Tensor, input: Tensor, num_embeddings: int, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    cols = grad_output.shape[-1]
    index = input.reshape(-1)
    counts = (index >= 0) & (index < num_embeddings)
    if padding_idx is not None:
        counts = counts & (index != padding_idx % num_embeddings)
    index = index[counts]
    grad = grad_output.reshape(input.numel(), cols).to(acc_dtype(grad_output.dtype))[counts]
    total = grad.new_zeros(num_embeddings, cols).index_add(0, index, grad)
    if scale_grad_by_freq:
        tokens = index.new_zeros(num_embeddings).index_add(0, index, torch.ones_like(index))
        total = total / tokens.clamp(min=1).unsqueeze(-1)
    return total.to(grad_output.dtype)
