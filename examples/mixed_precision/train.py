"""Trains one small network four times, with parameters in float32 and in bfloat16, and plots the loss of each run.

    python examples/mixed_precision/train.py docs/images/mixed-precision.png

The network learns scikit-learn's handwritten digits on the CPU, in about a minute. A step is small: where a parameter
has eight bits, it is often less than half of the last one and is lost, unless a float32 master keeps it or the rounding
is random. docs/mixed-precision.md explains the plot; tests/test_mixed_precision.py checks it on a shorter run.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warpwright.optim import AdamW


@dataclass(frozen=True)
class Run:
    """How one training keeps its parameters, and how its line looks."""

    label: str
    dtype: torch.dtype
    options: dict[str, Any]
    color: str
    dashed: bool = False


RUNS = {
    "float32": Run("float32", torch.float32, {}, "#C3C9D1"),
    "masters": Run("bfloat16 with float32 masters", torch.bfloat16, {}, "#E4572E", dashed=True),
    "stochastic": Run("bfloat16, stochastic rounding", torch.bfloat16, {"stochastic_rounding": True}, "#2E86AB"),
    "plain": Run("bfloat16 alone", torch.bfloat16, {"master_weights": False}, "#1B1F24"),
}
BATCH, EVERY = 128, 20


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels, as rows of mean 0 and variance 1, and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.data).float()
    return (images - images.mean()) / images.std(), torch.from_numpy(data.target).long()


def network(width: int) -> nn.Sequential:
    """The same first parameters for every run: bfloat16 numbers, which float32 holds too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10))
    return net.bfloat16()


def loss_of(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Computed in float32 whatever the parameters are: runs differ in how parameters and gradients are kept alone."""
    wide = {name: value.float() for name, value in net.named_parameters()}
    return nn.functional.cross_entropy(torch.func.functional_call(net, wide, (images,)), classes)


def train(run: Run, images: Tensor, classes: Tensor, *, steps: int, width: int = 128, lr: float = 2e-4) -> list[float]:
    """The loss before the first step and after every EVERY steps; batches are the same in every run."""
    net = network(width).to(run.dtype)
    optimizer = AdamW(net.parameters(), lr=lr, weight_decay=0.0, **run.options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    losses = [loss_of(net, images, classes).item()]
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss_of(net, images[rows], classes[rows]).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0:
            losses.append(loss_of(net, images, classes).item())
    return losses


def plot(losses: dict[str, list[float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 6.5), dpi=150, sharex=True)
    for name, values in losses.items():
        run = RUNS[name]
        steps = [EVERY * i for i in range(len(values))]
        width = 4.5 if name == "float32" else 1.8  # The others lie on it.
        look = {"color": run.color, "linestyle": (0, (4, 3)) if run.dashed else "solid", "linewidth": width}
        above.plot(steps, values, **look, label=f"{run.label}: {values[-1]:.3g}")
        if name != "float32":
            apart = [max(abs(ours / single - 1), 1e-8) for ours, single in zip(values, losses["float32"], strict=True)]
            below.plot(steps, apart, **look)
    above.set(yscale="log", ylabel="training loss, evaluated in float32")
    below.set(yscale="log", xlabel="step", ylabel="relative distance from float32's loss")
    for axes in (above, below):
        axes.grid(color="#D6DAE0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False, title="parameters: last loss")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("png", help="where the plot goes")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Matrices this small are no work for two.
    images, classes = digits()
    losses = {}
    for name, run in RUNS.items():
        losses[name] = train(run, images, classes, steps=arguments.steps)
        print(f"{run.label}: {losses[name][-1]:.4g}")
    plot(losses, arguments.png)


if __name__ == "__main__":
    main()
