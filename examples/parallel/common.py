"""What the parallel examples share: how processes start, a text to learn, and a small GPT of torch's own layers."""

from __future__ import annotations

import argparse
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

Train = Callable[[torch.device, int], list[float]]
VOCABULARY = 256


# ---- processes ----


def main(train: Train, description: str | None, steps: int) -> None:
    """Runs `train(device, steps)` in every process; it returns the losses, of which one process prints two.

    torchrun starts the processes, and says which is which; without it two are started here.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    steps = parser.parse_args().steps
    if "RANK" in os.environ:
        _run(train, steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _process, (2, f"file://{folder}/store", train, steps), nprocs=2, start_method="spawn"
        )


def _process(rank: int, processes: int, store: str, train: Train, steps: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    _run(train, steps, store)


def _run(train: Train, steps: int, store: str | None = None) -> None:
    """NCCL where each process has a GPU, else gloo."""
    rank, processes, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    gpus = torch.cuda.is_available() and torch.cuda.device_count() > local
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo", init_method=store, rank=rank, world_size=processes)
    try:
        losses = train(device, steps)
        if losses and rank == processes - 1:  # The last has the loss of a pipeline.
            print(f"{processes} processes on {device.type}: loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    finally:
        dist.destroy_process_group()


# ---- a text ----


def windows(batch: int, length: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows of argparse's source, as bytes, and the bytes that follow: (batch, length) each, on the CPU."""
    text = torch.frombuffer(bytearray(inspect.getsource(argparse).encode()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(len(text) - length - 1, (batch, 1), generator=generator)
        window = text[starts + torch.arange(length + 1)]
        yield window[:, :-1], window[:, 1:]


# ---- a model ----


class Attention(nn.Module):
    """Causal. The number of heads is left to the sizes of the projections: a process may have some of them."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.activation, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, head_dim)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Bytes (batch, length) to logits (batch, length, 256). A stage of a pipeline has None for what it lacks."""

    def __init__(self, width: int = 64, blocks: int = 4, head_dim: int = 16, length: int = 64):
        super().__init__()
        self.tokens: nn.Module | None = nn.Embedding(VOCABULARY, width)
        self.places: nn.Module | None = nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, head_dim) for _ in range(blocks)])
        self.norm: nn.Module | None = nn.LayerNorm(width)
        self.head: nn.Module | None = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is not None and self.places is not None:
            x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        if self.norm is not None and self.head is not None:
            x = self.head(self.norm(x))
        return x


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    import warpwright

    return warpwright.ops.cross_entropy(logits.flatten(0, 1), targets.flatten())
