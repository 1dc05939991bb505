"""warpwright.fuse: everything that must keep operations apart, each with the reason that the report gives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fusion_library import Function, check, floats
from torch import nn

import warpwright


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def x(*shape, seed=7):
    return floats(*shape, seed=seed).requires_grad_()


def refused(function, *reasons, inputs=None, counts=None, **tensors):
    """Nothing is fused (or only `counts`), the results are PyTorch's, and the report says why."""
    tensors = tensors or {"w": floats(5, 6), "r": floats(3, 5, seed=2)}
    return check(Function(function, **tensors), inputs or [x(3, 6)], counts or {}, skipped=reasons)


# ---- who else sees a value ----


def test_a_product_that_others_use():
    def block(m, t):
        product = F.linear(t, m.w)
        return F.relu(product) - product.sin()

    refused(block, "the product is used 2 times")


def test_a_product_that_is_returned():
    def block(m, t):
        product = F.linear(t, m.w)
        return product, product.relu()

    refused(block, "the product is used 2 times")


def test_a_sum_that_others_use_is_the_end_of_the_chain():
    def block(m, t):
        total = F.linear(t, m.w) + m.r
        return F.relu(total), total

    report = refused(block, "used 2 times", counts={"linear": 1})
    assert report.fused[0].pattern == "linear + add"


def test_a_convolution_that_others_use_keeps_its_batch_norm():
    def block(m, t):
        product = m.conv(t)
        return F.relu(m.bn(product)), product

    model = Function(block)
    model.conv, model.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    check(model, [x(2, 3, 6, 6)], {"batch_norm": 1}, skipped=["the convolution is used 2 times"])


def test_logits_that_others_use():
    def block(m, t, target):
        logits = F.linear(t, m.w)
        return F.cross_entropy(logits, target), logits

    refused(block, "used 2 times", inputs=[x(3, 6), torch.tensor([0, 4, 2])])


def test_a_sum_that_the_norms_own_weight_is_made_of():
    def block(m, t):
        total = t.sin() + m.r
        return F.layer_norm(total, (6,), total.mean(0))

    refused(block, "before all that the op takes is there", r=floats(3, 6))


# ---- shapes, dtypes and numbers ----


def test_a_residual_that_is_broadcast():
    refused(lambda m, t: F.linear(t, m.w) + m.r, "broadcast", w=floats(5, 6), r=floats(1, 5))


def test_a_product_that_is_broadcast():
    refused(lambda m, t: F.linear(t, m.w) + m.r, "broadcast", w=floats(5, 6), r=floats(2, 3, 5))


def test_a_bias_that_is_one_is_no_residual():
    report = refused(lambda m, t: F.linear(t, m.w) + m.b, counts={"linear": 1}, w=floats(5, 6), b=floats(5))
    assert report.fused[0].pattern == "linear + bias"


def test_a_residual_of_another_dtype():
    refused(lambda m, t: F.linear(t, m.w).relu_() + m.r.double(), counts={"linear": 1})
    refused(lambda m, t: F.linear(t, m.w) + m.r.double(), "torch.float64 residual")


def test_a_number_is_no_residual():
    refused(lambda m, t: F.relu(F.linear(t, m.w) + 1.0))


def test_a_residual_that_is_scaled():
    refused(lambda m, t: torch.add(F.linear(t, m.w), m.r, alpha=2), "multiplied by 2")


def test_a_slope_that_the_kernels_do_not_have():
    refused(lambda m, t: F.leaky_relu(F.linear(t, m.w), 0.2), "a slope of 0.2")


def test_what_is_added_after_the_activation_stays_behind_it():
    report = refused(lambda m, t: F.relu(F.linear(t, m.w)) + m.r, counts={"linear": 1})
    assert report.fused[0].pattern == "linear + relu"


def test_a_second_residual():
    refused(lambda m, t: F.relu(F.linear(t, m.w) + m.r + m.r.sin()), "one residual", counts={"linear": 1})


def test_integers():
    model = Function(lambda m, t: torch.relu(t.long() @ m.w.long()), w=floats(6, 5) * 9)
    check(model, [floats(3, 6) * 9], {}, skipped=["torch.int64 input on cpu"])


