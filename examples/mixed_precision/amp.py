"""Mixed precision, five ways: one network learns scikit-learn's handwritten digits with products of 32, 16 and 8 bits.

    python examples/mixed_precision/amp.py                         # all of them
    python examples/mixed_precision/amp.py --precision masters     # one
    python examples/mixed_precision/amp.py --torch                 # with torch's own layers; there are no masters there

float32     no mixing, to compare with
autocast    float32 parameters; torch.autocast makes products bfloat16
float16     float32 parameters; autocast makes products float16, and GradScaler keeps small gradients from vanishing
masters     bfloat16 parameters; warpwright.optim.AdamW steps on float32 copies of them
float8      autocast, and linear layers whose products, forward and backward, are of 8-bit floats

examples/mixed_precision/train.py shows what becomes of bfloat16 parameters without masters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import warpwright

PRECISIONS = ("float32", "autocast", "float16", "masters", "float8")


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels between -1 and 1, (N, 64), and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.data).float() / 8 - 1, torch.from_numpy(data.target).long()


def network(width: int = 256) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(),
        nn.Linear(width, 10),
    )  # fmt: skip


def train(precision: str, args: argparse.Namespace) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    images, classes = (t.to(args.device) for t in digits())
    model = network().to(args.device)
    if precision == "masters":
        model, images = model.bfloat16(), images.bfloat16()
    if not args.torch:
        warpwright.nn.replace_modules(model)  # The one line.
    if precision == "float8":
        # The last layer has few products, and its logits need their digits.
        warpwright.nn.convert_to_float8_training(model, filter=lambda name, layer: layer.out_features > 10)

    half = torch.float16 if precision == "float16" else torch.bfloat16
    autocast = torch.autocast(args.device, half, enabled=precision in ("autocast", "float16", "float8"))
    # A warpwright optimizer unscales, and skips steps with infinities, by itself, without waiting for the GPU.
    scaler = (torch.amp if args.torch else warpwright.amp).GradScaler(args.device, enabled=precision == "float16")
    # Parameters of 16 bits get float32 masters by default; torch's optimizer has none.
    optimizer = (torch.optim if args.torch else warpwright.optim).AdamW(model.parameters(), lr=1e-3)

    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(args.steps):
        rows = torch.randint(len(images), (128,), generator=generator).to(args.device)
        with autocast:
            loss = F.cross_entropy(model(images[rows]), classes[rows])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--precision", choices=PRECISIONS, action="append", help="may be repeated; all by default")
    found.add_argument("--steps", type=int, default=150)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--torch", action="store_true", help="torch's own layers, scaler and optimizer")
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    args = parser().parse_args(argv)
    # float8 layers are warpwright's, and torch has no masters: a comparison there would be of something else.
    known = PRECISIONS[:3] if args.torch else PRECISIONS
    found = {}
    for precision in args.precision or known:
        if precision not in known:
            raise SystemExit(f"{precision}: not with --torch")
        start = time.perf_counter()
        losses = found[precision] = train(precision, args)
        seconds = time.perf_counter() - start
        print(f"{precision:<9} loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps, {seconds:.1f} s")
    if warpwright.fallbacks():
        print(f"calls that ran on torch after all:\n{warpwright.fallbacks()}")
    return found


if __name__ == "__main__":
    main()
