"""replace_modules and timm's models: its own norms, activations and batch norms with an activation inside."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm_models
import torch
import whole_models

import warpwright
from warpwright.nn import replace_modules

timm = timm_models.load()
pytestmark = pytest.mark.skipif(timm is None, reason="timm is not installed")

#: name -> settings, size of images, what fuses
MODELS = {
    "resnet18": ({}, 32, {"conv + batch_norm", "conv + batch_norm + relu", "conv + batch_norm + residual + relu"}),
    "mobilenetv2_050": ({}, 64, {"conv + batch_norm", "conv + batch_norm + residual"}),
    "tinynet_e": ({}, 64, {"conv + batch_norm", "conv + batch_norm + silu", "conv + silu"}),  # An EfficientNet.
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 32, {"conv + gelu"}),
    "vit_tiny_patch16_224": ({"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}, 32,
                             {"linear + gelu + linear", "linear + gelu + linear + residual"}),
}  # fmt: skip


def build(name):
    settings, size, _ = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, in_chans=1, **settings)
    x = torch.rand((4, 1, size, size), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return whole_models.without_dropout(model), x


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", list(MODELS))
def test_outputs_and_gradients_keep_the_error_rule(name, training):
    theirs, x = build(name)
    theirs.train(training)
    ours = copy.deepcopy(theirs)
    report = replace_modules(ours)
    assert {what for found in report.fused.values() for what in found} >= MODELS[name][2]
    assert report.coverage >= 0.95
    assert not whole_models.wrong(ours, theirs, x)
    assert {reason for _, reason in warpwright.fallbacks()} <= {"inplace=True"}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_way_back_is_bitwise_and_copies_work(name):
    model, x = build(name)
    model.eval()
    before, output = [type(module) for module in model.modules()], model(x)
    report = replace_modules(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    assert report.restore() == {}
    assert [type(module) for module in model.modules()] == before
    assert torch.equal(model(x), output)


def test_hooks_of_a_batch_norm_with_an_activation_see_both():
    model, x = build("mobilenetv2_050")
    ours = copy.deepcopy(model.eval())
    replace_modules(ours)
    seen = []
    for net in (model, ours):
        net.bn1.register_forward_hook(lambda _, args, output: seen.append(output))
        net(x)
    torch.testing.assert_close(seen[1], seen[0])
    assert seen[1].min() == 0  # After its ReLU6.
