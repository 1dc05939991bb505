"""OpSpecs of the qk_norm family."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes
from warpwright.testing.specs.rotary import draw_table, torch_rotary


def _torch_qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    def one(x: Tensor, weight: Tensor | None) -> Tensor:
        weight = weight if weight is None or weight_offset == 0 else weight + weight_offset
        return torch_rotary(F.rms_norm(x, [x.shape[-1]], weight, eps), cos, sin, interleaved=interleaved)

    return one(query, query_weight), one(key, key_weight)


def _samples(make: Make) -> Iterator[Sample]:
    def heads(batch: int, sequence: int, query_heads: int, key_heads: int, dim: int) -> tuple[Tensor, ...]:
        query, key = (make.tensor(batch, sequence, n, dim) for n in (query_heads, key_heads))
        return query, key, make.tensor(dim), make.tensor(dim)

    yield Sample("half", (*heads(2, 3, 4, 2, 16), *draw_table(make, 3, 8)))
    neighbours = {"interleaved": True, "eps": 1e-5}
    yield Sample("interleaved", (*heads(2, 3, 2, 1, 16), *draw_table(make, 3, 8)), neighbours)
    yield Sample("partial", (*heads(1, 4, 2, 2, 23), *draw_table(make, 4, 5, dtype=torch.float32)))
    offset = {"interleaved": True, "weight_offset": 1.0}
    yield Sample("partial, interleaved, offset", (*heads(1, 2, 2, 1, 22), *draw_table(make, 2, 5)), offset)
    args = (make.tensor(2, 2, 3, 32), make.tensor(2, 2, 1, 32), None, None)
    yield Sample("no weights", (*args, *draw_table(make, 2, 2, 16)))
    yield Sample("float32 table", (*heads(1, 3, 3, 1, 96), *draw_table(make, 3, 32, dtype=torch.float32)))
    yield Sample("nothing rotated", (*heads(1, 2, 2, 1, 8), *draw_table(make, 2, 0)))
    yield Sample("many heads", (*heads(1, 9, 33, 2, 8), *draw_table(make, 9, 4)))
    yield Sample("wide heads", (*heads(1, 1, 2, 1, 512), *draw_table(make, 1, 256)))
    yield Sample("no keys", (*heads(1, 2, 2, 0, 8), *draw_table(make, 2, 4)))
    yield Sample("empty", (*heads(0, 2, 2, 1, 8), *draw_table(make, 2, 4)))


def _draw(make: Make, rng: random.Random) -> Sample:
    batch, sequence, heads, key_heads = (draw_size(rng, 4) for _ in range(4))
    pairs = draw_size(rng, 40)
    head_dim = 2 + 2 * pairs + rng.choice([0, 0, 1, 6])
    query, key = (make.tensor(batch, sequence, n, head_dim) for n in (heads, key_heads))
    weights = [make.tensor(head_dim) if rng.random() < 0.7 else None for _ in range(2)]
    shape = (sequence, pairs) if rng.random() < 0.5 else (batch, sequence, pairs)
    kwargs = {"interleaved": rng.random() < 0.5, "eps": 1e-5}
    return Sample(
        f"{tuple(query.shape)}, {key_heads}, {shape}", (query, key, *weights, *draw_table(make, *shape)), kwargs
    )


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    q, k, w = make.tensor(2, 5, 3, 8), make.tensor(2, 5, 1, 8), make.tensor(8)
    table = draw_table(make, 5, 4)
    yield BadInput("query rank", (make.tensor(5, 3, 8), k, w, w, *table), "query must have 4 dimensions .*got 3")
    yield BadInput("query dtype", (q.detach().long(), k, w, w, *table), "query must be float32, .* got torch.int64")
    yield BadInput("key dtype", (q, k.detach().half(), w, w, *table), "key must have the dtype of query")
    fit = "key must have the batch, sequence and head_dim of query"
    yield BadInput("key length", (q, make.tensor(2, 4, 1, 8), w, w, *table), fit)
    wide = make.tensor(1, 1, 1, 514)
    yield BadInput(
        "head_dim", (wide, wide, None, None, *draw_table(make, 1, 4)), "head_dim must be at most 512, got 514"
    )
    yield BadInput("weight shape", (q, k, w, make.tensor(7), *table), r"key_weight must have shape \(8,\), got \(7,\)")
    offset = {"weight_offset": 1.0}
    yield BadInput("offset", (q, k, w, None, *table), "key_weight must be given with weight_offset", offset)
    yield BadInput("table", (q, k, w, w, *draw_table(make, 4, 4)), r"cos must have shape \(5, n\) or .*got \(4, 4\)")
    cos, sin = table
    yield BadInput("table with grad", (q, k, w, w, cos.clone().requires_grad_(), sin), "cos has no gradient")


def _cost(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> Cost:
    return Cost(7 * (query.numel() + key.numel()), 2 * nbytes(query, key) + nbytes(query_weight, key_weight, cos, sin))


add(
    OpSpec(
        name="qk_norm_rotary",
        family="qk_norm",
        op=ops.qk_norm_rotary,
        torch_op=_torch_qk_norm_rotary,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("qk_norm_rotary", "qk_norm_rotary_backward"),
    )
)
