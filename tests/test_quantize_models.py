"""warpwright.quantize and warpwright.sparsify: a model's layers take another form, and come back with the same bits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import warpwright
from warpwright import quantize, sparsify
from warpwright.nn import LinearFP8, LinearInt8, LinearW4A16, LinearW8A16, SparseLinear, replace_modules

FORMATS = {"fp8": LinearFP8, "int8": LinearInt8, "w4a16": LinearW4A16, "w8a16": LinearW8A16}
formats = pytest.mark.parametrize("format", FORMATS)
WAYS = {**{name: lambda net, name=name, **kw: quantize(net, name, **kw) for name in FORMATS}, "sparse": sparsify}
ways = pytest.mark.parametrize("way", WAYS)

# PyTorch's own remarks about what the tests below ask of it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")


def floats(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Net(nn.Module):
    """Two linear layers of torch's, one of ours, one with two names, and an output layer tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 64)
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64, bias=False), nn.BatchNorm1d(64))
        self.ours = warpwright.nn.Linear(64, 64, activation="gelu")
        self.first = nn.Linear(64, 64)
        self.second = self.first
        self.head = nn.Linear(64, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.ours(self.body(self.embed(x)))
        return self.head(self.second(torch.tanh(self.first(x))))


def model():
    torch.manual_seed(0)
    return Net().eval()


INDICES = torch.arange(12)
REPLACED = {"body.0", "body.2", "ours", "first", "second"}


def frozen_view(net):
    """Everything that restore must bring back, objects and bits."""
    return (
        {name: (id(m), type(m), {k: v for k, v in vars(m).items() if k[0] != "_"}) for name, m in net.named_modules()},
        [(name, id(p), p.clone()) for name, p in net.named_parameters(remove_duplicate=False)],
        [(name, b.clone()) for name, b in net.named_buffers()],
        list(net.state_dict()),
    )


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


# ---- the change, and back ----


@ways
def test_layers_change_in_place_and_come_back(way):
    net = model()
    before, exact = frozen_view(net), net(INDICES)
    calls = []
    net.body[0].register_forward_hook(lambda module, args, output: calls.append(type(module)))
    report = WAYS[way](net, inputs=INDICES)
    kind = FORMATS.get(way, SparseLinear)
    assert report.replaced == dict.fromkeys(REPLACED, kind)
    assert report.skipped == {"head": "its weight is tied to embed's"}
    assert [id(m) for m in net.modules()] == [key for key, _, _ in before[0].values()]
    assert net.first is net.second
    assert net.ours.activation == "gelu"
    calls.clear()
    output = net(INDICES)
    assert calls == [kind]
    assert 0 < (output - exact).norm() < 0.6 * exact.norm()
    assert not warpwright.fallbacks()

    assert report.restore() == {}
    net.body[0]._forward_hooks.clear()
    assert same(frozen_view(net), before)
    assert torch.equal(net(INDICES), exact)
    assert report.restore() == {}
    assert same(frozen_view(net), before)


@ways
def test_errors_of_each_layer(way):
    net = model()
    exact = copy.deepcopy(net)
    inputs = {}
    for name in ("body.0", "first"):
        exact.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: inputs.setdefault(name, args[0]))
    exact(INDICES)
    report = WAYS[way](net, inputs=INDICES)
    assert set(report.weight_error) == set(report.output_error) == set(report.stored) == REPLACED
    for name in ("body.0", "body.2", "ours"):
        weight = exact.get_submodule(name).weight.double()
        error = (net.get_submodule(name).weight - weight).norm() / weight.norm()
        assert report.weight_error[name] == pytest.approx(error.item(), rel=1e-4)
    output = exact.body[0](inputs["body.0"])
    error = (net.body[0](inputs["body.0"]) - output).norm() / output.norm()
    assert report.output_error["body.0"] == pytest.approx(error.item(), rel=1e-3)
    # A layer that is called twice counts both calls.
    assert report.output_error["first"] == report.output_error["second"]
    before, after = report.stored["body.2"]
    assert before == 64 * 96 * 4
    assert after == net.body[2].stored() < before


def test_the_table():
    net = model()
    lines = str(quantize(net, "int8", exclude="body.2", inputs=INDICES)).splitlines()
    assert lines[0].split() == ["layer", "class", "weight", "error", "output", "error", "bytes"]
    row = next(line for line in lines if line.startswith("ours"))
    assert row.split()[1] == "LinearInt8"
    assert row.endswith("16384 -> 4352")
    assert "body.2  skipped: excluded" in lines
    assert "head    skipped: its weight is tied to embed's" in lines
    # The layer of two names is counted once in bytes.
    assert (
        lines[-1] == f"4 replaced, 2 skipped; weights of {24576 + 2 * 16384} bytes in {24576 // 4 + 96 * 4 + 2 * 4352}"
    )


def test_the_sample_run_leaves_no_trace():
    net = model().train()
    net.body[2].eval()
    modes = {name: m.training for name, m in net.named_modules()}
    before = {name: b.clone() for name, b in net.named_buffers()}
    quantize(net, "w8a16", inputs=(INDICES,))
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers() if name in before)
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("inputs", [INDICES, (INDICES,), [INDICES], {"x": INDICES}])
def test_forms_of_sample_inputs(inputs):
    assert set(quantize(model(), "int8", inputs=inputs).output_error) == REPLACED


