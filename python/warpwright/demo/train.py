"""Trains a model twice at once: with torch's layers, and with warpwright's after `replace_modules`.

The two start from the same weights, see the same batches in the same order and take turns step by step, so that a slow
second of a shared machine hurts both.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

import warpwright
from warpwright.demo import data, models
from warpwright.optim import AdamW

#: The two runs agree when their accuracies on held-back data differ by at most this much, ...
ACCURACY_TOLERANCE = 0.02
#: ... and their loss curves, averaged over a tenth of the steps, by at most this part of the loss that they start from.
#: They are not the same numbers: each rounding is another, and training amplifies it.
LOSS_TOLERANCE = 0.05


@dataclass(frozen=True)
class Task:
    """A model, its data, and how long it trains."""

    name: str
    title: str
    dataset: Callable[[], data.Dataset]
    model: Callable[[data.Dataset], nn.Module]
    batch: int
    steps: int
    lr: float


_LENGTH = 64
TASKS = (
    Task("resnet", "ResNet on handwritten digits", data.digits, lambda d: models.ResNet(d.classes), 64, 150, 3e-3),
    Task("gpt", "GPT on Python's reference manual", lambda: data.manual(_LENGTH),
         lambda d: models.GPT(d.classes, _LENGTH), 16, 200, 2e-3),
)  # fmt: skip


@dataclass
class TrainingResult:
    """How the two runs of a task went.

    Attributes:
        task, title, steps: what was trained, for how long.
        losses: provider ("torch", "warpwright") -> training loss of each step.
        accuracy: provider -> share of the held-back data that is predicted right.
        seconds: provider -> median time of a training step: forward, backward and optimizer.
        replaced, skipped: the names of layers that `replace_modules` switched, and of those it left, with the reason.
        fallbacks: calls that ran on torch's own forward after all.
        largest_gap: the largest difference of the two smoothed loss curves, as a part of the loss they start from.
        agree: whether accuracies and losses agree within the tolerances of this module.
    """

    task: str
    title: str
    steps: int
    losses: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    largest_gap: float = 0.0
    agree: bool = False


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        loss = cast(Tensor, cast(nn.Module, model.loss)(model(x), y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(256), y.split(256), strict=True))
    model.train()
    return right / y.numel()


def _smoothed(losses: list[float]) -> Tensor:
    width = max(1, len(losses) // 10)
    return torch.tensor(losses, dtype=torch.float64).unfold(0, width, 1).mean(1)


def train_both(
    task: Task, device: torch.device, steps: int | None = None, on_step: Callable[[], None] = lambda: None
) -> TrainingResult:
    """Trains `task` twice, `steps` steps each (the task's own number by default), telling `on_step` after each."""
    torch.manual_seed(0)
    dataset = task.dataset()
    steps = task.steps if steps is None else steps
    result = TrainingResult(task.name, task.title, steps)
    theirs = task.model(dataset).to(device)
    ours = copy.deepcopy(theirs)
    report = warpwright.nn.replace_modules(ours)
    result.replaced, result.skipped = list(report.replaced), dict(report.skipped)
    runs: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {
        "torch": (theirs, torch.optim.AdamW(theirs.parameters(), task.lr, fused=True)),
        "warpwright": (ours, AdamW(ours.parameters(), task.lr)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, list[Tensor]] = {name: [] for name in runs}
    warpwright.fallbacks().clear()
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        chosen = torch.randint(len(dataset.train_x), (task.batch,), generator=generator)
        x, y = dataset.train_x[chosen].to(device), dataset.train_y[chosen].to(device)
        for name in runs if step % 2 == 0 else reversed(runs):
            start = time.perf_counter()
            losses[name].append(_step(*runs[name], x, y))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
        on_step()
    result.fallbacks = {f"{layer}: {reason}": count for (layer, reason), count in warpwright.fallbacks().items()}
    for name, (model, _) in runs.items():
        result.losses[name] = torch.stack(losses[name]).tolist()
        result.seconds[name] = torch.tensor(times[name], dtype=torch.float64).median().item()
        result.accuracy[name] = _accuracy(model, dataset.test_x.to(device), dataset.test_y.to(device))
    curves = {name: _smoothed(values) for name, values in result.losses.items()}
    gaps = (curves["warpwright"] - curves["torch"]).abs()
    result.largest_gap = float(gaps.max() / curves["torch"][0])
    gap = abs(result.accuracy["torch"] - result.accuracy["warpwright"])
    result.agree = gap <= ACCURACY_TOLERANCE and result.largest_gap <= LOSS_TOLERANCE
    return result
