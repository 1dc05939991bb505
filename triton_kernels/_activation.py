"""The activations of an epilogue, by name, for use inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from warpwright._check import LEAKY_SLOPE

_LEAKY_SLOPE = tl.constexpr(LEAKY_SLOPE)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Of exp(-2 |x|), which cannot overflow; near zero the difference 1 - e loses digits, so a short series stands in.
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    large = (1.0 - e) / (1.0 + e)
    z = x * x
    series = 1.0 + z * (-1.0 / 3 + z * (2.0 / 15 + z * (-17.0 / 315 + z * (62.0 / 2835 - z * (1382.0 / 155925)))))
    return tl.where(a < 0.25, x * series, tl.where(x < 0, -large, large))


@triton.jit
def tanh_grad(x):
    # 1 - tanh(x)^2, which loses its digits as a difference where tanh(x) is close to 1.
    e = tl.exp(-2.0 * tl.abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """activation(x) of the pre-activation x, in float32 or float64."""
    if ACTIVATION == "relu":
        x = tl.where(x != x, x, tl.maximum(x, 0.0))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, x * _LEAKY_SLOPE)
    elif ACTIVATION == "hardswish":
        shifted = x + 3.0
        x = x * tl.where(shifted < 0.0, 0.0, tl.where(shifted > 6.0, 6.0, shifted)) * (1.0 / 6.0)
    return x


@triton.jit
def activation_grad(x, ACTIVATION: tl.constexpr):
    """d activation / d x, from the output or the pre-activation: see `_check.needs_preact`."""
    grad = x * 0.0 + 1.0
    if ACTIVATION == "relu":
        grad = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif ACTIVATION == "gelu":
        grad = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_tanh":
        y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        inner = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        grad = 0.5 * (1.0 + tanh(y)) + 0.5 * x * tanh_grad(y) * inner
    elif ACTIVATION == "silu":
        s = sigmoid(x)
        grad = s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == "sigmoid":
        grad = x * (1.0 - x)
    elif ACTIVATION == "tanh":
        grad = 1.0 - x * x
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(x > 0, 1.0, _LEAKY_SLOPE).to(x.dtype)
    elif ACTIVATION == "hardswish":
        grad = tl.where(x <= -3.0, 0.0, tl.where(x >= 3.0, 1.0, x * (1.0 / 3.0) + 0.5)).to(x.dtype)
    return grad
