"""OpSpecs of the matmul family."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

#: PyTorch's own activations, by our names.
TORCH_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def _torch_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    product = F.linear(input, weight, bias)
    return TORCH_ACTIVATIONS[activation](product if residual is None else product + residual)


def _linear_samples(make: Make) -> Iterator[Sample]:
    x, w, b = make.tensor(5, 12), make.tensor(7, 12), make.tensor(7)
    yield Sample("bias", (x, w, b))
    yield Sample("no bias", (x, w))
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        yield Sample(activation, (x, w, b), {"activation": activation})
    yield Sample("residual", (x, w, b), {"residual": make.tensor(5, 7)})
    yield Sample("residual and gelu", (x, w, None), {"residual": make.tensor(5, 7), "activation": "gelu"})
    yield Sample("residual and relu", (x, w, b), {"residual": make.tensor(5, 7), "activation": "relu"})
    yield Sample("three dims", (make.tensor(2, 3, 4), make.tensor(5, 4), make.tensor(5)), {"activation": "silu"})
    yield Sample("one dim", (make.tensor(9), make.tensor(4, 9), make.tensor(4)))
    # Past one tile in every direction, and large enough for oneDNN's fused calls on the CPU.
    big = (make.tensor(67, 65), make.tensor(66, 65), make.tensor(66))
    yield Sample("tiles", big)
    yield Sample("tiles and gelu", big, {"activation": "gelu"})
    yield Sample("tiles and gelu_tanh", big, {"activation": "gelu_tanh"})
    yield Sample("tiles, residual and silu", big, {"activation": "silu", "residual": make.tensor(67, 66)})
    yield Sample("tiles and residual", big, {"residual": make.tensor(67, 66)})
    yield Sample("a long sum", (make.tensor(5, 1100), make.tensor(3, 1100), make.tensor(3)))
    # Lines of whole 16-byte chunks, which the tensor-core kernels take: past a tile, past the tiles that run at once,
    # and more steps than they have stages.
    yield Sample("chunks", (make.tensor(136, 40), make.tensor(144, 40), make.tensor(144)), {"activation": "silu"})
    yield Sample("chunks, many tiles", (make.tensor(136, 72), make.tensor(328, 72)), {"activation": "gelu"})
    yield Sample("chunks, long sum", (make.tensor(24, 264), make.tensor(16, 264)), {"residual": make.tensor(24, 16)})
    yield Sample("chunks, transposed", (make.tensor(72, 48).t(), make.tensor(72, 32).t(), make.tensor(32)))
    yield Sample("chunks, input transposed", (make.tensor(72, 48).t(), make.tensor(32, 72)))
    yield Sample("no rows", (make.tensor(0, 4), make.tensor(3, 4), make.tensor(3)), {"activation": "gelu"})
    yield Sample("no columns", (make.tensor(3, 4), make.tensor(0, 4), make.tensor(0)))
    yield Sample("no inner", (make.tensor(3, 0), make.tensor(4, 0), make.tensor(4)), {"residual": make.tensor(3, 4)})


def _draw_linear(make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 40)] if rng.random() < 0.7 else [draw_size(rng, 5), draw_size(rng, 9)]
    n, k = draw_size(rng), draw_size(rng)
    kwargs: dict[str, object] = {"activation": rng.choice([None, "none", "relu", "gelu", "gelu_tanh", "silu"])}
    if rng.random() < 0.4:
        kwargs["residual"] = make.tensor(*lead, n)
    bias = make.tensor(n) if rng.random() < 0.7 else None
    return Sample(
        f"{lead} x {k} -> {n} {kwargs['activation']}", (make.tensor(*lead, k), make.tensor(n, k), bias), kwargs
    )


def _linear_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w, b = make.tensor(4, 8), make.tensor(6, 8), make.tensor(6)
    yield BadInput("features", (make.tensor(4, 7), w, b), "weight has 8 input features, input has 7")
    yield BadInput("scalar input", (make.tensor(), w, b), "input must have at least 1 dimension, got 0")
    yield BadInput("weight rank", (x, make.tensor(8), None), "weight must have 2 dimensions, got 1")
    yield BadInput("weight dtype", (x, w.detach().double(), b), "weight must have the dtype of input")
    yield BadInput("input dtype", (x.detach().long(), w, b), "input must be float32, .* got torch.int64")
    yield BadInput("bias shape", (x, w, make.tensor(5)), r"bias must have shape \(6,\), got \(5,\)")
    yield BadInput(
        "activation", (x, w, b), "activation must be one of none, relu, .*got 'tanh'", {"activation": "tanh"}
    )
    message = r"residual must have the shape of the output \(4, 6\), got \(6,\)"
    yield BadInput("residual shape", (x, w, b), message, {"residual": make.tensor(6)})


def _linear_cost(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Cost:
    rows, (n, k) = input.shape[:-1].numel(), weight.shape
    return Cost(2 * rows * n * k, nbytes(input, weight, bias, residual) + rows * n * input.element_size())


add(
    OpSpec(
        name="linear",
        family="matmul",
        op=ops.linear,
        torch_op=_torch_linear,
        samples=_linear_samples,
        draw=_draw_linear,
        bad_inputs=_linear_bad_inputs,
        cost=_linear_cost,
        kernels=("linear", "linear_backward"),
    )
)
