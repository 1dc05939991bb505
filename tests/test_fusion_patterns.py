"""warpwright.fuse: each pattern, found in a graph and equal to what it takes the place of."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fusion_library import Function, check, floats
from torch import nn

import warpwright
from warpwright import ops


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def x(*shape, seed=7):
    return floats(*shape, seed=seed).requires_grad_()


ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": lambda t: t.tanh(),
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_linear_layer_takes_every_activation(activation):
    model = Function(lambda m, t: ACTIVATIONS[activation](F.linear(t, m.w, m.b)), w=floats(5, 6), b=floats(5))
    report = check(model, [x(3, 6)], {"linear": 1})
    assert report.fused[0].pattern == f"linear + {activation}"


def mm_scaled(m, t):
    return F.relu(torch.addmm(m.r, t, m.w, beta=0.5, alpha=2.0))


def through_a_view(m, t):
    """Hugging Face's Conv1D: addmm on rows, then the shape of the input."""
    product = torch.addmm(m.b, t.view(-1, 6), m.w).view(2, 3, 5)
    return m.r + product, product.shape[0]


def in_place(m, t):
    out = F.linear(t, m.w)
    out += m.b
    out.add_(m.r)
    return out.relu_()


EPILOGUES = {
    "linear, bias by hand": (lambda m, t: F.relu(F.linear(t, m.w.T) + m.b), "linear"),
    "linear, residual": (lambda m, t: m.r + F.linear(t, m.w.T, m.b), "linear"),
    "linear, residual, silu": (lambda m, t: F.silu(torch.add(F.linear(t, m.w.T, m.b), m.r)), "linear"),
    "mm": (lambda m, t: torch.mm(t, m.w).relu(), "matmul"),
    "@, bias, gelu": (lambda m, t: F.gelu(t @ m.w + m.b), "matmul"),
    "addmm, bias": (lambda m, t: torch.addmm(m.b, t, m.w).tanh(), "matmul"),
    "addmm, residual, alpha, beta": (mm_scaled, "matmul"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", EPILOGUES)
def test_products_take_bias_residual_and_activation(case, dtype):
    function, op = EPILOGUES[case]
    model = Function(function, w=floats(6, 5), b=floats(5, seed=1), r=floats(3, 5, seed=2))
    check(model, [x(3, 6)], {op: 1}, dtype=dtype)


def test_what_works_in_place_on_the_product_itself_is_fused():
    model = Function(in_place, w=floats(5, 6), b=floats(5, seed=1), r=floats(3, 5, seed=2))
    assert check(model, [x(3, 6)], {"linear": 1}).fused[0].pattern == "linear + bias + add + relu"


def test_batches_of_products():
    check(Function(lambda m, t: torch.bmm(t, m.w).relu(), w=floats(2, 6, 5)), [x(2, 3, 6)], {"matmul": 1})


def test_a_view_behind_a_product_is_moved_behind_the_op():
    model = Function(lambda m, t: through_a_view(m, t)[0], w=floats(6, 5), b=floats(5), r=floats(2, 3, 5))
    assert check(model, [x(2, 3, 6)], {"matmul": 1}).fused[0].pattern == "addmm + add"


CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2), (2, 4, 8, 7)),
    "conv3d": (nn.Conv3d(4, 6, (1, 2, 3), bias=False), (2, 4, 3, 4, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 4, 2, 1), (2, 4, 5)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, dilation=1), (2, 4, 5, 4)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 6, (1, 2, 2)), (2, 4, 3, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_takes_residual_and_activation(name):
    layer, shape = CONVOLUTIONS[name]
    residual = floats(*layer(torch.zeros(shape)).shape, seed=3)
    model = Function(lambda m, t: F.leaky_relu(m.layer(t) + m.r), r=residual)
    model.layer = layer
    report = check(model, [x(*shape)], {name: 1})
    assert report.fused[0].pattern == f"{name} + add + leaky_relu"


class ConvNorm(nn.Module):
    def __init__(self, activation, residual=False, dims=2, **kwargs):
        super().__init__()
        self.conv = getattr(nn, f"Conv{dims}d")(3, 5, 3, padding=1, **kwargs)
        self.bn = getattr(nn, f"BatchNorm{dims}d")(5)
        self.activation = activation
        self.r = nn.Parameter(floats(2, 5, *[6] * dims)) if residual else None
        with torch.no_grad():
            for i, p in enumerate((self.bn.weight, self.bn.bias, self.bn.running_mean)):
                p.copy_(floats(5, seed=i))

    def forward(self, t):
        t = self.bn(self.conv(t))
        t = t if self.r is None else t + self.r
        return t if self.activation is None else self.activation(t)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("activation", "residual", "op"),
    [(None, False, 1), (F.relu, False, 1), (F.silu, True, 1), (None, True, 1)],
)
def test_a_batch_norm_takes_the_convolution_residual_and_activation(activation, residual, op, training):
    model = ConvNorm(activation, residual, bias=False).train(training)
    check(model, [x(2, 3, 6, 6)], {"conv2d_batch_norm": op})


