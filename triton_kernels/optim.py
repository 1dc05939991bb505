"""Optimizer steps: one walk for all rules, one launch a tensor, one pass over it (two for LAMB)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._optim_rules import CODE_BLOCK, RULES, Step
from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded, tl_acc
from warpwright.triton_kernels._philox import random_words

BLOCK = 1024
_CODE_BLOCK = tl.constexpr(CODE_BLOCK)

# ---- 8-bit moments: csrc/kernels/optim.h has the code ----


@triton.jit
def _nearest(x):
    """x, at least 0 and below 2^22, rounded to an integer, to the even one between two."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _load_moment(ptr, scale_ptr, at, mask, SIGNED: tl.constexpr, CODED: tl.constexpr, ACC: tl.constexpr):
    value = tl.load(ptr + at, mask, 0).to(ACC)
    if CODED:
        scale = tl.load(scale_ptr + at // _CODE_BLOCK, mask, 0.0)
        if SIGNED:
            root = (value - 128.0) / 127.0
            value = root * tl.abs(root) * scale
        else:
            root = value / 255.0
            value = (root * root) * (root * root) * scale
    return value


@triton.jit
def _store_moment(
    ptr, scale_ptr, at, mask, value, SIGNED: tl.constexpr, CODED: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if CODED:
        blocks: tl.constexpr = BLOCK // _CODE_BLOCK
        size = tl.where(mask, tl.abs(value), 0.0)
        odd = tl.max(tl.reshape(tl.where(size == size, 0, 1), (blocks, _CODE_BLOCK)), 1)
        largest = tl.max(tl.reshape(tl.where(size == size, size, 0.0), (blocks, _CODE_BLOCK)), 1)
        scale = tl.where(odd > 0, float("nan"), largest)
        usable = (scale > 0.0) & (scale < float("inf"))
        first = tl.max(tl.reshape(tl.where(mask, at, -1), (blocks, _CODE_BLOCK)), 1)
        tl.store(scale_ptr + first // _CODE_BLOCK, scale, first >= 0)
        divisor = tl.broadcast_to(tl.expand_dims(tl.where(usable, scale, 1.0), 1), (blocks, _CODE_BLOCK))
        usable = tl.broadcast_to(tl.expand_dims(usable, 1), (blocks, _CODE_BLOCK))
        divisor, usable = tl.reshape(divisor, (BLOCK,)), tl.reshape(usable, (BLOCK,))
        root = tl.where(usable, tl.sqrt(size / divisor), 0.0)
        if SIGNED:
            code = _nearest(root * 127.0)
            code = 128.0 + tl.where(value < 0.0, -code, code)
        else:
            code = _nearest(tl.sqrt(root) * 255.0)
            code = tl.where(usable & (value > 0.0), tl.maximum(code, 1.0), code)
        tl.store(ptr + at, code.to(tl.uint8), mask)
    else:
        tl.store(ptr + at, rounded(value, ptr.dtype.element_ty, INTERPRETED), mask)


# ---- the rules ----


@triton.jit
def _adam_moments(n_ptr, g, m, v):
    m += (g - m) * tl.load(n_ptr + 5)
    return m, v * tl.load(n_ptr + 6) + g * g * tl.load(n_ptr + 7)


@triton.jit
def _adam_direction(n_ptr, m, v):
    return m / (tl.sqrt(v) / tl.load(n_ptr + 9) + tl.load(n_ptr + 10))


@triton.jit
def _update(RULE: tl.constexpr, n_ptr, x, g, m, v, maximum, NESTEROV: tl.constexpr, AMSGRAD: tl.constexpr):
    """x, the moments and the second one's maximum after a step of "adam_" (adamw_ with a decay and without l2), "sgd_"
    or "lion_"."""
    lr, decay, l2 = tl.load(n_ptr), tl.load(n_ptr + 1), tl.load(n_ptr + 2)
    if l2 != 0.0:
        g += x * l2
    if RULE == "lion_":
        u = m * tl.load(n_ptr + 4) + g * tl.load(n_ptr + 5)
        m = m * tl.load(n_ptr + 6) + g * tl.load(n_ptr + 7)
        step = tl.where(u > 0.0, 1.0, tl.where(u < 0.0, -1.0, u)) * lr
    elif RULE == "sgd_":
        momentum, rest = tl.load(n_ptr + 4), tl.load(n_ptr + 5)
        m = tl.where(tl.load(n_ptr + 3) <= 1.0, g, m * momentum + g * rest)
        step = (g + m * momentum if NESTEROV else m) * lr
    elif RULE == "plain":
        step = g * lr
    else:
        m, v = _adam_moments(n_ptr, g, m, v)
        maximum = tl.where((v > maximum) | (v != v), v, maximum) if AMSGRAD else v  # A NaN stays.
        step = tl.load(n_ptr + 8) * _adam_direction(n_ptr, m, maximum)
    return x * decay - step, m, v, maximum


@triton.jit
def _load_gradient(
    grad_ptr, at, mask, grad_scale_ptr, multiplier_ptr, MAXIMIZE: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    g = tl.load(grad_ptr + at, mask, 0.0).to(ACC)
    if HAS_SCALE:
        g = g / tl.load(grad_scale_ptr).to(ACC)
    if HAS_MULTIPLIER:
        g = g * tl.load(multiplier_ptr).to(ACC)
    return -g if MAXIMIZE else g


@triton.jit
def _store_value(
    param_ptr, master_ptr, at, mask, x, n_ptr, index, seed, HAS_MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if HAS_MASTER:
        tl.store(master_ptr + at, x, mask)
    if STOCHASTIC:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        count = tl.load(n_ptr + 3).to(tl.int32)
        words = random_words(tl.cast(seed, tl.int64), tl.cast(index, tl.int64), start, count, BLOCK)
        bits = (x.to(tl.uint32, bitcast=True) + (words >> 16)) & 0xFFFF0000
        x = tl.where(x - x == 0.0, bits.to(tl.float32, bitcast=True), x)
    tl.store(param_ptr + at, rounded(x, param_ptr.dtype.element_ty, INTERPRETED), mask)


# ---- the walks ----


@triton.jit
def _step_kernel(
    param_ptr, grad_ptr, first_ptr, second_ptr, first_scale_ptr, second_scale_ptr, maximum_ptr, master_ptr, n_ptr,
    numel, grad_scale_ptr, found_inf_ptr, multiplier_ptr, index, seed,
    RULE: tl.constexpr, MAXIMIZE: tl.constexpr, NESTEROV: tl.constexpr, AMSGRAD: tl.constexpr, CODED: tl.constexpr,
    STOCHASTIC: tl.constexpr, HAS_MASTER: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FOUND_INF:
        numel = tl.where(tl.load(found_inf_ptr) == 0.0, numel, 0)
    mask = at < numel
    g = _load_gradient(
        grad_ptr, at, mask, grad_scale_ptr, multiplier_ptr, MAXIMIZE, HAS_SCALE, HAS_MULTIPLIER, ACC
    )  # fmt: skip
    x = tl.load((master_ptr if HAS_MASTER else param_ptr) + at, mask, 0.0).to(ACC)
    m = x
    v = x
    if RULE != "plain":
        m = _load_moment(first_ptr, first_scale_ptr, at, mask, True, CODED, ACC)
    if RULE == "adam_":
        v = _load_moment(second_ptr, second_scale_ptr, at, mask, False, CODED, ACC)
    maximum = v
    if AMSGRAD:
        maximum = tl.load(maximum_ptr + at, mask, 0.0).to(ACC)
    x, m, v, maximum = _update(RULE, n_ptr, x, g, m, v, maximum, NESTEROV, AMSGRAD)
    if RULE != "plain":
        _store_moment(first_ptr, first_scale_ptr, at, mask, m, True, CODED, INTERPRETED, BLOCK)
    if RULE == "adam_":
        _store_moment(second_ptr, second_scale_ptr, at, mask, v, False, CODED, INTERPRETED, BLOCK)
    if AMSGRAD:
        tl.store(maximum_ptr + at, rounded(maximum, maximum_ptr.dtype.element_ty, INTERPRETED), mask)
    _store_value(
        param_ptr, master_ptr, at, mask, x, n_ptr, index, seed, HAS_MASTER, STOCHASTIC, INTERPRETED, BLOCK
    )  # fmt: skip


@triton.jit
def _lamb_moments_kernel(
    param_ptr, grad_ptr, first_ptr, second_ptr, first_scale_ptr, second_scale_ptr, n_ptr, sums_ptr, numel,
    grad_scale_ptr, found_inf_ptr, multiplier_ptr,
    MAXIMIZE: tl.constexpr, CODED: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The moments, and for each program the sums of squares of the parameter and of its direction. Codes stay as they
    are: the step is made of moments before they are rounded, so the second pass needs the old ones."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FOUND_INF:
        numel = tl.where(tl.load(found_inf_ptr) == 0.0, numel, 0)
    mask = at < numel
    g = _load_gradient(
        grad_ptr, at, mask, grad_scale_ptr, multiplier_ptr, MAXIMIZE, HAS_SCALE, HAS_MULTIPLIER, ACC
    )  # fmt: skip
    x = tl.load(param_ptr + at, mask, 0.0).to(ACC)
    m = _load_moment(first_ptr, first_scale_ptr, at, mask, True, CODED, ACC)
    v = _load_moment(second_ptr, second_scale_ptr, at, mask, False, CODED, ACC)
    m, v = _adam_moments(n_ptr, g, m, v)
    if not CODED:
        tl.store(first_ptr + at, m, mask)
        tl.store(second_ptr + at, v, mask)
    u = tl.where(mask, tl.load(n_ptr + 8) * _adam_direction(n_ptr, m, v) + x * tl.load(n_ptr + 11), 0.0)
    tl.store(sums_ptr + 2 * tl.program_id(0), tl.sum(x * x, 0))
    tl.store(sums_ptr + 2 * tl.program_id(0) + 1, tl.sum(u * u, 0))


@triton.jit
def _lamb_step_kernel(
    param_ptr, grad_ptr, first_ptr, second_ptr, first_scale_ptr, second_scale_ptr, master_ptr, n_ptr, trust_ptr, numel,
    grad_scale_ptr, found_inf_ptr, multiplier_ptr, index, seed,
    MAXIMIZE: tl.constexpr, CODED: tl.constexpr, STOCHASTIC: tl.constexpr, HAS_MASTER: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr, HAS_MULTIPLIER: tl.constexpr, ACC: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FOUND_INF:
        numel = tl.where(tl.load(found_inf_ptr) == 0.0, numel, 0)
    mask = at < numel
    x = tl.load((master_ptr if HAS_MASTER else param_ptr) + at, mask, 0.0).to(ACC)
    m = _load_moment(first_ptr, first_scale_ptr, at, mask, True, CODED, ACC)
    v = _load_moment(second_ptr, second_scale_ptr, at, mask, False, CODED, ACC)
    if CODED:
        g = _load_gradient(
            grad_ptr, at, mask, grad_scale_ptr, multiplier_ptr, MAXIMIZE, HAS_SCALE, HAS_MULTIPLIER, ACC
        )  # fmt: skip
        m, v = _adam_moments(n_ptr, g, m, v)
        _store_moment(first_ptr, first_scale_ptr, at, mask, m, True, CODED, INTERPRETED, BLOCK)
        _store_moment(second_ptr, second_scale_ptr, at, mask, v, False, CODED, INTERPRETED, BLOCK)
    u = tl.load(n_ptr + 8) * _adam_direction(n_ptr, m, v) + x * tl.load(n_ptr + 11)
    x -= tl.load(n_ptr) * tl.load(trust_ptr) * u
    _store_value(
        param_ptr, master_ptr, at, mask, x, n_ptr, index, seed, HAS_MASTER, STOCHASTIC, INTERPRETED, BLOCK
    )  # fmt: skip


# ---- their launches ----


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _numbers(s: Step, i: int, dtype: torch.dtype) -> Tensor:
    """What the kernels read, computed in float64: 1 - beta^step loses most of its digits in float32."""
    n, param = s.numbers, s.params[i]
    lr, count = s.lr(param.device), s.steps[i].to(torch.float64).reshape(())
    decoupled = s.rule.name in ("adamw_", "lion_")
    weight_decay = n["weight_decay"]
    one = torch.ones_like(lr)
    values = [lr, 1 - lr * weight_decay if decoupled else one, one * (0.0 if decoupled else weight_decay), count]
    if s.rule.name == "sgd_":
        values += [one * n["momentum"], one * (1 - n["dampening"])]
    else:
        values += [one * beta for name in ("beta1", "beta2") for beta in (n[name], 1 - n[name])]
    if s.rule.name in ("adamw_", "adam_", "lamb_"):
        first, second = 1 - n["beta1"] ** count, (1 - n["beta2"] ** count).sqrt()
        values += [(one if s.rule.name == "lamb_" else lr) / first, second, one * n["eps"], one * weight_decay]
    return torch.stack(values).to(dtype)


def _walk(name: str, args: tuple[Any, ...]) -> None:
    s = RULES[name].step(args)
    for i, param in enumerate(s.params):
        if param.numel() == 0:
            continue
        # All in the parameter's order of elements; what lies otherwise is copied there and back.
        row_by_row = s.coded or s.rounding_seed is not None
        order = param if is_dense(param) and not row_by_row else param.contiguous()
        lists = [tensors for tensors in (s.params, *s.moments, s.maxima, s.masters) if tensors]
        written = [tensors[i] for tensors in lists]
        places = [t if t.stride() == order.stride() else torch.empty_like(order, dtype=t.dtype) for t in written]
        scales = [tensors[i] for tensors in s.scales if tensors]
        scale_places = [t.contiguous() for t in scales]
        for place, tensor in zip(places, written, strict=True):
            if place is not tensor:
                place.copy_(tensor)
        grad = s.grads[i] if s.grads[i].stride() == order.stride() else torch.empty_like(order).copy_(s.grads[i])
        launch = _launch_lamb if name == "lamb_" else _launch
        launch(s, i, places, grad, scale_places)
        for place, tensor in zip([*places, *scale_places], [*written, *scales], strict=True):
            if place is not tensor:
                tensor.copy_(place)


def _launch(s: Step, i: int, places: list[Tensor], grad: Tensor, scales: list[Tensor]) -> None:
    param, numel = places[0], places[0].numel()
    count = len([tensors for tensors in s.moments if tensors])
    numbers = _numbers(s, i, acc_dtype(param.dtype))
    rule = {"adamw_": "adam_", "sgd_": "sgd_" if count else "plain"}.get(s.rule.name, s.rule.name)

    def or_any(tensor: Tensor | None) -> Tensor:
        return numbers if tensor is None else tensor

    _step_kernel[(triton.cdiv(numel, BLOCK),)](
        param, grad, places[min(count, 1)], places[count], scales[0] if scales else numbers,
        scales[-1] if scales else numbers, places[count + 1] if s.maxima else numbers, places[-1], numbers, numel,
        or_any(s.grad_scale), or_any(s.found_inf), or_any(s.grad_multiplier), i, s.rounding_seed or 0,
        RULE=rule, MAXIMIZE=s.numbers["maximize"], NESTEROV=s.numbers.get("nesterov", False), AMSGRAD=bool(s.maxima),
        CODED=s.coded, STOCHASTIC=s.rounding_seed is not None, HAS_MASTER=bool(s.masters),
        HAS_SCALE=s.grad_scale is not None, HAS_FOUND_INF=s.found_inf is not None,
        HAS_MULTIPLIER=s.grad_multiplier is not None, ACC=tl_acc(param.dtype), INTERPRETED=interpreted(), BLOCK=BLOCK,
    )  # fmt: skip


def _launch_lamb(s: Step, i: int, places: list[Tensor], grad: Tensor, scales: list[Tensor]) -> None:
    param, first, second, master = *places[:3], places[-1]
    numel = param.numel()
    programs = triton.cdiv(numel, BLOCK)
    numbers = _numbers(s, i, acc_dtype(param.dtype))
    sums = numbers.new_empty(programs, 2)

    def or_any(tensor: Tensor | None) -> Tensor:
        return numbers if tensor is None else tensor

    states = first, second, scales[0] if scales else numbers, scales[-1] if scales else numbers
    scalars = or_any(s.grad_scale), or_any(s.found_inf), or_any(s.grad_multiplier)
    options = {
        "MAXIMIZE": s.numbers["maximize"], "CODED": s.coded, "HAS_SCALE": s.grad_scale is not None,
        "HAS_FOUND_INF": s.found_inf is not None, "HAS_MULTIPLIER": s.grad_multiplier is not None,
        "ACC": tl_acc(param.dtype), "BLOCK": BLOCK,
    }  # fmt: skip
    _lamb_moments_kernel[(programs,)](
        master if s.masters else param, grad, *states, numbers, sums, numel, *scalars, **options
    )
    squares = sums.sum(0)
    trust = torch.where((squares > 0).all(), squares[0].sqrt() / squares[1].sqrt(), 1.0)
    _lamb_step_kernel[(programs,)](
        param, grad, *states, master, numbers, trust, numel, *scalars, i, s.rounding_seed or 0,
        STOCHASTIC=s.rounding_seed is not None, HAS_MASTER=bool(s.masters), INTERPRETED=interpreted(), **options,
    )  # fmt: skip


def adamw_(*args: Any) -> None:
    _walk("adamw_", args)


def adam_(*args: Any) -> None:
    _walk("adam_", args)


def lamb_(*args: Any) -> None:
    _walk("lamb_", args)


def sgd_(*args: Any) -> None:
    _walk("sgd_", args)


def lion_(*args: Any) -> None:
    _walk("lion_", args)
