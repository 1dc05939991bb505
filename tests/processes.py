"""Runs a function in several processes that form a torch.distributed group: gloo, on this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulated
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import warpwright


def run(function: Callable[..., Any], processes: int, *args: Any) -> list[Any]:
    """function(*args) in each process, on the backend that is chosen here; what each returns.

    `function` is a module's, and what it takes and returns can be saved by torch.
    """
    with tempfile.TemporaryDirectory(prefix="warpwright-processes-") as folder:
        torch.save(args, Path(folder, "args"))
        entry = (processes, warpwright.current_backend(), function, folder)
        mp.start_processes(_process, entry, nprocs=processes, start_method="spawn")
        return [torch.load(Path(folder, f"result{rank}"), weights_only=False) for rank in range(processes)]


@contextlib.contextmanager
def alone() -> Iterator[Any]:
    """A mesh of this process, whose DTensors have one part."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def _process(rank: int, processes: int, backend: str, function: Callable[..., Any], folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    if backend == "emulated":
        emulated.activate()
    warpwright.use_backend(backend)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    try:
        args = torch.load(Path(folder, "args"), weights_only=False)
        torch.save(function(*args), Path(folder, f"result{rank}"))
    finally:
        dist.destroy_process_group()
