"""The public operators, one module a family."""

from warpwright.ops.matmul import linear
from warpwright.ops.norm import rms_norm

__all__ = ["linear", "rms_norm"]
