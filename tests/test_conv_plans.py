"""Each way to compute a convolution or a gradient of one on a GPU, forced; and the choice among them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import emulated
import pytest
import torch
from torch import Tensor

import warpwright
from warpwright import _gemm_plans, ops
from warpwright._backend import call
from warpwright._conv import in_format
from warpwright._conv_plans import Convolution
from warpwright._gemm_plans import GemmPlan, GemmQuestion
from warpwright.testing import Make

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

NAMES = {"forward": "fprop", "input gradient": "dgrad", "weight gradient": "wgrad"}
#: What is compiled for each role: kernel and tile.
MMA = {("mma", 128, 128), ("mma", 64, 64)}
TILES = {
    "forward": {("wgmma", 128, 256), ("wgmma", 128, 128), ("wgmma", 128, 64)},
    "input gradient": {("wgmma", 128, 256), ("wgmma", 128, 128), ("wgmma", 128, 64)},
    "weight gradient": {("wgmma", 128, 256), ("wgmma", 64, 256)},
}


@pytest.fixture(autouse=True)
def on_emulator() -> Iterator[None]:
    emulated.activate()
    with warpwright.use_backend("emulated"):
        yield
    _gemm_plans.forget(emulated.library())


@dataclass
class Layer:
    """A convolution of whole numbers, whose sums float32 holds exactly."""

    dtype: torch.dtype = torch.float16
    batch: int = 2
    channels: int = 72
    filters: int = 136
    size: tuple[int, int] = (9, 7)
    stride: int = 1
    groups: int = 1
    kernel: int = 3
    last: bool = True
    precision: str = "ieee"

    def __post_init__(self) -> None:
        make = Make(self.dtype)
        shapes = (
            (self.batch, self.channels, *self.size),
            (
                *(self.filters, self.channels // self.groups),
                *(self.kernel, self.kernel),
            ),
        )
        sizes = [(s - 1) // self.stride + 1 for s in self.size]
        self.x, self.w, self.y = (
            in_format(make.integers(*shape, low=-2, high=3).to(self.dtype), self.last)
            for shape in (*shapes, (self.batch, self.filters, *sizes))
        )

    @property
    def numbers(self) -> tuple[list[int], list[int], list[int]]:
        return [self.stride] * 2, [self.kernel // 2] * 2, [1, 1]

    def question(self, role: str, **measured: bool) -> GemmQuestion:
        where = torch.device("cpu")
        found = Convolution(self.x, self.w, self.y, *self.numbers, self.groups, self.precision, where)
        question = found.question(emulated.library(), role, **measured)
        assert question is not None
        return question

    def run(self, role: str) -> Tensor:
        if role == "forward":
            numbers = (*self.numbers, False, [], self.groups, "none", self.precision, False)
            return call("convolution", self.x, self.w, None, None, *numbers)[0]
        needs = (role == "input gradient", role == "weight gradient", False, False)
        numbers = (*self.numbers, False, [], self.groups, "none", self.precision, *needs)
        return call("convolution_backward", self.y, self.x, self.w, None, *numbers)[not needs[0]]

    def exact(self, role: str) -> Tensor:
        x, w, y = (t.double() for t in (self.x, self.w, self.y))
        if role == "forward":
            return torch.conv2d(x, w, None, *self.numbers, self.groups)
        mask = [role == "input gradient", role == "weight gradient", False]
        numbers = (*self.numbers, False, [0, 0], self.groups, mask)
        return torch.ops.aten.convolution_backward(y, x, w, None, *numbers)[not mask[0]]


LAYERS = {
    "Hopper's": Layer(),
    "Hopper's, in phases": Layer(stride=2, dtype=torch.bfloat16),
    "in vectors": Layer(groups=2, channels=32, filters=48),
    "channels first": Layer(last=False, channels=20, filters=70),
    "TF32": Layer(dtype=torch.float32, precision="tf32", channels=36, filters=70),
    "exact float32": Layer(dtype=torch.float32, channels=5, filters=6),
}
#: Of many pixels, whose sum is cut into parts.
LONG = {
    "Hopper's": Layer(channels=32, filters=72, size=(48, 40), kernel=1),
    "few filters": Layer(channels=32, filters=40, size=(48, 40), kernel=1, dtype=torch.bfloat16),
    "in vectors": Layer(groups=2, channels=16, filters=16, size=(31, 40), kernel=1),
    "TF32": Layer(dtype=torch.float32, precision="tf32x3", channels=4, filters=9, size=(33, 40), kernel=1, last=False),
}


def tiles(plans: list[GemmPlan]) -> set[tuple[str, int, int]]:
    return {(plan.kernel, plan.tile_m, plan.tile_n) for plan in plans}


def kernel_of(role: str, plan: GemmPlan) -> str:
    kind = {"wgmma": "_wgmma", "simple": ""}.get(plan.kernel, "_mma")
    return f"conv_{NAMES[role]}{kind}"


def launched(layer: Layer, role: str, plan: GemmPlan) -> Tensor:
    """The result by a plan, and that it was this one that computed it, in so many parts."""
    question, kernel = layer.question(role), kernel_of(role, plan)
    _gemm_plans.prefer(emulated.library(), plan, question)
    before = [emulated.launches(name) for name in (kernel, "conv_wgrad_reduce")]
    result = layer.run(role)
    assert emulated.launches(kernel) == before[0] + 1
    assert emulated.launches("conv_wgrad_reduce") == before[1] + (plan.splits > 1)
    assert _gemm_plans.chosen(emulated.library(), question).text == plan.text
    return result


@pytest.mark.parametrize("role", NAMES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_tile_is_exact(name, role):
    layer = LAYERS[name]
    plans = layer.question(role).plans()
    expected = {torch.float32: {("simple", 64, 64) if layer.precision == "ieee" else ("tf32", 128, 64)}}
    hoppers = TILES[role] if name.startswith("Hopper's") else set()
    assert tiles(plans) == expected.get(layer.dtype, MMA | hoppers)
    exact = layer.exact(role).to(layer.dtype)
    for plan in plans:
        assert torch.equal(launched(layer, role, plan), exact), plan.text


@pytest.mark.parametrize("name", LONG)
def test_every_number_of_parts_is_exact(name):
    layer, role = LONG[name], "weight gradient"
    plans = layer.question(role).plans()
    exact = layer.exact(role).to(layer.dtype)
    for kernel in {plan.kernel for plan in plans}:
        assert len({plan.splits for plan in plans if plan.kernel == kernel}) > 2
    for plan in plans:
        assert torch.equal(launched(layer, role, plan), exact), plan.text


@pytest.mark.parametrize("name", ["Hopper's", "in vectors", "channels first", "TF32"])
def test_every_tile_that_can_leaves_statistics(name):
    layer = LAYERS[name]
    plans = layer.question("forward", measured=True).plans()
    leave = {"TF32": {("tf32", 128, 64)}, "Hopper's": MMA | {("wgmma", 128, 128), ("wgmma", 128, 64)}}
    assert tiles(plans) == leave.get(name, MMA)
    exact = layer.exact("forward").transpose(0, 1).flatten(1)
    for plan in plans:
        _gemm_plans.prefer(emulated.library(), plan)
        kernel = "conv_fprop_mma" if name == "TF32" else f"conv_fprop_measured_{plan.kernel}"
        before = emulated.launches(kernel)
        found = call(
            "convolution_batch_norm", layer.x, layer.w, None, None, None, None, None, None, *layer.numbers,
            layer.groups, True, 0.1, 1e-5, "none", layer.precision, True,
        )  # fmt: skip
        _gemm_plans.forget(emulated.library())
        assert emulated.launches(kernel) == before + 1
        # Whole numbers up to 2048 are stored as they are.
        assert exact.abs().max() <= 2048
        torch.testing.assert_close(found[2].flatten().double(), exact.mean(1), rtol=1e-5, atol=1e-5)
        rstd = (exact.var(1, correction=0) + 1e-5).rsqrt()
        torch.testing.assert_close(found[3].flatten().double(), rstd, rtol=1e-5, atol=0)


def test_a_plan_that_leaves_no_statistics_is_left_where_they_are_wanted():
    layer = LAYERS["Hopper's"]
    wide = next(plan for plan in layer.question("forward").plans() if plan.tile_n == 256)
    _gemm_plans.prefer(emulated.library(), wide)
    assert _gemm_plans.chosen(emulated.library(), layer.question("forward")).text == wide.text
    measured = layer.question("forward", measured=True)
    assert _gemm_plans.chosen(emulated.library(), measured).text == measured.plans()[0].text


def run_every_plan(layers: list[Layer]) -> dict[str, list[str]]:
    """Each way to compute small convolutions, forced; the instantiations of kernels that each is the first to reach."""
    before, found = emulated.kernels(), {}
    for layer in layers:
        for role in NAMES:
            for plan in layer.question(role).plans():
                _gemm_plans.prefer(emulated.library(), plan, layer.question(role))
                layer.run(role)
                after = emulated.kernels()
                new = [name for name, reached in after.items() if reached and not before[name]]
                found.setdefault(f"{role} {plan.kernel} {plan.tile_m} {plan.tile_n}", []).extend(new)
                before = after
    return found


def test_a_plans_tile_is_the_one_that_is_launched():
    """In a process of its own, where nothing else has reached a kernel."""
    script = """if True:
        import json, emulated, warpwright
        from test_conv_plans import LAYERS, run_every_plan
        emulated.activate()
        with warpwright.use_backend("emulated"):
            print(json.dumps(run_every_plan([LAYERS["Hopper's"]])))
    """
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert set(found) == {f"{role} {k} {m} {n}" for role in NAMES for k, m, n in TILES[role] | MMA}
    for what, kernels in found.items():
        kind, tile_m, tile_n = what.split()[-3:]
        kernels = [name for name in kernels if "reduce" not in name]
        if what.startswith("input gradient wgmma"):
            assert kernels == [], "those of the forward product, which have run"
            continue
        assert len(kernels) == 1, what
        assert re.search(rf"\b{tile_m}, {tile_n}, ", kernels[0]), (what, kernels)
        assert f"_{kind}_kernel" in kernels[0]


# ---- the choice ----


def on(multiprocessors: int, capability: int = 90) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setenv("WARPWRIGHT_EMULATOR_MULTIPROCESSORS", str(multiprocessors))
    patch.setenv("WARPWRIGHT_EMULATOR_ARCH", str(capability))
    return patch


def resnet50(role: str, batch: int, last: bool = True) -> list[GemmQuestion]:
    """Of the sizes of ResNet-50's layers; no tensor has data."""
    found = []
    shapes = [
        (64, 64, 1, 1, 56), (64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 64, 1, 1, 56), (256, 128, 1, 1, 56),
        (128, 128, 3, 2, 56), (128, 512, 1, 1, 28), (256, 512, 1, 2, 56), (512, 128, 1, 1, 28), (128, 128, 3, 1, 28),
        (512, 256, 1, 1, 28), (256, 256, 3, 2, 28), (256, 1024, 1, 1, 14), (512, 1024, 1, 2, 28),
        (1024, 256, 1, 1, 14), (256, 256, 3, 1, 14), (1024, 512, 1, 1, 14), (512, 512, 3, 2, 14),
        (512, 2048, 1, 1, 7), (1024, 2048, 1, 2, 14), (2048, 512, 1, 1, 7), (512, 512, 3, 1, 7),
    ]  # fmt: skip
    for channels, filters, kernel, stride, size in shapes:
        layout = torch.channels_last if last else torch.contiguous_format
        x, w, y = (
            torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=layout)
            for shape in (
                (batch, channels, size, size), (filters, channels, kernel, kernel),
                (batch, filters, size // stride, size // stride),
            )
        )  # fmt: skip
        numbers = [stride] * 2, [kernel // 2] * 2, [1, 1]
        question = Convolution(x, w, y, *numbers, 1, "ieee", torch.device("cpu")).question(emulated.library(), role)
        assert question is not None
        found.append(question)
    return found


def blocks(question: GemmQuestion, plan: GemmPlan) -> int:
    rows, columns = -(-question.m // plan.tile_m), -(-question.n // plan.tile_n)
    return question.matrices * rows * columns * plan.splits


@pytest.mark.parametrize(("multiprocessors", "capability"), [(132, 90), (108, 80)], ids=["H100", "A100"])
@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("role", NAMES)
def test_no_tile_leaves_multiprocessors_idle_where_another_does_not(role, batch, multiprocessors, capability):
    patch = on(multiprocessors, capability)
    try:
        questions = [q for last in (True, False) for q in resnet50(role, batch, last)]
    finally:
        patch.undo()
    hoppers = 0
    for question in questions:
        first, *others = question.plans()
        hoppers += first.kernel == "wgmma"
        same = [p for p in others if p.splits == first.splits or role != "weight gradient"]
        if 2 * blocks(question, first) < multiprocessors:
            assert all(2 * blocks(question, plan) < multiprocessors for plan in same), (question, first.text)
    assert (hoppers > 0) == (capability == 90)


def test_many_pixels_take_the_widest_tile_and_few_filters_a_narrow_one():
    patch = on(132)
    try:
        many = Layer(batch=64, channels=256, filters=256, size=(14, 14)).question("forward")
        few = Layer(batch=64, channels=64, filters=64, size=(14, 14)).question("forward")
    finally:
        patch.undo()
    for question, tile in ((replace(many, m=1 << 16), 256), (replace(few, m=1 << 16), 64)):
        assert (question.plans()[0].kernel, question.plans()[0].tile_n) == ("wgmma", tile)
    ampere = replace(many, m=1 << 16, tma=False, capability=80, multiprocessors=108)
    assert (ampere.plans()[0].kernel, ampere.plans()[0].tile_m) == ("mma", 128)
    assert replace(ampere, n=64).plans()[0].tile_m == 64


@pytest.mark.parametrize("name", LONG)
def test_a_weights_gradient_has_the_same_parts_on_every_device(name):
    """By its sizes alone: so bits are the same unless something else was measured to be faster."""
    question = LONG[name].question("weight gradient")
    found = {
        (plans[0].kernel, plans[0].splits)
        for multiprocessors in (2, 20, 108, 132)
        if (plans := replace(question, multiprocessors=multiprocessors, tma=False, capability=80).plans())
    }
    assert len(found) == 1
    assert found.pop()[1] > 1
    assert all(4 * plan.splits * question.matrices * question.m * question.n <= 1 << 26 for plan in question.plans())


def test_predictions_respect_the_roofline():
    """No plan is faster than the datasheet allows: 989 TFLOP/s and 3.35 TB/s."""
    for role in NAMES:
        for q in resnet50(role, 256):
            q = replace(q, multiprocessors=132)
            work = 2 * q.matrices * q.m * q.n * q.k / 989.4e12
            assert all(plan.seconds >= max(work, 2 * q.gathered / 3.37e12) for plan in q.plans())


def test_groups_and_strides_are_matrices():
    layer = Layer(groups=2, channels=32, filters=48, stride=2)
    sizes = {role: (q.matrices, q.m, q.n, q.k) for role in NAMES for q in [layer.question(role)]}
    assert sizes == {
        "forward": (2, 2 * 5 * 4, 24, 9 * 16),
        "input gradient": (8, 2 * 5 * 4, 16, 9 * 24 // 4),  # Of the phase with the most pixels.
        "weight gradient": (2, 24, 9 * 16, 2 * 5 * 4),
    }


def test_nothing_to_multiply():
    layer = Layer(batch=0)
    assert layer.run("forward").shape == (0, 136, 9, 7)
    assert not layer.run("weight gradient").any()
    assert all(layer.question(role).plans() for role in NAMES)


# ---- explain ----


def test_explain_lists_the_plans_of_what_is_launched():
    layer = LAYERS["Hopper's"]
    explanation = warpwright.explain("conv2d", layer.x, layer.w, None, 1, 1)
    assert tiles(explanation.plans) == TILES["forward"] | MMA
    assert f"  tile      {explanation.plans[0]}" in str(explanation)
    other = explanation.plans[-1]
    _gemm_plans.prefer(emulated.library(), replace(other, measured=1e-6), layer.question("forward"))
    found = warpwright.explain("conv2d", layer.x, layer.w, None, 1, 1)
    assert (found.plans[0].text, found.plans[0].measured) == (other.text, 1e-6)
    assert sorted(plan.text for plan in found.plans) == sorted(plan.text for plan in explanation.plans)
    assert ("Hopper's" in explanation.kernel, "Hopper's" in found.kernel) == (True, other.kernel == "wgmma")
    before = emulated.launches(kernel_of("forward", other))
    ops.conv2d(layer.x, layer.w, None, 1, 1)
    assert emulated.launches(kernel_of("forward", other)) == before + 1


def test_explain_knows_what_a_convolution_with_a_norm_leaves():
    layer = LAYERS["Hopper's"]
    args = (layer.x, layer.w, torch.zeros(136), torch.ones(136), None, None, None, 1, 1)
    for training in (False, True):
        found = warpwright.explain("conv2d_batch_norm", *args, training=training)
        assert tiles(found.plans) == MMA | {t for t in TILES["forward"] if t[2] < 256 or not training}


def test_a_depthwise_convolution_has_no_plans():
    x, w = torch.ones(1, 16, 8, 8), torch.ones(16, 1, 3, 3)
    found = warpwright.explain("conv2d", x, w, None, 1, 1, 1, 16)
    assert ("depthwise strips" in found.kernel, found.plans) == (True, [])
