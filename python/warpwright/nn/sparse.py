"""The linear layer whose weight is 2:4 sparse."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import require
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation, checked_activation
from warpwright.nn._floats import FloatLinear, dense_weight, float_linear
from warpwright.nn._reasons import common_reason
from warpwright.nn.matmul import Linear


class SparseLinear(torch.nn.Module):
    """A linear layer without half of its weight, on warpwright.ops.linear_sparse24: two of each four neighbours along
    in_features are kept.

    Args:
        in_features: a multiple of 4.
        out_features, bias, device, dtype: torch.nn.Linear's.
        activation: applied to the output by the same kernel: one of `ops.linear`'s names, or None.

    `weight_values` (out_features, in_features / 2) is a Parameter and `weight_metadata`, which says where its elements
    stand, a buffer: see `ops.Sparse24Weight`. Training moves the values and leaves the mask; an optimizer must be made
    after the layer. `from_float` prunes by magnitude, and so does loading a state_dict with a dense `weight`, which
    loses nothing of a weight that is 2:4 sparse already. A new layer's weight is zero until then. `weight` is the dense
    weight, made each time that it is read, and differentiable.

    Falls back to torch's linear with the dense weight, and counts it in warpwright.fallbacks(), where the op cannot
    take the tensors.
    """

    weight_values: torch.nn.Parameter
    weight_metadata: Tensor
    bias: torch.nn.Parameter | None
    #: Whether a dense checkpoint holds the weight as (in_features, out_features), like Hugging Face's Conv1D.
    transposed: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__()
        message = f"in_features must be a multiple of 4, got {in_features}"
        require(in_features % 4 == 0, "nn.SparseLinear", message)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = None if activation is None else checked_activation("SparseLinear", activation)
        weight = torch.zeros(out_features, in_features, device=device, dtype=dtype)
        self._hold(weight, trainable=True)
        self.register_parameter("bias", torch.nn.Parameter(weight.new_zeros(out_features)) if bias else None)

    def _hold(self, weight: Tensor, trainable: bool) -> None:
        values, metadata = ops.prune_24(weight)
        self.weight_values = torch.nn.Parameter(values, trainable)
        self.register_buffer("weight_metadata", metadata)

    @classmethod
    def from_float(cls, linear: torch.nn.Module) -> SparseLinear:
        """A sparse layer of a dense one: the two largest magnitudes of each four neighbours stay.

        Args:
            linear: a torch.nn.Linear, a warpwright.nn.Linear, whose activation is kept, or Hugging Face's Conv1D.

        Returns:
            A layer on the same device, in the same mode, with the same bias Parameter; trainable as the weight was.

        Raises:
            RuntimeError: linear is something else, or its in_features are no multiple of 4.
        """
        parts = float_linear("nn.SparseLinear.from_float", linear)
        reason = cls.reason_against(parts)
        require(reason is None, "nn.SparseLinear.from_float", f"linear cannot be pruned: {reason}")
        out_features, in_features = parts.weight.shape
        layer = cls(in_features, out_features, False, "meta", parts.weight.dtype, activation=parts.activation)
        layer._hold(parts.weight, parts.trainable)
        layer.register_parameter("bias", parts.bias)
        if parts.transposed:
            layer.transposed = True
        return layer.train(linear.training)

    def to_float(self) -> Linear:
        """A dense layer with the same weight."""
        weight = self.float_weight().detach()
        linear = Linear(self.in_features, self.out_features, False, "meta", weight.dtype, activation=self.activation)
        linear.weight = torch.nn.Parameter(weight, self.weight_values.requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    @classmethod
    def reason_against(cls, parts: FloatLinear) -> str | None:
        """Why such a weight cannot be pruned, or None when it can."""
        features, dtype = parts.weight.shape[1], parts.weight.dtype
        if features % 4:
            return f"{features} input features, which are no multiple of 4"
        return "a weight in float64 on cuda" if dtype == torch.float64 and parts.weight.is_cuda else None

    def made_of(self, weight: Tensor) -> bool:
        """Whether pruning `weight` (out_features, in_features) gives what the layer holds."""
        values, metadata = ops.prune_24(weight)
        same = torch.equal(values.to(self.weight_values.dtype), self.weight_values)
        return same and torch.equal(metadata, self.weight_metadata)

    def stored(self) -> int:
        """Bytes of the weight."""
        return self.weight_values.nbytes + self.weight_metadata.nbytes

    @property
    def packed(self) -> ops.Sparse24Weight:
        """The weight as ops.linear_sparse24 takes it."""
        return ops.Sparse24Weight(self.weight_values, self.weight_metadata)

    @property
    def weight(self) -> Tensor:
        """The dense weight, in the shape that the dense layer's has."""
        weight = self.float_weight()
        return weight.t() if self.transposed else weight

    def float_weight(self) -> Tensor:
        """The dense weight, (out_features, in_features)."""
        return ops.dense_from_sparse24(self.packed)

    def _dense_by_torch(self) -> Tensor:
        """The dense weight for torch's linear, also inside torch.func transforms, for which our ops have no rules."""
        kept = torch.arange(self.in_features // 2, device=self.weight_metadata.device)
        places = self.weight_metadata.repeat_interleave(4, 1)[:, : len(kept)] >> 2 * (kept % 4) & 3
        empty = self.weight_values.new_zeros(self.out_features, self.in_features)
        return empty.scatter(1, kept // 2 * 4 + places, self.weight_values)

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, self.weight_values, self.bias)
        if reason is not None:
            count_fallback("SparseLinear", reason)
            return apply_activation(F.linear(input, self._dense_by_torch(), self.bias), self.activation)
        return ops.linear_sparse24(input, self.packed, self.bias, activation=self.activation)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        shape = (self.out_features, self.in_features)
        weight, others = dense_weight(state_dict, prefix, shape, self.transposed, rest[-1])
        if weight is not None:
            values, metadata = ops.prune_24(weight)
            others |= {prefix + "weight_values": values, prefix + "weight_metadata": metadata}
        super()._load_from_state_dict(others, prefix, *rest)

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{extra}"
