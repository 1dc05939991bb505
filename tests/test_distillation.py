"""What the OpSpec cannot say of the losses that teach one model by another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import warpwright
from warpwright import ops
from warpwright.testing import SPECS, Expected, Make, Sample, evaluate


def _operands(dtype=torch.float32):
    return (
        torch.randn(6, 4, dtype=dtype, requires_grad=True), torch.randn(9, 4, dtype=dtype, requires_grad=True),
        torch.randn(6, 5, dtype=dtype, requires_grad=True), torch.randn(9, 5, dtype=dtype, requires_grad=True),
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_no_gradient_flows_to_the_teacher(reduction):
    x, weight, y, teacher_weight = _operands()
    teacher_bias = torch.randn(9, requires_grad=True)
    ops.linear_kl_div(x, weight, y, teacher_weight, None, teacher_bias, reduction=reduction).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert (y.grad, teacher_weight.grad, teacher_bias.grad) == (None, None, None)


def test_it_is_kl_div_of_the_two_softmaxes():
    x, weight, y, teacher_weight = _operands()
    temperature = 2.0
    student = (F.linear(x, weight) / temperature).log_softmax(-1)
    teacher = (F.linear(y, teacher_weight) / temperature).log_softmax(-1)
    for reduction in ("batchmean", "mean", "sum"):
        ours = ops.linear_kl_div(x, weight, y, teacher_weight, temperature=temperature, reduction=reduction)
        theirs = ops.kl_div(student, teacher, reduction=reduction, log_target=True)
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ops.linear_kl_div(*_operands())
    assert loss.dtype == torch.float32


def test_a_layer_is_the_student():
    layer = warpwright.nn.LinearKLDivLoss(4, 9, bias=True, temperature=0.5, reduction="sum")
    assert list(layer.state_dict()) == ["linear.weight", "linear.bias"]
    x, _, y, teacher_weight = _operands()
    expected = ops.linear_kl_div(
        x, layer.linear.weight, y, teacher_weight, layer.linear.bias, temperature=0.5, reduction="sum"
    )
    torch.testing.assert_close(layer(x, y, teacher_weight), expected)
    layer(x, y, teacher_weight).backward()
    assert layer.linear.weight.grad is not None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_of_wide_layers_have_torchs_error(seed, bias):
    """The errors of both products meet in one difference; the rule's factor of two would be used up by sums of 512 in
    one chain."""
    make = Make(torch.float32, seed=seed)
    bound = 3 * 512**-0.5
    student, teacher = make.tensor(256, 512), make.tensor(256, 512, grad=False)
    weight, other = make.tensor(2048, 512, low=-bound, high=bound), make.tensor(2048, 512, low=-bound, high=bound)
    biases = (make.tensor(2048), make.tensor(2048, grad=False)) if bias else ()
    spec, sample = SPECS["linear_kl_div"], Sample("wide", (student, weight, teacher, other.detach(), *biases))
    expected = Expected.of(spec.torch_op, sample)
    with warpwright.use_backend("native"):
        found = evaluate(spec.op, sample)
    names = [name for name in found if name.startswith("grad")]
    assert len(names) == 2 + bias
    for name in names:
        # The root of the mean square, which varies less than the largest error does.
        ours, theirs = ((each[name] - expected.truth[name]).square().mean().sqrt() for each in (found, expected.theirs))
        assert ours < 1.2 * theirs, name
