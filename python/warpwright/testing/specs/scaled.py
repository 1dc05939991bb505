"""OpSpecs of the scaled family. Integer sums are exact: tests/test_scaled.py."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes
from warpwright.testing.specs.quantize import E4M3, E5M2, any_float8

_BLOCK = 128


def _dequantised(tensor: Tensor, scale: Tensor) -> Tensor:
    """tensor * scale, in the scale's dtype."""
    rows, cols = tensor.shape
    if scale.numel() == 1:
        return tensor.to(scale.dtype) * scale.reshape(())
    if scale.dim() == 1:
        scale = scale.unsqueeze(1)
    if scale.shape[0] != rows:
        scale = scale.repeat_interleave(_BLOCK, 0)[:rows]
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(_BLOCK, 1)[:, :cols]
    return tensor.to(scale.dtype) * scale


def _scaled_mm_takes(
    input: Tensor, other: Tensor, input_scale: Tensor, other_scale: Tensor, out_dtype: torch.dtype
) -> bool:
    """Whether PyTorch's own product takes these: on GPUs from sm_89 on, with a scale for each tensor or each row."""
    float8 = {input.dtype, other.dtype} in ({E4M3}, {E4M3, E5M2})
    whole = 0 not in input.shape and other.shape[0] % 16 == 0 and input.shape[1] % 16 == 0
    if not float8 or not whole or not input.is_contiguous() or not other.is_contiguous():
        return False
    if input.is_cuda and torch.cuda.get_device_capability(input.device) < (8, 9):
        return False
    if input_scale.numel() == 1 and other_scale.numel() == 1:
        return True
    kinds = (input_scale.numel(), other_scale.numel()) == (input.shape[0], other.shape[0])
    return kinds and out_dtype == torch.bfloat16


