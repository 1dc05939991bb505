"""Fully sharded training: every process keeps a part of each parameter, and gathers a block when it is its turn.

    python examples/parallel/fsdp2.py                              # two processes on this machine
    torchrun --nproc-per-node 8 examples/parallel/fsdp2.py         # one for each GPU

A GPT learns the bytes of a Python file. Layers are replaced first and sharded then; products are in bfloat16, gradients
are summed up in float32, and the optimizer's step, its clipping included, works on the parts. Half way the training is
saved and loaded again, as one that was interrupted.
"""

from __future__ import annotations

import shutil
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from common import GPT, loss_of, main, windows
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import warpwright
from warpwright.data import Prefetcher

BATCH, LENGTH = 8, 64


def sharded(device: torch.device, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = GPT(length=LENGTH).to(device)
    warpwright.nn.replace_modules(model)
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    for block in model.blocks:
        fully_shard(block, mp_policy=MixedPrecisionPolicy(**dtypes))
    fully_shard(model, mp_policy=MixedPrecisionPolicy(**dtypes, output_dtype=torch.float32))
    return model, warpwright.optim.AdamW(model.parameters(), lr=2e-3, max_grad_norm=1.0)


def save(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def train(device: torch.device, steps: int) -> list[float]:
    """The losses, the mean of all processes'."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    model, optimizer = sharded(device, seed=0)
    folder = [tempfile.mkdtemp(prefix="warpwright-fsdp2-")]
    dist.broadcast_object_list(folder)
    losses = []
    for step, (inputs, targets) in enumerate(Prefetcher(windows(BATCH * processes, LENGTH, steps), device)):
        if step == steps // 2:
            save(folder[0], model, optimizer)
            model, optimizer = sharded(device, seed=1)  # Another network, until it is loaded.
            load(folder[0], model, optimizer)
        optimizer.zero_grad()
        loss = loss_of(model(inputs[rank::processes]), targets[rank::processes])
        loss.backward()
        optimizer.step()
        dist.all_reduce(loss.detach_())
        losses.append(loss.item() / processes)
    if rank == 0:
        shutil.rmtree(folder[0])
    return losses


if __name__ == "__main__":
    main(train, __doc__, steps=60)
