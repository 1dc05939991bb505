"""ResNet-50, fused: the same numbers by fewer kernels. tests/resnet50.py lists them."""

from __future__ import annotations

import copy

import emulated
import pytest
import torch
from resnet50 import ResNet50, counted
from thinning import thinned

import warpwright


def _step(model: ResNet50, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, every gradient, and the running statistics after."""
    x = x.clone().requires_grad_()
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    grads = torch.autograd.grad((output * weights).sum(), (x, *model.parameters()))
    return [output, *grads, *(b for b in model.buffers() if b.is_floating_point())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_training_step_is_as_exact_as_torchs(matrix, dtype):
    """Of all tensors of a kind together: behind fifty layers a single small one's error is chance."""
    if thinned(matrix) and warpwright.current_backend() == "triton" and dtype == torch.bfloat16:
        pytest.skip("interpreted, a step takes a minute, and bfloat16 is multiplied in float32")
    torch.manual_seed(0)
    model = ResNet50(4, 10).to(matrix, dtype, memory_format=torch.channels_last)
    x = torch.rand(2, 3, 64, 64, device=matrix).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = _step(copy.deepcopy(model).double(), x.double())
    torchs = _step(copy.deepcopy(model), x)
    ours = _step(model.fuse(), x)
    kinds = {"output": slice(0, 1), "gradients": slice(1, None)}
    for kind, which in kinds.items():
        errors = [_relative(found[which], exact[which]) for found in (ours, torchs)]
        assert errors[0] <= 2 * errors[1], kind


def _relative(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The root of the mean square of the tensors' relative errors."""
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True) if b.norm() > 0]
    return sum(e * e for e in errors) ** 0.5


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
def test_inference_takes_a_kernel_for_each_convolution():
    theirs, ours = counted(training=False)
    assert theirs["convolution"] == theirs["native_batch_norm"] == 53
    # Hopper's takes those of 32 channels and more.
    assert ours == {"conv_fprop": 1, "conv_fprop_mma": 32, "conv_fprop_wgmma": 20}
    assert theirs.total() == 171


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
def test_a_training_step_takes_fewer_kernels_over_tensors():
    """Beside them are the joins of partial results, some numbers for each channel: two for each norm."""
    theirs, ours = counted(training=True)
    joins = ours["channel_norm_cells"] + ours["channel_norm_backward_cells"]
    assert joins == 2 * 53
    assert ours["channel_norm_slabs"] == 1, "the tensor cores' kernels find the statistics"
    assert ours.total() - joins < theirs.total() - 50
