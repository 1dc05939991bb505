"""OpSpecs of the rotary family."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def torch_rotary(input: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """As the models write it: x * cos + rotate_half(x) * sin, in input's dtype."""
    n = 2 * cos.shape[-1]
    repeat = (lambda t: t.repeat_interleave(2, -1)) if interleaved else (lambda t: torch.cat((t, t), -1))
    c, s = (repeat(t).to(input.dtype).unsqueeze(-2) for t in (cos, sin))
    x, rest = input[..., :n], input[..., n:]
    if interleaved:
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    else:
        a, b = x.chunk(2, -1)
        turned = torch.cat((-b, a), -1)
    return torch.cat((x * c + turned * s, rest), -1)


def draw_table(make: Make, *shape: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    angles = make.tensor(*shape, low=-3.2, high=3.2, grad=False, dtype=torch.float64)
    return angles.cos().to(dtype or make.dtype), angles.sin().to(dtype or make.dtype)


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("half", (make.tensor(2, 5, 3, 8), *draw_table(make, 5, 4)))
    yield Sample("interleaved", (make.tensor(2, 5, 3, 8), *draw_table(make, 5, 4)), {"interleaved": True})
    yield Sample("partial", (make.tensor(2, 4, 2, 11), *draw_table(make, 4, 3)))
    yield Sample("partial, interleaved", (make.tensor(1, 4, 2, 10), *draw_table(make, 4, 3)), {"interleaved": True})
    yield Sample("positions of each sequence", (make.tensor(3, 4, 2, 6), *draw_table(make, 3, 4, 3)))
    yield Sample("float32 table", (make.tensor(2, 3, 2, 70), *draw_table(make, 3, 35, dtype=torch.float32)))
    yield Sample("nothing rotated", (make.tensor(1, 2, 2, 3), *draw_table(make, 2, 0)))
    yield Sample("empty", (make.tensor(0, 2, 2, 4), *draw_table(make, 2, 2)))


def _draw(make: Make, rng: random.Random) -> Sample:
    batch, sequence, heads = draw_size(rng, 3), draw_size(rng, 6), draw_size(rng, 4)
    pairs = draw_size(rng, 40)
    head_dim = 2 * pairs + rng.choice([0, 0, 1, 5])
    shape = (sequence, pairs) if rng.random() < 0.5 else (batch, sequence, pairs)
    args = (make.tensor(batch, sequence, heads, head_dim), *draw_table(make, *shape))
    return Sample(f"{tuple(args[0].shape)} {shape}", args, {"interleaved": rng.random() < 0.5})


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x, (cos, sin) = make.tensor(2, 5, 3, 8), draw_table(make, 5, 4)
    yield BadInput("input rank", (make.tensor(5, 3, 8), cos, sin), "input must have 4 dimensions .*got 3")
    yield BadInput("input dtype", (x.detach().long(), cos, sin), "input must be float32, .* got torch.int64")
    yield BadInput("cos dtype", (x, cos.double(), sin), "cos must have the dtype of input .*got torch.float64")
    yield BadInput("cos length", (x, *draw_table(make, 4, 4)), r"cos must have shape \(5, n\) or .*got \(4, 4\)")
    yield BadInput(
        "cos width", (x, *draw_table(make, 5, 5)), r"cos must have shape .* at most head_dim 8, got \(5, 5\)"
    )
    yield BadInput("cos batch", (x, *draw_table(make, 3, 5, 4)), r"cos must have shape .*got \(3, 5, 4\)")
    yield BadInput("sin shape", (x, cos, sin[:, :3]), r"sin must have the shape of cos \(5, 4\), got \(5, 3\)")
    yield BadInput("table with grad", (x, cos.clone().requires_grad_(), sin), "cos has no gradient")


def _cost(input: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Cost:
    return Cost(3 * input.numel(), 2 * nbytes(input) + nbytes(cos, sin))


add(
    OpSpec(
        name="rotary_embedding",
        family="rotary",
        op=ops.rotary_embedding,
        torch_op=torch_rotary,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("rotary_embedding", "rotary_embedding_backward"),
    )
)
