"""The models whose training is timed, out of torch's layers alone, and how their parameters are drawn.

Layers are modules wherever torch has one, so that `warpwright.nn.replace_modules` finds them, and parts have the names
that Hugging Face's models give them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 64


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """(N, length, heads, head_dim) each, keys and values of as many heads or fewer, to (N, length, width)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return mixed.transpose(1, 2).flatten(2)


class _Block(nn.Module):
    """Attention and an MLP, each behind a layer norm: GPT-2's (causal) and ViT's."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        activation = nn.GELU("tanh" if causal else "none")
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).unflatten(-1, (3, -1, HEAD_DIM)).unbind(2)
        x = x + self.c_proj(_attend(q, k, v, self.causal))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """(N, length) tokens to (N, length, vocabulary) logits; the output layer is the token embedding."""

    def __init__(self, width: int, layers: int, classes: int, size: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(classes, width), nn.Embedding(size, width)
        self.h = nn.Sequential(*[_Block(width, causal=True) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, classes, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        return self.lm_head(self.ln_f(self.h(x)))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class _GatedMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(4 * width, width, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class _LlamaBlock(nn.Module):
    """Grouped-query attention with rotary positions, and a gated MLP, each behind an RMS norm."""

    def __init__(self, width: int):
        super().__init__()
        heads = width // HEAD_DIM
        few = width // 4 if heads % 4 == 0 else width
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, 1e-5) for _ in range(2))
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, few, bias=False) for _ in range(2))
        self.mlp = _GatedMLP(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.input_layernorm(x)
        q, k, v = (project(y).unflatten(-1, (-1, HEAD_DIM)) for project in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.o_proj(_attend(_rotated(q, cos, sin), _rotated(k, cos, sin), v, causal=True))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """(N, length) tokens to (N, length, vocabulary) logits; the output layer is the token embedding."""

    def __init__(self, width: int, layers: int, classes: int, size: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(classes, width)
        self.layers = nn.ModuleList([_LlamaBlock(width) for _ in range(layers)])
        self.norm = nn.RMSNorm(width, 1e-5)
        self.lm_head = nn.Linear(width, classes, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        exponents = torch.arange(0, HEAD_DIM, 2, device=x.device) / HEAD_DIM
        angles = torch.arange(tokens.shape[1], device=x.device)[:, None] / 500_000**exponents
        angles = torch.cat((angles, angles), -1)[:, None]  # (length, 1, head_dim)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


class ViT(nn.Module):
    """(N, 3, size, size) images to (N, classes) logits, by patches of 16 x 16."""

    def __init__(self, width: int, layers: int, classes: int, size: int):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (size // 16) ** 2, width))
        self.blocks = nn.Sequential(*[_Block(width, causal=False) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1).to(x.dtype), x), 1) + self.pos_embed.to(x.dtype)
        return self.head(self.norm(self.blocks(x))[:, 0])


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the 3x3 has the stride (ResNet "v1.5")."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if channels != 4 * width or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        return self.act3(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """(N, 3, size, size) images to (N, classes) logits; `width` of the first stage, at most `layers` blocks a stage."""

    def __init__(self, width: int, layers: int, classes: int, size: int):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        channels = width
        for stage, count in enumerate((3, 4, 6, 3)):
            for block in range(min(count, layers)):
                blocks.append(_Bottleneck(channels, width << stage, 2 if stage and not block else 1))
                channels = 4 * width << stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(self.act1(self.bn1(self.conv1(images)))))
        return self.fc(x.mean((2, 3)))


MODELS: dict[str, type[nn.Module]] = {"gpt2": GPT2, "llama": Llama, "resnet50": ResNet50, "vit": ViT}


def smooth(model: nn.Module) -> nn.Module:
    """The model with SiLU for ReLU and means for maxima, whose gradients are continuous."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    return model


class Trained(nn.Module):
    """A model and its loss: (inputs, targets) to a number."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.model(inputs).flatten(0, -2), targets.flatten())


def bounds(model: nn.Module) -> Iterator[tuple[nn.Parameter, float, float]]:
    """(parameter, low, high) of each of `model.parameters()`: products keep the variance of what they get, norms begin
    near 1, embeddings with GPT-2's deviation of 0.02."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        normalises = isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            middle, reach = 0.0, 0.1  # A bias, or a norm's.
            if normalises and name == "weight":
                middle = 1.0
            elif isinstance(module, (nn.Linear, nn.Conv2d)) and name == "weight":
                reach = math.sqrt(3 / parameter[0].numel())
            elif name != "bias":
                reach = 0.02 * math.sqrt(3)
            yield parameter, middle - reach, middle + reach
