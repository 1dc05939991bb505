"""OpSpecs of the rotary family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _tables(
    input: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
) -> tuple[Tensor, Tensor]:
    if cos is not None and sin is not None:
        return (cos, sin) if positions is None else (cos[positions], sin[positions])
    assert base is not None
    # As the careful models do it: angles in float64, so that late positions keep their digits.
    places = torch.arange(input.shape[1], device=input.device) if positions is None else positions
    dim = input.shape[-1] if rotary_dim is None else rotary_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=input.device) / max(dim, 1)
    angles = places.double().unsqueeze(-1) * base**-exponents
    keep = torch.float64 if input.dtype == torch.float64 else torch.float32
    return angles.cos().to(keep), angles.sin().to(keep)


def torch_rotary(
    input: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    base: float | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> Tensor:
    """As the models write it: x * cos + rotate_half(x) * sin, in input's dtype."""
    cos, sin = _tables(input, cos, sin, positions, base, rotary_dim)
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


def _torch_rotary_qk(query: Tensor, key: Tensor, *tables: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return torch_rotary(query, *tables, **kwargs), torch_rotary(key, *tables, **kwargs)


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
    yield Sample("positions in a table", (make.tensor(2, 5, 2, 8), *draw_table(make, 9, 4)), {
        "positions": make.integers(2, 5, low=0, high=9)})  # fmt: skip
    yield Sample("the same positions for all", (make.tensor(2, 5, 3, 32), *draw_table(make, 7, 16)), {
        "positions": make.integers(5, low=0, high=7), "interleaved": True})  # fmt: skip
    yield from _computed_samples(make)


def _computed_samples(make: Make) -> Iterator[Sample]:
    yield Sample("computed", (make.tensor(2, 6, 3, 16),), {"base": 10000.0})
    yield Sample("computed, partial, interleaved", (make.tensor(1, 5, 2, 14),), {
        "base": 500000.0, "rotary_dim": 8, "interleaved": True})  # fmt: skip
    late = make.integers(2, 7, low=900_000, high=1_000_000)
    yield Sample("computed late", (make.tensor(2, 7, 2, 32),), {"base": 10000.0, "positions": late})
    yield Sample("computed, slow and fast", (make.tensor(1, 9, 1, 48),), {
        "base": 0.25, "positions": make.integers(9, low=-3000, high=3000)})  # fmt: skip


def _qk_samples(make: Make) -> Iterator[Sample]:
    yield Sample("grouped keys", (make.tensor(2, 4, 6, 8), make.tensor(2, 4, 2, 8), *draw_table(make, 4, 4)))
    yield Sample("computed, interleaved", (make.tensor(2, 3, 4, 32), make.tensor(2, 3, 1, 32)), {
        "base": 10000.0, "interleaved": True})  # fmt: skip
    frozen = make.tensor(1, 5, 2, 10, grad=False)
    positions = make.integers(1, 5, low=0, high=1_000_000)
    yield Sample("only the key has a gradient", (frozen, make.tensor(1, 5, 1, 10)), {
        "base": 10000.0, "rotary_dim": 6, "positions": positions})  # fmt: skip
    yield Sample("only the query has a gradient", (make.tensor(1, 5, 3, 10), frozen, *draw_table(make, 5, 4)))
    yield Sample("no query heads", (make.tensor(2, 3, 0, 4), make.tensor(2, 3, 2, 4), *draw_table(make, 3, 2)))
    yield Sample("no key heads", (make.tensor(2, 3, 2, 4), make.tensor(2, 3, 0, 4), *draw_table(make, 3, 2)))


def _draw_angles(
    make: Make, rng: random.Random, batch: int, sequence: int, pairs: int
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Tables, or what stands for them."""
    kwargs: dict[str, Any] = {"interleaved": rng.random() < 0.5}
    kind = rng.choice(["table", "tables", "positions", "computed", "computed positions"])
    shape = rng.choice([(sequence,), (batch, sequence)])
    if kind == "positions":
        rows = draw_size(rng, 9) + 1
        kwargs["positions"] = make.integers(*shape, low=0, high=rows)
        return draw_table(make, rows, pairs), kwargs
    if kind.startswith("computed"):
        kwargs |= {"base": rng.choice([100.0, 10000.0, 1e6]), "rotary_dim": 2 * pairs}
        if kind == "computed positions":
            kwargs["positions"] = make.integers(*shape, low=0, high=10 ** rng.randint(1, 6))
        return (), kwargs
    return draw_table(make, *((sequence, pairs) if kind == "table" else (batch, sequence, pairs))), kwargs


def _draw(make: Make, rng: random.Random) -> Sample:
    batch, sequence, heads = draw_size(rng, 3), draw_size(rng, 6), draw_size(rng, 4)
    pairs = draw_size(rng, 40)
    tables, kwargs = _draw_angles(make, rng, batch, sequence, pairs)
    x = make.tensor(batch, sequence, heads, 2 * pairs + rng.choice([0, 0, 1, 5]))
    return Sample(f"{tuple(x.shape)} {[tuple(t.shape) for t in tables]} {kwargs}", (x, *tables), kwargs)


def _draw_qk(make: Make, rng: random.Random) -> Sample:
    sample = _draw(make, rng)
    query, *tables = sample.args
    key = make.tensor(*query.shape[:2], draw_size(rng, 3), query.shape[3])
    return Sample(f"{sample.name}, {key.shape[2]} key heads", (query, key, *tables), sample.kwargs)


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
    alone = "angles must come from cos and sin, or from base alone"
    yield BadInput("no angles", (x,), alone)
    yield BadInput("cos alone", (x, cos), alone)
    yield BadInput("tables and base", (x, cos, sin), alone, {"base": 10000.0})
    yield BadInput("base", (x,), "base must be positive and finite, got -1", {"base": -1.0})
    yield BadInput("rotary_dim", (x,), "rotary_dim must be even and at most head_dim 8, got 10",
                   {"base": 100.0, "rotary_dim": 10})  # fmt: skip
    yield BadInput("odd rotary_dim", (x,), "rotary_dim must be even .* got 3", {"base": 100.0, "rotary_dim": 3})
    yield BadInput("rotary_dim of tables", (x, cos, sin), "rotary_dim goes with base, got 8", {"rotary_dim": 8})
    places = make.integers(2, 5, low=0, high=5)
    yield BadInput("positions dtype", (x, cos, sin), "positions must be torch.int64, got torch.int32",
                   {"positions": places.int()})  # fmt: skip
    yield BadInput("positions shape", (x, cos, sin), r"positions must have shape \(5,\) or \(2, 5\), got \(2, 4\)",
                   {"positions": places[:, :4]})  # fmt: skip
    yield BadInput("table of positions", (x, cos[None], sin[None]), r"cos must have shape \(rows, n\) .*\(1, 5, 4\)",
                   {"positions": places})  # fmt: skip


def _qk_bad_inputs(make: Make) -> Iterator[BadInput]:
    query, key, (cos, sin) = make.tensor(2, 5, 4, 8), make.tensor(2, 5, 2, 8), draw_table(make, 5, 4)
    like = r"key must have the shape of query \(2, 5, 4, 8\) but for the number of heads, got"
    yield BadInput("key length", (query, key[:, :4], cos, sin), rf"{like} \(2, 4, 2, 8\)")
    yield BadInput("key rank", (query, key[0], cos, sin), rf"{like} \(5, 2, 8\)")
    yield BadInput("key dtype", (query, key.double(), cos, sin), "key must have the dtype of query .*got torch.float64")
    yield BadInput("query dtype", (query.detach().long(), key, cos, sin), "query must be float32, .* got torch.int64")
    yield BadInput("cos dtype", (query, key, cos.double(), sin), "cos must have the dtype of query .*got torch.float64")
    yield BadInput("table with grad", (query, key, cos.clone().requires_grad_(), sin), "cos has no gradient")


def _cost(input: Tensor, *tables: Tensor, positions: Tensor | None = None, **_: Any) -> Cost:
    read = 0 if not tables else nbytes(*tables)
    if positions is not None and tables:  # Of a table no more than the rows that are taken.
        read = min(read, 2 * positions.numel() * tables[0].shape[-1] * tables[0].element_size())
    return Cost(3 * input.numel(), 2 * nbytes(input) + read + nbytes(positions))


def _qk_cost(query: Tensor, key: Tensor, *tables: Tensor, **kwargs: Any) -> Cost:
    cost = _cost(query, *tables, **kwargs)
    return Cost(cost.flops + 3 * key.numel(), cost.bytes + 2 * nbytes(key))


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
add(
    OpSpec(
        name="rotary_embedding_qk",
        family="rotary",
        op=ops.rotary_embedding_qk,
        torch_op=_torch_rotary_qk,
        samples=_qk_samples,
        draw=_draw_qk,
        bad_inputs=_qk_bad_inputs,
        cost=_qk_cost,
        kernels=("rotary_embedding", "rotary_embedding_backward"),
    )
)