def _torch_scaled_matmul(
    input: Tensor,
    other: Tensor,
    input_scale: Tensor,
    other_scale: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    if (
        bias is None
        and residual is None
        and activation is None
        and _scaled_mm_takes(input, other, input_scale, other_scale, out_dtype)
    ):
        a_scale, b_scale = (s.reshape(()) if s.numel() == 1 else s.reshape(-1, 1) for s in (input_scale, other_scale))
        return torch._scaled_mm(input, other.t(), a_scale, b_scale.t(), out_dtype=out_dtype)
    if input.shape[1] == 0:  # Without blocks there is no scale to repeat.
        value = input_scale.new_zeros(input.shape[0], other.shape[0])
    else:
        value = _dequantised(input, input_scale) @ _dequantised(other, other_scale).t()
    if bias is not None:
        value = value + bias
    if residual is not None:
        value = value + residual
    value = TORCH_ACTIVATIONS[activation](value)
    return value if value.dtype == torch.float64 else value.to(out_dtype)


# ---- samples ----


def _operand(make: Make, rows: int, k: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return make.integers(rows, k, low=-128, high=128).to(torch.int8)
    return make.tensor(rows, k, low=-4, high=4, grad=False, dtype=dtype)


def _scale(make: Make, *shape: int, dtype: torch.dtype = E4M3) -> Tensor:
    """Such that products are near 1."""
    unit = 1 / 64 if dtype == torch.int8 else 0.5
    return make.tensor(*shape, low=0.2 * unit, high=unit, grad=False, dtype=torch.float32)


def _call(
    make: Make,
    name: str,
    m: int,
    n: int,
    k: int,
    input_scale: tuple[int, ...],
    other_scale: tuple[int, ...],
    *,
    dtypes: tuple[torch.dtype, torch.dtype] = (E4M3, E4M3),
    bias: bool = False,
    residual: bool = False,
    activation: str | None = None,
) -> Sample:
    operands = _operand(make, m, k, dtypes[0]), _operand(make, n, k, dtypes[1])
    scales = _scale(make, *input_scale, dtype=dtypes[0]), _scale(make, *other_scale, dtype=dtypes[1])
    kwargs: dict[str, object] = {"out_dtype": make.dtype, "activation": activation}
    if bias:
        kwargs["bias"] = make.tensor(n, grad=False)
    if residual:
        kwargs["residual"] = make.tensor(m, n, grad=False)
    return Sample(name, (*operands, *scales), kwargs)


_INT8 = (torch.int8, torch.int8)


def _samples(make: Make) -> Iterator[Sample]:
    yield _call(make, "one scale", 5, 7, 40, (), ())
    yield _call(make, "rows and channels", 5, 7, 33, (5,), (7,), bias=True)
    yield _call(make, "blocks", 5, 7, 300, (5, 3), (1, 3), dtypes=(E5M2, E4M3), activation="silu")
    yield _call(make, "int8", 5, 7, 45, (5,), (7,), dtypes=_INT8, bias=True, activation="relu")
    yield _call(make, "rows as quantize_fp8 has them", 3, 4, 140, (3, 1), (4, 1), dtypes=(E4M3, E5M2), residual=True)
    yield _call(make, "blocks of rows in both", 3, 5, 260, (3, 3), (5, 3), bias=True, residual=True)
    yield _call(make, "blocks and channels", 5, 3, 130, (5, 2), (3,), dtypes=(E5M2, E5M2), activation="gelu")
    # Rows of whole 16 bytes, which the tensor cores' fastest kernels take: past a tile, past the tiles that run at
    # once, and more steps than they have stages. Every pair of types.
    yield _call(make, "chunks", 136, 144, 160, (136, 2), (2, 2), residual=True, activation="tanh")
    yield _call(make, "chunks, many tiles", 40, 392, 128, (), (392,), dtypes=(E4M3, E5M2), bias=True)
    yield _call(make, "chunks, long sum", 24, 16, 1168, (24, 10), (1, 10), dtypes=(E5M2, E4M3))
    yield _call(make, "chunks, blocks of rows in both", 24, 48, 272, (24, 3), (48, 3), dtypes=(E5M2, E5M2))
    yield _call(make, "chunks, int8", 136, 144, 160, (136,), (), dtypes=_INT8, residual=True)
    yield _call(make, "chunks, int8, long sum", 16, 16, 1040, (), (16, 1), dtypes=_INT8, bias=True)
    # Subnormals and the largest numbers.
    every = any_float8(make, 6, 144), any_float8(make, 16, 144, dtype=E5M2)
    scales = _scale(make, 6) * 1e-3, _scale(make) * 1e-3
    yield Sample("any number", (*every, *scales), {"out_dtype": make.dtype})
    yield _call(make, "no rows", 0, 4, 20, (0, 1), (4,), bias=True)
    yield _call(make, "no columns", 3, 0, 20, (), (0, 1))
    yield _call(make, "no inner", 3, 4, 0, (3, 0), (1, 0), bias=True, activation="silu")


def _draw(make: Make, rng: random.Random) -> Sample:
    m, n, k = draw_size(rng, 40), draw_size(rng, 200), draw_size(rng, 400)
    dtypes = rng.choice([_INT8, *((a, b) for a in (E4M3, E5M2) for b in (E4M3, E5M2))])
    blocks = -(-k // _BLOCK)
    input_scales: list[tuple[int, ...]] = [(), (m,), (m, 1)]
    other_scales: list[tuple[int, ...]] = [(), (n,), (n, 1)]
    if dtypes != _INT8:
        input_scales += [(m, blocks)]
        other_scales += [(n, blocks), (-(-n // _BLOCK), blocks)]
    chosen = rng.choice(input_scales), rng.choice(other_scales)
    return _call(
        make, f"{m} x {n} x {k} {dtypes} {chosen}", m, n, k, *chosen, dtypes=dtypes, bias=rng.random() < 0.5,
        residual=rng.random() < 0.3, activation=rng.choice([None, *ACTIVATIONS]),
    )  # fmt: skip


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w, one = _operand(make, 4, 200, E4M3), _operand(make, 6, 200, E5M2), _scale(make)
    i, j = _operand(make, 4, 200, torch.int8), _operand(make, 6, 200, torch.int8)
    scales = one, one
    yield BadInput("input dtype", (x.half(), w, *scales), "input must be torch.float8_e4m3fn, .*got torch.float16")
    yield BadInput("input rank", (x[0], w, *scales), "input must have 2 dimensions, got 1")
    yield BadInput("other rank", (x, w[None], *scales), "other must have 2 dimensions, got 3")
    message = "other must be torch.float8_e4m3fn or torch.float8_e5m2, as input is torch.float8_e4m3fn, got torch.int8"
    yield BadInput("other dtype", (x, j, *scales), message)
    message = "other must be torch.int8, as input is torch.int8, got torch.float8_e5m2"
    yield BadInput("other dtype, int8", (i, w, *scales), message)
    yield BadInput("inner", (x, w[:, :8], *scales), "other has 8 columns, input has 200")
    wide = torch.empty(0, 1 << 17, dtype=torch.int8, device=x.device)
    yield BadInput(
        "too many int8", (wide, wide, *scales), "int8 operands must have fewer than 131072 columns, .*131072"
    )
    yield BadInput("scale dtype", (x, w, one.double(), one), "input_scale must be torch.float32, got torch.float64")
    message = r"input_scale must have one element or shape \(4,\), \(4, 1\) or \(4, 2\), got \(6,\)"
    yield BadInput("input_scale shape", (x, w, _scale(make, 6), one), message)
    message = r"other_scale must have one element or shape \(6,\), \(6, 1\), \(6, 2\) or \(1, 2\), got \(4, 2\)"
    yield BadInput("other_scale shape", (x, w, one, _scale(make, 4, 2)), message)
    message = r"input_scale must have one element or shape \(4,\) or \(4, 1\), got \(4, 2\)"
    yield BadInput("int8 blocks", (i, j, _scale(make, 4, 2), one), message)
    message = "out_dtype must be float32, float16 or bfloat16, got torch.float64"
    yield BadInput("out_dtype", (x, w, *scales), message, {"out_dtype": torch.float64})
    message = r"bias must have the dtype of the output \(torch.float16\), got torch.float64"
    bias = torch.zeros(6, dtype=torch.float64, device=x.device)
    yield BadInput("bias dtype", (x, w, *scales), message, {"bias": bias, "out_dtype": torch.float16})
    bias = make.tensor(5, grad=False, dtype=torch.bfloat16)
    yield BadInput("bias shape", (x, w, *scales), r"bias must have shape \(6,\), got \(5,\)", {"bias": bias})
    message = r"residual must have shape \(4, 6\), got \(5,\)"
    yield BadInput("residual shape", (x, w, *scales), message, {"residual": bias})
    message = "activation must be one of none, relu, .*got 'mish'"
    yield BadInput("activation", (x, w, *scales), message, {"activation": "mish"})


def _cost(
    input: Tensor,
    other: Tensor,
    input_scale: Tensor,
    other_scale: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Cost:
    (m, k), n = input.shape, other.shape[0]
    read = nbytes(input, other, input_scale, other_scale, bias, residual)
    return Cost(2 * m * n * k, read + m * n * out_dtype.itemsize)


add(
    OpSpec(
        name="scaled_matmul",
        family="scaled",
        op=ops.scaled_matmul,
        torch_op=_torch_scaled_matmul,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("scaled_matmul",),
        gradcheck=False,
    )
)
