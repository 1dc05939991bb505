"""warpwright.quantize and warpwright.sparsify: what trained models and Hugging Face's still know afterwards."""

from __future__ import annotations

import copy

import hf_models
import pytest
import torch
from torch import nn

import warpwright
from warpwright import quantize, sparsify
from warpwright.nn import SparseLinear
from warpwright.quantization import FORMATS

formats = pytest.mark.parametrize("format", FORMATS)


# ---- accuracy of trained models ----


@pytest.fixture(scope="module")
def digits():
    """A small network, the images and classes that it has learned from, and those that it has not seen."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's")
    data = datasets.load_digits()
    images = torch.from_numpy(data.data).float()
    images, classes = (images - images.mean()) / images.std(), torch.from_numpy(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    seen, unseen = ((images[rows], classes[rows]) for rows in (order[:1297], order[1297:]))
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    learn(net, *seen, steps=150, lr=3e-3)
    return net.eval(), seen, unseen


def learn(net, images, classes, steps, lr):
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), classes[rows]).backward()
        optimizer.step()


@formats
def test_digits_are_still_known(digits, format):
    net, _, (images, classes) = digits
    with torch.no_grad():
        exact = net(images)
        report = quantize(net, format, inputs=images)
        output = net(images)
    report.restore()
    # Trained layers behind a ReLU do not amplify: an error at most adds to those of the layers before.
    error = (output - exact).norm() / exact.norm()
    assert error < sum(report.output_error.values())
    assert error < (0.1 if format == "w4a16" else 0.05)
    # So answers change only where the two best classes are that close, a few of 500 images.
    before, after = ((answer.argmax(1) == classes).float().mean() for answer in (exact, output))
    assert before > 0.95
    assert after > before - 0.01


def test_digits_are_known_by_half_of_the_weights_after_more_training(digits):
    net, seen, (images, classes) = copy.deepcopy(digits[0]), *digits[1:]

    def state():
        """The loss on what was learned, and how much of the rest is known."""
        with torch.no_grad():
            loss = nn.functional.cross_entropy(net(seen[0]), seen[1])
            return loss, (net(images).argmax(1) == classes).float().mean()

    loss, known = state()
    sparsify(net)
    pruned, _ = state()
    torch.manual_seed(0)
    learn(net, *seen, steps=60, lr=1e-3)
    trained, still_known = state()
    assert pruned > 2 * loss
    assert trained < 0.5 * pruned
    assert still_known > known - 0.01
    assert all(isinstance(net[i], SparseLinear) for i in (0, 2, 4))


@pytest.fixture(scope="module")
def gpt():
    """A small GPT-2 that has read a file of Python's library, and a part of what it has read."""
    transformers = pytest.importorskip("transformers", reason="GPT-2 is transformers'")
    text = torch.tensor(list(argparse_source()), dtype=torch.long).clamp(max=127)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=128, n_positions=32, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.08,
    )  # fmt: skip
    net = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        starts = torch.randint(len(text) - 32, (16,))
        optimizer.zero_grad()
        next_character_loss(net, torch.stack([text[s : s + 32] for s in starts])).backward()
        optimizer.step()
    return net.eval(), text[20000 : 20000 + 64 * 32].view(64, 32)


def argparse_source():
    import argparse
    import inspect

    return inspect.getsource(argparse).encode()[:40000]


def next_character_loss(net, characters):
    logits = net(characters).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), characters[:, 1:].flatten())


@formats
def test_a_gpt_loses_little(gpt, format):
    net, text = gpt
    with torch.no_grad():
        exact = next_character_loss(net, text)
        report = quantize(net, format)
        loss = next_character_loss(net, text)
        report.restore()
        assert torch.equal(next_character_loss(net, text), exact)
    shares = torch.bincount(text.flatten(), minlength=128) / text.numel()
    assert exact < -shares.xlogy(shares).sum() - 0.4  # It knows more than how often each character is written.
    assert len(report.replaced) == 8
    assert set(report.skipped) == {"lm_head"}
    # Where training has ended the loss rises by the square of an error of the weights, once for each layer.
    worst = max(report.weight_error.values())
    assert worst < (0.15 if format == "w4a16" else 0.03)
    assert abs(loss / exact - 1) < len(report.replaced) * worst**2


# ---- Hugging Face's models ----


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_models_of_hugging_face(name):
    net, inputs = hf_models.build(name)
    if name != "t5":  # Whose decoder reads them.
        del inputs["labels"]
    with torch.no_grad():
        exact = net(**inputs).logits
        state = copy.deepcopy(net.state_dict())
        for format in FORMATS:
            report = quantize(net, format, inputs=inputs)
            linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
            assert len(report.replaced) >= 6
            assert {net.get_submodule(skipped) for skipped in report.skipped} == set(linear)
            assert set(report.output_error) == set(report.replaced)
            output = net(**inputs).logits
            assert 0 < (output - exact).norm() < 0.2 * exact.norm()
            net.load_state_dict(state, strict=True)
            assert torch.equal(net(**inputs).logits, output)
            assert report.restore() == {}
            assert torch.equal(net(**inputs).logits, exact)
    assert not warpwright.fallbacks()