@pytest.mark.parametrize(
    ("include", "exclude", "replaced"),
    [
        ("body", None, {"body.0", "body.2"}),
        (None, ["body", "second"], {"ours"}),
        (warpwright.nn.Linear, None, {"ours"}),
        (nn.Linear, "ours", {"body.0", "body.2", "first", "second"}),
    ],
)
def test_include_and_exclude(include, exclude, replaced):
    report = quantize(model(), "w4a16", include=include, exclude=exclude)
    assert set(report.replaced) == replaced
    assert set(report.skipped) == REPLACED - replaced | {"head"}


def test_the_model_itself_may_be_a_layer():
    layer = nn.Linear(64, 32)
    report = quantize(layer, "int8")
    assert isinstance(layer, LinearInt8)
    assert "(model)" in str(report)
    report.restore()
    assert type(layer) is nn.Linear


def test_settings_reach_the_layers():
    net = model()
    quantize(net, "w4a16", group_size=32, symmetric=False)
    assert (net.ours.group_size, net.ours.symmetric) == (32, False)
    assert net.ours.weight_zero.shape == (64, 2)
    net = model()
    quantize(net, "fp8", granularity="block")
    assert net.ours.weight_scale.shape == (1, 1)


def test_a_second_call_changes_nothing():
    net = model()
    first = quantize(net, "int8")
    output = net(INDICES)
    second = quantize(net, "w4a16")
    assert second.replaced == {}
    assert second.skipped == dict.fromkeys(REPLACED, "a LinearInt8 already") | {"head": first.skipped["head"]}
    assert sparsify(net).replaced == {}
    assert second.restore() == {}
    assert torch.equal(net(INDICES), output)


def test_ours_and_theirs_are_taken():
    net = model()
    theirs = quantize(net, "int8")
    output = net(INDICES)
    theirs.restore()
    swapped = replace_modules(net)
    ours = quantize(net, "int8")
    torch.testing.assert_close(net(INDICES), output)
    ours.restore()
    assert type(net.first) is warpwright.nn.Linear
    swapped.restore()
    assert type(net.first) is nn.Linear


# ---- restore, when something happened in between ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("way", ["int8", "w4a16", "sparse"])
def test_a_cast_in_between_is_a_cast_of_the_float_weight(way, dtype):
    net, other = model(), model().to(dtype)
    report = WAYS[way](net)
    net.to(dtype)
    assert report.restore() == {}
    assert same([p.data for p in net.parameters()], [p.data for p in other.parameters()])
    assert torch.equal(net(INDICES), other(INDICES))