def test_the_bias_before_a_batch_norm_in_training_has_no_gradient():
    model = ConvNorm(F.relu)
    check(model, [x(2, 3, 6, 6)], {"conv2d_batch_norm": 1}, zero=["grad of conv.bias"])


@pytest.mark.parametrize("first", [False, True])
def test_a_batch_norm_that_is_called_twice_is_ours_in_both_calls(first):
    """PyTorch's own keeps the running statistics for its backward pass, which would find them written to."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, t):
            if first:
                return self.norm(F.relu(self.norm(t)).sin())
            return F.relu(self.norm(self.norm(t).sin()))

    check(Twice(), [x(2, 3, 6, 6)], {"batch_norm": 2})


def test_other_batch_norms_take_what_follows():
    report = check(ConvNorm(F.relu, True, 1, bias=False), [x(2, 3, 6)], {"batch_norm": 1})
    assert report.fused[0].pattern == "batch_norm + add + relu"
    # What the norm does not know stays behind it.
    report = check(ConvNorm(torch.tanh, True, 2, bias=False), [x(2, 3, 6, 6)], {"conv2d_batch_norm": 1})
    assert report.fused[0].pattern == "conv2d + batch_norm + add"


def llama_norm(m, t):
    wide = t.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return m.w * wide.to(t.dtype)


def gemma_norm(m, t):
    wide = t.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (normal * (1.0 + m.w.float())).type_as(t)


WRITTEN = {
    "rms_norm, Llama": llama_norm,
    "rms_norm, Gemma": gemma_norm,
    "rms_norm, pow": lambda m, t: t * torch.pow((t * t).mean(-1, keepdim=True) + 1e-5, -0.5) * m.w,
    "rms_norm, no weight": lambda m, t: torch.rsqrt(torch.square(t).mean(dim=-1, keepdim=True) + 1e-5) * t,
    "gelu, tanh": lambda m, t: 0.5 * t * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t.pow(3.0)))),
    "gelu, tanh, brackets": lambda m, t: t * (0.5 * (1 + torch.tanh((t + t**3 * 0.044715) * 0.7978845608028654))),
    "gelu, erf": lambda m, t: t * 0.5 * (1.0 + torch.erf(t / math.sqrt(2.0))),
    "gelu, erf, brackets": lambda m, t: 0.5 * (t * (torch.erf(t * math.sqrt(0.5)) + 1)),
    "silu": lambda m, t: t * torch.sigmoid(t),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_what_models_write_out_is_one_op(case):
    dtype = torch.bfloat16 if case.endswith(("Llama", "Gemma")) else torch.float32
    check(Function(WRITTEN[case], w=floats(8, seed=3)), [x(4, 3, 8)], {case.split(",")[0]: 1}, dtype=dtype)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_residual_goes_into_the_norm_behind_it(norm):
    def block(m, t):
        total = t.sin() + m.r
        normal = F.layer_norm(total, (8,), m.w, m.b) if norm == "layer_norm" else F.rms_norm(total, (8,), m.w, 1e-5)
        return total * 2, normal

    check(Function(block, w=floats(8), b=floats(8, seed=1), r=floats(3, 8, seed=2)), [x(3, 8)], {norm: 1})


def test_the_sum_may_be_used_by_the_norm_alone_or_be_added_in_place():
    def block(m, t):
        t = t.sin()
        t += m.r
        return F.layer_norm(t, (8,), m.w)

    check(Function(block, w=floats(8), r=floats(3, 8, seed=2)), [x(3, 8)], {"layer_norm": 1})


def test_a_norm_that_only_dead_code_reads_is_dropped_though_that_writes_in_place():
    """Its weight has no gradient, not one of zeros."""

    def block(m, t):
        total = t.sin() + m.r
        normal = F.layer_norm(total, (8,), m.w).sin()
        normal.add_(total)
        return total * 2

    check(Function(block, w=floats(8), r=floats(3, 8, seed=2)), [x(3, 8)], {})


@pytest.mark.parametrize("view", [False, True])
def test_a_write_that_others_see_is_no_dead_code(view):
    def block(m, t):
        total = t.sin() + m.r
        (total.view(24) if view else total).mul_(3)
        return F.layer_norm(total, (8,), m.w)

    check(Function(block, w=floats(8), r=floats(3, 8, seed=2)), [x(3, 8)])


class GatedMLP(nn.Module):
    def __init__(self, activation, bias=False, down=True, residual=False):
        super().__init__()
        self.gate, self.up = nn.Linear(8, 12, bias), nn.Linear(8, 12, bias)
        self.down = nn.Linear(12, 8, bias) if down else None
        self.activation, self.residual = activation, residual

    def forward(self, t):
        hidden = self.up(t) * self.activation(self.gate(t))
        if self.down is None:
            return hidden
        return t + self.down(hidden) if self.residual else self.down(hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("model", "op"),
    [
        (GatedMLP(F.silu), "mlp"),
        (GatedMLP(F.gelu, bias=True, residual=True), "mlp"),
        (GatedMLP(torch.sigmoid, down=False), "linear_glu"),
    ],
)
def test_gated_mlps(model, op, dtype):
    check(model, [x(3, 8)], {op: 1}, dtype=dtype)


@pytest.mark.parametrize("first", [True, False], ids=["gate first", "up first"])
def test_a_packed_projection_is_cut_in_two(first):
    """Phi's MLP, and GLU's other way round."""

    def block(m, t):
        halves = F.linear(t, m.w, m.b).chunk(2, dim=-1)
        gate, up = halves if first else reversed(halves)
        return F.linear(up * F.silu(gate), m.d)

    model = Function(block, w=floats(24, 8), b=floats(24, seed=1), d=floats(8, 12, seed=2))
    check(model, [x(3, 8)], {"mlp": 1})


@pytest.mark.parametrize(
    ("activation", "op"), [("silu", "swiglu"), ("gelu", "geglu"), ("gelu_tanh", "geglu"), ("relu", "reglu")]
)
def test_gates_without_projections(activation, op):
    check(Function(lambda m, t: m.u * ACTIVATIONS[activation](t.sin()), u=floats(3, 8)), [x(3, 8)], {op: 1})


def causal(size):
    return torch.full((size, size), -math.inf).triu(1)


SOFTMAXES = {
    "scale": lambda m, t: torch.softmax(t * 0.3, dim=-1),
    "scale and mask": lambda m, t: F.softmax(t / 3.0 + m.mask, dim=-1),
    "mask": lambda m, t: (t + m.mask).softmax(-1),
    "masked_fill": lambda m, t: t.masked_fill(m.keep, -math.inf).softmax(-1),
    "scale, another dtype": lambda m, t: F.softmax(t * 0.3, dim=-1, dtype=torch.float64),
}


@pytest.mark.parametrize("case", SOFTMAXES)
def test_a_softmax_takes_scale_and_mask(case):
    model = Function(SOFTMAXES[case], mask=causal(5), keep=causal(5).isinf())
    model.mask.requires_grad_(False)
    check(model, [x(2, 3, 5, 5)], {"softmax": 1})


def rotate_half(t):
    half = t.shape[-1] // 2
    return torch.cat((-t[..., half:], t[..., :half]), dim=-1)


def rotated(m, q, k):
    """As Hugging Face's Llama has it, with tables for one sequence."""
    angles = torch.cat((m.angles, m.angles), dim=-1)[None]
    cos, sin = (table.to(q.dtype).unsqueeze(1) for table in (angles.cos() * 1.0, angles.sin() * 1.0))
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def angles_of(sequence, half):
    return torch.arange(sequence)[:, None] * 10000.0 ** -(torch.arange(half) / half)


