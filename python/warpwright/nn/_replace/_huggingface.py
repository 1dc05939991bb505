"""Classes of Hugging Face's transformers, known by what their forward computes, so that a copy of one is known too.

RMS norms (Llama's, T5's and Gemma's kind), GPT-2's Conv1D, the activations of ACT2FN, rotary embeddings, the experts of
Mixtral's kind. transformers itself is never imported.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._reasons import common_reason
from warpwright.nn._replace._adapted import Recipe, make
from warpwright.nn._replace._chain import activation_of
from warpwright.nn._replace._source import meaning, unwrapped
from warpwright.nn.experts import mixed_experts

_RMS_NORM = meaning("""
    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)
""")
_T5_NORM = meaning("""
    def forward(self, hidden_states):
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states
""")
_GEMMA_NORM = meaning("""
    def forward(self, x):
        output = self._norm(x.float())
        output = output * (1.0 + self.weight.float())
        return output.type_as(x)
""")
_GEMMA_INNER = meaning("""
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
""")
_CONV1D = meaning("""
    def forward(self, x):
        size_out = x.size()[:-1] + (self.nf,)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        x = x.view(size_out)
        return x
""")
_ROTARY = meaning("""
    def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
        cos = cos.unsqueeze(unsqueeze_dim)
        sin = sin.unsqueeze(unsqueeze_dim)
        q_embed = (q * cos) + (rotate_half(q) * sin)
        k_embed = (k * cos) + (rotate_half(k) * sin)
        return q_embed, k_embed
""")
_ROTATE_HALF = meaning("""
    def rotate_half(x):
        x1 = x[..., : x.shape[-1] // 2]
        x2 = x[..., x.shape[-1] // 2 :]
        return torch.cat((-x2, x1), dim=-1)
""")
_EXPERTS = meaning("""
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        with torch.no_grad():
            expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts + 1)
            expert_mask = expert_mask.permute(2, 1, 0)
            expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            expert_idx = expert_idx[0]
            if expert_idx == self.num_experts:
                continue
            top_k_pos, token_idx = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[token_idx]
            gate, up = nn.functional.linear(current_state, self.gate_up_proj[expert_idx]).chunk(2, dim=-1)
            current_hidden_states = self.act_fn(gate) * up
            current_hidden_states = nn.functional.linear(current_hidden_states, self.down_proj[expert_idx])
            current_hidden_states = current_hidden_states * top_k_weights[token_idx, top_k_pos, None]
            final_hidden_states.index_add_(0, token_idx, current_hidden_states.to(final_hidden_states.dtype))
        return final_hidden_states
""")
#: The kernels' names of the activations in transformers.activations, by class. Those that a switch of the instance
#: decides are left to `activation_of`.
_ACTIVATIONS = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "SiLUActivation": "silu",
}


def recipe_for(module: torch.nn.Module) -> Recipe | None:
    """How the module's class is adapted, or None for a class that is none of these."""
    kind = type(module)
    if kind.__module__ == "transformers.activations":
        return activation_recipe if kind.__name__ in _ACTIVATIONS else None
    if kind.__module__.startswith("torch."):
        return None
    return _recipe_of(kind, kind.forward)  # type: ignore[arg-type]


@functools.cache
def _recipe_of(kind: type[torch.nn.Module], forward: Callable[..., Any]) -> Recipe | None:
    text = meaning(forward)
    if text is None:
        return None
    if text in (_RMS_NORM, _T5_NORM):
        return rms_norm_recipe
    if text == _GEMMA_NORM and meaning(getattr(kind, "_norm", "def _norm(self): pass")) == _GEMMA_INNER:
        return gemma_norm_recipe
    return {_CONV1D: conv1d_recipe, _EXPERTS: experts_recipe}.get(text)


# ---- RMS norms ----


def rms_norm_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return _norm(rms_norm_recipe, original, "variance_epsilon", 0.0)


def gemma_norm_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """Gemma's weights are what is added to 1."""
    return _norm(gemma_norm_recipe, original, "eps", 1.0)


def _norm(recipe: Recipe, original: type[torch.nn.Module], eps: str, offset: float) -> type[torch.nn.Module]:
    name = original.__name__
    theirs = original.forward

    def op_arguments(self: torch.nn.Module) -> tuple[tuple[int, ...], float | None, float]:
        return tuple(self.weight.shape), getattr(self, eps), offset  # type: ignore[arg-type]

    def forward(self: torch.nn.Module, hidden_states: Tensor) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[assignment]
        reason = common_reason(hidden_states, weight)
        if reason is not None:
            count_fallback(name, reason)
            return theirs(self, hidden_states)
        shape, epsilon, _ = op_arguments(self)
        return ops.rms_norm(hidden_states, shape, weight, epsilon, weight_offset=offset)  # type: ignore[return-value]

    members = {"forward": forward, "op_arguments": op_arguments, "_warpwright_kind": "norm"}
    return make(recipe, original, (original,), members)


# ---- GPT-2's linear layer ----


def conv1d_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    theirs = original.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        reason = common_reason(x, self.weight, self.bias)
        if reason is not None:
            count_fallback("Conv1D", reason)
            return theirs(self, x)
        return ops.linear(x, self.weight.t(), self.bias)

    members = {"forward": forward, "_warpwright_kind": "linear", "_warpwright_transposed": True}
    return make(conv1d_recipe, original, (original,), members)


# ---- activations ----


def activation_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    name = _ACTIVATIONS[original.__name__]
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": ops.gelu,
        "gelu_tanh": functools.partial(ops.gelu, approximate="tanh"),
        "silu": ops.silu,
    }
    function = functions[name]
    theirs = original.forward

    def forward(self: torch.nn.Module, input: Tensor) -> Tensor:
        reason = common_reason(input)
        if reason is not None:
            count_fallback(original.__name__, reason)
            return theirs(self, input)
        return function(input)

    return make(activation_recipe, original, (original,), {"forward": forward, "_warpwright_activation": name})


