"""A convolutional autoencoder: 64 pixels of a handwritten digit become 8 numbers, and a digit again.

    python examples/autoencoder.py            # with warpwright
    python examples/autoencoder.py --torch    # the same, with torch's own layers

Convolutions take the image down, transposed ones up again (Masci et al., 2011). One line swaps warpwright's in.
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


def digits() -> Tensor:
    """1,797 images of 8 x 8 pixels between -1 and 1, (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1


def network(width: int = 16, code: int = 8) -> nn.Sequential:
    encoder = nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1), nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.SiLU(),
        nn.Flatten(), nn.Linear(8 * width, code),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(code, 8 * width), nn.SiLU(), nn.Unflatten(1, (2 * width, 2, 2)),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.GroupNorm(4, width), nn.SiLU(),
        nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    return nn.Sequential(encoder, decoder)


def drawn(*images: Tensor) -> str:
    """8 x 8 images beside each other, in characters."""
    shades = " .:-=+*#"
    rows = torch.cat(images, 1).float().cpu()
    return "\n".join("".join(2 * shades[min(7, int((v + 1) * 4))] for v in row.tolist()) for row in rows)


def train(args: argparse.Namespace) -> list[float]:
    """The loss of each step: the mean square of what is wrong with a pixel."""
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype]
    images = digits().to(args.device)
    model = network().to(args.device)
    if dtype == torch.float64:
        model, images = model.double(), images.double()

    if args.torch:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    else:
        print(warpwright.nn.replace_modules(model))  # The one line.
        optimizer = warpwright.optim.AdamW(model.parameters(), lr=3e-3)

    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(args.steps):
        batch = images[torch.randint(len(images), (64,), generator=generator).to(args.device)]
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.mse_loss(model(batch).to(batch.dtype), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        print(f"a digit, and what its 8 numbers become:\n{drawn(images[0, 0], model(images[:1])[0, 0])}")
    return losses


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--steps", type=int, default=300)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: by torch.autocast")
    found.add_argument("--torch", action="store_true", help="torch's own layers and optimizer")
    return found


def main(argv: Sequence[str] | None = None) -> list[float]:
    args = parser().parse_args(argv)
    start = time.perf_counter()
    losses = train(args)
    seconds = time.perf_counter() - start
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps, {seconds:.1f} s")
    if warpwright.fallbacks():
        print(f"calls that ran on torch after all:\n{warpwright.fallbacks()}")
    return losses


if __name__ == "__main__":
    main()
