"""Definitions of the qk_norm family."""

from __future__ import annotations

from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference.norm import rms_norm, rms_norm_backward
from warpwright.reference.rotary import rotated


def _acc(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(acc_dtype(like.dtype))


def _forward(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    normal, _, rstd = rms_norm(x.to(acc_dtype(x.dtype)), None, 1, _acc(weight, x), eps, weight_offset, 0.0, None, 0)
    return rotated(normal, cos, sin, interleaved).to(x.dtype), rstd


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    rstd: Tensor,
    interleaved: bool,
    weight_offset: float,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(x.dtype)
    turned_back = rotated(grad.to(acc), cos, -sin, interleaved)
    of_input, _, of_weight = rms_norm_backward(
        turned_back, None, x.to(acc), _acc(weight, x), rstd, 1, weight_offset, 0.0, None, 0,
        need_input, False, need_weight,
    )  # fmt: skip
    return of_input.to(x.dtype), of_weight.to(x.dtype)


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query_output, query_rstd = _forward(query, query_weight, cos, sin, interleaved, eps, weight_offset)
    key_output, key_rstd = _forward(key, key_weight, cos, sin, interleaved, eps, weight_offset)
    return query_output, key_output, query_rstd, key_rstd


def qk_norm_rotary_backward(
    grad_query: Tensor,
    grad_key: Tensor,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    query_rstd: Tensor,
    key_rstd: Tensor,
    interleaved: bool,
    weight_offset: float,
    need_query: bool,
    need_key: bool,
    need_query_weight: bool,
    need_key_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_query, of_query_weight = _backward(
        grad_query, query, query_weight, cos, sin, query_rstd, interleaved, weight_offset, need_query, need_query_weight
    )
    of_key, of_key_weight = _backward(
        grad_key, key, key_weight, cos, sin, key_rstd, interleaved, weight_offset, need_key, need_key_weight
    )
    return of_query, of_key, of_query_weight, of_key_weight
