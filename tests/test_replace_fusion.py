"""replace_modules(fuse=True): which layers become one call, and what stops them."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
import torch.nn.functional as F
import whole_models
from torch import nn

import warpwright
from warpwright.nn import replace_modules
from warpwright.nn._replace import _chain


def floats(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


# ---- blocks ----


class Residual(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.downsample = None
        if stride != 1 or channels != 8:
            self.downsample = nn.Sequential(nn.Conv2d(channels, 8, 1, stride, bias=False), nn.BatchNorm2d(8))

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PreNorm(nn.Module):
    def __init__(self, norm=nn.LayerNorm, p=0.0):
        super().__init__()
        self.first, self.second = norm(8), norm(8)
        self.mixer = nn.Linear(8, 8)
        self.up, self.act, self.down = nn.Linear(8, 12), nn.GELU("tanh"), nn.Linear(12, 8)
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        residual = x
        x = self.mixer(self.first(x)).flip(-1)
        x = self.dropout(x)
        x = residual + x
        residual = x
        x = self.second(x)
        x = self.down(self.act(self.up(x)))
        return self.dropout(x) + residual


class Gated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12, bias=False), nn.Linear(12, 8)
        self.act = activation

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


BLOCKS = {
    "residual": (lambda: Residual(8), floats(3, 8, 6, 6),
        {"conv + batch_norm + relu", "conv + batch_norm + residual + relu"}),
    "shortcut": (lambda: Residual(4, 2), floats(3, 4, 6, 6),
                 {"conv + batch_norm", "conv + batch_norm + relu", "conv + batch_norm + residual + relu"}),
    "layer norm": (PreNorm, floats(2, 5, 8), {"residual + layer_norm", "linear + gelu_tanh + linear + residual"}),
    "rms norm": (lambda: PreNorm(nn.RMSNorm), floats(2, 5, 8),
        {"residual + rms_norm", "linear + gelu_tanh + linear + residual"}),
    "silu gate": (lambda: Gated(nn.SiLU()), floats(2, 5, 8), {"silu(gate) * up + down"}),
    "relu gate": (lambda: Gated(F.relu), floats(2, 5, 8), {"relu(gate) * up + down"}),
    "sequential": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.ReLU()), floats(6, 8),
                   {"linear + tanh", "batch_norm + relu"}),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(8, 8, 3), nn.GroupNorm(2, 8), nn.SiLU()), floats(2, 8, 9),
        {"group_norm + silu"}),
    "rise": (lambda: Rise(), floats(2, 4, 5, 3), {"conv_transpose + residual + silu"}),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True), floats(2, 5, 8),
                      {"linear + gelu + linear", "residual + layer_norm"}),
}  # fmt: skip


def results(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *model.parameters()]
    grads = torch.autograd.grad((y * floats(*y.shape, seed=3)).sum(), leaves, allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None), *(b.clone() for b in model.buffers())]


def pair(name):
    build, x, fused = BLOCKS[name]
    torch.manual_seed(0)
    theirs = build()
    return theirs, copy.deepcopy(theirs), x, fused


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", list(BLOCKS))
def test_fused_blocks_compute_the_same(matrix, name, training):
    theirs, ours, x, fused = pair(name)
    theirs, ours, x = theirs.train(training).to(matrix), ours.train(training).to(matrix), x.to(matrix)
    report = replace_modules(ours)
    assert {what for found in report.fused.values() for what in found} == fused
    assert not [c for c in whole_models.compare(ours, theirs, x) if not c.ok]
    assert not warpwright.fallbacks()
    report.restore()
    assert {type(module) for module in ours.modules()} == {type(module) for module in theirs.modules()}


def kernels(model, x):
    """The operators of warpwright that a call runs, by name."""
    names = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "warpwright":
                names.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Mode():
        model(x)
    return names


class Rise(nn.Module):
    """A transposed convolution with a skip behind it."""

    def __init__(self):
        super().__init__()
        self.rise, self.skip, self.act = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.Conv2d(4, 6, 1), nn.SiLU()

    def forward(self, x):
        skip = self.skip(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        x = self.rise(x)
        x = x + skip
        return self.act(x)


COUNTS = {"residual": 2, "shortcut": 3, "layer norm": 4, "rms norm": 4, "silu gate": 1, "sequential": 2}


@pytest.mark.parametrize("name", list(COUNTS))
def test_fewer_operators_run(name):
    _, ours, x, _ = pair(name)
    replace_modules(ours.eval())
    assert len(kernels(ours, x)) == COUNTS[name]


def test_fuse_false_leaves_the_modules_around_layers():
    _, ours, _, _ = pair("residual")
    report = replace_modules(ours, fuse=False)
    assert report.fused == {}
    assert type(ours) is Residual


def test_only_what_is_included_fuses():
    net = nn.ModuleDict({"a": Gated(nn.SiLU()), "b": Gated(nn.SiLU())})
    assert list(replace_modules(net, exclude="b").fused) == ["a"]
    assert replace_modules(Residual(8), include=nn.Conv2d).fused == {}
    kept = Gated(nn.SiLU())
    assert replace_modules(kept, exclude="gate").fused == {}  # Its child is torch's.


# ---- what stops a step, at each call ----


def hooked(module):
    module.gate.register_forward_hook(lambda _, args, output: output * 2)


def parametrised(module):
    nn.utils.parametrize.register_parametrization(module.gate, "weight", Twice())


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def exchanged(module):
    module.gate = nn.Sequential(nn.Linear(8, 12), nn.Tanh())


def wrapped(module):
    forward = module.gate.forward
    module.gate.forward = lambda x: forward(x) * 3


@pytest.mark.parametrize("change", [hooked, parametrised, exchanged, wrapped])
def test_layers_that_were_changed_later_are_called(change):
    theirs, ours, x, _ = pair("silu gate")
    replace_modules(ours)
    for module in (theirs, ours):
        torch.manual_seed(1)
        change(module)
    close(results(ours, x), results(theirs, x))
    # The weight of a parametrised layer is computed where it is read: the kernel takes it as any other.
    assert ("mlp" in kernels(ours, x)) == (change is parametrised)


def test_hooks_of_every_layer_of_a_chain_run():
    for name in ("residual", "layer norm", "sequential"):
        theirs, ours, x, _ = pair(name)
        replace_modules(ours)
        calls = ([], [])
        for module, called in zip((theirs, ours), calls, strict=True):
            for key, layer in module.named_modules():
                layer.register_forward_hook(lambda *_, k=key, c=called: c.append(k))
        close(ours(x), theirs(x))
        assert calls[0] == calls[1]


def test_a_residual_of_another_shape_or_dtype_is_added_by_torch():
    class Broadcast(nn.Module):
        def __init__(self, residual):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("residual", residual)

        def forward(self, x):
            residual = self.residual
            return F.relu(self.linear(x) + residual)

    for residual in (floats(8), floats(3, 8).double()):
        theirs = Broadcast(residual)
        ours = copy.deepcopy(theirs)
        assert replace_modules(ours).fused
        close(ours(floats(3, 8)), theirs(floats(3, 8)))


def test_a_missing_optional_layer_is_skipped_and_another_raises_as_before():
    class Maybe(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.linear, self.act, self.last = nn.Linear(8, 8), nn.ReLU(), last

        def forward(self, x):
            x = self.linear(x)
            if self.act is not None:
                x = self.act(x)
            return self.last(x)

    net = Maybe(nn.Linear(8, 8))
    replace_modules(net)
    net.act = None
    close(net(floats(3, 8)), net.last(net.linear(floats(3, 8))))
    net.last = None
    with pytest.raises(TypeError):
        net(floats(3, 8))


def test_in_place_sums_change_the_tensor_that_they_changed():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.norm = nn.Identity(), nn.LayerNorm(8)

        def forward(self, x, r):
            y = self.same(x)
            y += r
            return self.norm(y)

    net = Counting()
    replace_modules(net)
    x, r = floats(3, 8), floats(3, 8, seed=5)
    expected = F.layer_norm(x + r, (8,))
    total = x + r
    close(net(x, r), expected)
    close(x, total)


def test_autocast_is_followed():
    for name in ("residual", "layer norm", "silu gate"):
        theirs, ours, x, _ = pair(name)
        replace_modules(ours)
        with torch.autocast("cpu", torch.bfloat16):
            mine, reference = ours(x), theirs(x)
        assert mine.dtype == reference.dtype  # A residual in float32 keeps the sum there.
        torch.testing.assert_close(mine.float(), reference.float(), rtol=3e-2, atol=3e-2)


def test_dropout_before_a_sum_and_a_norm_is_one_step():
    torch.manual_seed(0)
    net = PreNorm(p=0.5).train()
    replace_modules(net)
    names = kernels(net, floats(4, 5, 8))
    assert names.count("layer_norm") == 2
    assert names.count("dropout_add") == 1  # The last one, with its sum.
    assert "dropout" not in names


def test_compiled_blocks_have_no_graph_breaks_and_fuse():
    for name in ("residual", "layer norm", "silu gate", "sequential"):
        theirs, ours, x, _ = pair(name)
        theirs.eval()
        replace_modules(ours.eval())
        torch._dynamo.reset()
        close(results(torch.compile(ours, fullgraph=True, backend="aot_eager"), x), results(theirs, x))


def test_decorated_methods_stay_decorated():
    calls = []

    def counted(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    class Decorated(Gated):
        @counted
        def forward(self, x, *, scale=2.0):
            return scale * self.down(self.act(self.gate(x)) * self.up(x))

    torch.manual_seed(0)
    theirs = Decorated(nn.SiLU())
    ours = copy.deepcopy(theirs)
    assert replace_modules(ours).fused
    close(ours(floats(3, 8)), theirs(floats(3, 8)))
    close(ours(floats(3, 8), scale=3.0), theirs(floats(3, 8), scale=3.0))
    assert calls == ["forward"] * 4
    assert str(inspect.signature(ours.forward)) == str(inspect.signature(theirs.forward))


def test_an_error_inside_a_fused_method_names_its_own_line():
    net = Residual(8)
    replace_modules(net)
    with pytest.raises(RuntimeError, match="warpwright: conv2d") as caught:
        net(floats(1, 5, 6, 6))
    lines, first = inspect.getsourcelines(Residual.forward)
    frame = next(entry for entry in caught.traceback if str(entry.path) == __file__ and entry.name == "forward")
    assert first <= frame.lineno + 1 < first + len(lines)


def test_every_activation_in_a_chain_is_the_kernels():
    for module, name in (
        (nn.ReLU(), "relu"), (nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.SiLU(), "silu"),
        (nn.Sigmoid(), "sigmoid"), (nn.Tanh(), "tanh"), (nn.LeakyReLU(), "leaky_relu"), (nn.Hardswish(), "hardswish"),
    ):  # fmt: skip
        torch.manual_seed(0)
        theirs = nn.Sequential(nn.Linear(8, 8), module)
        ours = copy.deepcopy(theirs)
        assert replace_modules(ours).fused == {"": [f"linear + {name}"]}
        close(results(ours, floats(3, 8)), results(theirs, floats(3, 8)))
    for module in (nn.LeakyReLU(0.2), nn.ReLU6(), nn.Softplus()):
        assert replace_modules(nn.Sequential(nn.Linear(8, 8), module)).fused == {}
    assert _chain.activation_of(nn.Softplus()) is None


def test_a_method_that_was_patched_since_is_read_again(monkeypatch):
    theirs, ours, x, _ = pair("silu gate")
    replace_modules(ours).restore()

    def forward(self, x):
        return 2 * self.down(self.act(self.gate(x)) * self.up(x))

    monkeypatch.setattr(Gated, "forward", forward)
    assert replace_modules(ours).fused
    close(ours(x), theirs(x))
    close(ours(x), forward(ours, x))


def test_a_chain_looks_like_what_it_was():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    text = repr(net)
    replace_modules(net)
    assert repr(net) == text
    assert isinstance(net, nn.Sequential)
    assert len(net[:1]) == 1


def test_dropout_in_place_changes_the_tensor_that_it_changed():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5, inplace=True)

        def forward(self, x, r):
            return self.drop(x) + r

    class Both(nn.Sequential):
        def __init__(self):
            super().__init__(Dropped(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

        def forward(self, x, r):
            return self[0](x, r)

    net = Both().train()
    replace_modules(net)
    x, r = floats(16, 8).abs() + 1, floats(16, 8, seed=5)
    y = net(x, r)
    assert (x == 0).any()
    close(y, x + r)
