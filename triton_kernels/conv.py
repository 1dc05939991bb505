"""Convolution kernels: implicit matrix products, one filter tap at a time, over tensors of any strides.

The input's gradient gathers the one output position that reads an input through a tap, where the stride divides:
nothing is upsampled. The weight's gradient walks the pixels in order: no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, tl_acc
from warpwright.triton_kernels._epilogue import epilogue_grads
from warpwright.triton_kernels._gemm import tile_fits
from warpwright.tuning import Config, Tunable, exact, power_of_two


@triton.jit
def _forward_kernel(
    x_ptr, xn, xc, xh, xw, w_ptr, wk, wc, wr, ws, y_ptr, yn, yk, yp, yq, res_ptr, rn, rk, rp, rq, bias_ptr, preact_ptr,
    batch, height, width, out_h, out_w, group_channels, group_filters, kernel_w, taps,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_filters, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    filter = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, p, q = m // (out_h * out_w), m // out_w % out_h, m % out_w
    in_m, in_n = n < batch, filter < group_filters
    wide_filter = group * group_filters + filter
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for tap in range(taps):
        r, s = tl.cast(tap // kernel_w, tl.int64), tl.cast(tap % kernel_w, tl.int64)
        h = p * stride_h - pad_h + r * dil_h
        w = q * stride_w - pad_w + s * dil_w
        inside = in_m & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        pixel = n * xn + h * xh + w * xw
        for start in range(0, group_channels, BLOCK_K):
            c = start + tl.arange(0, BLOCK_K).to(tl.int64)
            in_c = c < group_channels
            a_at = pixel[:, None] + (group * group_channels + c)[None, :] * xc
            a = tl.load(x_ptr + a_at, inside[:, None] & in_c[None, :], 0.0)  # (BLOCK_M, BLOCK_K)
            b_at = wide_filter[None, :] * wk + c[:, None] * wc + r * wr + s * ws
            b = tl.load(w_ptr + b_at, in_n[None, :] & in_c[:, None], 0.0)  # (BLOCK_K, BLOCK_N)
            if UPCAST:
                a = a.to(ACC)
                b = b.to(ACC)
            acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    mask = in_m[:, None] & in_n[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + wide_filter, in_n, 0.0).to(ACC)[None, :]
    if HAS_RESIDUAL:
        at = (n * rn + p * rp + q * rq)[:, None] + wide_filter[None, :] * rk
        acc += tl.load(res_ptr + at, mask, 0.0).to(ACC)
    at = (n * yn + p * yp + q * yq)[:, None] + wide_filter[None, :] * yk
    if SAVE_PREACT:
        tl.store(preact_ptr + at, acc.to(preact_ptr.dtype.element_ty), mask)
    tl.store(y_ptr + at, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _input_grad_kernel(
    x_ptr, xn, xc, xh, xw, w_ptr, wk, wc, wr, ws, y_ptr, yn, yk, yp, yq,
    batch, height, width, out_h, out_w, group_channels, group_filters, kernel_w, taps,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_channels, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, h, w = m // (height * width), m // width % height, m % width
    in_m, in_n = n < batch, c < group_channels
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for tap in range(taps):
        r, s = tl.cast(tap // kernel_w, tl.int64), tl.cast(tap % kernel_w, tl.int64)
        ph = h + pad_h - r * dil_h
        qw = w + pad_w - s * dil_w
        p, q = ph // stride_h, qw // stride_w
        divides = (p * stride_h == ph) & (q * stride_w == qw) & (ph >= 0) & (qw >= 0)
        inside = in_m & divides & (p < out_h) & (q < out_w)
        pixel = n * yn + p * yp + q * yq
        for start in range(0, group_filters, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            in_k = k < group_filters
            wide_k = group * group_filters + k
            a = tl.load(y_ptr + pixel[:, None] + wide_k[None, :] * yk, inside[:, None] & in_k[None, :], 0.0)
            b_at = wide_k[:, None] * wk + c[None, :] * wc + r * wr + s * ws
            b = tl.load(w_ptr + b_at, in_k[:, None] & in_n[None, :], 0.0)
            if UPCAST:
                a = a.to(ACC)
                b = b.to(ACC)
            acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    at = (n * xn + h * xh + w * xw)[:, None] + (group * group_channels + c)[None, :] * xc
    tl.store(x_ptr + at, acc.to(x_ptr.dtype.element_ty), in_m[:, None] & in_n[None, :])


@triton.jit
def _weight_grad_kernel(
    x_ptr, xn, xc, xh, xw, w_ptr, wk, wc, wr, ws, y_ptr, yn, yk, yp, yq,
    batch, height, width, out_h, out_w, group_channels, group_filters, kernel_w, taps,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(group_channels, BLOCK_N)
    tiles = tl.cdiv(group_filters, BLOCK_M) * tiles_n
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    tap = pid // tiles
    r, s = (tap // kernel_w).to(tl.int64), (tap % kernel_w).to(tl.int64)
    k = (pid % tiles // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_k, in_c = k < group_filters, c < group_channels
    wide_k, wide_c = group * group_filters + k, group * group_channels + c
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    pixels = batch * out_h * out_w
    for start in range(0, pixels, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K).to(tl.int64)
        n, p, q = at // (out_h * out_w), at // out_w % out_h, at % out_w
        h = p * stride_h - pad_h + r * dil_h
        w = q * stride_w - pad_w + s * dil_w
        there = at < pixels
        inside = there & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        a_at = (n * yn + p * yp + q * yq)[None, :] + wide_k[:, None] * yk
        a = tl.load(y_ptr + a_at, in_k[:, None] & there[None, :], 0.0)  # (BLOCK_M, BLOCK_K)
        b_at = (n * xn + h * xh + w * xw)[:, None] + wide_c[None, :] * xc
        b = tl.load(x_ptr + b_at, inside[:, None] & in_c[None, :], 0.0)  # (BLOCK_K, BLOCK_N)
        if UPCAST:
            a = a.to(ACC)
            b = b.to(ACC)
        acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    to = wide_k[:, None] * wk + c[None, :] * wc + r * wr + s * ws
    tl.store(w_ptr + to, acc.to(w_ptr.dtype.element_ty), in_k[:, None] & in_c[None, :])


def _format(tensor: Tensor) -> torch.memory_format:
    last = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _shape(x: Tensor, w: Tensor, y: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int):
    """The size arguments that the three kernels share."""
    batch, channels, height, width = x.shape
    filters, _, kernel_h, kernel_w = w.shape
    sizes = (batch, height, width, *y.shape[2:], channels // groups, filters // groups, kernel_w, kernel_h * kernel_w)
    return (*sizes, *stride, *padding, *dilation)


# ---- configurations ----


def _default(m: int, n: int, k: int, taps: int, groups: int) -> Config:
    """Tile sizes: fixed on a GPU; the interpreter takes its time by the call, so there a tile holds what it can."""
    if not interpreted():
        # Eight warps share the addresses: four would spill them.
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}
    names = zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), (m, n, k), (256, 64, 256), strict=True)
    return {name: min(limit, max(16, triton.next_power_of_2(size))) for name, size, limit in names}


def _tunable(name: str, grows: str, summed: tuple[str, ...]) -> Tunable:
    """As of a product of m x k and k x n for each tap and group; `grows` is the dimension that holds the pixels."""
    return Tunable(
        name,
        files=("conv.py", "_activation.py", "_common.py"),
        buckets={size: power_of_two if size == grows else exact for size in ("m", "n", "k", "taps", "groups")},
        summed=summed,
        space={
            "BLOCK_M": (16, 32, 64, 128),
            "BLOCK_N": (16, 32, 64, 128),
            "BLOCK_K": (16, 32, 64),
            "num_warps": (4, 8),
            "num_stages": (3, 4),
        },
        default=_default,
        fits=tile_fits,
    )


FORWARD = _tunable("conv_forward", "m", ("k", "taps"))
INPUT_GRAD = _tunable("conv_input_grad", "m", ("k", "taps"))
WEIGHT_GRAD = _tunable("conv_weight_grad", "k", ("k",))


def _tiles(m: int, n: int, config: Config) -> int:
    return triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])


def _layout(x: Tensor) -> str:
    return "channels_last" if x.stride(1) == 1 else ""


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    filters, group_channels = weight.shape[:2]
    sizes = [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in (0, 1)
    ]
    last = torch.channels_last in (_format(input), _format(weight))
    shape = (input.shape[0], filters, *sizes)
    memory_format = torch.channels_last if last else torch.contiguous_format
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format)
    keep = save_preact and needs_preact(activation)
    preact = torch.empty_like(output) if keep else input.new_empty(0)
    if output.numel() == 0:
        return output, preact
    m, n, taps = shape[0] * sizes[0] * sizes[1], filters // groups, weight.shape[2:].numel()
    addend = output if residual is None else residual
    bias_or_any = output if bias is None else bias.contiguous()

    def run(config: Config) -> None:
        _forward_kernel[(_tiles(m, n, config), groups)](
            input, *input.stride(), weight, *weight.stride(), output, *output.stride(), addend, *addend.stride(),
            bias_or_any, preact, *_shape(input, weight, output, stride, padding, dilation, groups),
            HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, SAVE_PREACT=keep, ACTIVATION=activation,
            ACC=tl_acc(input.dtype), UPCAST=interpreted(), **config,
        )  # fmt: skip

    FORWARD.launch(run, input, (m, n, group_channels, taps, groups), (output, preact), _layout(input))
    return output, preact


def _as_rows(tensor: Tensor) -> Tensor:
    """(pixels, channels), a view where the strides allow it."""
    n, c, h, w = tensor.shape
    return tensor.permute(0, 2, 3, 1).reshape(n * h * w, c)


def _grad_preact(
    grad: Tensor, saved: Tensor | None, activation: str, need_preact: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    n, k, p, q = grad.shape
    rows, bias = epilogue_grads(
        _as_rows(grad), None if saved is None else _as_rows(saved), activation, need_preact, need_bias
    )
    return (grad if activation == "none" else rows.view(n, p, q, k).permute(0, 3, 1, 2)), bias


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_preact = need_input or need_weight or need_residual
    grad, grad_bias = _grad_preact(grad_output, saved, activation, need_preact, need_bias)
    nothing = input.new_empty(0)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=_format(input))
    grad_weight = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
    grad_weight = grad_weight.contiguous(memory_format=_format(weight))
    m = input.shape[0] * input.shape[2:].numel()
    filters, n, taps = weight.shape[0] // groups, weight.shape[1], weight.shape[2:].numel()
    shape = _shape(input, weight, grad, stride, padding, dilation, groups)
    common = {"ACC": tl_acc(input.dtype), "UPCAST": interpreted()}

    def run_input(config: Config) -> None:
        _input_grad_kernel[(_tiles(m, n, config), groups)](
            grad_input, *grad_input.stride(), weight, *weight.stride(), grad, *grad.stride(), *shape, **common, **config
        )

    def run_weight(config: Config) -> None:
        _weight_grad_kernel[(taps * _tiles(filters, n, config), groups)](
            input, *input.stride(), grad_weight, *grad_weight.stride(), grad, *grad.stride(), *shape, **common, **config
        )

    if need_input and grad_input.numel() > 0:
        INPUT_GRAD.launch(run_input, input, (m, n, filters, taps, groups), (grad_input,), _layout(input))
    if need_weight and grad_weight.numel() > 0 and grad.numel() > 0:
        pixels = grad.shape[0] * grad.shape[2:].numel()
        WEIGHT_GRAD.launch(run_weight, input, (filters, n, pixels, taps, groups), (grad_weight,), _layout(input))
    last = torch.channels_last in (_format(input), _format(weight))
    memory_format = torch.channels_last if last else torch.contiguous_format
    return (
        grad_input if need_input else nothing,
        grad_weight if need_weight else nothing.clone(),
        grad_bias if need_bias else nothing.clone(),
        grad.clone(memory_format=memory_format) if need_residual else nothing.clone(),
    )
