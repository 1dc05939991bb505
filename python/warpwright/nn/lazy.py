"""torch.nn's lazy layers, which become warpwright's when their first input tells what they lack."""

from __future__ import annotations

import torch

from warpwright.nn import channel_norm, conv, matmul


class LazyLinear(torch.nn.LazyLinear):
    """torch.nn.LazyLinear that becomes a warpwright.nn.Linear: in_features are the first input's last dimension.

    As torch's: parameters have no shape before the first call, and optimizers are made after it. So are all layers of
    this module.
    """

    cls_to_become = matmul.Linear


class LazyConv1d(torch.nn.LazyConv1d):
    """torch.nn.LazyConv1d that becomes a warpwright.nn.Conv1d: in_channels are the first input's."""

    cls_to_become = conv.Conv1d


class LazyConv2d(torch.nn.LazyConv2d):
    """torch.nn.LazyConv2d that becomes a warpwright.nn.Conv2d: in_channels are the first input's."""

    cls_to_become = conv.Conv2d


class LazyConv3d(torch.nn.LazyConv3d):
    """torch.nn.LazyConv3d that becomes a warpwright.nn.Conv3d: in_channels are the first input's."""

    cls_to_become = conv.Conv3d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d):
    """torch.nn.LazyConvTranspose1d that becomes a warpwright.nn.ConvTranspose1d: in_channels are the first input's."""

    cls_to_become = conv.ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d):
    """torch.nn.LazyConvTranspose2d that becomes a warpwright.nn.ConvTranspose2d: in_channels are the first input's."""

    cls_to_become = conv.ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d):
    """torch.nn.LazyConvTranspose3d that becomes a warpwright.nn.ConvTranspose3d: in_channels are the first input's."""

    cls_to_become = conv.ConvTranspose3d


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d):
    """torch.nn.LazyBatchNorm1d that becomes a warpwright.nn.BatchNorm1d: num_features are the input's channels."""

    cls_to_become = channel_norm.BatchNorm1d  # type: ignore[assignment]


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d):
    """torch.nn.LazyBatchNorm2d that becomes a warpwright.nn.BatchNorm2d: num_features are the input's channels."""

    cls_to_become = channel_norm.BatchNorm2d  # type: ignore[assignment]


class LazyBatchNorm3d(torch.nn.LazyBatchNorm3d):
    """torch.nn.LazyBatchNorm3d that becomes a warpwright.nn.BatchNorm3d: num_features are the input's channels."""

    cls_to_become = channel_norm.BatchNorm3d  # type: ignore[assignment]


class LazyInstanceNorm1d(torch.nn.LazyInstanceNorm1d):
    """torch.nn.LazyInstanceNorm1d that becomes a warpwright.nn.InstanceNorm1d."""

    cls_to_become = channel_norm.InstanceNorm1d


class LazyInstanceNorm2d(torch.nn.LazyInstanceNorm2d):
    """torch.nn.LazyInstanceNorm2d that becomes a warpwright.nn.InstanceNorm2d."""

    cls_to_become = channel_norm.InstanceNorm2d


class LazyInstanceNorm3d(torch.nn.LazyInstanceNorm3d):
    """torch.nn.LazyInstanceNorm3d that becomes a warpwright.nn.InstanceNorm3d."""

    cls_to_become = channel_norm.InstanceNorm3d
