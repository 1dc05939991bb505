"""Layers with torch.nn's constructors, attributes and state_dict keys, and `replace_modules` to switch a model to them.

A layer never raises where torch's would have worked: what its op cannot run goes through torch's own forward, and is
counted and named by `warpwright.fallbacks()`.
"""

from warpwright.nn._replace import ReplaceReport, replace_modules
from warpwright.nn.activation import GELU, GLU, Dropout, LogSoftmax, ReLU, SiLU, Softmax
from warpwright.nn.channel_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    SyncBatchNorm,
)
from warpwright.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from warpwright.nn.conv_batch_norm import ConvBnAct2d
from warpwright.nn.embedding import Embedding
from warpwright.nn.experts import Experts
from warpwright.nn.float8 import Float8Linear, convert_to_float8_training
from warpwright.nn.lazy import (
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    LazyLinear,
)
from warpwright.nn.loss import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    LinearCrossEntropyLoss,
    LinearKLDivLoss,
    NLLLoss,
)
from warpwright.nn.matmul import Linear
from warpwright.nn.mlp import MLP, GatedMLP
from warpwright.nn.norm import LayerNorm, RMSNorm
from warpwright.nn.quantized import LinearFP8, LinearInt8, LinearW4A16, LinearW8A16, QuantizedLinear
from warpwright.nn.sparse import SparseLinear

__all__ = [
    "GELU",
    "GLU",
    "MLP",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvBnAct2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Experts",
    "Float8Linear",
    "GatedMLP",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "KLDivLoss",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LazyLinear",
    "Linear",
    "LinearCrossEntropyLoss",
    "LinearFP8",
    "LinearInt8",
    "LinearKLDivLoss",
    "LinearW4A16",
    "LinearW8A16",
    "LogSoftmax",
    "NLLLoss",
    "QuantizedLinear",
    "RMSNorm",
    "ReLU",
    "ReplaceReport",
    "SiLU",
    "Softmax",
    "SparseLinear",
    "SyncBatchNorm",
    "convert_to_float8_training",
    "replace_modules",
]
