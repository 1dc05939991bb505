"""OpSpecs of the matmul family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


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
    for activation in ACTIVATIONS[1:]:
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
    kwargs: dict[str, object] = {"activation": rng.choice([None, *ACTIVATIONS])}
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
        "activation", (x, w, b), "activation must be one of none, relu, .*got 'mish'", {"activation": "mish"}
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


# ---- matmul, bmm, addmm ----


def _epilogue(
    product: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    alpha: float,
    beta: float,
    activation: str | None,
    output_scale: float,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """What follows a product, by torch's ops; an output of another dtype is rounded from a product that was not."""
    value = product if alpha == 1 else alpha * product
    if bias is not None:
        value = value + bias
    if residual is not None and beta != 0:
        value = value + (residual if beta == 1 else beta * residual)
    value = TORCH_ACTIVATIONS[activation](value)
    return value if output_scale == 1 else output_scale * value


def _torch_matmul(
    input: Tensor,
    other: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: str | None = None,
    output_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    result = _epilogue(torch.matmul(input, other), bias, residual, alpha, beta, activation, output_scale, out_dtype)
    return result if out_dtype is None or input.dtype == torch.float64 else result.to(out_dtype)


def _torch_addmm(
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1.0,
    alpha: float = 1.0,
    activation: str | None = None,
    output_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    product = torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)
    result = _epilogue(product, None, None, 1.0, 1.0, activation, output_scale, out_dtype)
    return result if out_dtype is None or input.dtype == torch.float64 else result.to(out_dtype)


def _matmul_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("matrices", (t(5, 12), t(12, 7)))
    yield Sample("vectors", (t(9), t(9)))
    yield Sample("vector, matrix", (t(9), t(9, 4)), {"bias": t(4)})
    yield Sample("batch, vector", (t(2, 3, 9), t(9)), {"residual": t(2, 3)})
    yield Sample("batch of one matrix", (t(2, 3, 4), t(4, 5)), {"activation": "silu"})
    yield Sample("batches broadcast", (t(2, 1, 3, 4), t(3, 4, 5)), {"bias": t(5), "activation": "tanh"})
    yield Sample("one matrix, a batch", (t(3, 4), t(2, 4, 5)), {"residual": t(5)})
    heads = (t(2, 5, 3, 8).transpose(1, 2), t(2, 6, 3, 8).permute(0, 2, 3, 1))
    yield Sample("heads", heads, {"alpha": 0.125})
    kwargs = {"residual": t(5, 7), "bias": t(7), "alpha": 0.5, "beta": -2.0, "output_scale": 1.5}
    yield Sample("everything", (t(5, 12), t(12, 7)), {**kwargs, "activation": "gelu"})
    yield Sample("scale after relu", (t(5, 12), t(12, 7)), {"activation": "relu", "output_scale": 0.5})
    yield Sample("beta is zero", (t(4, 3), t(3, 4)), {"residual": t(4, 4), "beta": 0.0})
    if make.dtype != torch.float64:
        yield from _out_dtype_samples(make)
    chunks = (t(2, 136, 40), t(2, 144, 40).mT)
    yield Sample("chunks", chunks, {"residual": t(2, 136, 144), "activation": "leaky_relu", "output_scale": 2.0})
    yield Sample("no batch", (t(0, 3, 4), t(0, 4, 5)))
    yield Sample("no inner", (t(2, 3, 0), t(2, 0, 4)), {"bias": t(4), "activation": "sigmoid"})
    yield Sample("no inner, one matrix", (t(2, 3, 0), t(0, 4)), {"bias": t(4)})
    yield Sample("no columns, one matrix", (t(2, 3, 4), t(4, 0)), {"residual": t(2, 3, 0)})


def _out_dtype_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    wide = {"out_dtype": torch.float32}
    yield Sample("float32 out of it", (t(5, 12), t(12, 7)), wide)
    yield Sample("float32 and sigmoid", (t(5, 12), t(12, 7)), {**wide, "activation": "sigmoid"})
    yield Sample("bfloat16 out of it", (t(2, 5, 12), t(2, 12, 7)), {"out_dtype": torch.bfloat16, "bias": t(7)})
    yield Sample("chunks, float16 out of it", (t(136, 40), t(40, 136)), {"out_dtype": torch.float16})


def _draw_matmul(make: Make, rng: random.Random) -> Sample:
    m, n, k = draw_size(rng, 40), draw_size(rng), draw_size(rng)
    batch = [draw_size(rng, 4) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    one = [rng.random() < 0.3 for _ in batch]
    a = make.tensor(*[1 if o else size for o, size in zip(one, batch, strict=True)], m, k)
    b = make.tensor(*(batch if rng.random() < 0.7 else []), k, n)
    sizes = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    kwargs: dict[str, Any] = {"activation": rng.choice([None, *ACTIVATIONS])}
    if rng.random() < 0.3:
        kwargs["residual"] = make.tensor(*sizes, m, n)
    if rng.random() < 0.5:
        kwargs["bias"] = make.tensor(n)
    for name in ("alpha", "beta", "output_scale"):
        if rng.random() < 0.3:
            kwargs[name] = rng.choice([0.0, 0.5, -1.25, 3.0])
    return Sample(f"{batch} {m} x {k} x {n} {kwargs['activation']}", (a, b), kwargs)


def _matmul_bad_inputs(make: Make) -> Iterator[BadInput]:
    t = make.tensor
    x, y = t(4, 8), t(8, 6)
    yield BadInput("inner", (x, t(7, 6)), "other has 7 rows, input has 8 columns")
    yield BadInput("scalar", (t(), y), "input and other must have at least 1 dimension")
    yield BadInput(
        "batches", (t(2, 4, 8), t(3, 8, 6)), r"other must have a batch that broadcasts with input \(2, 4, 8\)"
    )
    yield BadInput("dtype", (x, y.detach().double()), "other must have the dtype of input")
    yield BadInput("bias", (x, y), r"bias must have shape \(6,\), got \(5,\)", {"bias": t(5)})
    message = r"residual must broadcast to the output \(4, 6\), got \(3, 6\)"
    yield BadInput("residual", (x, y), message, {"residual": t(3, 6)})
    yield BadInput(
        "out_dtype", (x, y), "out_dtype must be input's dtype or.*got torch.int32", {"out_dtype": torch.int32}
    )
    message = "out_dtype torch.float8_e4m3fn has no gradient"
    yield BadInput("float8 gradient", (x, y), message, {"out_dtype": torch.float8_e4m3fn})
    yield BadInput("activation", (x, y), "activation must be one of none, relu, .*got 'mish'", {"activation": "mish"})


def _matmul_cost(input: Tensor, other: Tensor, **kwargs: Any) -> Cost:
    batch = torch.broadcast_shapes(input.shape[:-2], other.shape[:-2])
    m = input.shape[-2] if input.dim() > 1 else 1
    n = other.shape[-1] if other.dim() > 1 else 1
    outputs = batch.numel() * m * n
    out_dtype = kwargs.get("out_dtype") or input.dtype
    read = nbytes(input, other, kwargs.get("bias"), kwargs.get("residual"))
    return Cost(2 * outputs * input.shape[-1], read + outputs * out_dtype.itemsize)


def _bmm_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("batch", (t(3, 5, 8), t(3, 8, 7)))
    yield Sample("transposed", (t(3, 12, 5).mT, t(3, 7, 12).mT), {"activation": "hardswish"})
    yield Sample("residual", (t(3, 5, 12), t(3, 12, 7)), {"residual": t(3, 1, 7), "beta": 0.5, "bias": t(7)})
    yield Sample("many small", (t(33, 4, 4), t(33, 4, 4)), {"alpha": 2.0})


def _draw_bmm(make: Make, rng: random.Random) -> Sample:
    b, m, n, k = draw_size(rng, 5), draw_size(rng, 40), draw_size(rng), draw_size(rng)
    return Sample(f"{b} of {m} x {k} x {n}", (make.tensor(b, m, k), make.tensor(b, k, n)))


def _bmm_bad_inputs(make: Make) -> Iterator[BadInput]:
    t = make.tensor
    yield BadInput("rank", (t(4, 8), t(2, 8, 6)), "input must have 3 dimensions, got 2")
    yield BadInput("batch", (t(2, 4, 8), t(1, 8, 6)), "mat2 must have 2 matrices, as input, got 1")
    yield BadInput("inner", (t(2, 4, 8), t(2, 7, 6)), "mat2 has 7 rows, input has 8 columns")
    yield BadInput("dtype", (t(2, 4, 8), t(2, 8, 6).detach().double()), "mat2 must have the dtype of input")


def _addmm_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("row", (t(7), t(5, 12), t(12, 7)))
    yield Sample("matrix", (t(5, 7), t(5, 12), t(12, 7)), {"alpha": 0.5, "beta": 2.0})
    yield Sample("column", (t(5, 1), t(5, 12), t(12, 7)), {"activation": "gelu_tanh"})
    yield Sample("without it", (t(5, 7, grad=False), t(5, 12), t(12, 7)), {"beta": 0.0, "activation": "relu"})


def _draw_addmm(make: Make, rng: random.Random) -> Sample:
    m, n, k = draw_size(rng, 40), draw_size(rng), draw_size(rng)
    kwargs = {"alpha": rng.choice([1.0, 0.5]), "beta": rng.choice([1.0, -2.0])}
    shape = rng.choice([(n,), (m, n), (m, 1), (1, n)])
    return Sample(f"{shape} + {m} x {k} x {n}", (make.tensor(*shape), make.tensor(m, k), make.tensor(k, n)), kwargs)


def _addmm_bad_inputs(make: Make) -> Iterator[BadInput]:
    t = make.tensor
    yield BadInput("rank", (t(6), t(2, 4, 8), t(8, 6)), "mat1 must have 2 dimensions, got 3")
    yield BadInput("inner", (t(6), t(4, 8), t(7, 6)), "mat2 has 7 rows, mat1 has 8 columns")
    yield BadInput("dtype", (t(6).detach().double(), t(4, 8), t(8, 6)), "input must have the dtype of mat1")
    yield BadInput("input", (t(5), t(4, 8), t(8, 6)), r"input must broadcast to the output \(4, 6\), got \(5,\)")


def _addmm_cost(input: Tensor, mat1: Tensor, mat2: Tensor, **kwargs: Any) -> Cost:
    return _matmul_cost(mat1, mat2, residual=input, out_dtype=kwargs.get("out_dtype"))


def _add_matmul(name: str, op: Any, torch_op: Any, samples: Any, draw: Any, bad_inputs: Any, cost: Any) -> None:
    kernels = ("matmul", "matmul_backward")
    add(OpSpec(name, "matmul", op, torch_op, samples, draw, bad_inputs, cost, kernels))


_add_matmul("matmul", ops.matmul, _torch_matmul, _matmul_samples, _draw_matmul, _matmul_bad_inputs, _matmul_cost)
_add_matmul("bmm", ops.bmm, _torch_matmul, _bmm_samples, _draw_bmm, _bmm_bad_inputs, _matmul_cost)
_add_matmul("addmm", ops.addmm, _torch_addmm, _addmm_samples, _draw_addmm, _addmm_bad_inputs, _addmm_cost)
