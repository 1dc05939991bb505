"""nn.MLP and nn.GatedMLP: the op where children are plain layers, the children where they are more than that."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from layer_checks import assert_as_exact
from torch import nn
from torch.nn.utils import parametrize, prune

import warpwright
from warpwright.nn import MLP, GatedMLP
from warpwright.nn._activation import apply_activation
from warpwright.nn._children import idle_dropout, plain_linears


class TorchMLP(nn.Module):
    """timm's Mlp, in its names."""

    def __init__(self, n, hidden, out, bias, activation):
        super().__init__()
        self.fc1 = nn.Linear(n, hidden, bias)
        self.fc2 = nn.Linear(hidden, out, bias)
        self.activation = activation

    def forward(self, x):
        return self.fc2(apply_activation(self.fc1(x), self.activation))


class TorchGatedMLP(nn.Module):
    """Llama's MLP, in its names."""

    def __init__(self, n, hidden, out, bias, activation):
        super().__init__()
        self.gate_proj = nn.Linear(n, hidden, bias)
        self.up_proj = nn.Linear(n, hidden, bias)
        self.down_proj = nn.Linear(hidden, out, bias)
        self.activation = activation

    def forward(self, x):
        return self.down_proj(apply_activation(self.gate_proj(x), self.activation) * self.up_proj(x))


KINDS = [(MLP, TorchMLP), (GatedMLP, TorchGatedMLP)]
both = pytest.mark.parametrize(("kind", "torchs"), KINDS, ids=["MLP", "GatedMLP"])


