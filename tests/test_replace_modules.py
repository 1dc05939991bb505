"""replace_modules: which modules change their class, what the report says, and the way back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import warpwright
from warpwright.nn import replace_modules


def floats(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def model():
    torch.manual_seed(0)
    shared = nn.RMSNorm(8)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.RMSNorm(8), nn.Tanh(), nn.Sequential(nn.RMSNorm(8))),
            "first": shared,
            "second": shared,
            "head": nn.RMSNorm(8),
        }
    )


class Own(nn.RMSNorm):
    def forward(self, x):
        return x * self.weight


class Named(nn.RMSNorm):
    """A subclass that leaves the work to torch's forward."""


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class LazyOwn(nn.Linear):
    """A layer whose weight has no shape yet, by a mechanism of its own."""

    def __init__(self):
        super().__init__(2, 3)
        self.weight = nn.UninitializedParameter()


LAZY = {
    "LazyLinear": ((3,), (5, 8)),
    "LazyConv1d": ((3, 2), (2, 4, 7)),
    "LazyConv2d": ((3, 2), (2, 4, 5, 5)),
    "LazyConv3d": ((3, 2), (1, 2, 3, 4, 3)),
    "LazyConvTranspose1d": ((3, 2), (2, 4, 7)),
    "LazyConvTranspose2d": ((3, 2), (2, 4, 5, 5)),
    "LazyConvTranspose3d": ((3, 2), (1, 2, 3, 4, 3)),
    "LazyBatchNorm1d": ((), (5, 8)),
    "LazyBatchNorm2d": ((), (2, 4, 5, 5)),
    "LazyBatchNorm3d": ((), (1, 2, 3, 4, 3)),
    "LazyInstanceNorm1d": ((), (2, 4, 7)),
    "LazyInstanceNorm2d": ((), (2, 4, 5, 5)),
    "LazyInstanceNorm3d": ((), (1, 2, 3, 4, 3)),
}


def classes(module):
    return {name: type(m) for name, m in module.named_modules(remove_duplicate=False)}


def test_replace_switches_classes_and_nothing_else():
    net = model()
    before = {name: (id(m), dict(vars(m))) for name, m in net.named_modules(remove_duplicate=False)}
    plain = classes(net)
    calls = []
    net["head"].register_forward_hook(lambda *_: calls.append("hook"))
    report = replace_modules(net)
    assert report.replaced == dict.fromkeys(
        ["encoder.0", "encoder.2.0", "first", "second", "head"], warpwright.nn.RMSNorm
    )
    assert report.skipped == {}
    assert {name: (id(m), dict(vars(m))) for name, m in net.named_modules(remove_duplicate=False)} == before
    net["head"](floats(2, 8))
    assert calls == ["hook"]
    assert net["first"] is net["second"]
    assert "encoder.2.0  warpwright.nn.RMSNorm" in str(report)
    assert str(report).endswith("5 replaced, 0 skipped; 100.0% of the parameters are in warpwright's layers")

    again = replace_modules(net)
    assert again.replaced == again.skipped == {}
    again.restore()
    assert type(net["head"]) is warpwright.nn.RMSNorm
    assert report.restore() == {}
    assert classes(net) == plain
    assert report.restore() == {}
    assert classes(net) == plain


@pytest.mark.parametrize(
    ("include", "exclude", "replaced"),
    [
        (nn.RMSNorm, None, {"encoder.0", "encoder.2.0", "first", "second", "head"}),
        (nn.Linear, None, set()),
        ("encoder", None, {"encoder.0", "encoder.2.0"}),
        ("encoder.*", "encoder.0", {"encoder.2.0"}),
        (["head", "e*.0"], None, {"head", "encoder.0", "encoder.2.0"}),
        (None, ("head", "second"), {"encoder.0", "encoder.2.0"}),
        ("first", None, {"first", "second"}),
        (None, nn.Module, set()),
    ],
)
def test_include_and_exclude(include, exclude, replaced):
    net = model()
    report = replace_modules(net, include, exclude)
    assert set(report.replaced) == replaced
    assert set(report.skipped) == {"encoder.0", "encoder.2.0", "first", "second", "head"} - replaced
    assert set(report.skipped.values()) <= {"excluded", "not included"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"include": "decoder.*"}, r"replace_modules: include: 'decoder\.\*' matches no module of the model"),
        ({"exclude": [int]}, r"replace_modules: exclude must hold module types, names or patterns, got <class 'int'>"),
    ],
)
def test_selections_that_mean_nothing_raise(kwargs, message):
    with pytest.raises(RuntimeError, match=message):
        replace_modules(model(), **kwargs)


