"""Transfer learning: a body that has learned the digits 0 to 4 is frozen, and a new head on it learns 5 to 9.

    python examples/transfer_learning.py            # with warpwright
    python examples/transfer_learning.py --torch    # the same, with torch's own layers

Checkpoints do not notice: the one of the body is written by torch's layers and read, strictly, by warpwright's; the one
of the head goes the other way.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import warpwright

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def digits(first: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The images of five digits, (N, 1, 8, 8) between -1 and 1, and their classes, counted from `first`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, classes = torch.from_numpy(data.images).unsqueeze(1) / 8 - 1, torch.from_numpy(data.target).long()
    some = (classes >= first) & (classes < first + 5)
    return images[some].to(device, dtype), classes[some].to(device) - first


class Network(nn.Module):
    """A body that sees, and a head that names what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(512, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], steps: int, autocast: bool):
    """The loss of each step."""
    images, classes = data
    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator).to(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train(args: argparse.Namespace) -> list[float]:
    """The losses of the head, on the frozen body."""
    torch.manual_seed(0)
    autocast = args.dtype == "bfloat16"
    dtype = torch.float64 if args.dtype == "float64" else torch.float32
    model = Network().to(args.device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    learn(model, optimizer, digits(0, args.device, dtype), args.steps, autocast)

    new = Network().to(args.device, dtype)
    if not args.torch:
        print(warpwright.nn.replace_modules(new))  # The one line.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "body.pt"
        torch.save(model.state_dict(), path)  # torch's layers wrote it, ...
        new.load_state_dict(torch.load(path), strict=True)  # ... whichever layers `new` has read it.
    new.body.requires_grad_(False)
    new.body.eval()  # Its batch norms keep the statistics that they have.
    nn.init.zeros_(new.head.weight)
    nn.init.zeros_(new.head.bias)
    adamw = torch.optim.AdamW if args.torch else warpwright.optim.AdamW
    data = digits(5, args.device, dtype)
    losses = learn(new, adamw(new.head.parameters(), lr=1e-3), data, args.steps, autocast)

    model.load_state_dict(new.state_dict(), strict=True)  # And back, into torch's layers.
    for name, net in (("the network", new), ("torch's layers with its checkpoint", model)):
        with torch.no_grad():
            print(f"{name}: {(net.eval()(data[0]).argmax(1) == data[1]).float().mean().item():.1%} right")
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
    print(f"loss of the head {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps, {seconds:.1f} s")
    if warpwright.fallbacks():
        print(f"calls that ran on torch after all:\n{warpwright.fallbacks()}")
    return losses


if __name__ == "__main__":
    main()
