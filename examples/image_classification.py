"""Image classification: a small residual network learns scikit-learn's handwritten digits.

    python examples/image_classification.py            # with warpwright
    python examples/image_classification.py --torch    # the same, with torch's own layers

The model is plain torch. One line swaps warpwright's layers in: parameters, names, hooks and checkpoints stay as they
are. Both runs start from the same weights and see the same batches, so that their losses can be compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import warpwright

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels between -1 and 1, (N, 1, 8, 8), and their classes, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(data.target).long()[order]


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2015)."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


def network() -> nn.Sequential:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), Block(16, 32, 2), Block(32, 64, 2), pool, nn.Linear(64, 10))


def train(args: argparse.Namespace) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype]
    images, classes = digits()
    images, classes = images.to(args.device), classes.to(args.device)
    held = len(images) // 5  # Not trained on.
    model = network().to(args.device)
    if dtype == torch.float64:
        model, images = model.double(), images.double()

    if args.torch:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    else:
        print(warpwright.nn.replace_modules(model))  # The one line; what it returns says what it did, and undoes it.
        optimizer = warpwright.optim.AdamW(model.parameters(), lr=3e-3)  # One launch for all parameters.

    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(args.steps):
        rows = torch.randint(held, len(images), (64,), generator=generator).to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(images[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    model.eval()
    with torch.no_grad():
        accuracy = (model(images[:held]).argmax(1) == classes[:held]).float().mean().item()
    print(f"accuracy on {held} images that it has not seen: {accuracy:.1%}")
    return losses


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--steps", type=int, default=150)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: by torch.autocast")
    found.add_argument("--torch", action="store_true", help="torch's own layers and optimizer")
    return found


def main(argv: Sequence[str] | None = None) -> list[float]:
    args = parser().parse_args(argv)
    start = time.perf_counter()
    losses = train(args)
    seconds = time.perf_counter() - start
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps, {seconds:.1f} s")
    if warpwright.fallbacks():
        print(f"calls that ran on torch after all:\n{warpwright.fallbacks()}")
    return losses


if __name__ == "__main__":
    main()
