"""Trains a small network, quantises it in four formats, and says what each costs in accuracy and saves in memory.

    python examples/quantization/quantize.py

The network learns scikit-learn's handwritten digits on the CPU, in seconds. Each format is swapped in by one line and
taken out by another; the table lists every layer with the error of its weight and, since sample inputs are given, of
its output. At last a quantised state is saved and loaded by a model that never had the float weights.
"""

from __future__ import annotations

import argparse
import io

import torch
from torch import Tensor, nn

import warpwright
from warpwright.nn import MLP

FORMATS = ("fp8", "int8", "w8a16", "w4a16")
Images = tuple[Tensor, Tensor]


def digits() -> tuple[Images, Images]:
    """Images of 8 x 8 pixels as rows, and their classes: 1,297 to learn from, and 500 to ask about."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.data).float()
    images, classes = (images - images.mean()) / images.std(), torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:1297], order[1297:]
    return (images[seen], classes[seen]), (images[unseen], classes[unseen])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        MLP(64, 256, 128), nn.GELU(), warpwright.nn.Linear(128, 128, activation="relu"), nn.Linear(128, 10)
    )


def train(net: nn.Module, images: Tensor, classes: Tensor, *, steps: int, lr: float = 2e-3) -> None:
    optimizer = warpwright.optim.AdamW(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), classes[rows]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, classes: Tensor) -> float:
    return (net.eval()(images).argmax(1) == classes).float().mean().item()


def quantised_accuracies(net: nn.Module, images: Tensor, classes: Tensor) -> dict[str, float]:
    """Of each format; the network is a float one again at the end."""
    found = {}
    for format in FORMATS:
        report = warpwright.quantize(net, format, inputs=images)
        found[format] = accuracy(net, images, classes)
        print(f"\n{format}: {found[format]:.1%} of unseen digits known\n{report}")
        report.restore()
    return found


def through_a_file(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a quantised network answers, and what a new one does that loads its state. `net` stays quantised."""
    warpwright.quantize(net, "w4a16", group_size=32, restorable=False)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):  # No float weight is ever made.
        other = network().eval()
    warpwright.quantize(other, "w4a16", group_size=32)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True, assign=True)
    with torch.no_grad():
        return net(images), other(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    seen, unseen = digits()
    net = network()
    train(net, *seen, steps=arguments.steps)
    print(f"float32: {accuracy(net, *unseen):.1%} of unseen digits known")
    quantised_accuracies(net, *unseen)
    ours, loaded = through_a_file(net, unseen[0])
    print(f"\na model that loaded the quantised state gives the same numbers: {torch.equal(ours, loaded)}")


if __name__ == "__main__":
    main()
