"""Definitions of the causal_conv family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._channels import empty_like
from warpwright._check import acc_dtype
from warpwright.reference.channel_norm import placed


def _sequence(input: Tensor, weight: Tensor, initial_state: Tensor | None) -> Tensor:
    """The state and the input, in the dtype that they are computed in."""
    before = input.new_zeros(*input.shape[:2], weight.shape[1] - 1) if initial_state is None else initial_state
    return torch.cat((before, input), 2).to(acc_dtype(input.dtype))


def _preact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    length = x.shape[2] - (weight.shape[1] - 1)
    total = x.new_zeros(*x.shape[:2], length)
    if bias is not None:
        total = total + bias.to(x.dtype)[:, None]
    for k in range(weight.shape[1]):
        total = total + weight[:, k, None].to(x.dtype) * x[..., k : k + length]
    return total


def causal_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    x = _sequence(input, weight, initial_state)
    preact = _preact(x, weight, bias)
    output = placed(torch.nn.functional.silu(preact) if activation == "silu" else preact, input)
    final_state = x[..., input.shape[2] :].to(input.dtype, copy=True).contiguous()
    return output, final_state if return_final_state else input.new_empty(0)


def causal_conv1d_backward(
    grad_output: Tensor,
    grad_final_state: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_initial_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = _sequence(input, weight, initial_state)
    length, before = input.shape[2], weight.shape[1] - 1
    grad = grad_output.to(x.dtype).contiguous()  # The order of PyTorch's sums depends on how it lies.
    if activation == "silu":
        preact = _preact(x, weight, bias)
        s = torch.sigmoid(preact)
        grad = grad * (s * (1 + preact * (1 - s)))
    grad_x = torch.zeros_like(x)
    if grad_final_state is not None:
        grad_x[..., length:] += grad_final_state
    for k in range(before + 1):
        grad_x[..., k : k + length] += weight[:, k, None].to(x.dtype) * grad
    taps = [(grad * x[..., k : k + length]).sum((0, 2)) for k in range(before + 1)]
    grads = (
        (need_input, placed(grad_x[..., before:], input)),
        (need_weight, torch.stack(taps, 1)),
        (need_bias, grad.sum((0, 2))),
        (need_initial_state, grad_x[..., :before].contiguous()),
    )
    of_input, of_weight, of_bias, of_state = (
        value.to(input.dtype) if need else input.new_empty(0) for need, value in grads
    )
    return of_input, of_weight, of_bias, of_state


def causal_conv1d_update_(
    state: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, state_indices: Tensor | None, activation: str
) -> Tensor:
    slots = torch.arange(len(input), device=input.device) if state_indices is None else state_indices.long()
    there = (slots >= 0) & (slots < len(state))
    output = empty_like(input)
    output.copy_(torch.where(slots < 0, 0.0, torch.nan)[:, None, None])
    known = slots[there]
    output[there], new = causal_conv1d(input[there], weight, bias, state[known], activation, True)
    state[known] = new
    return output