def test_a_gate_that_is_broadcast():
    refused(lambda m, t: F.silu(t) * m.u, "different shapes", u=floats(3, 1))


def test_a_result_that_would_lie_otherwise():
    """The norm of a transposed tensor is transposed; the op's result is contiguous, and `view` would tell."""

    def norm(m, t):
        t = t.transpose(1, 2)
        return t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6) * m.w

    refused(norm, "strides", inputs=[x(2, 6, 3)], w=floats(6))


def test_batch_norms_of_one_sample_without_batch():
    model = Function(lambda m, t: m.bn(m.conv(t)[None]))
    model.conv, model.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    check(model, [x(3, 6, 6)], {})


NEARLY = {
    "a mean over rows": lambda m, t: t * torch.rsqrt(t.pow(2).mean(0, keepdim=True) + 1e-6),
    "cubes": lambda m, t: t * torch.rsqrt(t.abs().pow(3).mean(-1, keepdim=True) + 1e-6),
    "another tensor's mean": lambda m, t: t * torch.rsqrt(m.w.pow(2).mean(-1, keepdim=True) + 1e-6),
    "gelu with another constant": lambda m, t: 0.5 * t * (1.0 + torch.tanh(0.8 * (t + 0.044715 * t.pow(3.0)))),
    "gelu of two tensors": lambda m, t: 0.5 * t * (1.0 + torch.erf(m.w / math.sqrt(2.0))),
    "silu of two tensors": lambda m, t: t * torch.sigmoid(m.w),
    "masked with a number": lambda m, t: t.masked_fill(m.w > 0, -10000.0).softmax(-1),
    "masked with a gradient": lambda m, t: (t + m.w).softmax(-1),
}


@pytest.mark.parametrize("case", NEARLY)
def test_what_only_looks_like_a_pattern(case):
    check(Function(NEARLY[case], w=floats(4, 6)), [x(4, 6)], {})


def test_rotary_tables_whose_halves_differ():
    def rotate(m, t):
        cos, sin = (f(torch.cat((m.a, m.b), dim=-1)).unsqueeze(1) for f in (torch.cos, torch.sin))
        t = t.transpose(1, 2)
        return t * cos + torch.cat((-t[..., 4:], t[..., :4]), dim=-1) * sin

    check(Function(rotate, a=floats(1, 5, 4), b=floats(1, 5, 4, seed=1)).requires_grad_(False), [x(2, 5, 3, 8)], {})


def test_losses_of_probabilities_and_of_dimensions():
    def probabilities(m, t, target):
        return F.cross_entropy(F.linear(t, m.w), target)

    refused(probabilities, "not one class", inputs=[x(3, 6), floats(3, 5).softmax(1)])

    def three(m, t, target):
        return F.cross_entropy(F.linear(t, m.w), target)

    refused(three, "not one class", inputs=[x(3, 4, 6), torch.zeros(3, 5, dtype=torch.long)])


# ---- writing in between ----


WRITES = {
    "add_": lambda m: m.s.add_(1),
    "setitem": lambda m: m.s.__setitem__(0, 1.0),
    "through a view": lambda m: m.s.view(-1).mul_(2),
    "out": lambda m: torch.add(m.s, 1, out=m.s),
    "an operator": lambda m: warpwright.ops.multi_tensor_scale_([m.s], m.s.new_full((), 2.0)),
    "a batch norm": lambda m: F.batch_norm(m.w.detach(), m.s[0], m.s[1].exp_(), training=True),
}


@pytest.mark.parametrize("case", WRITES)
def test_an_operand_that_is_written_to_in_between(case):
    def block(m, t):
        product = F.linear(m.s, m.w)
        WRITES[case](m)
        return F.relu(product), t.sin()

    model = Function(block, w=floats(5, 6), s=floats(3, 6, seed=4))
    model.s.requires_grad_(False)
    model.w.requires_grad_(False)
    check(model, [x(3, 6)], {}, skipped=["in between"])