# ---- experts ----


def experts_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    theirs = original.forward

    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        reason = common_reason(hidden_states, self.gate_up_proj, self.down_proj)
        name = activation_of(self.act_fn) if isinstance(self.act_fn, torch.nn.Module) else None
        if reason is None and name is None:
            reason = f"an activation {type(self.act_fn).__name__}"
        if reason is None and getattr(self, "_is_expert_parallel", False):
            reason = "expert parallelism of transformers"
        if reason is not None:
            count_fallback(original.__name__, reason)
            return theirs(self, hidden_states, top_k_index, top_k_weights)
        return mixed_experts(
            hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj, activation=name
        )

    return make(experts_recipe, original, (original,), {"forward": forward})


# ---- rotary embedding ----


def rotary_names(kind: type[torch.nn.Module]) -> Mapping[str, Callable[..., Any]]:
    """The globals of the class's forward that are the rotary embedding of Llama's kind -> what takes their place."""
    inner = unwrapped(kind.forward)
    if inner is None:
        return {}
    found = {}
    for name in inner.__code__.co_names:
        function = inner.__globals__.get(name)
        if callable(function) and _is_rotary(function) and _angles_are_doubled(inner.__globals__):
            found[name] = _rotary_of(function)
    return found


def _angles_are_doubled(names: Mapping[str, Any]) -> bool:
    """Whether the module's tables hold each angle twice, `cat((freqs, freqs))`: the kernel reads one half."""
    tables = [value for name, value in names.items() if name.endswith("RotaryEmbedding") and isinstance(value, type)]
    texts = [meaning(kind.forward) or "" for kind in tables if issubclass(kind, torch.nn.Module)]
    return bool(texts) and all(re.search(r"torch\.cat\(\((\w+), \1\), dim=-1\)", text) for text in texts)


@functools.cache
def _is_rotary(function: Callable[..., Any]) -> bool:
    inner = unwrapped(function)
    if inner is None or inner.__name__ == "apply_rotary" or meaning(inner) != _ROTARY:
        return False
    half = inner.__globals__.get("rotate_half")
    return half is not None and meaning(half) == _ROTATE_HALF


@functools.cache
def _rotary_of(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def apply_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        reason = _rotary_reason(q, k, cos, sin, unsqueeze_dim)
        if reason is not None:
            count_fallback("apply_rotary_pos_emb", reason)
            return theirs(q, k, cos, sin, unsqueeze_dim)
        heads_first = unsqueeze_dim == 1
        if heads_first:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        half = cos.shape[-1] // 2
        cos, sin = (table[0] if table.shape[0] == 1 else table for table in (cos[..., :half], sin[..., :half]))
        query, key = ops.rotary_embedding_qk(q, k, cos, sin)
        return (query.transpose(1, 2), key.transpose(1, 2)) if heads_first else (query, key)

    return apply_rotary


def _rotary_reason(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> str | None:
    reason = common_reason(q, k)
    if reason is not None:
        return reason
    if q.dim() != 4 or unsqueeze_dim not in (1, 2):
        return f"query of {q.dim()} dimensions, tables unsqueezed at {unsqueeze_dim}"
    batch, sequence = q.shape[0], q.shape[2 if unsqueeze_dim == 1 else 1]
    if tuple(cos.shape) not in ((batch, sequence, q.shape[-1]), (1, sequence, q.shape[-1])) or q.shape[-1] % 2:
        return f"tables of shape {tuple(cos.shape)} for heads of {q.shape[-1]}"
    if cos.dtype not in (q.dtype, torch.float32) or cos.device != q.device or cos.requires_grad:
        return f"{cos.dtype} tables on {cos.device.type}"
    return None
