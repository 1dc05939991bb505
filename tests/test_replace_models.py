"""replace_modules on whole models: the same outputs, gradients and checkpoints before and after, and bitwise the same
after restore()."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import hf_models
import models
import whole_models

import warpwright
from warpwright.nn import replace_modules

#: What fuses in each model, wherever it stands.
FUSED = {
    "resnet": {"conv + batch_norm", "conv + batch_norm + relu", "conv + batch_norm + residual + relu"},
    "resnet-basic": {"conv + batch_norm", "conv + batch_norm + relu", "conv + batch_norm + residual + relu"},
    "mobilenet_v2": {"conv + batch_norm"},
    "efficientnet": {
        "conv + batch_norm", "conv + batch_norm + residual", "conv + batch_norm + silu", "conv + silu",
        "conv + sigmoid",
    },
    "convnext": {"linear + gelu + linear"},
    "vit": {"linear + gelu + linear", "linear + gelu + linear + residual", "residual + layer_norm"},
    "gpt2": {"linear + gelu_tanh + linear", "linear + gelu_tanh + linear + residual"},
    "llama": {"residual + rms_norm", "rotary_embedding", "silu(gate) * up + down", "silu(gate) * up + down + residual"},
    "gemma": {
        "residual + rms_norm", "rotary_embedding", "gelu_tanh(gate) * up + down",
        "gelu_tanh(gate) * up + down + residual",
    },
    "mixtral": {"residual + rms_norm", "rotary_embedding"},
    "bert": {"residual + layer_norm", "linear + residual", "linear + gelu"},
    "t5": {"linear + relu"},
    "t5-gated": {"linear + gelu_tanh"},
    "autoencoder": {"conv + relu", "conv_transpose + tanh", "batch_norm + relu", "linear + relu"},
    "dcgan_generator": {"batch_norm + relu", "conv_transpose + tanh"},
    "dcgan_discriminator": {"conv + batch_norm"},
    "unet": {"conv + batch_norm + relu"},
    "unet-group": {"group_norm + relu"},
}  # fmt: skip
for name in ("mistral", "qwen2", "qwen3"):
    FUSED[name] = FUSED["llama"]
LANGUAGE = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "mixtral", "bert", "t5", "t5-gated")
OWN = {
    "autoencoder": models.autoencoder,
    "dcgan_generator": models.dcgan_generator,
    "dcgan_discriminator": models.dcgan_discriminator,
    "unet": models.unet,
    "unet-group": lambda: models.unet("group"),
}
NAMES = (*hf_models.NAMES, *OWN)


def build(name):
    torch.manual_seed(0)
    model, inputs = OWN[name]() if name in OWN else hf_models.build(name)
    return whole_models.without_dropout(model), inputs


def call(model, inputs):
    return model(**inputs).logits if isinstance(inputs, dict) else model(inputs)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_losses_and_gradients_keep_the_error_rule(name, training):
    theirs, inputs = build(name)
    theirs.train(training)
    ours = copy.deepcopy(theirs)
    replace_modules(ours)
    assert not whole_models.wrong(ours, theirs, inputs)
    allowed = {("Dropout", "inplace=True"), ("ReLU", "inplace=True")}  # torch's own; no other layer may fall back.
    assert set(warpwright.fallbacks()) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_what_is_replaced_and_fused_is_named_and_restored(name):
    model, inputs = build(name)
    model.eval()
    before = {key: type(module) for key, module in model.named_modules()}
    output = call(model, inputs).detach()
    report = replace_modules(model)
    assert report.coverage >= 0.95
    fused = {what for found in report.fused.values() for what in found}
    assert fused == FUSED[name] | ({"linear + cross_entropy, in training"} if name in LANGUAGE else set())
    for key, module in model.named_modules():
        explained = key in report.replaced or key in report.fused or key in report.skipped
        assert explained or not list(module.parameters(recurse=False)), key
    again = replace_modules(model)
    assert not again.replaced
    assert not again.fused
    assert report.restore() == {}
    assert {key: type(module) for key, module in model.named_modules()} == before
    assert torch.equal(call(model, inputs), output)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_do_not_notice(name):
    plain, inputs = build(name)
    plain.eval()
    torch.manual_seed(7)
    replaced, _ = build(name)
    replaced.eval()
    replace_modules(replaced)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    state = plain.state_dict()
    assert list(replaced.state_dict()) == list(state)
    replaced.load_state_dict(state, strict=True)
    torch.testing.assert_close(call(replaced, inputs), call(plain, inputs), rtol=1e-4, atol=1e-5)
    third, _ = build(name)
    third.eval().load_state_dict(replaced.state_dict(), strict=True)
    assert torch.equal(call(third, inputs), call(plain, inputs))


@pytest.mark.parametrize("name", ["resnet-basic", "llama", "t5", "unet"])
def test_copies_and_pickles_of_a_replaced_model_work(name):
    model, inputs = build(name)
    model.eval()
    replace_modules(model)
    output = call(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        assert torch.equal(call(twin, inputs), output)


@pytest.mark.parametrize("name", ["resnet", "convnext", "gpt2", "llama", "mixtral", "bert", "dcgan_generator"])
def test_training_follows_the_same_curve(name):
    def losses(model, steps=4):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        found = []
        for _ in range(steps):
            optimizer.zero_grad()
            values = model(**cast(model)) if isinstance(inputs, dict) else model(cast(model))
            loss = values.loss if isinstance(inputs, dict) else (values - 0.5).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.detach().double())
        return torch.stack(found)

    def cast(model):
        dtype = next(model.parameters()).dtype
        if isinstance(inputs, dict):
            return {key: whole_models._cast(value, dtype) for key, value in inputs.items()}
        return whole_models._cast(inputs, dtype)

    theirs, inputs = build(name)
    theirs.train()
    truth = whole_models.exact(theirs)
    moved = whole_models.exact(whole_models.nudged(truth, inputs)[0])
    ours = copy.deepcopy(theirs)
    replace_modules(ours)
    expected, nudged, plain, found = map(losses, (truth, moved, theirs, ours))
    bound = (
        2 * (plain - expected).abs().max() + (nudged - expected).abs().max() + whole_models.EPS * expected.abs().max()
    )
    assert (found - expected).abs().max() <= bound
    assert found[-1] < found[0]


@pytest.mark.parametrize("model_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("input_layout", [torch.contiguous_format, torch.channels_last])
def test_any_mixture_of_layouts_gives_the_same(model_layout, input_layout):
    theirs, inputs = build("resnet-basic")
    theirs.eval().to(memory_format=model_layout)
    ours = copy.deepcopy(theirs)
    replace_modules(ours)
    x = inputs["pixel_values"].expand(-1, 1, -1, -1).contiguous(memory_format=input_layout)
    torch.testing.assert_close(ours(x).logits, theirs(x).logits, rtol=1e-4, atol=1e-5)
    assert not warpwright.fallbacks()
