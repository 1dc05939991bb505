"""Training curves: models learn the same with warpwright's layers and optimizers as with torch's.

A curve is the loss at each step on real data: scikit-learn's digits, and Python's manual. The truth is torch's own
curve in float64. The error rule is that of every op: the largest distance from the truth is at most twice that of
torch's own training in the same precision, plus a floor. The floor is what compare.py's is: one unit in the last place
of the loss, and what a nudge of every first weight by one unit in the last place of the arithmetic does to the true
curve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import warpwright
from warpwright.bench.operators._torch_training import Masters
from warpwright.demo import data
from warpwright.demo.models import GPT
from warpwright.testing.compare import ERROR_FACTOR

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
STEPS, BATCH, LENGTH = 10, 16, 16
#: Two float64 trainings differ by roundings of 2^-53, which ten steps amplify less than a million times.
SAME = 1e-9


# ---- what is trained ----


@functools.cache
def digits() -> data.Dataset:
    return data.digits()


@functools.cache
def manual() -> data.Dataset:
    return data.manual(LENGTH)


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = models.dcgan_generator()[0], models.dcgan_discriminator()[0]
        self.loss = nn.BCEWithLogitsLoss()

    def judged(self, images: Tensor, real: bool) -> Tensor:
        logits = self.discriminator(images).flatten().to(images.dtype)
        return self.loss(logits, torch.full_like(logits, float(real)))


@dataclass(frozen=True)
class Task:
    """`losses(model, inputs, targets, noise)`: what computes the losses of a step, one for each optimizer, in order."""

    model: Callable[[], nn.Module]
    losses: Callable[..., list[Callable[[], Tensor]]]
    dataset: Callable[[], data.Dataset] = digits
    optimizer: str = "AdamW"


def classified(model, x, y, noise):
    return [lambda: model.loss(model(x), y)]


def restored(model, x, y, noise):
    """What was covered by noise."""
    return [lambda: F.mse_loss(model(x + 0.3 * noise[:, :1]).to(x.dtype), x)]


def judged(model, x, y, noise):
    made = []

    def judge():
        made.append(model.generator(noise[:, :, :1, :1]).to(x.dtype))
        return model.judged(x, True) + model.judged(made[0].detach(), False)

    return [judge, lambda: model.judged(made[0], True)]


class Classifier(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


TASKS = {
    "mlp": Task(lambda: Classifier(nn.Sequential(nn.Flatten(), models.mlp()[0])), classified),
    "cnn": Task(lambda: Classifier(models.cnn()[0]), classified, optimizer="SGD"),
    "autoencoder": Task(lambda: models.autoencoder()[0], restored),
    "dcgan": Task(Gan, judged, optimizer="Adam"),
    "unet": Task(lambda: models.unet()[0], restored),
    "unet-group": Task(lambda: models.unet("group")[0], restored, optimizer="SGD"),
    "gpt": Task(lambda: GPT(manual().classes, LENGTH, width=32, heads=2, layers=2), classified, dataset=manual),
}


def swap(model: nn.Module) -> None:
    """The one place where warpwright comes in."""
    report = warpwright.nn.replace_modules(model)
    assert report.replaced
    assert not report.skipped


# ---- how it is trained ----


@dataclass(frozen=True)
class Way:
    """`autocast` and `masters` are of the arithmetic: float32 parameters, or parameters of that dtype; `scaled`: with a
    GradScaler; `nudge`: by what share every first weight is moved, up or down at random."""

    dtype: torch.dtype = torch.float64
    autocast: torch.dtype | None = None
    masters: bool = False
    scaled: bool = False
    ours: bool = False
    nudge: float = 0.0


def optimizer_of(task: Task, part: nn.Module, way: Way) -> torch.optim.Optimizer | Masters:
    options = {"lr": 0.05, "momentum": 0.9} if task.optimizer == "SGD" else {"lr": 2e-3}
    make = getattr(warpwright.optim if way.ours else torch.optim, task.optimizer)
    parameters = list(part.parameters())
    if way.masters and not way.ours:  # torch has none: its optimizer on float32 copies.
        return Masters(parameters, lambda copies: make(copies, **options))
    return make(parameters, **options)


@functools.cache
def curve(name: str, way: Way) -> Tensor:
    """The losses of each step, (STEPS, losses), in float64."""
    task = TASKS[name]
    torch.manual_seed(0)
    model = task.model().double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            # Weights that every precision holds, so that all begin at the same place.
            p.copy_(p.bfloat16())
            p.mul_(1 + way.nudge * (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1))
    model.to(way.dtype)
    if way.ours:
        swap(model)
    parts = {"dcgan": ("discriminator", "generator")}.get(name, ("",))
    optimizers = {part: optimizer_of(task, model.get_submodule(part), way) for part in parts}
    scalers = {
        part: (warpwright.amp if way.ours else torch.amp).GradScaler("cpu", init_scale=2.0**10, enabled=way.scaled)
        for part in parts
    }
    dataset = task.dataset()
    found = []
    for _ in range(STEPS):
        rows = torch.randint(len(dataset.train_x), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, models.LATENT, 8, 8, generator=generator).bfloat16().to(way.dtype)
        x, y = dataset.train_x[rows], dataset.train_y[rows]
        x = x.to(way.dtype) if x.is_floating_point() else x
        losses = []
        for part, compute in zip(parts, task.losses(model, x, y, noise), strict=True):
            with nullcontext() if way.autocast is None else torch.autocast("cpu", way.autocast):
                loss = compute()
            model.zero_grad()
            scalers[part].scale(loss).backward()
            scalers[part].step(optimizers[part])
            scalers[part].update()
            losses.append(loss.detach().double())
        found.append(torch.stack(losses))
    return torch.stack(found)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.fixture(autouse=True)
def _fallbacks_are_known():
    yield
    assert {reason for _, reason in warpwright.fallbacks()} <= {"inplace=True"}


names = pytest.mark.parametrize("name", TASKS)


@names
def test_in_float64_the_curves_are_the_same(name):
    theirs, ours = curve(name, Way()), curve(name, Way(ours=True))
    assert distance(ours, theirs) <= SAME * theirs.abs().max()
    assert theirs[-1].sum() < theirs[0].sum() or name == "dcgan"  # Where two play against each other one may lose.


@names
@pytest.mark.parametrize(
    ("way", "eps"),
    [
        pytest.param(Way(torch.float32), 2.0**-24, id="float32"),
        # Autocast rounds every weight to its dtype: that is the unit in the last place of its arithmetic.
        pytest.param(Way(torch.float32, autocast=torch.bfloat16), 2.0**-9, id="autocast"),
        pytest.param(Way(torch.float32, autocast=torch.float16, scaled=True), 2.0**-12, id="float16-scaled"),
        pytest.param(Way(torch.bfloat16, masters=True), 2.0**-9, id="masters"),
    ],
)
def test_in_other_precisions_the_error_rule_holds(name, way, eps):
    truth = curve(name, Way())
    floor = distance(curve(name, Way(nudge=eps)), truth) + torch.finfo(way.dtype).eps * float(truth.abs().max())
    theirs = distance(curve(name, way), truth)
    ours = distance(curve(name, Way(**(vars(way) | {"ours": True}))), truth)
    assert ours <= ERROR_FACTOR * theirs + floor, f"{ours:.3g}, torch {theirs:.3g}, floor {floor:.3g}"
    # The bound means something: a run that learned nothing would not stay within it.
    assert ERROR_FACTOR * theirs + floor < distance(truth[:1].expand_as(truth), truth)
