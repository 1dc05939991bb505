"""A GAN: a generator learns to draw handwritten digits, and a discriminator to tell them from real ones.

    python examples/gan.py            # with warpwright
    python examples/gan.py --torch    # the same, with torch's own layers

DCGAN (Radford et al., 2015) for images of 8 x 8 pixels. Both networks and the loss are parts of one module, so that one
line swaps warpwright's layers into all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import warpwright

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LATENT, BATCH = 16, 64


def digits() -> Tensor:
    """1,797 images of 8 x 8 pixels between -1 and 1, (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1


class GAN(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(LATENT, 2 * width, 2, 1, 0, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 2, 1, 0), nn.Flatten(0),
        )  # fmt: skip
        self.loss = nn.BCEWithLogitsLoss()

    def judged(self, images: Tensor, real: bool) -> Tensor:
        """How wrong the discriminator is if these images are all real, or all made."""
        logits = self.discriminator(images).to(images.dtype)
        return self.loss(logits, torch.full_like(logits, float(real)))


def distance(made: Tensor, real: Tensor) -> float:
    """How far the mean and the deviation of each pixel are from those of real digits, as a root mean square."""
    gaps = torch.cat((made.mean(0) - real.mean(0), made.std(0) - real.std(0)))
    return gaps.square().mean().sqrt().item()


def train(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """The discriminator's loss at each step, and the distance of what is made from the digits, before and after."""
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype]
    images = digits().to(args.device)
    gan = GAN().to(args.device)
    if dtype == torch.float64:
        gan, images = gan.double(), images.double()

    if not args.torch:
        print(warpwright.nn.replace_modules(gan))  # The one line.
    adam = torch.optim.Adam if args.torch else warpwright.optim.Adam
    makes, judges = (adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (gan.generator, gan.discriminator))

    generator = torch.Generator().manual_seed(1)

    def noise(count: int) -> Tensor:
        return torch.randn(count, LATENT, 1, 1, generator=generator).to(images)

    def measured() -> float:
        with torch.no_grad():
            return distance(gan.generator(noise(512)).to(images.dtype), images)

    losses, distances = [], [measured()]
    for _ in range(args.steps):
        real = images[torch.randint(len(images), (BATCH,), generator=generator).to(args.device)]
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            made = gan.generator(noise(BATCH)).to(real.dtype)
            judged = gan.judged(real, True) + gan.judged(made.detach(), False)
        judges.zero_grad()
        judged.backward()
        judges.step()
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            fooled = gan.judged(made, True)
        makes.zero_grad()
        fooled.backward()
        makes.step()
        losses.append(judged.item())
    return losses, [*distances, measured()]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--steps", type=int, default=300)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: by torch.autocast")
    found.add_argument("--torch", action="store_true", help="torch's own layers and optimizer")
    return found


def main(argv: Sequence[str] | None = None) -> tuple[list[float], list[float]]:
    args = parser().parse_args(argv)
    start = time.perf_counter()
    losses, distances = train(args)
    seconds = time.perf_counter() - start
    print(f"discriminator's loss {losses[0]:.3f} -> {losses[-1]:.3f}: 1.386 is what guessing has")
    print(f"distance from digits {distances[0]:.3f} -> {distances[-1]:.3f} in {len(losses)} steps, {seconds:.1f} s")
    if warpwright.fallbacks():
        print(f"calls that ran on torch after all:\n{warpwright.fallbacks()}")
    return losses, distances


if __name__ == "__main__":
    main()
