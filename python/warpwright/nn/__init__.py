"""Layers with torch.nn's constructors, attributes and state_dict keys, and `replace_modules` to switch a model to them.

A layer never raises where torch's would have worked: what its op cannot run goes through torch's own forward, and is
counted and named by `warpwright.fallbacks()`.
"""

from warpwright.nn._replace import ReplaceReport, replace_modules
from warpwright.nn.conv import Conv2d
from warpwright.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, KLDivLoss, LinearCrossEntropyLoss, NLLLoss
from warpwright.nn.matmul import Linear
from warpwright.nn.norm import LayerNorm, RMSNorm

__all__ = [
    "BCEWithLogitsLoss",
    "Conv2d",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LayerNorm",
    "Linear",
    "LinearCrossEntropyLoss",
    "NLLLoss",
    "RMSNorm",
    "ReplaceReport",
    "replace_modules",
]
