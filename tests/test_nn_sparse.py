"""nn.SparseLinear: half of a weight, in inference and in training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from layer_checks import assert_as_exact
from torch import nn
from torch.nn import functional as F

import warpwright
from warpwright.nn import SparseLinear
from warpwright.nn._activation import apply_activation
from warpwright.ops import Sparse24Weight

# PyTorch's own remark about its forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def floats(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(bias=True, activation=None, dtype=torch.float32, device="cpu", features=(72, 20)):
    torch.manual_seed(0)
    linear = warpwright.nn.Linear(*features, bias, activation=activation).to(device, dtype)
    return linear, SparseLinear.from_float(linear)


class Scattered(nn.Module):
    """The layer in torch's words: kept elements go to where they stood."""

    def __init__(self, ours, linear):
        super().__init__()
        self.weight_values = nn.Parameter(ours.weight_values.detach().clone())
        if ours.bias is not None:
            self.bias = nn.Parameter(ours.bias.detach().clone())
        groups = linear.weight.detach().abs().unflatten(1, (-1, 4))
        # Of equal magnitudes the first.
        places = groups.sort(stable=True, dim=-1, descending=True).indices[..., :2].sort(-1).values
        self.columns = (places + 4 * torch.arange(groups.shape[1], device=places.device)[:, None]).flatten(1)
        self.shape, self.activation = linear.weight.shape, ours.activation

    def forward(self, x):
        weight = self.weight_values.new_zeros(self.shape).scatter(1, self.columns, self.weight_values)
        return apply_activation(F.linear(x, weight, getattr(self, "bias", None)), self.activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("bias", "activation"), [(True, "gelu"), (False, None)])
def test_outputs_and_gradients_are_as_exact_as_torchs(matrix, dtype, bias, activation):
    linear, layer = pair(bias, activation, dtype, matrix)
    assert_as_exact(layer, Scattered(layer, linear), [floats(2, 3, 72).to(matrix, dtype)])
    assert not warpwright.fallbacks()


def test_the_two_largest_of_each_four_stay():
    linear, layer = pair()
    weight = linear.weight.detach()
    groups, kept = weight.unflatten(1, (-1, 4)), layer.weight.unflatten(1, (-1, 4))
    assert ((kept != 0).sum(-1) == 2).all()
    assert torch.equal(kept[kept != 0], groups[kept != 0])
    dropped = torch.where(kept == 0, groups.abs(), 0).amax(-1)
    assert (dropped <= torch.where(kept == 0, torch.inf, groups.abs()).amin(-1)).all()
    assert layer.stored() == 20 * 36 * 4 + 20 * 9


def test_a_layer_looks_like_a_linear_layer():
    linear, layer = pair(activation="gelu")
    assert layer.bias is linear.bias
    assert [name for name, _ in layer.named_parameters()] == ["weight_values", "bias"]
    assert repr(layer) == "SparseLinear(in_features=72, out_features=20, bias=True, activation='gelu')"
    assert layer.weight.shape == linear.weight.shape
    back = layer.to_float()
    assert torch.equal(back.weight, layer.weight)
    assert back.bias is layer.bias
    torch.testing.assert_close(back(floats(5, 72)), layer(floats(5, 72)))
    linear.weight.requires_grad_(False)
    assert not SparseLinear.from_float(linear).weight_values.requires_grad


def test_copies_casts_and_the_meta_device():
    linear, layer = pair(activation="silu")
    x = floats(5, 72)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    empty = SparseLinear(72, 20, device="meta", activation="silu")
    assert empty(x.to("meta")).shape == (5, 20)
    assert SparseLinear.from_float(linear.to("meta"))(x.to("meta")).shape == (5, 20)
    empty.load_state_dict(layer.state_dict(), strict=True, assign=True)
    assert torch.equal(empty(x), layer(x))
    half = copy.deepcopy(layer).bfloat16()
    assert torch.equal(half.weight_metadata, layer.weight_metadata)
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=2e-2, atol=2e-2)
    assert not warpwright.fallbacks()


@pytest.mark.parametrize("assign", [False, True])
def test_dense_states_are_pruned_on_their_way_in(assign):
    linear, layer = pair()
    other = SparseLinear(72, 20)
    assert not other(floats(5, 72)).any()  # Zero until a state is loaded.
    other.load_state_dict(linear.state_dict(), strict=True, assign=assign)
    assert torch.equal(other(floats(5, 72)), layer(floats(5, 72)))
    # A weight that is sparse already loses nothing.
    other.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()}, strict=True)
    assert torch.equal(other.weight, layer.weight)
    other = SparseLinear(72, 20)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other.weight, layer.weight)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(20, 36\) in the checkpoint, \(20, 72\)"):
        other.load_state_dict(nn.Linear(36, 20).state_dict())


def test_training_moves_the_values_and_leaves_the_mask():
    _, layer = pair()
    x, goal = floats(64, 72), floats(64, 20, seed=1)
    before, mask = layer.weight_metadata.clone(), layer.weight != 0
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(layer.weight_metadata, before)
    assert not layer.weight[~mask].any()


def test_the_weight_is_differentiable():
    _, layer = pair()
    layer.weight.square().sum().backward()
    torch.testing.assert_close(layer.weight_values.grad, 2 * layer.weight_values.detach())


def test_compile_export_and_autocast():
    _, layer = pair(activation="gelu")
    x = floats(5, 72)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = list(layer.parameters())
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), leaves) for f in (compiled, layer))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not warpwright.fallbacks()


def test_torch_func_falls_back_with_the_same_numbers():
    _, layer = pair(activation="gelu")
    x = floats(5, 72)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = torch.func.grad(loss)(parameters)
    torch.testing.assert_close([found[name] for name in parameters], list(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    assert dict(warpwright.fallbacks()) == {("SparseLinear", "forward-mode AD or a torch.func transform"): 2}


def test_conv1d_of_transformers_is_taken_transposed():
    utils = pytest.importorskip("transformers.pytorch_utils", reason="Conv1D is transformers'")
    conv = utils.Conv1D(20, 48)
    layer = SparseLinear.from_float(conv)
    assert layer.weight.shape == (48, 20)
    kept = layer.weight != 0
    assert torch.equal(layer.weight[kept], conv.weight[kept])
    assert ((layer.weight.unflatten(0, (-1, 4)) != 0).sum(1) == 2).all()  # Along the input features.
    other = copy.deepcopy(layer)
    other.load_state_dict(conv.state_dict(), strict=True)
    assert torch.equal(other.weight, layer.weight)


def test_the_weight_is_what_the_op_takes():
    _, layer = pair()
    assert isinstance(layer.packed, Sparse24Weight)
    assert layer.made_of(layer.weight.detach())
    with torch.no_grad():
        layer.weight_values[3, 4] += 1
    assert not layer.made_of(pair()[0].weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseLinear(6, 8), r"nn\.SparseLinear: in_features must be a multiple of 4, got 6"),
        (lambda: SparseLinear.from_float(nn.Linear(6, 8)), "linear cannot be pruned: 6 input features, which are no"),
        (lambda: SparseLinear.from_float(nn.Tanh()), r"from_float: linear must be a torch\.nn\.Linear"),
    ],
)
def test_misuse_is_answered(make, message):
    with pytest.raises(RuntimeError, match="warpwright: .*" + message):
        make()
