"""Two small models of torch's layers: a residual network for images and a decoder-only transformer for text."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2015)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        plain = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if plain else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """(N, 1, 8, 8) images to (N, classes) logits."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 1, 1)
        self.blocks = nn.Sequential(ResidualBlock(32, 32, 1), ResidualBlock(32, 64, 2), ResidualBlock(64, 64, 1))
        self.head = nn.Linear(64, classes)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.stem(images)))
        return cast(Tensor, self.head(features.mean((2, 3))))


class GPTBlock(nn.Module):
    """Causal self-attention and an MLP, each behind a norm (Radford et al., 2019)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + cast(Tensor, self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """(N, length) token numbers to (N, vocabulary, length) logits."""

    def __init__(self, vocabulary: int, length: int, width: int = 128, heads: int = 4, layers: int = 3):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[GPTBlock(width, heads) for _ in range(layers)])
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return cast(Tensor, self.head(self.norm(self.blocks(x)))).transpose(1, 2)