def pair(kind, torchs, activation="silu", bias=True, sizes=(12, 20, 8), dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    theirs = torchs(*sizes, bias, activation).to(device, dtype)
    ours = kind(*sizes, bias, activation=activation).to(device, dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def floats(*shape, dtype=torch.float32, device="cpu"):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device, dtype)


def outcome(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    leaves = [x, *layer.parameters()]
    grads = torch.autograd.grad((output * floats(*output.shape)).sum(), leaves, allow_unused=True)
    return [output.detach(), *grads]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def calls_of_ops(call):
    """The warpwright ops that run inside `call`, by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {e.key.removeprefix("warpwright::") for e in profile.key_averages() if e.key.startswith("warpwright::")}


# ---- the fused path ----


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("activation", "bias"), [("silu", False), ("gelu", True), (None, True)])
def test_outputs_and_gradients_are_as_exact_as_torchs(matrix, kind, torchs, dtype, activation, bias):
    ours, theirs = pair(kind, torchs, activation, bias, dtype=dtype, device=matrix)
    assert_as_exact(ours, theirs, [floats(2, 5, 12, dtype=dtype, device=matrix)])
    assert not warpwright.fallbacks()


@both
def test_one_op_runs(kind, torchs):
    ours, _ = pair(kind, torchs)
    with torch.no_grad():
        assert calls_of_ops(lambda: ours(floats(5, 12))) == {"mlp"}


@both
def test_compile_export_meta_and_autocast(kind, torchs):
    ours, theirs = pair(kind, torchs)
    x = floats(5, 12)
    torch._dynamo.reset()
    close(outcome(torch.compile(ours, fullgraph=True, backend="aot_eager"), x), outcome(theirs, x))
    close(torch.export.export(ours, (x,)).module()(x), theirs(x))
    assert copy.deepcopy(ours).to("meta")(x.to("meta")).shape == (5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = ours(x), theirs(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected.float(), rtol=2e-2, atol=2e-2)
    assert not warpwright.fallbacks()


@both
def test_copies_and_pickles_are_the_layer(kind, torchs):
    ours, theirs = pair(kind, torchs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(floats(5, 12)), ours(floats(5, 12)))


def test_sizes_that_are_left_out_are_those_of_the_input():
    assert MLP(6)(floats(2, 6)).shape == (2, 6)
    assert GatedMLP(6, 10)(floats(2, 6)).shape == (2, 6)


def test_an_unknown_activation_raises():
    with pytest.raises(RuntimeError, match=r"warpwright: nn\.GatedMLP: activation must be one of .* got 'mish'"):
        GatedMLP(6, 10, activation="mish")


# ---- dropout ----


@both
def test_dropouts_drop_in_training_alone(kind, torchs):
    _, theirs = pair(kind, torchs)
    ours = kind(12, 20, 8, True, dropout=(0.5, 0.0), activation="silu")
    ours.load_state_dict(theirs.state_dict())
    x = floats(64, 12)
    close(ours.eval()(x), theirs(x))
    torch.manual_seed(3)
    dropped = ours.train()(x)
    assert not torch.allclose(dropped, theirs(x))
    # What is dropped is known from the seed, so the rest can be computed again.
    torch.manual_seed(3)
    if kind is MLP:
        hidden = apply_activation(theirs.fc1(x), "silu")
        close(dropped, theirs.fc2(ours.drop1(hidden)))
    else:
        hidden = apply_activation(theirs.gate_proj(x), "silu") * theirs.up_proj(x)
        close(dropped, theirs.down_proj(ours.drop1(hidden)))
    outer = kind(12, 20, 8, True, dropout=(0.0, 1.0))
    assert not outer(x).any()
    assert not warpwright.fallbacks()


# ---- children that are more than their parameters ----


class LoRA(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.down, self.up = linear, nn.Linear(linear.in_features, 2), nn.Linear(2, linear.out_features)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


def last_name(kind):
    return "fc2" if kind is MLP else "down_proj"


CHANGES = {
    "LoRA": lambda mlp, name: setattr(mlp, name, LoRA(getattr(mlp, name))),
    "quantised": lambda mlp, name: warpwright.quantize(mlp, "int8", include=name),
    "hook": lambda mlp, name: getattr(mlp, name).register_forward_hook(lambda module, args, output: output + 1),
    "hook before": lambda mlp, name: getattr(mlp, name).register_forward_pre_hook(lambda module, args: args[0] + 1),
    "hook backward": lambda mlp, name: getattr(mlp, name).register_full_backward_hook(
        lambda module, grads, outputs: (grads[0] * 2,)
    ),
    "parametrised": lambda mlp, name: parametrize.register_parametrization(getattr(mlp, name), "weight", nn.Tanh()),
    "pruned": lambda mlp, name: prune.random_unstructured(getattr(mlp, name), "weight", 0.5),
    "forward replaced": lambda mlp, name: setattr(getattr(mlp, name), "forward", lambda x: x[..., :8] * 2),
    "activation": lambda mlp, name: setattr(mlp, name, warpwright.nn.Linear(20, 8, activation="relu")),
}


@both
@pytest.mark.parametrize("change", CHANGES)
def test_a_child_that_does_more_is_called(kind, torchs, change):
    ours, theirs = pair(kind, torchs)
    torch.manual_seed(0)
    CHANGES[change](ours, last_name(kind))
    x = floats(5, 12)
    child = getattr(ours, last_name(kind))
    plain = outcome(theirs, x)
    if change == "quantised":
        ours.eval()
    found = outcome(ours, x)
    # The same by hand: everything but the last child is as it was.
    x = x.clone().requires_grad_()
    if kind is MLP:
        hidden = apply_activation(ours.fc1(x), "silu")
    else:
        hidden = apply_activation(ours.gate_proj(x), "silu") * ours.up_proj(x)
    output = child(hidden)
    expected = torch.autograd.grad((output * floats(*output.shape)).sum(), x)
    close(found[:2], [output.detach(), *expected])
    assert not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found[:2], plain[:2], strict=True))


def test_hooks_on_all_modules_are_seen():
    ours, theirs = pair(MLP, TorchMLP)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    try:
        close(ours(floats(5, 12)), theirs(floats(5, 12)))
    finally:
        handle.remove()
    assert seen.count(warpwright.nn.Linear) == 2


def test_what_plain_linears_says():
    a, b = nn.Linear(2, 3), warpwright.nn.Linear(2, 3)
    assert plain_linears(a, b) is None
    assert plain_linears(a, nn.Tanh()) == "a child is a Tanh"
    b.register_forward_hook(lambda *_: None)
    assert plain_linears(a, b) == "a child has hooks"
    a.forward = a.forward
    assert plain_linears(a) == "a child's forward was replaced on the instance"
    c = nn.Linear(2, 3)
    c.compile(backend="eager")
    assert plain_linears(c) == "a child is compiled by itself"
    assert plain_linears(warpwright.nn.Linear(2, 3, activation="relu")) == "a child has an activation of its own"


def test_a_dropout_is_idle_only_where_it_returns_its_input():
    drop = nn.Dropout(0.5)
    assert not idle_dropout(drop)
    assert idle_dropout(drop.eval())
    assert idle_dropout(nn.Dropout(0.0))
    drop.register_forward_hook(lambda *_: None)
    assert not idle_dropout(drop)
    assert not idle_dropout(nn.Identity())


# ---- what the op cannot take ----


@both
def test_children_fall_back_and_are_counted(kind, torchs):
    ours, theirs = pair(kind, torchs)
    x = floats(5, 12)
    close(torch.func.vmap(ours)(x), theirs(x))
    layers = 2 if kind is MLP else 3
    reason = "forward-mode AD or a torch.func transform"
    assert warpwright.fallbacks()["Linear", reason] == layers
    close(torch.fx.symbolic_trace(ours)(x), theirs(x))


# ---- models that name their layers so ----


def test_llamas_checkpoint_loads():
    transformers = pytest.importorskip("transformers", reason="Llama's MLP is transformers'")
    from transformers.models.llama.modeling_llama import LlamaMLP

    config = transformers.LlamaConfig(hidden_size=12, intermediate_size=20, num_attention_heads=2)
    theirs = LlamaMLP(config)
    ours = GatedMLP(12, 20)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    close(ours(floats(5, 12)), theirs(floats(5, 12)))
