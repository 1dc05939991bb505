"""Optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import resolve
from warpwright._check import acc_dtype, check_float, check_same_device, require, shape_text
from warpwright._optim_rules import RULES, Step, code_blocks

Tensors = Sequence[Tensor]


def adamw_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    *,
    masters: Tensors = (),
    lr: float | Tensor = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    grad_multiplier: Tensor | None = None,
    exp_avg_scales: Tensors = (),
    exp_avg_sq_scales: Tensors = (),
    max_exp_avg_sqs: Tensors = (),
    rounding_seed: int | None = None,
) -> None:
    """One AdamW step of many parameters at once, in place.

    Args:
        params: any shapes, all float32, float16 or bfloat16 (float64 on the CPU), on one device, any strides that do
            not make a tensor overlap itself. Updated.
        grads: like params. Left as they are.
        exp_avgs, exp_avg_sqs: first and second moments, shaped like params, in their dtype or float32, or 8-bit codes
            in uint8. Updated.
        steps: the number of this step for each parameter, counted from 1: one float32 element each, on the device of
            params, so that nothing waits for the GPU. Left as they are.
        masters: for float16 and bfloat16 params a float32 copy of each; then the moments must be float32 too, or codes.
            The step is made on the copy, and the parameter is the copy rounded. Updated.
        lr: a number, or one float32 element on the device of params.
        beta1, beta2, eps, weight_decay, maximize: as torch.optim.AdamW's.
        grad_scale: one float32 element by which gradients are divided (torch.amp.GradScaler's scale).
        found_inf: one float32 element; nothing is changed where it is not 0.
        grad_multiplier: one float32 element by which gradients are then multiplied (what clips their norm).
        exp_avg_scales, exp_avg_sq_scales: with 8-bit moments, for each parameter one float32 scale for every 256
            elements, counted row by row, the last block maybe shorter. A first moment is sign * (c / 127)^2 * scale,
            stored as 128 + sign * c; a second one (c / 255)^4 * scale. Updated.
        max_exp_avg_sqs: for an AMSGrad step: the largest second moment of each element so far (NaN where one was NaN),
            whose root takes the second moment's place in the step. Shaped like params, in the dtype of exp_avg_sqs, or
            float32 beside codes: a maximum forgets nothing, so it would keep what each rounding did to it, and one that
            falls is not AMSGrad's. Updated.
        rounding_seed: for bfloat16 params without masters: rounds the new parameter up or down at random, up as often
            as it is near the upper neighbour, so that small steps are not lost on average. The bits are those of
            Philox4x32-10 for this seed, the parameter's place in the list, the element's place in it (row by row) and
            the step: the same on every backend. None: to the nearest.

    Raises:
        RuntimeError: naming the argument, and its place in the list, that does not fit.

    Computed in float32 (float64 for float64). A tensor whose memory is laid out unlike its parameter's, or with gaps,
    is updated through a temporary copy; with codes or random rounding so is what does not lie row by row. One launch
    updates up to 42 tensors in C++; Triton launches once for each.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2; torch.optim.AdamW. 8-bit
    moments: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022, section 2, with another code.
    AMSGrad: Reddi et al., "On the Convergence of Adam and Beyond", 2018, algorithm 2, with Adam's corrections.
    """
    numbers = (beta1, beta2, eps, weight_decay, maximize)
    scalars = (grad_scale, found_inf, grad_multiplier)
    moments, scales = (exp_avgs, exp_avg_sqs), (exp_avg_scales, exp_avg_sq_scales)
    _step(
        "adamw_",
        params,
        grads,
        moments,
        masters,
        steps,
        lr,
        numbers,
        scalars,
        scales,
        rounding_seed,
        (max_exp_avg_sqs,),
    )


def adam_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    *,
    masters: Tensors = (),
    lr: float | Tensor = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    grad_multiplier: Tensor | None = None,
    exp_avg_scales: Tensors = (),
    exp_avg_sq_scales: Tensors = (),
    max_exp_avg_sqs: Tensors = (),
    rounding_seed: int | None = None,
) -> None:
    """One Adam step of many parameters at once, in place: adamw_, but the decay is added to the gradient.

    Args:
        weight_decay: times the parameter, added to its gradient: torch.optim.Adam's.
        the others: as adamw_'s.

    Raises:
        RuntimeError: as adamw_.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1; torch.optim.Adam.
    """
    numbers = (beta1, beta2, eps, weight_decay, maximize)
    scalars = (grad_scale, found_inf, grad_multiplier)
    moments, scales = (exp_avgs, exp_avg_sqs), (exp_avg_scales, exp_avg_sq_scales)
    _step(
        "adam_", params, grads, moments, masters, steps, lr, numbers, scalars, scales, rounding_seed, (max_exp_avg_sqs,)
    )


def lamb_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    *,
    masters: Tensors = (),
    lr: float | Tensor = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    grad_multiplier: Tensor | None = None,
    exp_avg_scales: Tensors = (),
    exp_avg_sq_scales: Tensors = (),
    rounding_seed: int | None = None,
) -> None:
    """One LAMB step of many parameters at once, in place: Adam's direction with decay, scaled for each parameter tensor
    to the tensor's own length, times lr. A tensor or a direction of zeros is not scaled.

    Args:
        exp_avgs, exp_avg_sqs: always float32 (float64 for float64 params), or 8-bit codes: the step reads them twice.
        the others: as adamw_'s.

    Raises:
        RuntimeError: as adamw_.

    As in adamw_, codes are rounded after the step: norms and directions are those of the new moments before they become
    codes, so the first pass leaves codes as they are, and the second reads the gradient again. Norms are summed in a
    fixed order, in two stages. The gradient is not normalised beforehand, as some versions do; grad_multiplier can.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2.
    """
    numbers = (beta1, beta2, eps, weight_decay, maximize)
    scalars = (grad_scale, found_inf, grad_multiplier)
    moments, scales = (exp_avgs, exp_avg_sqs), (exp_avg_scales, exp_avg_sq_scales)
    _step("lamb_", params, grads, moments, masters, steps, lr, numbers, scalars, scales, rounding_seed)


def sgd_(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    steps: Tensors,
    *,
    masters: Tensors = (),
    lr: float | Tensor = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    grad_multiplier: Tensor | None = None,
    momentum_buffer_scales: Tensors = (),
    rounding_seed: int | None = None,
) -> None:
    """One step of stochastic gradient descent of many parameters at once, in place.

    Args:
        momentum_buffers: one for each parameter, in its dtype or float32, or 8-bit codes as adamw_'s first moments;
            none where momentum is 0. At step 1 they become the gradient, whatever they were. Updated.
        momentum_buffer_scales: as adamw_'s scales.
        momentum, dampening, weight_decay, nesterov: as torch.optim.SGD's.
        the others: as adamw_'s.

    Raises:
        RuntimeError: as adamw_.

    Source: torch.optim.SGD; Sutskever et al., "On the importance of initialization and momentum in deep learning",
    2013.
    """
    numbers = (momentum, dampening, weight_decay, nesterov, maximize)
    scalars, scales = (grad_scale, found_inf, grad_multiplier), (momentum_buffer_scales,)
    _step("sgd_", params, grads, (momentum_buffers,), masters, steps, lr, numbers, scalars, scales, rounding_seed)


def lion_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    steps: Tensors,
    *,
    masters: Tensors = (),
    lr: float | Tensor = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    grad_multiplier: Tensor | None = None,
    exp_avg_scales: Tensors = (),
    rounding_seed: int | None = None,
) -> None:
    """One Lion step of many parameters at once, in place: each element moves by lr against the sign of
    beta1 * exp_avg + (1 - beta1) * grad, and decays by lr * weight_decay of itself; beta2 is the moment's own.

    Args:
        exp_avgs: one for each parameter, as adamw_'s first moments. Updated.
        steps: read only for rounding_seed.
        the others: as adamw_'s.

    Raises:
        RuntimeError: as adamw_.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2.
    """
    numbers = (beta1, beta2, weight_decay, maximize)
    scalars = (grad_scale, found_inf, grad_multiplier)
    _step("lion_", params, grads, (exp_avgs,), masters, steps, lr, numbers, scalars, (exp_avg_scales,), rounding_seed)


def _step(
    op: str,
    params: Tensors,
    grads: Tensors,
    moments: Sequence[Tensors],
    masters: Tensors,
    steps: Tensors,
    lr: float | Tensor,
    numbers: tuple[Any, ...],
    scalars: tuple[Tensor | None, Tensor | None, Tensor | None],
    scales: Sequence[Tensors],
    rounding_seed: int | None,
    maxima: Sequence[Tensors] = (),
) -> None:
    """Calls an operator whose schema takes these in this order."""
    if not params:
        return
    overload = resolve(op, params[0])
    grad_scale, found_inf, grad_multiplier = scalars
    number, tensor = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    lists = [list(tensors) for tensors in (params, grads, *moments, masters, steps)]
    last = [*map(list, scales), *map(list, maxima), rounding_seed]
    with torch.no_grad():
        overload(*lists, number, *numbers, grad_scale, found_inf, tensor, grad_multiplier, *last)
    if not torch.compiler.is_compiling():
        # A graph that saved one of these for its backward must notice.
        written = [params, *moments, *scales, masters, *maxima]
        torch.autograd.graph.increment_version([t for tensors in written for t in tensors])


# ---- argument checks, in the words of csrc/bindings ----


def _check_count(op: str, name: str, tensors: list[Tensor], params: list[Tensor]) -> None:
    message = f"{name} must hold {len(params)} tensors, one for each of params, got {len(tensors)}"
    require(len(tensors) == len(params), op, message)


def _check_list(op: str, name: str, tensors: list[Tensor], params: list[Tensor], dtype: torch.dtype) -> None:
    _check_count(op, name, tensors, params)
    device = params[0].device
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        fits = tensor.dtype == dtype and tensor.device == device and tensor.shape == param.shape
        expected = f"{dtype} of shape {shape_text(param.shape)} on {device}"
        got = f"{tensor.dtype} of shape {shape_text(tensor.shape)} on {tensor.device}"
        require(fits, op, f"{name}[{i}] must be {expected}, got {got}")


def check_writable(op: str, name: str, tensors: list[Tensor]) -> None:
    """No two elements of a tensor share memory."""
    for i, tensor in enumerate(tensors):
        overlaps = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        require(not overlaps, op, f"{name}[{i}] must not be expanded: it is written to")


def check_scalar(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """One float32 element on the device of `like`."""
    check_same_device(op, name, tensor, like_name, like)
    message = f"{name} must be 1 element of torch.float32, got {tensor.numel()} of {tensor.dtype}"
    require(tensor.dtype == torch.float32 and tensor.numel() == 1, op, message)


def _check_scales(op: str, name: str, scales: list[Tensor], params: list[Tensor]) -> None:
    _check_count(op, name, scales, params)
    for i, (tensor, param) in enumerate(zip(scales, params, strict=True)):
        check_same_device(op, name, tensor, "params", params[0])
        shape = (code_blocks(param.numel()),)
        got = f"{tensor.dtype} of shape {shape_text(tensor.shape)}"
        fits = tensor.dtype == torch.float32 and tuple(tensor.shape) == shape
        require(fits, op, f"{name}[{i}] must be torch.float32 of shape {shape_text(shape)}, got {got}")


def _check_moments(s: Step) -> None:
    op, dtype, acc = s.rule.name, s.params[0].dtype, acc_dtype(s.params[0].dtype)
    if not s.moments[0]:
        return
    first = s.rule.moments[0]
    _check_count(op, first, s.moments[0], s.params)
    state = s.moments[0][0].dtype
    if s.coded:
        require(dtype != torch.float64, op, f"{s.rule.scales[0]} must be empty for torch.float64 params")
        require(state == torch.uint8, op, f"{first}[0] must be torch.uint8 with scales, got {state}")
    else:
        expected = f"{acc}{' with masters' if s.masters else ' or have the dtype of params'}"
        fits = state == acc or (state == dtype and not s.masters)
        require(fits, op, f"{first}[0] must be {expected}, got {state}")
    for name, tensors in zip(s.rule.moments, s.moments, strict=True):
        _check_list(op, name, tensors, s.params, state)
        check_writable(op, name, tensors)
    for name, tensors in zip(s.rule.scales, s.scales, strict=True):
        message = f"{name} must be empty without {s.rule.scales[0]}, got {len(tensors)} tensors"
        require(s.coded or not tensors, op, message)
        if s.coded:
            _check_scales(op, name, tensors, s.params)
        check_writable(op, name, tensors)
    if s.maxima:
        (name,) = s.rule.maxima
        _check_list(op, name, s.maxima, s.params, acc if s.coded else state)
        check_writable(op, name, s.maxima)


def _check_lists(s: Step) -> None:
    op, first, dtype, acc = s.rule.name, s.params[0], s.params[0].dtype, acc_dtype(s.params[0].dtype)
    check_float(op, "params[0]", first)
    _check_list(op, "params", s.params, s.params, dtype)
    _check_list(op, "grads", s.grads, s.params, dtype)
    message = f"masters must be empty for {dtype} params, got {len(s.masters)} tensors"
    require(not s.masters or dtype != acc, op, message)
    _check_moments(s)
    if s.masters:
        _check_list(op, "masters", s.masters, s.params, acc)
    check_writable(op, "params", s.params)
    check_writable(op, "masters", s.masters)
    _check_count(op, "steps", s.steps, s.params)
    for i, step in enumerate(s.steps):
        check_scalar(op, f"steps[{i}]", step, "params", first)
    scalars = {"grad_scale": s.grad_scale, "found_inf": s.found_inf, "lr": s.lr_tensor}
    for name, scalar in (scalars | {"grad_multiplier": s.grad_multiplier}).items():
        if scalar is not None:
            check_scalar(op, name, scalar, "params", first)
    fits = s.rounding_seed is None or (dtype == torch.bfloat16 and not s.masters)
    require(fits, op, "rounding_seed must be None unless params are torch.bfloat16 without masters")


def _check_numbers(s: Step) -> None:
    op = s.rule.name
    for name in s.rule.numbers:
        value = s.numbers[name]
        if name in ("beta1", "beta2"):
            require(0 <= value < 1, op, f"{name} must be in [0, 1), got {value:g}")
        elif name != "dampening":
            require(value >= 0, op, f"{name} must be at least 0, got {value:g}")


def _check_sgd(s: Step) -> None:
    momentum = s.numbers["momentum"]
    fits = not s.numbers["nesterov"] or (momentum > 0 and s.numbers["dampening"] == 0)
    require(fits, "sgd_", "nesterov must come with a momentum above 0 and a dampening of 0")
    expected = "no tensor without momentum" if momentum == 0 else "a tensor for each of params"
    message = f"momentum_buffers must hold {expected}, got {len(s.moments[0])}"
    require((not s.moments[0]) == (momentum == 0), "sgd_", message)


def _checked(op: str) -> Callable[..., None]:
    def check(*args: Any) -> None:
        s = RULES[op].step(args)
        _check_numbers(s)
        if op == "sgd_":
            _check_sgd(s)
        if op == "lamb_" and not s.coded:
            # Its second pass makes each direction again out of the moments, which therefore must not have been rounded;
            # out of codes it makes the moments again too.
            _check_list(op, "exp_avgs", s.moments[0], s.params, acc_dtype(s.params[0].dtype))
        _check_lists(s)

    return check


for _name in RULES:
    _registry.define(_name, family="optim", check=_checked(_name), fake=lambda *args: None)
