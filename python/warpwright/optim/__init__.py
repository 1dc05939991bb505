"""Optimizers with torch.optim's constructors, state and checkpoints, on warpwright's kernels."""

from warpwright.optim.adamw import AdamW

__all__ = ["AdamW"]