def test_a_residual_that_is_itself_added_to():
    """`residual += product` writes to the residual, which its owner sees."""

    def block(m, t):
        r = m.r.view(15)
        r.view(3, 5).add_(F.linear(t, m.w))
        return m.r * 2

    model = Function(block, w=floats(5, 6), r=floats(3, 5))
    model.requires_grad_(False)
    check(model, [floats(3, 6)], {}, skipped=["in place on a tensor that others may look at"])


def test_running_statistics_that_are_read_between_norm_and_activation():
    def read_between(m, t):
        normal = m.bn(m.conv(t))
        mean = m.bn.running_mean * 2
        return F.relu(normal), mean

    model = Function(read_between)
    model.conv, model.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    report = check(model, [x(2, 3, 6, 6)], {"conv2d_batch_norm": 1}, skipped=["reads in between what it writes"])
    assert report.fused[0].pattern == "conv2d + batch_norm"


def test_a_residual_that_is_written_to_later():
    """PyTorch's own relu keeps its result alone, and the op the residual."""

    def block(m, t):
        r = t.exp() + 1
        out = F.relu(m.bn(m.conv(t)) + r)
        r.mul_(2)
        return out, r

    model = Function(block)
    model.conv, model.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
    check(model, [x(2, 3, 6, 6)], {"conv2d_batch_norm": 1}, skipped=["written to later"])


def test_our_own_batch_norm_whose_statistics_are_read_before_they_move():
    """As the layer's operator, but with a look at the old mean in between: it is not the public function's call."""

    def block(m, t):
        found = torch.ops.warpwright.batch_norm.default(t, m.mean, m.var, None, None, None, True, 0.1, 1e-5, "none")
        before = m.mean * 2
        with torch.no_grad():
            m.mean.copy_(found[3])
            m.var.copy_(found[4])
        return F.relu(found[0]), before, m.mean + 0

    model = Function(block, mean=floats(3), var=floats(3, seed=1).abs()).requires_grad_(False)
    check(model, [x(4, 3, 5)], {})


def test_a_dropout_of_torchs_stays_where_it_is():
    refused(lambda m, t: F.dropout(F.linear(t, m.w), 1.0, training=True) + m.r)
    report = refused(lambda m, t: F.dropout(F.linear(t, m.w), 1.0, training=False) + m.r, counts={"linear": 1})
    assert report.fused[0].pattern == "linear + add"


# ---- modes in between ----


def test_autocast_that_ends_in_between():
    def block(m, t):
        with torch.autocast("cpu", torch.bfloat16):
            product = F.linear(t, m.w)
        return F.relu(product)

    report = check(Function(block, w=floats(5, 6)), [x(3, 6)], {}, skipped=["autocast"])
    assert not report.fused


def test_gradients_that_are_switched_off_in_between():
    def block(m, t):
        with torch.no_grad():
            product = F.linear(t, m.w)
        return F.relu(product) + t.sum()

    refused(block, "recording of gradients")


def test_whatever_happens_inside_one_mode_is_fused():
    def block(m, t):
        with torch.autocast("cpu", torch.bfloat16):
            inside = F.relu(F.linear(t, m.w))
        with torch.no_grad():
            constant = torch.tanh(F.linear(t, m.w))
        return inside.float() + constant

    check(Function(block, w=floats(5, 6)), [x(3, 6)], {"linear": 2})


def test_autocast_to_another_dtype_than_the_residuals():
    def block(m, t):
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(t, m.w) + m.r

    refused(block, "torch.float32 residual for a torch.bfloat16 result")


def test_an_ambient_autocast_is_seen():
    with torch.autocast("cpu", torch.bfloat16):
        check(Function(lambda m, t: F.relu(F.linear(t, m.w)), w=floats(5, 6)), [x(3, 6)], {"linear": 1})


def test_transforms_of_torch_func():
    refused(lambda m, t: torch.func.vmap(lambda row: F.relu(F.linear(row, m.w)))(t), "torch.func transform")


def test_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr("warpwright._backend.triton_interpreted", lambda: False)
    monkeypatch.setattr("warpwright._backend._current", "triton")
    refused(lambda m, t: F.relu(F.linear(t, m.w)), "triton backend takes cpu tensors only")
