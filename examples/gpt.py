"""GPT: a decoder-only transformer learns Python from the sources of its own standard library, and writes a little.

    python examples/gpt.py            # with warpwright
    python examples/gpt.py --torch    # the same, with torch's own layers

One line swaps warpwright's layers in: linear layers, norms, activations, embeddings and the loss.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import warpwright

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LENGTH, VOCABULARY = 64, 128  # Characters, as ASCII.


def sources() -> Tensor:
    """Some modules of the standard library, as the numbers of their characters."""
    names = ("argparse", "ast", "dataclasses", "functools", "inspect", "pathlib", "textwrap", "typing")
    folder = Path(os.__file__).parent
    text = "\n".join(path.read_text(encoding="utf-8") for name in names if (path := folder / f"{name}.py").exists())
    return torch.tensor(list(text.encode("ascii", errors="replace")))


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a norm (Radford et al., 2019)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """(N, length) characters, and those that follow them, to the loss; without the latter to the logits."""

    def __init__(self, width: int, heads: int = 4, layers: int = 3):
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, tokens: Tensor, following: Tensor | None = None) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        logits = self.head(self.norm(self.blocks(x)))
        return logits if following is None else self.loss(logits.flatten(0, 1), following.flatten())


@torch.no_grad()
def write(model: GPT, start: str, count: int) -> str:
    """Continues the text, a character at a time."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    text = list(start.encode())
    for _ in range(count):
        logits = model(torch.tensor([text[-LENGTH:]], device=device))[0, -1].float().cpu()
        text.append(int(torch.multinomial((logits / 0.8).softmax(0), 1, generator=generator)))
    return bytes(text).decode("ascii")


def train(args: argparse.Namespace) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype]
    text = sources().to(args.device)
    model = GPT(args.width).to(args.device)
    if dtype == torch.float64:
        model = model.double()

    if args.torch:
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    else:
        print(warpwright.nn.replace_modules(model))  # The one line.
        optimizer = warpwright.optim.AdamW(model.parameters(), lr=2e-3)

    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(args.steps):
        starts = torch.randint(len(text) - LENGTH - 1, (16,), generator=generator).to(args.device)
        windows = text[starts[:, None] + torch.arange(LENGTH + 1, device=args.device)]
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(windows[:, :-1], windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(write(model, "def ", args.write))
    return losses


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--steps", type=int, default=300)
    found.add_argument("--width", type=int, default=128)
    found.add_argument("--write", type=int, default=200, help="characters to write afterwards")
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
