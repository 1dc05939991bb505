"""OpSpecs of the grouped family."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _torch_grouped_matmul(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """PyTorch's own where it takes the call, and one product after the other elsewhere.

    Its own leaves rows of no group undefined. Nobody can know of them without a look at the offsets, which would make a
    GPU wait: samples that have such rows have a bias or lines that it does not take.
    """
    if bias is None and activation in (None, "none") and _grouped_mm_takes(input, weight):
        return F.grouped_mm(input, weight.mT, offs=offsets)
    ends = offsets.tolist()
    results = []
    for group, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        product = F.linear(input[start:end], weight[group], None if bias is None else bias[group])
        results.append(TORCH_ACTIVATIONS[activation](product))
    rest = input.shape[0] - (ends[-1] if ends else 0)
    return torch.cat([*results, input.new_zeros(rest, weight.shape[1])])


def _grouped_mm_takes(input: Tensor, weight: Tensor) -> bool:
    """bfloat16 with lines of whole 16 bytes: what it takes on a GPU and in compiled code."""
    lines = all(size % 8 == 0 and size > 0 for size in weight.shape[1:])
    together = input.is_contiguous() and (weight.is_contiguous() or weight.mT.is_contiguous())
    return input.dtype == torch.bfloat16 and lines and together and input.shape[0] > 0 and weight.shape[0] > 0


def _offsets(make: Make, sizes: Sequence[int]) -> Tensor:
    """Where groups of these sizes end."""
    return torch.tensor([*itertools.accumulate(sizes)], dtype=torch.int32, device=make.device)


def _samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    w, b = t(3, 5, 4), t(3, 5)
    uneven = _offsets(make, [2, 0, 4])
    yield Sample("bias", (t(6, 4), w, uneven), {"bias": b})
    yield Sample("no bias", (t(6, 4), w, uneven))
    yield Sample("gelu", (t(6, 4), w, uneven), {"bias": b, "activation": "gelu"})
    yield Sample("rows of no group", (t(9, 4), w, uneven), {"bias": b, "activation": "sigmoid"})
    kwargs = {"bias": b, "activation": "hardswish"}
    yield Sample("rows of no group, pre-activation kept", (t(9, 4), w, uneven), kwargs)
    yield Sample("weight transposed", (t(6, 4), t(3, 4, 5).mT, uneven), {"activation": "leaky_relu"})
    yield Sample("one token", (t(1, 4), w, _offsets(make, [0, 1, 0])), {"activation": "silu"})
    yield Sample("no token", (t(0, 4), w, _offsets(make, [0, 0, 0])), {"bias": b})
    yield Sample("only rows of no group", (t(2, 4), w, _offsets(make, [0, 0, 0])), {"bias": b})
    yield Sample("no inner", (t(4, 0), t(2, 3, 0), _offsets(make, [1, 3])), {"bias": t(2, 3), "activation": "tanh"})
    yield Sample("no columns", (t(4, 3), t(2, 0, 3), _offsets(make, [1, 3])), {"bias": t(2, 0)})
    # More groups than a warp looks at together.
    many = [0, 1, *([0, 2] * 17), 0]
    yield Sample("many groups", (t(sum(many) + 2, 3), t(len(many), 2, 3), _offsets(make, many)), {"bias": t(37, 2)})
    # Past one tile in every direction.
    tiles = (t(140, 65), t(3, 66, 65), _offsets(make, [67, 0, 70]))
    yield Sample("tiles", tiles, {"bias": t(3, 66), "activation": "gelu_tanh"})
    yield Sample("long sums", (t(600, 5), t(2, 3, 5), _offsets(make, [590, 7])), {"bias": t(2, 3)})
    # Lines of whole 16-byte chunks, which the tensor-core kernels take: groups that end inside a tile and inside a step
    # of their own sum, more steps than there are stages, and more tiles than blocks run at once.
    chunks = _offsets(make, [129, 0, 5])
    yield Sample("chunks", (t(138, 40), t(3, 72, 40), chunks), {"bias": t(3, 72), "activation": "silu"})
    yield Sample("chunks, plain and transposed", (t(134, 40), t(3, 40, 72).mT, chunks))
    wide = (t(20, 72), t(2, 264, 72), _offsets(make, [9, 11]))
    yield Sample("chunks, many columns", wide, {"activation": "gelu"})
    yield Sample("chunks, long sums", (t(300, 264), t(2, 16, 264), _offsets(make, [290, 10])), {"activation": "relu"})


def _draw(make: Make, rng: random.Random) -> Sample:
    groups, n, k = max(1, draw_size(rng, 40)), draw_size(rng), draw_size(rng)
    sizes = [rng.choice([0, 0, 1, draw_size(rng, 40)]) if groups < 10 else draw_size(rng, 3) for _ in range(groups)]
    kwargs: dict[str, object] = {"activation": rng.choice([None, *ACTIVATIONS])}
    rest = 0
    if rng.random() < 0.6:
        kwargs["bias"] = make.tensor(groups, n)
        rest = rng.choice([0, 0, 1, 9, 70])  # Rows of no group: with a bias, see _torch_grouped_matmul.
    weight = make.tensor(groups, n, k) if rng.random() < 0.6 else make.tensor(groups, k, n).mT
    args = (make.tensor(sum(sizes) + rest, k), weight, _offsets(make, sizes))
    return Sample(f"{sizes} + {rest} x {k} -> {n} {kwargs['activation']}", args, kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    t = make.tensor
    x, w, ends = t(6, 8), t(2, 5, 8), _offsets(make, [2, 4])
    yield BadInput("features", (t(6, 7), w, ends), "weight has 8 input features, input has 7")
    yield BadInput("input rank", (t(1, 6, 8), w, ends), "input must have 2 dimensions, got 3")
    yield BadInput("input dtype", (x.detach().long(), w, ends), "input must be float32, .* got torch.int64")
    long = torch.empty(2**31, 0, dtype=make.dtype, device=make.device)
    yield BadInput("rows", (long, t(2, 5, 0), ends), r"input must have fewer than 2\^31 rows, got 2147483648")
    yield BadInput("weight rank", (x, t(5, 8), ends), "weight must have 3 dimensions, got 2")
    yield BadInput("weight dtype", (x, w.detach().double(), ends), "weight must have the dtype of input")
    yield BadInput("offsets dtype", (x, w, ends.long()), "offsets must be torch.int32, got torch.int64")
    message = r"offsets must have shape \(2,\), got \(3,\)"
    yield BadInput("offsets shape", (x, w, _offsets(make, [2, 3, 1])), message)
    yield BadInput("bias shape", (x, w, ends), r"bias must have shape \(2, 5\), got \(5,\)", {"bias": t(5)})
    yield BadInput("activation", (x, w, ends), "activation must be one of none, relu, .*got 'mish'",
                   {"activation": "mish"})  # fmt: skip


def _cost(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Cost:
    """A group without rows need not read its weight, nor its bias."""
    ends = [0, *offsets.tolist()]
    used = sum(end > start for start, end in itertools.pairwise(ends))
    n, k = weight.shape[1:]
    size = input.element_size()
    a_group = n * k + (0 if bias is None else n)
    return Cost(2 * ends[-1] * n * k, nbytes(offsets) + (ends[-1] * k + used * a_group + input.shape[0] * n) * size)


add(
    OpSpec(
        name="grouped_matmul",
        family="grouped",
        op=ops.grouped_matmul,
        torch_op=_torch_grouped_matmul,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("grouped_matmul", "grouped_matmul_backward"),
    )
)
