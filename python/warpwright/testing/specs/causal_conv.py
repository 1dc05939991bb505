"""OpSpecs of the causal_conv family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes
from warpwright.testing.specs.optim import copies

# ---- causal_conv1d ----


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, length: int) -> Tensor:
    """PyTorch's convolution of what begins width - 1 before the first output; it takes no empty tensors."""
    if x.numel() and length:
        return F.conv1d(x, weight.unsqueeze(1), bias, groups=weight.shape[0])
    total = sum(weight[:, k, None] * x[..., k : k + length] for k in range(weight.shape[1]))
    assert isinstance(total, Tensor)
    return total if bias is None else total + bias[:, None]


def _torch_causal_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    channels, width = weight.shape
    length = input.shape[-1]
    if initial_state is None and not return_final_state and input.numel():
        preact = F.conv1d(input, weight.unsqueeze(1), bias, padding=width - 1, groups=channels)[..., :length]
        return F.silu(preact) if activation else preact
    x = F.pad(input, (width - 1, 0)) if initial_state is None else torch.cat((initial_state, input), -1)
    preact = _convolved(x, weight, bias, length)
    output = F.silu(preact) if activation else preact
    return (output, x[..., length:]) if return_final_state else output


def _call(
    make: Make,
    batch: int,
    channels: int,
    length: int,
    width: int,
    *,
    silu: bool = True,
    bias: bool = True,
    last: bool = False,
    state: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`last`: neighbours in memory are channels. `state`: one is given, and one is wanted."""
    input = make.tensor(batch, channels, length)
    if last:
        input = make.tensor(batch, length, channels).detach().mT.requires_grad_()
    args = (input, make.tensor(channels, width), make.tensor(channels) if bias else None)
    kwargs: dict[str, Any] = {"activation": "silu"} if silu else {}
    if state:
        kwargs |= {"initial_state": make.tensor(batch, channels, width - 1), "return_final_state": True}
    return args, kwargs


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("width 4", *_call(make, 2, 3, 40, 4))
    yield Sample("channels last, state", *_call(make, 2, 16, 9, 4, last=True, state=True))
    yield Sample("odd length, state", *_call(make, 2, 3, 37, 4, state=True))
    yield Sample("width 2", *_call(make, 1, 2, 24, 2, silu=False))
    yield Sample("width 3, state", *_call(make, 2, 2, 16, 3, state=True))
    yield Sample("width 5", *_call(make, 1, 3, 32, 5, bias=False))
    yield Sample("channels last, width 2", *_call(make, 1, 8, 6, 2, last=True))
    yield Sample("channels last, width 3", *_call(make, 1, 8, 6, 3, last=True, silu=False, bias=False))
    yield Sample("channels last, width 5, state", *_call(make, 1, 5, 12, 5, last=True, state=True))
    yield Sample("two slabs", *_call(make, 1, 6, 1104, 4))
    yield Sample("two slabs, channels last", *_call(make, 1, 8, 300, 4, last=True))
    yield Sample("width 9", *_call(make, 1, 2, 70, 9, state=True))
    yield Sample("shorter than the width", *_call(make, 2, 2, 3, 5, state=True))
    yield Sample("shorter than the width, channels last", *_call(make, 1, 8, 2, 4, last=True, state=True))
    yield Sample("width 1", *_call(make, 1, 2, 8, 1, state=True))
    args, kwargs = _call(make, 1, 2, 5, 4)
    yield Sample("final state alone", args, kwargs | {"return_final_state": True})
    yield Sample("one element", *_call(make, 1, 1, 1, 4, silu=False))
    yield Sample("no inputs", *_call(make, 2, 3, 0, 4, state=True))
    yield Sample("empty", *_call(make, 0, 2, 5, 3))


def _draw(make: Make, rng: random.Random) -> Sample:
    batch, channels, length = draw_size(rng, 4), draw_size(rng, 40), draw_size(rng, 90)
    width = rng.choice([1, 2, 3, 4, 4, 4, 5, 8, 32])
    options = {name: rng.random() < 0.5 for name in ("silu", "bias", "last", "state")}
    chosen = ", ".join(name for name, wanted in options.items() if wanted)
    return Sample(
        f"{(batch, channels, length)}, {width}, {chosen}", *_call(make, batch, channels, length, width, **options)
    )


def _bad_weights(make: Make) -> Iterator[tuple[str, tuple[Any, ...], str]]:
    """Of input, weight and bias, where input has 2 samples of 3 channels."""
    x, w = make.tensor(2, 3, 5, grad=False), make.tensor(3, 4, grad=False)
    yield "input dtype", (x.long(), w, None), "input must be float32, .* got torch.int64"
    yield "weight rank", (x, make.tensor(3, 1, 4, grad=False), None), "weight must have 2 dimensions .*got 3"
    yield "weight dtype", (x, w.half(), None), "weight must have the dtype of input"
    yield "weight channels", (x, make.tensor(2, 4, grad=False), None), "weight has 2 channels, input has 3"
    yield "wide", (x, make.tensor(3, 33, grad=False), None), "weight must be 1 to 32 wide, got 33"
    yield "no width", (x, make.tensor(3, 0, grad=False), None), "weight must be 1 to 32 wide, got 0"
    yield "bias dtype", (x, w, make.tensor(3, grad=False).half()), "bias must have the dtype of input"
    yield "bias shape", (x, w, make.tensor(2, grad=False)), r"bias must have shape \(3,\), got \(2,\)"


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    for name, args, message in _bad_weights(make):
        yield BadInput(name, args, message)
    x, w = make.tensor(2, 3, 5), make.tensor(3, 4)
    yield BadInput("input rank", (make.tensor(3, 5), w), r"input must have 3 dimensions .*got 2")
    wrong = {"initial_state": make.tensor(2, 3, 4)}
    yield BadInput("state shape", (x, w), r"initial_state must have shape \(2, 3, 3\), got \(2, 3, 4\)", wrong)
    narrow = {"initial_state": make.tensor(2, 3, 3).detach().half()}
    yield BadInput("state dtype", (x, w), "initial_state must have the dtype of input", narrow)
    yield BadInput("activation", (x, w), "activation must be one of none, silu, got 'relu'", {"activation": "relu"})


def _cost(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Cost:
    state = input.shape[:2].numel() * (weight.shape[1] - 1) * input.element_size() if return_final_state else 0
    flops = 2 * input.numel() * weight.shape[1]
    return Cost(flops, 2 * nbytes(input) + nbytes(weight, bias, initial_state) + state)


add(
    OpSpec(
        name="causal_conv1d",
        family="causal_conv",
        op=ops.causal_conv1d,
        torch_op=_torch_causal_conv1d,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("causal_conv1d", "causal_conv1d_backward"),
    )
)

# ---- causal_conv1d_update_ ----


def _update(
    state: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """warpwright.ops.causal_conv1d_update_ on a copy of the state, which is returned first."""
    (written,) = copies([state])
    output = ops.causal_conv1d_update_(written, input, weight, bias, activation=activation, state_indices=state_indices)
    return written, output


def _torch_update(
    state: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    x = input.unsqueeze(-1) if input.dim() == 2 else input
    if state_indices is None:
        seen, new = torch.cat((state, x), -1), state.clone()
        output = _convolved(seen, weight, bias, x.shape[-1])
        new.copy_(seen[..., x.shape[-1] :])
    else:
        slots, new = state_indices.long(), state.clone()
        there = (slots >= 0) & (slots < len(state))
        seen = torch.cat((state[slots[there]], x[there]), -1)
        output = torch.where(slots < 0, 0.0, torch.nan).to(x)[:, None, None].expand(x.shape).clone()
        output[there] = _convolved(seen, weight, bias, x.shape[-1])
        new[slots[there]] = seen[..., x.shape[-1] :]
    output = F.silu(output) if activation else output
    return new, output.reshape(input.shape)


def _update_call(
    make: Make, batch: int, channels: int, steps: int | None, width: int, *, slots: int | None = None
) -> tuple[Any, ...]:
    """state, input, weight, bias; one step without a dimension for it unless `steps` says how many."""
    state = make.tensor(batch if slots is None else slots, channels, width - 1, grad=False)
    input = make.tensor(batch, channels, *(() if steps is None else (steps,)), grad=False)
    return state, input, make.tensor(channels, width, grad=False), make.tensor(channels, grad=False)


def _indices(make: Make, *values: int, dtype: torch.dtype = torch.int32) -> dict[str, Any]:
    return {"state_indices": torch.tensor(values, dtype=dtype, device=make.device)}


def _update_samples(make: Make) -> Iterator[Sample]:
    silu = {"activation": "silu"}
    yield Sample("one step", _update_call(make, 2, 40, None, 4), silu)
    yield Sample("three steps", _update_call(make, 2, 5, 3, 4), silu)
    yield Sample("more steps than the width", _update_call(make, 1, 3, 6, 3))
    yield Sample("width 1", _update_call(make, 2, 3, None, 1), silu)
    yield Sample("widest", _update_call(make, 1, 3, 2, 32)[:3], silu)
    yield Sample("slots", _update_call(make, 3, 20, None, 4, slots=5), silu | _indices(make, 4, 0, 3))
    args = _update_call(make, 4, 3, 2, 3, slots=2)
    yield Sample("padding", args, _indices(make, -1, 1, 2, 0, dtype=torch.int64))
    yield Sample("no steps", _update_call(make, 2, 3, 0, 4))
    yield Sample("empty", _update_call(make, 0, 3, None, 4))


def _update_draw(make: Make, rng: random.Random) -> Sample:
    batch, channels, steps = draw_size(rng, 5), draw_size(rng, 70), rng.choice([None, 1, 2, 5])
    width, slots = rng.choice([1, 2, 3, 4, 4, 9]), batch + 2 if rng.random() < 0.5 else None
    kwargs = {} if slots is None else _indices(make, *rng.sample(range(slots), batch))
    name = f"{(batch, channels, steps)}, {width}, {slots} slots"
    return Sample(name, _update_call(make, batch, channels, steps, width, slots=slots), kwargs)


def _update_bad_inputs(make: Make) -> Iterator[BadInput]:
    state, x, w, b = _update_call(make, 2, 3, 5, 4)
    for name, args, message in _bad_weights(make):
        yield BadInput(name, (state, *args), message)
    yield BadInput("input rank", (state, x[0, 0], w), r"input must have 3 dimensions .*got 1")
    yield BadInput("state shape", (state[..., 1:], x, w), r"state must have shape \(2, 3, 3\), got \(2, 3, 2\)")
    yield BadInput("state dtype", (state.half(), x, w), "state must have the dtype of input")
    yield BadInput("expanded", (state[:1].expand(2, 3, 3), x, w), "state must not be expanded: it is written to")
    yield BadInput("activation", (state, x, w), "activation must be one of none, silu", {"activation": "gelu"})
    floats = {"state_indices": torch.zeros(2, device=make.device)}
    yield BadInput("index dtype", (state, x, w), "state_indices must be torch.int64 or torch.int32, got .*32", floats)
    three = _indices(make, 0, 1, 1)
    yield BadInput("index shape", (state, x, w), r"state_indices must have shape \(2,\), got \(3,\)", three)
    other = "state must have shape \\(2, 3, 3\\), got \\(2, 3, 2\\)"
    yield BadInput("slots' shape", (state[..., 1:], x, w), other, _indices(make, 0, 1))
    wanted = make.tensor(3, 4)
    yield BadInput("gradient", (state, x, wanted, b), "weight has no gradient, got one that requires grad")


def _update_cost(
    state: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state_indices: Tensor | None = None,
) -> Cost:
    width = weight.shape[1]
    states = input.shape[:2].numel() * (width - 1) * input.element_size()
    moved = 2 * (nbytes(input) + states) + nbytes(weight, bias, state_indices)
    return Cost(2 * input.numel() * width, moved)


add(
    OpSpec(
        name="causal_conv1d_update_",
        family="causal_conv",
        op=_update,
        torch_op=_torch_update,
        samples=_update_samples,
        draw=_update_draw,
        bad_inputs=_update_bad_inputs,
        cost=_update_cost,
        kernels=("causal_conv1d_update_",),
        gradcheck=False,
    )
)
