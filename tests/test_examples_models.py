"""Each example of examples/ learns, and as it does with torch's own layers.

In float64 the two runs of an example are the same mathematics, rounded elsewhere: a difference of 2^-53 in a step's
gradients, which a dozen steps of Adam make no larger than a million times that. A layer that computes something else is
off by far more.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import warpwright

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAME = 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")


@pytest.fixture
def load(monkeypatch):
    """The module of an example, as if nobody had imported it before."""

    def load(name):
        path = EXAMPLES / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        monkeypatch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("gpt", None)
    assert not warpwright.fallbacks()


def assert_same(ours, theirs, tolerance=SAME):
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    assert gap <= tolerance * max(map(abs, theirs)), gap


@pytest.mark.parametrize(
    ("name", "arguments", "share"),
    [
        ("image_classification", ["--steps", "12"], 0.5),
        ("gpt", ["--steps", "12", "--width", "32", "--write", "8"], 0.9),
        ("autoencoder", ["--steps", "20"], 0.5),
        ("transfer_learning", ["--steps", "15"], 0.9),
        ("distillation", ["--steps", "12", "--width", "32"], 0.9),
    ],
)
def test_an_example_learns_as_with_torch(load, capsys, name, arguments, share):
    example = load(name)
    fixed = [*arguments, "--device", "cpu", "--dtype", "float64"]
    ours, theirs = example.main(fixed), example.main([*fixed, "--torch"])
    assert_same(ours, theirs)
    assert sum(ours[-3:]) / 3 < share * ours[0]
    printed = capsys.readouterr().out
    assert f"in {len(ours)} steps" in printed
    assert re.search(r"\d+ replaced, (\d+ fused, )?0 skipped", printed)


def test_the_generator_comes_nearer_to_digits(load):
    example = load("gan")
    fixed = ["--steps", "15", "--device", "cpu", "--dtype", "float64"]
    (ours, near), (theirs, near_too) = example.main(fixed), example.main([*fixed, "--torch"])
    assert_same(ours, theirs)
    assert_same(near, near_too)
    assert near[1] < 0.8 * near[0]


def test_the_head_is_right_in_both_layers(load, capsys):
    """The last checkpoint went from warpwright's layers to torch's."""
    load("transfer_learning").main(["--steps", "30", "--device", "cpu"])
    rights = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if line.endswith("right")]
    assert rights[0] == rights[1]
    assert float(rights[0].split("%")[0]) > 80


def test_bfloat16_learns(load):
    losses = load("autoencoder").main(["--steps", "20", "--device", "cpu", "--dtype", "bfloat16"])
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("precision", "eps"), [("float32", 2.0**-24), ("autocast", 2.0**-9), ("float16", 2.0**-12)])
def test_mixed_precision_follows_torch_s(load, monkeypatch, precision, eps):
    """What a rounding may do to the curve is what a nudge of it to every weight does: four times that is allowed, for
    each step rounds activations and gradients anew."""
    example = load("mixed_precision/amp")
    arguments = ["--steps", "15", "--device", "cpu", "--precision", precision]
    ours, theirs = (example.main(a)[precision] for a in (arguments, [*arguments, "--torch"]))
    network = example.network

    def nudged():
        net = network()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1 + eps * (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1))
        return net

    monkeypatch.setattr(example, "network", nudged)
    moved = example.main([*arguments, "--torch"])[precision]
    allowed = 4 * max(abs(a - b) for a, b in zip(moved, theirs, strict=True))
    assert 0 < allowed < 0.1 * theirs[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= allowed
    assert ours[-1] < 0.5 * ours[0]


def test_masters_and_eight_bits_follow_float32(load):
    """Within a tenth of the first loss: bfloat16 has eight bits, operands of 8-bit products three or four."""
    found = load("mixed_precision/amp").main(
        ["--steps", "15", "--device", "cpu", *(a for p in ("float32", "masters", "float8") for a in ("--precision", p))]
    )
    for precision in ("masters", "float8"):
        gaps = [abs(a - b) for a, b in zip(found[precision], found["float32"], strict=True)]
        assert max(gaps) < 0.1 * found["float32"][0]
        assert max(gaps) > 0


def test_every_example_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.rglob("*.py"):
        if path.parent.name != "hopper_matmul" and path.name != "common.py":
            assert f"({path.relative_to(EXAMPLES)})" in table, path
            assert f"python examples/{path.relative_to(EXAMPLES)}" in table, path
