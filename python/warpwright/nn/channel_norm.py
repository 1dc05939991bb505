"""Group, batch and instance norm layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from warpwright import ops
from warpwright._channels import NORM_ACTIVATIONS
from warpwright._check import require
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation
from warpwright.nn._reasons import common_reason

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: A norm as a function of (running_mean, running_var, training, momentum).
Norm = Callable[[Tensor | None, Tensor | None, bool, float], Tensor]


def checked_norm_activation(layer: str, activation: str) -> str:
    message = f"activation must be one of {', '.join(NORM_ACTIVATIONS)}, got '{activation}'"
    require(activation in NORM_ACTIVATIONS, f"nn.{layer}", message)
    return activation


def _with_activation(text: str, activation: str | None) -> str:
    return text if activation is None else f"{text}, activation={activation!r}"


class GroupNorm(torch.nn.GroupNorm):
    """torch.nn.GroupNorm on warpwright.ops.group_norm: same constructor, attributes and state_dict.

    Args:
        num_groups, ..., dtype: torch.nn.GroupNorm's.
        activation: applied to the output by the same kernel: "relu", "silu" or None.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where the op cannot take the tensors: a dtype
    other than float32, float16, bfloat16 (float64 on the CPU), parameters that are neither of input's dtype nor
    float32, sparse or nested tensors, subclasses with their own dispatch, torch.func transforms, devices without a
    kernel.
    """

    activation: str | None = None  # Here too, for layers whose constructor was torch's (replace_modules).

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if activation is not None:
            self.activation = checked_norm_activation("GroupNorm", activation)

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, self.weight, self.bias, wide=True, op="group_norm")
        if reason is not None:
            count_fallback("GroupNorm", reason)
            return apply_activation(super().forward(input), self.activation)
        return ops.group_norm(input, self.num_groups, self.weight, self.bias, self.eps, activation=self.activation)

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What the three batch norms share: all but the number of dimensions that they take."""

    activation: str | None = None  # Here too, for layers whose constructor was torch's (replace_modules).

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if activation is not None:
            self.activation = checked_norm_activation(type(self).__name__, activation)

    def forward(self, input: Tensor) -> Tensor:
        parameters = (self.weight, self.bias, self.running_mean, self.running_var)
        reason = common_reason(input, *parameters, wide=True, op="batch_norm")
        if reason is not None:
            count_fallback(type(self).__name__, reason)
            return apply_activation(self.forward_by_torch(input), self.activation)
        return self.call_op(input, self.activation)

    def call_op(self, input: Tensor, activation: str | None, residual: Tensor | None = None) -> Tensor:
        """The op with the layer's state, and with an epilogue that need not be the layer's own."""
        self._check_input_dim(input)

        def norm(mean: Tensor | None, var: Tensor | None, training: bool, momentum: float) -> Tensor:
            return ops.batch_norm(
                input, mean, var, self.weight, self.bias, training, momentum, self.eps, residual=residual,
                activation=activation, process_group=self.exchange_group(),
            )  # fmt: skip

        return self.step(norm)

    def forward_by_torch(self, input: Tensor) -> Tensor:
        """Without the activation."""
        return super().forward(input)

    def exchange_group(self) -> ProcessGroup | None:
        """Whose batches give the statistics now; None for this process's alone."""
        return None

    def step(self, norm: Norm) -> Tensor:
        """Calls `norm` as the layer's state has it, and moves that on: counts the batch, averages without a momentum.

        Args:
            norm: norm(running_mean, running_var, training, momentum); in training it writes to the running statistics.

        Returns:
            What it returns.
        """
        running = (self.running_mean, self.running_var)
        training = self.training or running == (None, None)
        if self.training and not self.track_running_stats:
            running = (None, None)
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return self._average(norm)
        return norm(*running, training, 0.0 if self.momentum is None else self.momentum)

    def _average(self, norm: Norm) -> Tensor:
        """A training step without a momentum: the running statistics are the average of all batches."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        found = self.running_mean.clone(), self.running_var.clone()
        output = norm(*found, True, 1.0)
        for running, own in zip((self.running_mean, self.running_var), found, strict=True):
            running.lerp_(own, self.num_batches_tracked.to(own.dtype).reciprocal())
        return output

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d on warpwright.ops.batch_norm: same constructor, attributes and state_dict.

    Args:
        num_features, ..., dtype: torch.nn.BatchNorm1d's.
        activation: applied to the output by the same kernel: "relu", "silu" or None.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where GroupNorm would.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on warpwright.ops.batch_norm, as BatchNorm1d."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d on warpwright.ops.batch_norm, as BatchNorm1d."""


class SyncBatchNorm(_BatchNorm):
    """torch.nn.SyncBatchNorm on warpwright.ops.batch_norm: same constructor, attributes and state_dict.

    No subclass of it, because DistributedDataParallel refuses those on CPUs.

    Args:
        num_features, ..., dtype: torch.nn.SyncBatchNorm's; without a process_group all processes exchange statistics.
        activation: applied to the output by the same kernel: "relu", "silu" or None.

    In training, mean and variance are those of all processes' batches, on CPUs too; in evaluation, and where
    torch.distributed was not initialised, it is a BatchNorm. Runs torch's own forward, and counts it in
    warpwright.fallbacks(), where GroupNorm would.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, activation=activation
        )  # fmt: skip
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    # Of torch's forward.
    _check_non_zero_input_channels = torch.nn.SyncBatchNorm._check_non_zero_input_channels

    def forward_by_torch(self, input: Tensor) -> Tensor:
        return torch.nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]

    def exchange_group(self) -> ProcessGroup | None:
        if not self.training or not dist.is_available() or not dist.is_initialized():
            return None
        return self.process_group or dist.group.WORLD

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_group: ProcessGroup | None = None
    ) -> torch.nn.Module:
        """Makes every batch norm of `module`, torch's or warpwright's, a SyncBatchNorm, in place.

        Only the class of each layer changes: parameters, buffers, hooks and activations stay as they are. Batch norms
        inside ConvBnAct2d are among them; subclasses of them are not.

        Args:
            module: any module; it may itself be a batch norm.
            process_group: of the layers; None for all processes.

        Returns:
            `module`.
        """
        known = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
        for layer in module.modules():
            if type(layer) in (*known, BatchNorm1d, BatchNorm2d, BatchNorm3d):
                layer.__class__ = cls
                assert isinstance(layer, cls)
                layer.process_group = process_group
        return module


class _InstanceNorm(torch.nn.modules.instancenorm._InstanceNorm):
    """What the three instance norms share: all but the number of dimensions that they take."""

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        parameters = (self.weight, self.bias, self.running_mean, self.running_var)
        reason = common_reason(input, *parameters, wide=True)
        if reason is not None:
            count_fallback(type(self).__name__, reason)
            return super()._apply_instance_norm(input)
        own = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        return ops.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps
        )


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d on warpwright.ops.instance_norm: same constructor, attributes and state_dict.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where GroupNorm would.
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d on warpwright.ops.instance_norm, as InstanceNorm1d."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d on warpwright.ops.instance_norm, as InstanceNorm1d."""
