"""The public operators, one module a family."""

from warpwright.ops.norm import rms_norm

__all__ = ["rms_norm"]
