"""Distillation: a small GPT learns Python's sources from a larger one, by its probabilities instead of the text.

    python examples/distillation.py            # with warpwright
    python examples/distillation.py --torch    # the same, with torch's own layers

What is to shrink is how far the student's probabilities are from the teacher's: a Kullback-Leibler divergence of two
output layers (Hinton et al., 2015). torch computes both layers' logits first; warpwright's LinearKLDivLoss takes what
the layers would get, and never holds the logits, which for vocabularies of 100,000 words are most of the memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import warpwright

sys.path.insert(0, str(Path(__file__).parent))
from gpt import DTYPES, GPT, LENGTH, VOCABULARY, sources  # The model and the text of the example beside this one.

TEMPERATURE = 2.0


def features(model: GPT, tokens: Tensor) -> Tensor:
    """What the output layer gets: (N, length, width)."""
    x = model.token(tokens) + model.position(torch.arange(tokens.shape[1], device=tokens.device))
    return model.norm(model.blocks(x))


def divergence(student: GPT, teacher: GPT, ours: Tensor, theirs: Tensor) -> Tensor:
    """torch's way: the logits of both, their logarithms of probabilities, and the divergence."""
    q = F.log_softmax(student.head(ours).flatten(0, 1) / TEMPERATURE, 1)
    p = F.log_softmax(teacher.head(theirs).flatten(0, 1) / TEMPERATURE, 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def train(args: argparse.Namespace) -> list[float]:
    """The divergence at each step of the student."""
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype]
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    text = sources().to(args.device)
    generator = torch.Generator().manual_seed(1)

    def batch() -> Tensor:
        starts = torch.randint(len(text) - LENGTH - 1, (16,), generator=generator).to(args.device)
        return text[starts[:, None] + torch.arange(LENGTH + 1, device=args.device)]

    teacher, student = GPT(args.width, layers=2).to(args.device), GPT(args.width // 2, layers=1).to(args.device)
    if dtype == torch.float64:
        teacher, student = teacher.double(), student.double()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
    for _ in range(args.steps):
        windows = batch()
        with autocast:
            loss = teacher(windows[:, :-1], windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher.requires_grad_(False)

    kl = None
    if args.torch:
        optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    else:
        print(warpwright.nn.replace_modules(nn.ModuleList([student, teacher])))  # The one line, for both.
        kl = warpwright.nn.LinearKLDivLoss(student.head.in_features, VOCABULARY, bias=True, temperature=TEMPERATURE)
        kl.linear = student.head  # One layer for the loss and for whoever asks the student.
        optimizer = warpwright.optim.AdamW(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(args.steps):
        tokens = batch()[:, :-1]
        with autocast:
            ours, theirs = features(student, tokens), features(teacher, tokens)
            if kl is None:
                loss = divergence(student, teacher, ours, theirs)
            else:
                loss = kl(ours, theirs, teacher.head.weight, teacher.head.bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--steps", type=int, default=200, help="of the teacher, and of the student")
    found.add_argument("--width", type=int, default=128, help="of the teacher; the student has half of it")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: by torch.autocast")
    found.add_argument("--torch", action="store_true", help="torch's own layers, loss and optimizer")
    return found


def main(argv: Sequence[str] | None = None) -> list[float]:
    args = parser().parse_args(argv)
    start = time.perf_counter()
    losses = train(args)
    seconds = time.perf_counter() - start
    print(f"divergence {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps, {seconds:.1f} s")
    if warpwright.fallbacks():
        print(f"calls that ran on torch after all:\n{warpwright.fallbacks()}")
    return losses


if __name__ == "__main__":
    main()