def test_rotary_embeddings_of_query_and_key_are_one_op():
    def attention(m, q, k):
        cat = torch.cat((m.angles, m.angles), dim=-1)
        cos, sin = (table.to(q.dtype).unsqueeze(1) for table in (cat.cos() * 1.0, cat.sin() * 1.0))
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    model = Function(attention, angles=angles_of(5, 4).expand(1, 5, 4).contiguous()).requires_grad_(False)
    check(model, [x(2, 5, 3, 8), x(2, 5, 1, 8)], {"rotary_embedding_qk": 1})


class Loss(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.head = nn.Linear(8, 11)
        self.options = options

    def forward(self, t, target):
        return F.cross_entropy(self.head(t).view(-1, 11), target.view(-1), **self.options)


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "ignore_index": 3}, {"label_smoothing": 0.1}], ids=str)
def test_a_loss_takes_the_layer_before_it(options):
    target = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    check(Loss(**options), [x(2, 5, 8), target], {"linear_cross_entropy": 1})


# ---- warpwright's own layers and ops ----


def test_our_own_layers_are_fused_as_torchs_are():
    model = nn.Sequential(ConvNorm(nn.ReLU(inplace=True), bias=False), nn.Conv2d(5, 4, 3), nn.GELU())
    expected = {"conv2d_batch_norm": 1, "conv2d": 1}
    check(model, [x(2, 3, 6, 6)], expected)
    warpwright.nn.replace_modules(model, fuse=False)
    check(model, [x(2, 3, 6, 6)], expected)
    check(model.eval(), [x(2, 3, 6, 6)], expected)


def test_what_replace_modules_took_together_is_left():
    model = nn.Sequential(ConvNorm(nn.ReLU(inplace=True), bias=False), nn.Conv2d(5, 4, 3), nn.GELU())
    warpwright.nn.replace_modules(model)
    check(model, [x(2, 3, 6, 6)], {})


def test_ops_in_a_model_are_fused_too():
    def block(m, t):
        return F.relu(ops.linear(t, m.w, m.b)), ops.layer_norm(t.sin() + m.r, (6,))

    check(Function(block, w=floats(5, 6), b=floats(5), r=floats(3, 6)), [x(3, 6)], {"linear": 1, "layer_norm": 1})


def test_an_op_with_settings_of_its_own_is_left():
    def block(m, t):
        return F.relu(torch.ops.warpwright.linear.default(t, m.w, None, None, "none", "tf32", False, False)[0])

    check(Function(block, w=floats(5, 6)), [x(3, 6)], {})


def test_our_dropout_takes_the_residual_with_the_same_mask():
    model = nn.Module()
    model.forward = lambda t: t + ops.dropout(t.sin(), 0.5, seed=torch.tensor([3]))
    assert check(model, [x(16, 16)], {"dropout_add": 1}).fused[0].pattern == "dropout + add"
