"""warpwright: hand-written CUDA C++ and Triton kernels for matmul, convolution and fused mixed-precision ops."""

from warpwright import ops
from warpwright._backend import current_backend, use_backend
from warpwright._info import info
from warpwright._version import __version__

__all__ = ["__version__", "current_backend", "info", "ops", "use_backend"]
