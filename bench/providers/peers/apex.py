"""NVIDIA Apex: CUDA kernels, each in an extension of its own that a build may leave out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright.bench.providers.peers._peer import (
    Adapter,
    first_of,
    import_failure,
    matrix,
    needs,
    only,
    peer,
    without,
)
from warpwright.testing import Sample


def _built(extension: str) -> Callable[[Sample], str | None]:
    """Apex's Python is there without it, and imports it in the first call only."""

    def accepts(sample: Sample) -> str | None:
        reason = import_failure(extension)
        return reason and f"apex was built without {extension} ({reason})"

    return accepts


def _rms_norm(apex: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        return apex.fused_rms_norm_affine(input, weight, list(normalized_shape), eps)

    return call


def _layer_norm(apex: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *,
        residual: Tensor | None = None,
    ) -> Any:
        return apex.fused_layer_norm_affine(input, weight, bias, list(normalized_shape), eps)

    return call


def _group_norm(apex: Any) -> Callable[..., Any]:
    """Its layer chooses between its kernels, so that it is called as a function of its parameters."""
    layers: dict[tuple[Any, ...], torch.nn.Module] = {}

    def call(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *,
        activation: str | None = None,
    ) -> Any:
        key = (num_groups, input.shape[1], eps, activation, input.device, input.dtype)
        if key not in layers:
            layers[key] = apex.GroupNorm(
                num_groups, input.shape[1], eps, device=input.device, dtype=input.dtype, act=activation or ""
            )
        return torch.func.functional_call(layers[key], {"weight": weight, "bias": bias}, (input,))

    return call


def _accepts_group_norm(sample: Sample) -> str | None:
    """Refuses what its layer passes on to PyTorch."""
    input, groups = sample.args[:2]
    layer = importlib.import_module(_GROUP_NORM).GroupNorm
    if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
        return "it runs PyTorch's own op unless channels come last"
    if groups not in layer.SUPPORTED_GROUPS or input.shape[1] not in layer.SUPPORTED_CHANNELS:
        return f"it runs PyTorch's own op for {groups} groups of {input.shape[1]} channels"
    return only("activation", None, "silu")(sample)


def _cross_entropy(apex: Any) -> Callable[..., Any]:
    def call(
        input: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Any:
        losses = apex.SoftmaxCrossEntropyLoss.apply(input, target, label_smoothing, ignore_index, False)
        if reduction == "none":
            return losses
        return losses.sum() if reduction == "sum" else losses.sum() / (target != ignore_index).sum()

    return call


#: Elements that one block of its kernels takes, as apex's own optimizers choose it.
_CHUNK = 2048 * 32
_ADAMW_MODE, _BIAS_CORRECTION = 1, 1


def _adamw(extension: Any) -> Callable[..., Any]:
    """Apex's optimizers count steps in Python: a step is read from its tensor once, and not again until it changes."""
    known: dict[tuple[int, int], int] = {}
    flags: dict[torch.device, Tensor] = {}

    def call(
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        steps: Sequence[Tensor],
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        key, device = (steps[0].data_ptr(), steps[0]._version), params[0].device
        if key not in known:
            known[key] = int(steps[0])
        if device not in flags:
            flags[device] = torch.zeros(1, dtype=torch.int32, device=device)
        lists = [list(tensors) for tensors in (grads, params, exp_avgs, exp_avg_sqs)]
        extension.multi_tensor_adam(
            _CHUNK, flags[device], lists, lr, beta1, beta2, eps, known[key], _ADAMW_MODE, _BIAS_CORRECTION, weight_decay
        )

    return call


def _accepts_adamw(sample: Sample) -> str | None:
    if sample.kwargs.get("masters"):
        return "masters are not supported"
    dtypes = {t.dtype for tensors in sample.args[:4] for t in tensors}
    return None if dtypes <= {torch.float32} else "its moments are float32, whatever the parameters are"


_NORM, _GROUP_NORM = "apex.normalization.fused_layer_norm", "apex.contrib.group_norm"

APEX = peer(
    "apex",
    "NVIDIA Apex's CUDA kernels",
    package="apex",
    install="from its sources, github.com/NVIDIA/apex, with all extensions",
    adapters={
        "rms_norm": Adapter(
            _NORM, _rms_norm, first_of(without("residual"), needs(2, "weight"), _built("fused_layer_norm_cuda"))
        ),
        "layer_norm": Adapter(
            _NORM,
            _layer_norm,
            first_of(without("residual"), needs(2, "weight"), needs(3, "bias"), _built("fused_layer_norm_cuda")),
        ),
        "group_norm": Adapter(
            _GROUP_NORM, _group_norm, first_of(needs(2, "weight"), needs(3, "bias"), _accepts_group_norm)
        ),
        "cross_entropy": Adapter("apex.contrib.xentropy", _cross_entropy, matrix),
        "adamw_": Adapter("amp_C", _adamw, _accepts_adamw),
    },
)