def test_weights_that_were_loaded_or_trained_stay():
    net = model()
    report = quantize(net, "int8")
    net.first.load_state_dict(nn.Linear(64, 64).state_dict())
    left = report.restore()
    assert left == dict.fromkeys(["first", "second"], "its weight has changed since: it was trained or loaded")
    assert isinstance(net.first, LinearInt8)
    assert type(net.body[0]) is nn.Linear

    net = model()
    report = sparsify(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(INDICES).square().sum().backward()
    optimizer.step()
    assert set(report.restore()) == REPLACED


def test_a_class_that_changed_stays():
    net = model()
    report = sparsify(net)
    parametrize.register_parametrization(net.ours, "weight_values", nn.Identity())
    left = report.restore()
    assert left == {"ours": "its class became ParametrizedSparseLinear after it was replaced"}


def test_float_weights_need_not_be_kept():
    import weakref

    net = model()
    weight = weakref.ref(net.ours.weight)
    report = quantize(net, "int8", restorable=False)
    assert weight() is None
    assert set(report.restore().values()) == {"its float weight was not kept"}
    assert isinstance(net.ours, LinearInt8)

    net = model()
    weight = weakref.ref(net.ours.weight)
    report = quantize(net, "int8")
    assert weight() is not None
    del report
    assert weight() is None


# ---- states, copies, compile ----


@ways
def test_states_of_before_load_after_and_quantised_ones_into_a_twin(way):
    net = model()
    state = copy.deepcopy(net.state_dict())
    WAYS[way](net)
    output = net(INDICES)
    net.load_state_dict(state, strict=True)
    assert torch.equal(net(INDICES), output)
    torch.manual_seed(1)
    twin = Net().eval()
    report = WAYS[way](twin)
    twin.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(twin(INDICES), output)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "body.0.weight"'):
        model().load_state_dict(net.state_dict())
    assert set(report.restore()) == REPLACED  # The twin's float weights are not those of what it loaded.


def test_a_float_checkpoint_fills_a_quantised_model_on_the_meta_device():
    net = model()
    with torch.device("meta"):
        empty = Net().eval()
    report = quantize(empty, "w8a16")
    assert set(report.replaced) == REPLACED
    assert report.weight_error == {}
    empty.to_empty(device="cpu")
    empty.load_state_dict(net.state_dict(), strict=True)
    quantize(net, "w8a16")
    assert torch.equal(empty(INDICES), net(INDICES))


@ways
def test_copies_and_pickles(way):
    net = model()
    WAYS[way](net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(twin.ours) is type(net.ours)
        assert torch.equal(twin(INDICES), net(INDICES))


@ways
def test_quantised_models_compile(way):
    net = model()
    WAYS[way](net)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(INDICES), net(INDICES))


# ---- what is left as it is ----


class Own(nn.Linear):
    pass


def test_skipped_layers_say_why():
    wrapped, pruned, parametrised = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
    wrapped.forward = wrapped.forward
    prune.l1_unstructured(pruned, "weight", 0.5)
    parametrize.register_parametrization(parametrised, "weight", nn.Identity())
    complex_one = nn.Linear(64, 64, dtype=torch.complex64)
    net = nn.ModuleDict(
        {
            "own": Own(64, 64),
            "wrapped": wrapped,
            "pruned": pruned,
            "parametrised": parametrised,
            "lazy": nn.LazyLinear(3),
            "complex": complex_one,
            "narrow": nn.Linear(2, 64).bfloat16(),
            "attention": nn.MultiheadAttention(64, 2),
            "loss": warpwright.nn.LinearCrossEntropyLoss(64, 12),
            "wide": nn.Linear(64, 64).double(),
            "conv": nn.Conv2d(3, 4, 3),
        }
    )
    report = quantize(net, "int8")
    assert report.replaced == {}
    reasons = report.skipped
    assert set(reasons) == {*net} - {"attention", "loss", "conv"} | {"attention.out_proj", "loss.linear"}
    assert reasons["own"] == f"a subclass: {Own.__module__}.Own"
    assert reasons["wrapped"] == "its forward was replaced on the instance"
    assert reasons["pruned"] == "it holds more than a weight and a bias: weight_orig, weight_mask"
    assert reasons["parametrised"] == "parametrised (torch.nn.utils.parametrize)"
    assert reasons["lazy"] == "lazy: its parameters are not initialised yet"
    assert reasons["complex"] == "a weight in torch.complex64"
    assert reasons["narrow"] == "no smaller: 384 bytes, 256 as it is"
    assert "NonDynamicallyQuantizableLinear" in reasons["attention.out_proj"]
    assert reasons["loss.linear"] == "the module around it reads its weight"
    assert reasons["wide"] == "a weight in float64"
    assert sparsify(nn.Linear(62, 8)).skipped == {"": "62 input features, which are no multiple of 4"}


def test_torchs_encoder_reads_the_dequantised_weight():
    """Its inference path multiplies by the weights of its layers itself."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(64, 2, 96, batch_first=True).eval()
    x = floats(2, 5, 64)
    with torch.no_grad():
        exact = encoder(x)
        quantize(encoder, "int8")
        assert 0 < (encoder(x) - exact).norm() < 0.02 * exact.norm()
    called = encoder(x)  # With gradients the layers are called.
    assert 0 < (called - exact).norm() < 0.02 * exact.norm()


# ---- misuse ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: quantize(net, "int4"), "quantize: format must be one of fp8, int8, w4a16, w8a16, got 'int4'"),
        (lambda net: quantize(net, "int8", group_size=64), "quantize: int8 has no setting 'group_size'; it has none"),
        (lambda net: quantize(net, "w4a16", granularity="row"), "w4a16 has no .*; it has group_size, symmetric"),
        (lambda net: quantize(net, "w4a16", group_size=100), "group_size must be None or a power of two"),
        (lambda net: quantize(net, "int8", include="decoder"), "quantize: include: 'decoder' matches no module"),
        (lambda net: sparsify(net, exclude=[3]), "sparsify: exclude must hold module types, names or patterns, got 3"),
        (lambda net: quantize(net, "int8", inputs=3), "quantize: inputs must be a tensor, a tuple .*, got a int"),
        (lambda net: quantize(net, "int8", inputs=floats(3)), "Expected tensor for argument #1 'indices'"),
        (lambda net: quantize(torch.compile(net), "int8"), "quantize: the model is compiled already: call quantize"),
        (
            lambda net: sparsify(nn.Sequential(torch.jit.script(nn.Linear(8, 8)))),
            "sparsify: the module '0' is scripted already: call sparsify",
        ),
    ],
)
def test_misuse_is_answered_and_changes_nothing(call, message):
    net = model()
    before = frozen_view(net)
    with pytest.raises(RuntimeError, match=message):
        call(net)
    assert same(frozen_view(net), before)


def test_a_layer_compiled_in_place_is_refused():
    net = model()
    net.ours.compile(backend="eager")
    with pytest.raises(RuntimeError, match="quantize: the module 'ours' is compiled already"):
        quantize(net, "int8")


@formats
def test_training_a_quantised_model_names_the_layer(format):
    net = model().train()
    report = quantize(net, format)
    with pytest.raises(RuntimeError, match=rf"warpwright: nn\.{FORMATS[format].__name__}: layer '.*' is quantised"):
        net(INDICES).sum().backward()
    report.restore()
    net(INDICES).sum().backward()
    assert net.ours.weight.grad is not None
