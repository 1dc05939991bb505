"""Optimizers with torch.optim's constructors, state and checkpoints, on warpwright's kernels."""

from warpwright.optim._multi_tensor import MultiTensorOptimizer
from warpwright.optim.adam import Adam, AdamW
from warpwright.optim.lamb import Lamb
from warpwright.optim.lion import Lion
from warpwright.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Lamb", "Lion", "MultiTensorOptimizer"]
