"""Small models of torch's own layers that the tests replace, fuse and train, each with an input that it takes.

Every function draws its weights from torch's generator: two calls after the same `torch.manual_seed` give equal models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def images(*shape: int) -> Tensor:
    """Noise between -1 and 1, the same in every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---- autoencoder ----


class Autoencoder(nn.Module):
    """(N, 1, 8, 8) images to a code and back: strided convolutions down, transposed ones up (Masci et al., 2011)."""

    def __init__(self, width: int = 16, code: int = 8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * width, code),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(code, 8 * width), nn.ReLU(), nn.Unflatten(1, (2 * width, 2, 2)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def autoencoder() -> tuple[nn.Module, Tensor]:
    return Autoencoder(), images(4, 1, 8, 8)


# ---- DCGAN (Radford et al., 2015), for 8 x 8 images: a doubling less at either end than in the paper ----

LATENT = 16


def dcgan_generator(width: int = 16) -> tuple[nn.Module, Tensor]:
    """(N, 16, 1, 1) noise to (N, 1, 8, 8) images."""
    model = nn.Sequential(
        nn.ConvTranspose2d(LATENT, 2 * width, 2, 1, 0, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(True),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
        nn.ConvTranspose2d(width, 1, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    return model, images(4, LATENT, 1, 1)


def dcgan_discriminator(width: int = 16) -> tuple[nn.Module, Tensor]:
    """(N, 1, 8, 8) images to (N, 1, 1, 1) logits."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(2 * width, 1, 2, 1, 0, bias=False),
    )  # fmt: skip
    return model, images(4, 1, 8, 8)


# ---- U-Net ----


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with a norm and a ReLU behind it."""

    def __init__(self, in_channels: int, channels: int, norm: str):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (in_channels, channels):
            between = nn.GroupNorm(4, channels) if norm == "group" else nn.BatchNorm2d(channels)
            layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), between, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class UNet(nn.Module):
    """(N, in, H, W) images to (N, out, H, W): two levels down, two up, each with its skip (Ronneberger et al., 2015).

    Heights and widths that are no multiple of 4 are padded on the way up, as the skip is larger there.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 8, norm: str = "batch"):
        super().__init__()
        self.enter = DoubleConv(in_channels, width, norm)
        self.down1, self.down2 = DoubleConv(width, 2 * width, norm), DoubleConv(2 * width, 4 * width, norm)
        self.rise1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.up1 = DoubleConv(4 * width, 2 * width, norm)
        self.rise2 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.up2 = DoubleConv(2 * width, width, norm)
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.enter(x)
        middle = self.down1(F.max_pool2d(top, 2))
        bottom = self.down2(F.max_pool2d(middle, 2))
        y = self.up1(torch.cat((middle, _fitted(self.rise1(bottom), middle)), 1))
        y = self.up2(torch.cat((top, _fitted(self.rise2(y), top)), 1))
        return self.head(y)


def _fitted(x: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[-2] - x.shape[-2], like.shape[-1] - x.shape[-1]
    return F.pad(x, (0, width, 0, height)) if height or width else x


def unet(norm: str = "batch") -> tuple[nn.Module, Tensor]:
    """`norm`: "batch" or "group"."""
    return UNet(norm=norm), images(2, 1, 16, 16)


# ---- the rest of what tests/test_training.py trains ----


def mlp() -> tuple[nn.Module, Tensor]:
    """(N, 64) rows of pixels to (N, 10) logits."""
    model = nn.Sequential(
        nn.Linear(64, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 32), nn.RMSNorm(32), nn.SiLU(), nn.Linear(32, 10)
    )
    return model, images(4, 64)


def cnn() -> tuple[nn.Module, Tensor]:
    """(N, 1, 8, 8) images to (N, 10) logits."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 32, 1, 2), nn.GroupNorm(4, 32), nn.SiLU(),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip
    return model, images(4, 1, 8, 8)