def test_skipped_modules_say_why():
    wrapped = nn.RMSNorm(8)
    wrapped.forward = wrapped.forward
    parametrised = nn.RMSNorm(8)
    nn.utils.parametrize.register_parametrization(parametrised, "weight", nn.Identity())
    layers = {"own": Own(8), "wrapped": wrapped, "parametrised": parametrised, "lazy": LazyOwn()}
    report = replace_modules(nn.ModuleDict({**layers, "act": nn.Tanh(), "attention": nn.MultiheadAttention(8, 2)}))
    assert not report.replaced
    assert set(report.skipped) == {*layers, "attention", "attention.out_proj"}
    assert report.skipped["lazy"] == "lazy: its parameters are not initialised yet"
    assert "NonDynamicallyQuantizableLinear" in report.skipped["attention.out_proj"]
    assert report.skipped["own"] == f"a subclass with a forward of its own: {Own.__module__}.Own"
    assert report.skipped["wrapped"] == "its forward was replaced on the instance"
    assert report.skipped["parametrised"].startswith("parametrised")
    assert report.skipped["attention"].endswith("MultiheadAttention")
    assert "own                 skipped: a subclass" in str(report)


def test_subclasses_that_come_to_torchs_forward_come_to_ours():
    net = nn.ModuleDict({"named": Named(8), "doubled": Doubled(8, 5)})
    x = floats(3, 8)
    expected = {name: layer(x) for name, layer in net.items()}
    report = replace_modules(net)
    assert set(report.replaced) == {"named", "doubled"}
    assert [type(layer).__name__ for layer in net.values()] == ["Named", "Doubled"]
    assert isinstance(net["named"], (Named, warpwright.nn.RMSNorm))
    assert isinstance(net["doubled"], warpwright.nn.Linear)
    for name, layer in net.items():
        close(layer(x), expected[name])
    half = x.to(torch.bfloat16)  # Ours counts what it leaves to torch.
    torch.testing.assert_close(net["named"](half), nn.RMSNorm(8)(half))
    assert [layer for layer, _ in warpwright.fallbacks()] == ["RMSNorm"]
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert classes(twin) == classes(net)
        close(twin["doubled"](x), expected["doubled"])
    assert report.restore() == {}
    assert [type(layer) for layer in net.values()] == [Named, Doubled]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", list(LAZY))
def test_lazy_layers_become_ours_when_they_see_an_input(name):
    arguments, shape = LAZY[name]
    x, eager = floats(*shape), name.removeprefix("Lazy")
    nets = [nn.Sequential(getattr(nn, name)(*arguments)) for _ in range(2)]
    report = replace_modules(nets[1])
    assert report.replaced == {"0": getattr(warpwright.nn, name)}
    own = getattr(warpwright.nn, name)(*arguments)
    results = []
    for layer in (nets[0], nets[1], own):
        torch.manual_seed(0)
        results.append(layer(x))
    close(results[1], results[0])
    close(results[2], results[0])
    assert type(nets[1][0]) is type(own) is getattr(warpwright.nn, eager)
    assert not warpwright.fallbacks()
    assert report.restore() == {}
    assert type(nets[1][0]) is getattr(nn, eager)
    untouched = nn.Sequential(getattr(nn, name)(*arguments))
    assert replace_modules(untouched).restore() == {}
    assert type(untouched[0]) is getattr(nn, name)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("wrap", [torch.jit.script, torch.compile, torch.fx.symbolic_trace])
def test_what_is_compiled_already_raises(wrap):
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.ReLU())
    net[0] = wrap(net[0])
    with pytest.raises(RuntimeError, match=r"warpwright: replace_modules: the module '0.*' is \w+.* already: call rep"):
        replace_modules(net)


def test_a_module_parametrised_after_replacement_still_works_and_is_reported():
    net = nn.Sequential(nn.RMSNorm(8))
    report = replace_modules(net)
    nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Identity())
    close(net(floats(2, 8)), nn.RMSNorm(8)(floats(2, 8)))
    assert list(report.restore()) == ["0"]


def test_the_model_itself_may_be_a_layer():
    layer = nn.RMSNorm(8)
    assert replace_modules(layer).replaced == {"": warpwright.nn.RMSNorm}
    assert type(layer) is warpwright.nn.RMSNorm


def test_an_optimizer_built_before_trains_the_replaced_model():
    def train(replace):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.Tanh(), nn.RMSNorm(8))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if replace:
            replace_modules(net)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (net(floats(16, 8)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    losses = train(True)
    close(losses, train(False))
    assert losses[-1] < losses[0]
    assert not warpwright.fallbacks()


def test_deepcopy_and_pickle_of_a_replaced_model():
    net = nn.Sequential(nn.RMSNorm(8), nn.Tanh())
    replace_modules(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(twin[0]) is warpwright.nn.RMSNorm
        close(twin(floats(2, 8)), net(floats(2, 8)))
