"""The training benchmark: what its models are, what a call does, and what a row says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import warpwright
from warpwright.bench.case import OPERATORS, Case
from warpwright.bench.checks import Accuracy, detached
from warpwright.bench.operators import training
from warpwright.bench.operators._torch_training import Masters, _Float8Linear, _quantize
from warpwright.bench.operators.training import Plan, Step, Trainer
from warpwright.bench.providers import find
from warpwright.bench.runner import collect, run

CPU = torch.device("cpu")
SMALL = {
    "gpt2": {"batch": 2, "size": 32, "width": 64, "layers": 1, "classes": 64},
    "llama": {"batch": 2, "size": 32, "width": 128, "layers": 1, "classes": 64},
    "vit": {"batch": 4, "size": 32, "width": 64, "layers": 1, "classes": 64},
    "resnet50": {"batch": 4, "size": 32, "width": 16, "layers": 1, "classes": 64},
}


def case(model="gpt2", precision="plain", dtype=torch.bfloat16, **changes):
    parameters = {"model": model, "precision": precision, **SMALL[model], **changes}
    return Case("test", "training_step_", dtype, ("forward",), parameters)


def trainer(kind, **given):
    plan, *_, params = case(**given).sample(CPU).args
    return Trainer(kind, plan, params)


@pytest.fixture(autouse=True)
def _no_fallbacks():
    yield
    assert not warpwright.fallbacks()


def test_models_have_as_many_parameters_as_their_publishers_say():
    counts = {"gpt2": 124_439_808, "llama": 1_235_814_400, "resnet50": 25_557_032, "vit": 86_567_656}
    for name, sizes in training._SIZES.items():
        model = Plan(name, sizes, "plain", torch.float32).build("meta")
        assert sum(p.numel() for p in model.parameters()) == counts[name]


@pytest.mark.parametrize(
    ("model", "precision"),
    [("gpt2", "plain"), ("llama", "masters"), ("vit", "autocast"), ("gpt2", "fp8"), ("resnet50", "autocast")],
)
def test_ours_is_within_the_bound_and_replaces_every_layer(model, precision):
    dtype = torch.float32 if precision == "plain" else torch.bfloat16
    drawn = case(model, precision, dtype)
    ours = find(["warpwright"])[0]
    accuracy = Accuracy.of(drawn, "forward", CPU)
    assert accuracy.error(ours, ours.function("training_step_", CPU)) <= 1
    assert accuracy.checked == f"{drawn.label}, smooth"
    layers = {type(m) for m in trainer("warpwright", model=model, precision=precision).module.modules()}
    assert not {kind for kind in layers if kind.__module__ == "torch.nn.modules.linear"} - {nn.Identity}
    assert not {kind for kind in layers if kind in (nn.LayerNorm, nn.RMSNorm, nn.Conv2d, nn.BatchNorm2d, nn.GELU)}


def test_a_layer_that_computes_something_else_is_not_timed(monkeypatch):
    def swap(module):
        warpwright.nn.replace_modules(module)
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = 1e-4

    monkeypatch.setattr(training, "_swap", swap)
    drawn = case("gpt2", "plain", torch.float32)
    ours = find(["warpwright"])[0]
    assert Accuracy.of(drawn, "forward", CPU).error(ours, ours.function("training_step_", CPU)) > 1


def test_rows_say_what_was_learned_and_what_it_takes():
    drawn = case("gpt2", "masters")
    rows = collect(run([drawn], providers=["torch", "warpwright"], seconds=0.01, ceilings=False)).rows
    assert [row.status for row in rows] == ["timed", "timed"], [row.reason for row in rows]
    plan, inputs, targets, params = drawn.sample(CPU).args
    first = Trainer("torch", plan, params)
    first.step(inputs, targets)
    for row in rows:
        assert row.loss < 0.9 * first.loss.item()
        assert math.isclose(row.loss, rows[0].loss, rel_tol=2**-6)  # Of losses that are bfloat16 numbers themselves.
        # Two bytes of a parameter and of its gradient, twelve of the optimizer: master and moments.
        assert 16 * sum(p.numel() for p in params) < row.peak_memory < 1 << 26
    assert rows[0].ratio == 1
    # The same again, whatever was trained before: it begins with the drawn parameters.
    again = collect(run([drawn], providers=["torch"], seconds=0.05, ceilings=False)).rows[0]
    assert again.loss == rows[0].loss


def test_new_numbers_in_the_parameters_begin_anew():
    drawn = case("gpt2", "masters")
    plan, inputs, targets, params = detached(drawn.sample(CPU)).args
    step = Step("warpwright")
    first = [g.clone() for g in step(plan, inputs, targets, params)]
    step(plan, inputs, targets, params)
    assert len(step.trainers) == 1
    for p in params:
        p.copy_(p.clone())
    assert all(map(torch.equal, first, step(plan, inputs, targets, params)))
    del params
    assert len(step.trainers) == 0


def test_precisions_are_what_they_say():
    plain = trainer("torch", dtype=torch.float32)
    assert plain.autocast is None
    assert {p.dtype for p in plain.parameters} == {torch.float32}
    autocast = trainer("warpwright", precision="autocast")
    assert autocast.autocast == torch.bfloat16
    assert {p.dtype for p in autocast.parameters} == {torch.float32}
    theirs, ours = trainer("torch", precision="masters"), trainer("warpwright", precision="masters")
    assert isinstance(theirs.optimizer, Masters)
    assert ours.optimizer.master_weights
    assert {p.dtype for p in (*theirs.parameters, *ours.parameters)} == {torch.bfloat16}
    for kind, layer in (("torch", _Float8Linear), ("warpwright", warpwright.nn.Float8Linear)):
        module = trainer(kind, precision="fp8").module
        found = {name for name, m in module.named_modules() if type(m) is layer}
        assert found == {f"model.h.0.{name}" for name in ("c_attn", "c_proj", "mlp.0", "mlp.2")}
    assert isinstance(trainer("compile").run, torch._dynamo.OptimizedModule)
    assert isinstance(trainer("torch", model="resnet50").optimizer, torch.optim.SGD)


def test_torch_s_8_bit_operands_lie_as_tensor_cores_want_them():
    for operand in (torch.randn(16, 32), torch.randn(32, 16).t()):
        codes, scale = _quantize(operand, torch.float8_e4m3fn)
        assert codes.is_contiguous()
        assert scale.shape == (16, 1)
        assert codes.float().abs().amax(1).eq(448).all()


def test_masters_are_torch_s_optimizer_in_float32():
    torch.manual_seed(0)
    wide = nn.Linear(8, 8)
    narrow = nn.Linear(8, 8).bfloat16()
    with torch.no_grad():
        for p, q in zip(wide.parameters(), narrow.parameters(), strict=True):
            q.copy_(p)
            p.copy_(q)
    masters = Masters(list(narrow.parameters()), lambda copies: torch.optim.AdamW(copies, lr=1e-2))
    plain = torch.optim.AdamW(wide.parameters(), lr=1e-2)
    for _ in range(3):
        for p, q in zip(wide.parameters(), narrow.parameters(), strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.float()
        masters.step()
        plain.step()
    for p, q, master in zip(wide.parameters(), narrow.parameters(), masters.masters, strict=True):
        assert torch.equal(p, master)
        assert torch.equal(p.bfloat16(), q)


def test_costs_are_three_forward_passes():
    drawn = case("gpt2", dtype=torch.float32)
    sample = drawn.sample("meta")
    cost = OPERATORS["training_step_"].cost(*sample.args)
    weights = 12 * 64 * 64 + 64 * 64  # A block's, and the output layer's.
    attention = 2 * 2 * 2 * 32 * 32 * 64  # Two products of (32, 64) and (64, 32) for each of two sequences.
    assert cost.flops == 3 * (2 * 2 * 32 * weights + attention)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 100}, "width must be a multiple of 64"),
        ({"model": "vit", "size": 40}, "size must be a multiple of 16"),
    ],
)
def test_sizes_that_no_model_has_are_named(given, message):
    with pytest.raises(RuntimeError, match=f"warpwright: bench: {message}"):
        case(**given).sample("meta")
