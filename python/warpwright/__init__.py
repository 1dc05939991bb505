"""warpwright: hand-written CUDA C++ and Triton kernels for matmul, convolution and fused mixed-precision ops."""

from warpwright import amp, data, export, nn, ops, optim
from warpwright._arithmetic import batch_invariant, float32_precision
from warpwright._backend import current_backend, use_backend
from warpwright._clip import clip_grad_norm_
from warpwright._deterministic import deterministic
from warpwright._explain import explain
from warpwright._fallbacks import fallbacks
from warpwright._info import info
from warpwright._version import __version__
from warpwright.fusion import fuse, fuse_report
from warpwright.pruning import sparsify
from warpwright.quantization import quantize

__all__ = [
    "__version__",
    "amp",
    "batch_invariant",
    "clip_grad_norm_",
    "current_backend",
    "data",
    "deterministic",
    "explain",
    "export",
    "fallbacks",
    "float32_precision",
    "fuse",
    "fuse_report",
    "info",
    "nn",
    "ops",
    "optim",
    "quantize",
    "sparsify",
    "use_backend",
]
