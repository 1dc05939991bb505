"""nn.Experts: the mixture that a loop over the experts computes, with its gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from layer_checks import assert_as_exact, sample_of
from torch import nn
from torch.nn import functional as F

import warpwright
from warpwright.nn import Experts
from warpwright.nn._activation import apply_activation

EXPERTS, HIDDEN, INNER, TOKENS = 5, 16, 24, 9
#: Expert 3 gets no token, the last token has one expert twice, and index 5 and -1 choose none.
ROUTES = torch.tensor([[0, 1], [1, 2], [4, 0], [2, 4], [0, 4], [1, 0], [5, 2], [-1, 1], [2, 2]])


class Loop(nn.Module):
    """Expert by expert, in torch's words and with the layer's names."""

    def __init__(self, ours):
        super().__init__()
        for name, parameter in ours.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        self.activation, self.bias = ours.activation, ours.down_proj_bias is not None

    def forward(self, x, weights):
        index = ROUTES.to(x.device)
        flat = x.reshape(-1, x.shape[-1])
        mixed = torch.zeros_like(flat)
        for expert in range(self.gate_up_proj.shape[0]):
            rows, ranks = torch.where(index == expert)
            biases = (self.gate_up_proj_bias[expert], self.down_proj_bias[expert]) if self.bias else (None, None)
            gate, up = F.linear(flat[rows], self.gate_up_proj[expert], biases[0]).chunk(2, -1)
            hidden = apply_activation(gate, self.activation) * up
            output = F.linear(hidden, self.down_proj[expert], biases[1]) * weights[rows, ranks, None]
            mixed = mixed.index_add(0, rows, output.to(mixed.dtype))
        return mixed.view(x.shape)


class Routed(nn.Module):
    """The layer with this file's routes, and the loop's parameter names."""

    def __init__(self, experts):
        super().__init__()
        for name, parameter in experts.named_parameters():
            self.register_parameter(name, parameter)
        self.experts = [experts]  # In a list, so that its parameters are here once.

    def forward(self, x, weights):
        (experts,) = self.experts
        parameters = dict(self.named_parameters())
        return torch.func.functional_call(experts, parameters, (x, ROUTES.to(x.device), weights))


def floats(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def layer(**kwargs):
    torch.manual_seed(0)
    return Experts(EXPERTS, HIDDEN, INNER, **kwargs)


def inputs(dtype=torch.float32, device="cpu"):
    return [floats(TOKENS, HIDDEN).to(device, dtype), floats(TOKENS, 2, seed=1).to(device, dtype)]


def outcome(experts, x, weights, index=ROUTES):
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    output = experts(x, index, weights)
    leaves = [x, weights, *experts.parameters()]
    return [output.detach(), *torch.autograd.grad((output * floats(*output.shape, seed=2)).sum(), leaves)]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


# Not bfloat16, to which Triton's interpreter cuts where compiled code rounds: the layer is a chain of kernels.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("activation", "bias"), [("silu", False), ("gelu", True), ("relu", True), ("tanh", False)])
def test_outputs_and_gradients_are_as_exact_as_a_loops(matrix, dtype, activation, bias):
    experts = layer(activation=activation, bias=bias).to(matrix, dtype)
    assert_as_exact(Routed(experts), Loop(experts), inputs(dtype, matrix))
    assert not warpwright.fallbacks()


def test_bfloat16_is_as_exact_as_a_loops():
    for activation in ("silu", "gelu_tanh"):
        experts = layer(activation=activation).bfloat16()
        assert_as_exact(Routed(experts), Loop(experts), inputs(torch.bfloat16))


def test_an_expert_without_tokens_has_gradients_of_zero():
    _, _, _, *grads = outcome(layer(bias=True), *inputs())
    for grad in grads:
        assert not grad[3].any()
        assert grad[2].any()


def test_routing_weights_may_be_wider_than_the_tokens():
    """As routers give them, in float32: the products are then rounded once."""
    experts = layer().bfloat16()
    x, weights = inputs()
    output = experts(x.bfloat16(), ROUTES, weights)
    assert output.dtype == torch.bfloat16
    exact = Loop(copy.deepcopy(experts).double())(x.bfloat16().double(), weights.double())
    rounded = experts(x.bfloat16(), ROUTES, weights.bfloat16())
    assert (output - exact).abs().mean() < (rounded - exact).abs().mean()


def test_the_bits_are_the_same_in_every_run():
    experts, (x, weights) = layer(), inputs()
    first = outcome(experts, x, weights)
    for _ in range(3):
        assert all(map(torch.equal, outcome(experts, x, weights), first))


@pytest.mark.parametrize("k", [1, 3])
def test_batches_of_sequences_are_taken_as_they_are(k):
    experts = layer()
    x, weights = floats(2, 4, HIDDEN), floats(2, 4, k, seed=1)
    index = torch.randint(EXPERTS, (2, 4, k), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    flat = experts(x.flatten(0, 1), index.flatten(0, 1), weights.flatten(0, 1))
    output = experts(x, index, weights)
    assert torch.equal(output, flat.view_as(x))


def test_no_tokens_at_all():
    experts = layer(bias=True)
    output, *grads = outcome(experts, floats(0, HIDDEN), floats(0, 2), torch.zeros(0, 2, dtype=torch.long))
    assert output.shape == (0, HIDDEN)
    assert not any(grad.any() for grad in grads)


def test_compile_export_meta_and_autocast():
    experts, (x, weights) = layer(bias=True), inputs()
    torch._dynamo.reset()
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    close(outcome(compiled, x, weights), outcome(experts, x, weights))
    exported = torch.export.export(experts, (x, ROUTES, weights)).module()
    close(exported(x, ROUTES, weights), experts(x, ROUTES, weights))
    with torch.autocast("cpu", torch.bfloat16):
        output = experts(x, ROUTES, weights)
    assert output.dtype == torch.float32  # As Hugging Face's: that of the tokens.
    torch.testing.assert_close(output, experts(x, ROUTES, weights), rtol=5e-2, atol=5e-2)
    assert experts.to("meta")(x.to("meta"), ROUTES.to("meta"), weights.to("meta")).shape == x.shape
    assert not warpwright.fallbacks()


def test_what_the_op_cannot_take_runs_expert_by_expert():
    experts, (x, weights) = layer(bias=True), inputs()

    def loss(x):
        return (experts(x, ROUTES, weights) * floats(TOKENS, HIDDEN, seed=2)).sum()

    expected = outcome(experts, x, weights)[1]
    warpwright.fallbacks().clear()
    close(torch.func.grad(loss)(x), expected)
    assert dict(warpwright.fallbacks()) == {("Experts", "forward-mode AD or a torch.func transform"): 1}


def test_copies_and_pickles_are_the_layer():
    experts, (x, weights) = layer(), inputs()
    for twin in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        assert torch.equal(twin(x, ROUTES, weights), experts(x, ROUTES, weights))
    assert repr(experts) == "Experts(5, hidden_dim=16, intermediate_dim=24, bias=False, activation='silu')"


def test_first_values_are_those_of_linear_layers():
    experts = layer(bias=True)
    for weight, bias, features in (
        (experts.gate_up_proj, experts.gate_up_proj_bias, HIDDEN),
        (experts.down_proj, experts.down_proj_bias, INNER),
    ):
        for parameter in (weight, bias):
            assert 0.8 < parameter.abs().max() * features**0.5 <= 1


@pytest.mark.parametrize(
    ("index", "weights", "message"),
    [
        (ROUTES.float(), floats(TOKENS, 2), r"top_k_index must be int64 or int32, got torch\.float32"),
        (ROUTES[1:], floats(TOKENS - 1, 2), r"top_k_index must have shape \(\*\(9,\), k\), .*, got \(8, 2\)"),
        (ROUTES, floats(TOKENS, 3), r"top_k_weights must have the shape of top_k_index \(9, 2\), got \(9, 3\)"),
    ],
)
def test_routes_that_do_not_fit_raise(index, weights, message):
    with pytest.raises(RuntimeError, match=r"warpwright: nn\.Experts: " + message):
        layer()(floats(TOKENS, HIDDEN), index, weights)


def test_mixtrals_experts_are_these():
    pytest.importorskip("transformers", reason="MixtralExperts are transformers'")
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_attention_heads=2
    )
    config._experts_implementation = "eager"
    theirs, ours = MixtralExperts(config), layer()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, weights = inputs()
    index = ROUTES.clamp(min=0)  # Theirs has no -1.
    close(outcome(ours, x, weights, index), outcome(theirs, x, weights, index))


def test_the_sample_names_every_parameter():
    """assert_as_exact compares gradients by position."""
    experts = layer(bias=True)
    assert [name for name, _ in Routed(experts).named_parameters()] == [n for n, _ in Loop(experts).named_parameters()]
    assert len(sample_of(Routed(experts), inputs()).tensors()) == 6
