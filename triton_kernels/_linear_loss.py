"""What the losses behind a linear layer share: its output a chunk of rows at a time, and the gradients of its operands,
which are added up over the chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype
from warpwright.triton_kernels._gemm import gemm

#: As in csrc/bindings/linear_loss.cpp: what is added to the weight's gradient exists for some classes at a time.
PART_BYTES, WEIGHT_PARTS, TILE = 8 * 2**20, 16, 128
#: And logits that may always exist at once, in bytes, and else how small a part of them all.
CHUNK_BYTES, CHUNK_PART = 16 * 2**20, 10


def chunk_of(input: Tensor, weight: Tensor, chunk_rows: int | None, layers: int = 1) -> int:
    """How many rows' logits exist at once, of each of so many layers."""
    if chunk_rows is not None:
        return chunk_rows
    rows, row_bytes = input.shape[:-1].numel(), layers * weight.shape[0] * weight.element_size()
    chunk = max(CHUNK_BYTES // row_bytes, rows // (layers * CHUNK_PART), 1)
    return min(chunk // TILE * TILE if chunk >= TILE else chunk, max(rows, 1))


def _classes_at_once(weight: Tensor) -> int:
    row_bytes = max(weight.shape[1], 1) * torch.finfo(acc_dtype(weight.dtype)).bits // 8
    classes = max(PART_BYTES // row_bytes, weight.shape[0] // WEIGHT_PARTS)
    return max(classes // TILE * TILE, TILE)


class Grads:
    """The gradients of the layer's operands, from those of its output a chunk at a time; sums over several chunks in
    float32, rounded once."""

    def __init__(self, input: Tensor, weight: Tensor, needs: Any, chunk: int, settings: dict[str, Any]):
        self.input, self.weight, self.needs, self.settings = input, weight, needs, settings
        whole = chunk >= input.shape[0]
        self.sum_dtype = input.dtype if whole else acc_dtype(input.dtype)
        self.of_input = torch.empty_like(input, memory_format=torch.contiguous_format) if needs[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias: Tensor | None = None
        self.part = _classes_at_once(weight)

    def add(self, grad: Tensor, first: int) -> None:
        need_input, need_weight, need_bias = self.needs
        rows = slice(first, first + grad.shape[0])
        if self.of_input is not None and need_input:
            self.of_input[rows] = gemm(grad, self.weight.t(), **self.settings)[0]
        if need_weight:
            self._add_to_weight(grad, self.input[rows].t())
        if need_bias:
            part = grad.sum(0, dtype=acc_dtype(grad.dtype))
            self.of_bias = part if self.of_bias is None else self.of_bias.add_(part)

    def _add_to_weight(self, grad: Tensor, columns: Tensor) -> None:
        settings = {"out_dtype": self.sum_dtype, **self.settings}
        if self.of_weight is None:
            self.of_weight = gemm(grad.t(), columns, **settings)[0]
            return
        for of_classes, part in zip(grad.split(self.part, 1), self.of_weight.split(self.part), strict=True):
            part.add_(gemm(of_classes.t(), columns, **settings)[0])

    def result(self, shape: torch.Size) -> tuple[Tensor, ...]:
        dtype, weight = self.input.dtype, self.weight
        of_input = None if self.of_input is None else self.of_input.view(shape)
        of_weight = weight.new_zeros(weight.shape) if self.of_weight is None and self.needs[1] else self.of_weight
        of_bias = weight.new_zeros(weight.shape[:1]) if self.of_bias is None and self.needs[2] else self.of_bias
        grads = of_input, of_weight, of_bias
        return tuple(self.input.new_empty(0) if g is None else g.to(dtype) for g in grads)


def chunks(
    input: Tensor, weight: Tensor, bias: Tensor | None, chunk: int, settings: dict[str, Any]
) -> Iterator[tuple[int, slice, Tensor]]:
    """(first row, rows, their logits)."""
    for first in range(0, input.shape[0], chunk):
        rows = slice(first, min(first + chunk, input.shape[0]))
        yield first, rows, gemm(input[rows], weight, bias, **settings)[0]
