"""Definitions of the optim family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright._check import acc_dtype
from warpwright._optim_rules import RULES, Step, decode_moment, encode_moment
from warpwright.reference._philox import philox

#: update(step, count, lr, x, g, *moments) -> (x, *moments); count and lr in float64.
Update = Callable[..., tuple[Tensor, ...]]

# ---- what a rule does with a parameter ----


def _with_decay(s: Step, x: Tensor, g: Tensor) -> Tensor:
    return g + x * s.numbers["weight_decay"] if s.numbers["weight_decay"] else g


def _adam_moments(s: Step, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    beta1, beta2 = s.numbers["beta1"], s.numbers["beta2"]
    return m + (g - m) * (1 - beta1), v * beta2 + g * g * (1 - beta2)


def _corrections(s: Step, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the moments are divided by; of the second one the root. In float64, where 1 - beta^step keeps its digits."""
    return (1 - s.numbers["beta1"] ** count), (1 - s.numbers["beta2"] ** count).sqrt().to(dtype)


def _adam_denominator(
    s: Step, v: Tensor, maximum: tuple[Tensor, ...], correction: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What the first moment is divided by, and AMSGrad's running maximum, if there is one."""
    maximum = tuple(torch.maximum(old, v) for old in maximum)
    return (maximum[0] if maximum else v).sqrt() / correction + s.numbers["eps"], maximum


def _adam(
    s: Step, count: Tensor, lr: Tensor, x: Tensor, g: Tensor, m: Tensor, v: Tensor, *maximum: Tensor
) -> tuple[Tensor, ...]:
    m, v = _adam_moments(s, _with_decay(s, x, g), m, v)
    first, second = _corrections(s, count, x.dtype)
    denominator, maximum = _adam_denominator(s, v, maximum, second)
    return x - (lr / first).to(x.dtype) * m / denominator, m, v, *maximum


def _adamw(
    s: Step, count: Tensor, lr: Tensor, x: Tensor, g: Tensor, m: Tensor, v: Tensor, *maximum: Tensor
) -> tuple[Tensor, ...]:
    m, v = _adam_moments(s, g, m, v)
    first, second = _corrections(s, count, x.dtype)
    decay = (1 - lr * s.numbers["weight_decay"]).to(x.dtype)
    denominator, maximum = _adam_denominator(s, v, maximum, second)
    return x * decay - (lr / first).to(x.dtype) * m / denominator, m, v, *maximum


def _lamb(s: Step, count: Tensor, lr: Tensor, x: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m, v = _adam_moments(s, g, m, v)
    first, second = _corrections(s, count, x.dtype)
    direction = m / first.to(x.dtype) / (v.sqrt() / second + s.numbers["eps"]) + x * s.numbers["weight_decay"]
    lengths = torch.linalg.vector_norm(x), torch.linalg.vector_norm(direction)
    trust = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
    return x - lr.to(x.dtype) * trust * direction, m, v


def _sgd(s: Step, count: Tensor, lr: Tensor, x: Tensor, g: Tensor, *buffer: Tensor) -> tuple[Tensor, ...]:
    n = s.numbers
    g = _with_decay(s, x, g)
    if buffer:
        buffer = (torch.where(count <= 1, g, buffer[0] * n["momentum"] + g * (1 - n["dampening"])),)
        g = g + buffer[0] * n["momentum"] if n["nesterov"] else buffer[0]
    return (x - g * lr.to(x.dtype), *buffer)


def _lion(s: Step, count: Tensor, lr: Tensor, x: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, ...]:
    n = s.numbers
    u = m * n["beta1"] + g * (1 - n["beta1"])
    decay = (1 - lr * n["weight_decay"]).to(x.dtype)
    return x * decay - lr.to(x.dtype) * u.sign(), m * n["beta2"] + g * (1 - n["beta2"])


# ---- the walk over a call's parameters ----


def stochastically_rounded(x: Tensor, seed: int, index: int, count: Tensor) -> Tensor:
    """float32 to bfloat16, up or down: up as often as the value is near the upper neighbour."""
    element = torch.arange(x.numel(), device=x.device)
    words = philox(
        (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF),
        (element // 4 & 0xFFFFFFFF, element * 0 + index, element * 0, element * 0 + count.to(torch.int64)),
    )
    word = torch.stack(words).gather(0, (element % 4).unsqueeze(0)).reshape(x.shape)
    bits = x.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    moved = ((bits + (word >> 16)) & 0xFFFF0000).to(torch.uint32).view(torch.float32)
    return torch.where(x.isfinite(), moved, x)


def _moments_of(s: Step, i: int, dtype: torch.dtype) -> list[Tensor]:
    if s.coded:
        pairs = [(codes[i], scales[i]) for codes, scales in zip(s.moments, s.scales, strict=True)]
        return [decode_moment(codes, scales, k == 0, dtype) for k, (codes, scales) in enumerate(pairs)]
    return [tensors[i].to(dtype) for tensors in s.moments if tensors]


def _walk(name: str, update: Update, args: Sequence[Any]) -> None:
    s = RULES[name].step(args)
    for i, param in enumerate(s.params):
        acc = acc_dtype(param.dtype)
        g = s.grads[i].to(acc)
        g = g if s.grad_scale is None else g / s.grad_scale
        g = g if s.grad_multiplier is None else g * s.grad_multiplier
        g = -g if s.numbers["maximize"] else g
        x = s.masters[i] if s.masters else param.to(acc)
        count = s.steps[i].to(torch.float64).reshape(())
        maximum = [s.maxima[i].to(acc)] if s.maxima else []
        x, *moments = update(s, count, s.lr(param.device), x, g, *_moments_of(s, i, acc), *maximum)
        if s.maxima:
            maximum = [moments.pop()]
        rounded = x if s.rounding_seed is None else stochastically_rounded(x, s.rounding_seed, i, count)
        written = [(param, rounded)] + ([(s.masters[i], x)] if s.masters else [])
        written += [(s.maxima[i], new) for new in maximum]
        for k, moment in enumerate(moments):
            if s.coded:
                codes, scales = encode_moment(moment, signed=k == 0)
                written += [(s.moments[k][i], codes), (s.scales[k][i], scales)]
            else:
                written.append((s.moments[k][i], moment))
        for old, new in written:
            old.copy_(new if s.found_inf is None else torch.where(s.found_inf != 0, old, new.to(old.dtype)))


def adamw_(*args: Any) -> None:
    _walk("adamw_", _adamw, args)


def adam_(*args: Any) -> None:
    _walk("adam_", _adam, args)


def lamb_(*args: Any) -> None:
    _walk("lamb_", _lamb, args)


def sgd_(*args: Any) -> None:
    _walk("sgd_", _sgd, args)


def lion_(*args: Any) -> None:
    _walk("lion_", _lion, args)
