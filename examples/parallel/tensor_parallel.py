"""Tensor parallel training: every process has some heads and some hidden features of each block.

    python examples/parallel/tensor_parallel.py                    # two processes on this machine
    torchrun --nproc-per-node 4 examples/parallel/tensor_parallel.py

A GPT learns the bytes of a Python file. Layers are cut by columns and by rows as Megatron-LM cuts them, and norms work
on a part of each sequence: a block gathers twice and scatters two sums, in each pass, and nothing else. The parameters
that are whole in every process, the norms', get the sum of their gradients in the optimizer's step.

Source: Shoeybi et al., "Megatron-LM", 2019, section 3; Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models", 2022, section 4.2 (sequence parallel).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from common import GPT, loss_of, main, windows
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import warpwright
from warpwright.data import Prefetcher

BATCH, LENGTH = 8, 64


def cut(model: GPT, mesh: object) -> nn.Module:
    """Every block gets and gives a part of each sequence, Shard(1)."""
    gathered = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    summed = RowwiseParallel(output_layouts=Shard(1))
    plan = {
        "attention_norm": SequenceParallel(use_local_output=True),
        "attention": gathered,
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.out": summed,
        "mlp_norm": SequenceParallel(use_local_output=True),
        "mlp": gathered,
        "mlp.up": ColwiseParallel(),
        "mlp.down": summed,
    }
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
    ends = {
        "tokens": ColwiseParallel(output_layouts=Shard(1)),
        "places": ColwiseParallel(output_layouts=Shard(0)),
        "norm": SequenceParallel(use_local_output=True),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, ends)


def train(device: torch.device, steps: int) -> list[float]:
    """The losses, which every process has."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    torch.manual_seed(0)
    model = GPT(length=LENGTH).to(device)
    warpwright.nn.replace_modules(model)
    cut(model, mesh)
    optimizer = warpwright.optim.AdamW(model.parameters(), lr=2e-3, max_grad_norm=1.0)
    losses = []
    for inputs, targets in Prefetcher(windows(BATCH, LENGTH, steps), device):
        optimizer.zero_grad()
        loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if warpwright.fallbacks():  # A layer that a rule is missing for would be named here.
        print(warpwright.fallbacks())
    return losses


if __name__ == "__main__":
    main(train, __doc__, steps=60)
