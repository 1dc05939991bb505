"""The experts of a mixture of experts: gated MLPs whose weights are stacked, each for the tokens that chose it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import require, shape_text
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation, checked_activation
from warpwright.nn._reasons import common_reason, kind_reason

#: Both factors lie side by side, as one projection gives them.
_GATED: dict[str | None, Callable[[Tensor], Tensor]] = {
    "silu": ops.swiglu,
    "gelu": ops.geglu,
    "gelu_tanh": lambda both: ops.geglu(both, approximate="tanh"),
    "relu": ops.reglu,
}


class Experts(torch.nn.Module):
    """The experts of a mixture on warpwright.ops.grouped_matmul; the router that chooses them is another module.

    Args:
        num_experts, hidden_dim, intermediate_dim: expert e computes
            `(activation(x @ gate.T) * (x @ up.T)) @ down_proj[e].T`, where gate and up are the halves of
            gate_up_proj[e].
        bias: whether both projections have one.
        device, dtype: of the parameters.
        activation: of the gate, one of `ops.linear`'s names, or None.

    Parameters: gate_up_proj (num_experts, 2 * intermediate_dim, hidden_dim) and down_proj (num_experts, hidden_dim,
    intermediate_dim), as Hugging Face's MixtralExperts and Qwen3MoeExperts hold them; with `bias` gate_up_proj_bias and
    down_proj_bias of the same leading sizes. The first values are those of a torch.nn.Linear for each expert.

    forward(hidden_states, top_k_index, top_k_weights) takes (..., hidden_dim), and (..., k) integers and weights: the
    experts of a token and what they count. It returns the weighted sum of their outputs, like hidden_states. An index
    outside 0 to num_experts - 1 chooses none (expert parallelism marks so what another process computes). Gradients of
    input, weights and routing weights; an expert without tokens has zeros. Tokens are sorted by expert and nothing
    waits for how many each has; no atomics, so the bits are the same from run to run. Runs expert by expert in PyTorch,
    and counts it in warpwright.fallbacks(), where the op cannot take the tensors.
    """

    gate_up_proj_bias: torch.nn.Parameter | None
    down_proj_bias: torch.nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        intermediate_dim: int,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = "silu",
    ):
        super().__init__()
        self.num_experts = num_experts
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.activation = None if activation is None else checked_activation("Experts", activation)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(num_experts, *shape, device=device, dtype=dtype))

        self.gate_up_proj = parameter(2 * intermediate_dim, hidden_dim)
        self.down_proj = parameter(hidden_dim, intermediate_dim)
        self.register_parameter("gate_up_proj_bias", parameter(2 * intermediate_dim) if bias else None)
        self.register_parameter("down_proj_bias", parameter(hidden_dim) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch.nn.Linear's first values, for each expert."""
        for bias, weight in ((self.gate_up_proj_bias, self.gate_up_proj), (self.down_proj_bias, self.down_proj)):
            bound = 1 / math.sqrt(weight.shape[2]) if weight.shape[2] else 0.0
            for parameter in (weight, bias):
                if parameter is not None:
                    torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        weights = self.gate_up_proj, self.down_proj, self.gate_up_proj_bias, self.down_proj_bias
        return mixed_experts(hidden_states, top_k_index, top_k_weights, *weights, activation=self.activation)

    def extra_repr(self) -> str:
        sizes = f"{self.num_experts}, hidden_dim={self.hidden_dim}, intermediate_dim={self.intermediate_dim}"
        return f"{sizes}, bias={self.down_proj_bias is not None}, activation={self.activation!r}"


def mixed_experts(
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_proj_bias: Tensor | None = None,
    down_proj_bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
) -> Tensor:
    """`Experts.forward` of parameters that another module holds: its arguments, result and fallback."""
    reason = common_reason(hidden_states, gate_up_proj, down_proj, gate_up_proj_bias, down_proj_bias)
    reason = reason or kind_reason(top_k_index) or kind_reason(top_k_weights)
    parameters = gate_up_proj, gate_up_proj_bias, down_proj, down_proj_bias
    if reason is not None:
        count_fallback("Experts", reason)
        return _by_torch(hidden_states, top_k_index, top_k_weights, *parameters, activation)
    _check_routing(hidden_states, top_k_index, top_k_weights)
    experts, k = gate_up_proj.shape[0], top_k_index.shape[-1]
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    chosen = top_k_index.reshape(-1)
    ranked, order = torch.sort(chosen.masked_fill(chosen < 0, experts), stable=True)
    ends = torch.searchsorted(ranked, torch.arange(experts, device=ranked.device, dtype=ranked.dtype), right=True)
    offsets, place = ends.int(), order.argsort()

    rows = _Gather.apply(tokens, order, place, k)  # (tokens * k, hidden_dim)
    both = ops.grouped_matmul(rows, gate_up_proj, offsets, bias=gate_up_proj_bias)
    hidden = _GATED[activation](both) if activation in _GATED else _gated(both, activation)
    outputs = ops.grouped_matmul(hidden, down_proj, offsets, bias=down_proj_bias)
    of_tokens = _Gather.apply(outputs, place, order, 1).unflatten(0, (-1, k))  # (tokens, k, hidden_dim)
    mixed = (of_tokens * top_k_weights.reshape(-1, k, 1)).sum(1)
    return mixed.to(hidden_states.dtype).view(hidden_states.shape)


class _Gather(torch.autograd.Function):
    """Row `order[i] // k` of the input for each i, where `order` is a permutation of k times the rows and `place` its
    inverse. The gradient of a row is gathered too and added up in one order, where that of an index adds atomically.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, order: Tensor, place: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.k = k
        return input.index_select(0, order if k == 1 else order // k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        rows = grad.index_select(0, place)
        return (rows if ctx.k == 1 else rows.unflatten(0, (-1, ctx.k)).sum(1)), None, None, None


def _gated(both: Tensor, activation: str | None) -> Tensor:
    gate, up = both.chunk(2, -1)
    return apply_activation(gate, activation) * up


def _check_routing(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> None:
    op = "nn.Experts"
    whole = top_k_index.dtype in (torch.int64, torch.int32)
    require(whole, op, f"top_k_index must be int64 or int32, got {top_k_index.dtype}")
    rows, shape = hidden_states.shape[:-1], top_k_index.shape
    message = (
        f"top_k_index must have shape (*{shape_text(rows)}, k), as hidden_states has rows, got {shape_text(shape)}"
    )
    require(len(shape) >= 1 and shape[:-1] == rows, op, message)
    message = f"top_k_weights must have the shape of top_k_index {shape_text(shape)}, got "
    require(top_k_weights.shape == shape, op, message + shape_text(top_k_weights.shape))


def _by_torch(
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    gate_up_proj: Tensor,
    gate_up_proj_bias: Tensor | None,
    down_proj: Tensor,
    down_proj_bias: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Every expert for every token, weighted by zero where the token did not choose it: no sizes depend on data."""
    mixed = torch.zeros_like(hidden_states)
    for expert in range(gate_up_proj.shape[0]):
        both = F.linear(
            hidden_states, gate_up_proj[expert], None if gate_up_proj_bias is None else gate_up_proj_bias[expert]
        )
        bias = None if down_proj_bias is None else down_proj_bias[expert]
        output = F.linear(_gated(both, activation), down_proj[expert], bias)
        weight = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        mixed = mixed + (output * weight).to(mixed.dtype)
    return mixed
