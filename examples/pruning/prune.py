"""Trains a small network, drops half of its weights, and trains the other half until nothing is missed.

    python examples/pruning/prune.py

The network learns scikit-learn's handwritten digits on the CPU, in seconds. `warpwright.sparsify` keeps the two largest
of each four neighbours, the pattern for which GPUs from sm_80 on have tensor cores. What is dropped stays dropped: the
optimizer that is made after it moves only what was kept. At last the network becomes a dense one with the same zeros,
for whoever has no sparse layers.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import warpwright
from warpwright.nn import SparseLinear

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
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def train(net: nn.Module, images: Tensor, classes: Tensor, *, steps: int, lr: float) -> None:
    optimizer = warpwright.optim.AdamW(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), classes[rows]).backward()
        optimizer.step()


@torch.no_grad()
def judged(net: nn.Module, images: Tensor, classes: Tensor) -> tuple[float, float]:
    """The loss, and the share of right answers."""
    scores = net(images)
    loss = nn.functional.cross_entropy(scores, classes).item()
    return loss, (scores.argmax(1) == classes).float().mean().item()


def dense(net: nn.Sequential) -> nn.Sequential:
    """The network with dense layers in place of its sparse ones."""
    return nn.Sequential(*(layer.to_float() if isinstance(layer, SparseLinear) else layer for layer in net))


def run(*, steps: int, more: int) -> tuple[dict[str, tuple[float, float]], nn.Sequential]:
    """Loss and accuracy on unseen digits of each stage, and the pruned network."""
    seen, unseen = digits()
    net = network()
    train(net, *seen, steps=steps, lr=2e-3)
    stages = {"dense": judged(net, *unseen)}
    report = warpwright.sparsify(net, inputs=seen[0], restorable=False)
    print(report)
    stages["half of the weights"] = judged(net, *unseen)
    train(net, *seen, steps=more, lr=1e-3)
    stages["half of the weights, trained on"] = judged(net, *unseen)
    stages["the same, as dense layers"] = judged(dense(net), *unseen)
    return stages, net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training before")
    parser.add_argument("--more", type=int, default=200, help="of training after")
    arguments = parser.parse_args()
    stages, _ = run(steps=arguments.steps, more=arguments.more)
    for name, (loss, known) in stages.items():
        print(f"{name}: loss {loss:.4f}, {known:.1%} of unseen digits known")


if __name__ == "__main__":
    main()
