"""Pipeline parallel training: every process has some blocks, and passes on what they make of a micro-batch.

    python examples/parallel/pipeline.py                           # two processes on this machine
    torchrun --nproc-per-node 4 examples/parallel/pipeline.py

A GPT learns the bytes of a Python file. A process works on one micro-batch forward, one backward (1F1B), so that all
are busy while few activations wait.

Source: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021,
section 2.2.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from common import GPT, loss_of, main, windows
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import warpwright
from warpwright.data import Prefetcher

BATCH, LENGTH, MICROBATCHES = 16, 64, 4


def stage_of(model: GPT, rank: int, processes: int) -> nn.Module:
    """The part of the model that this process keeps."""
    per = -(-len(model.blocks) // processes)
    model.blocks = model.blocks[rank * per : (rank + 1) * per]
    if rank > 0:
        model.tokens = model.places = None
    if rank < processes - 1:
        model.norm = model.head = None
    return model


def train(device: torch.device, steps: int) -> list[float]:
    """The losses, which the last process has."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # Every process makes the whole, so that parameters do not depend on their number.
    model = stage_of(GPT(length=LENGTH), rank, processes).to(device)
    warpwright.nn.replace_modules(model)
    optimizer = warpwright.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = Schedule1F1B(PipelineStage(model, rank, processes, device), MICROBATCHES, loss_fn=loss_of)
    losses: list[float] = []
    for inputs, targets in Prefetcher(windows(BATCH, LENGTH, steps), device):
        optimizer.zero_grad()
        parts: list[Tensor] = []
        first, last = rank == 0, rank == processes - 1
        schedule.step(*([inputs] if first else []), **({"target": targets, "losses": parts} if last else {}))
        optimizer.step()
        if last:
            losses.append(torch.stack(parts).mean().item())
    return losses


if __name__ == "__main__":
    main(train, __doc__, steps=60)
