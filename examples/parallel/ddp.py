"""Data parallel training: every process has the whole model and a part of each batch.

    python examples/parallel/ddp.py                                # two processes on this machine
    torchrun --nproc-per-node 8 examples/parallel/ddp.py           # one for each GPU

A convolutional network learns scikit-learn's digits. Its batch norms take the statistics of all processes, batches are
copied to the device ahead of the work, and gradients are exchanged with every second of them only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from common import main
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import warpwright
from warpwright.data import Prefetcher

BATCH, ACCUMULATED = 32, 2


def digits() -> TensorDataset:
    from sklearn.datasets import load_digits

    data = load_digits()
    return TensorDataset(torch.from_numpy(data.images)[:, None].float(), torch.from_numpy(data.target).long())


def network() -> nn.Module:
    """torch's own layers, which one call replaces by ours, and another by ones that span processes."""
    torch.manual_seed(0)  # DistributedDataParallel would send the first process's parameters; then they are the same.
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 10))
    warpwright.nn.replace_modules(model)
    return warpwright.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def endless(loader: DataLoader, sampler: DistributedSampler) -> Iterator[list[Tensor]]:
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def train(device: torch.device, steps: int) -> list[float]:
    """The losses, the mean of all processes'."""
    data = digits()
    sampler = DistributedSampler(data, seed=1)
    loader = DataLoader(data, BATCH, sampler=sampler, drop_last=True, pin_memory=device.type == "cuda")
    model = DistributedDataParallel(network().to(device))
    optimizer = warpwright.optim.AdamW(model.parameters(), lr=2e-3)
    criterion = warpwright.nn.CrossEntropyLoss()
    batches = iter(Prefetcher(endless(loader, sampler), device, transform=lambda batch: [batch[0] / 8 - 1, batch[1]]))
    losses = []
    for _ in range(steps):
        total = torch.zeros((), device=device)
        for i in range(ACCUMULATED):
            images, labels = next(batches)
            silent = model.no_sync() if i < ACCUMULATED - 1 else contextlib.nullcontext()
            with silent:
                loss = criterion(model(images), labels) / ACCUMULATED
                loss.backward()
            total += loss.detach()
        warpwright.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
    return losses


if __name__ == "__main__":
    main(train, __doc__, steps=40)
