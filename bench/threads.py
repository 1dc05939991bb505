"""Binds the CPU's threads to cores while something is timed: threads that move, or share a core, are noise.

Torch's pool is asked for its threads (csrc/bindings/threads.cpp); its own ops, oneDNN, MKL and our kernels all run on
them. Each is bound to a core of its own. The calling thread is bound only inside `steady`, where nothing but timing
happens, because threads and compilers that it starts inherit what it may run on.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from warpwright._library import CPU_LIBRARY

_SYSTEM = Path("/sys/devices/system/cpu")
#: A core that others use for a larger share of so many seconds is taken only when there is no other.
_BUSY, _LOOK_S = 0.25, 0.1


def keep_freed_memory() -> bool:
    """Makes glibc keep what is freed, in this process from now on; returns whether it does.

    A result of some megabytes goes back to the system or not, and the next one begins with page faults or not, by what
    else was allocated in between: of two providers that take turns one may pay for both, several milliseconds.
    """
    most, mmap_threshold, trim_threshold = 2**31 - 1, -3, -1  # Of mallopt, see malloc.h.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(mmap_threshold, 1 << 30) == mallopt(trim_threshold, most) == 1


@contextmanager
def pinned(threads: int | None = None) -> Iterator[dict[str, Any]]:
    """Runs torch's CPU ops on `threads` threads, each bound to a physical core; everything is put back at the end.

    Args:
        threads: how many; None for as many as torch uses now.

    Yields:
        A report: threads, cpus (the cores' numbers, the calling thread's first), pinned, reason (why not, or None),
        governor (the frequency policy, or None where it cannot be read), load (the load average at the start).

    Raises:
        RuntimeError: `threads` is below 1. A system that cannot bind threads is no error: `pinned` is False then.
    """
    global _binding
    if threads is not None and threads < 1:
        raise RuntimeError(f"warpwright: bench: threads must be at least 1, got {threads}")
    before, outer = torch.get_num_threads(), _binding
    wanted = threads or before
    binding = _Binding()
    torch.set_num_threads(wanted)
    try:
        reason = _bind(binding, wanted)
        _binding = binding if reason is None else None
        yield {
            "threads": wanted,
            "cpus": binding.cpus,
            "pinned": reason is None,
            "reason": reason,
            "governor": _governor(),
            "load": round(os.getloadavg()[0], 2),
        }
    finally:
        _binding = outer
        binding.restore()
        torch.set_num_threads(before)


@contextmanager
def steady() -> Iterator[None]:
    """Inside `pinned`: binds the calling thread too, and threads that came since, such as another runtime's workers."""
    binding = _binding
    if binding is None:
        yield
        return
    binding.bind_new()
    caller = threading.get_native_id()
    free = os.sched_getaffinity(caller)
    os.sched_setaffinity(caller, {binding.cpus[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(caller, free)


@dataclass
class _Binding:
    """Which cores are used, the threads that have been seen, and where those that were bound might run before."""

    cpus: list[int] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    masks: dict[int, set[int]] = field(default_factory=dict)

    def bind(self, thread: int, cpu: int) -> None:
        mask = os.sched_getaffinity(thread)
        os.sched_setaffinity(thread, {cpu})
        self.masks[thread] = mask

    def bind_new(self) -> None:
        # A pool starts its workers one after the other, so that taking turns gives each a core of its own.
        others = self.cpus[1:]
        for i, thread in enumerate(sorted(_threads() - self.known)):
            self.known.add(thread)
            if others:
                with suppress(ProcessLookupError):  # It has ended.
                    self.bind(thread, others[i % len(others)])

    def restore(self) -> None:
        for thread, mask in self.masks.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, mask)


#: What `pinned` has bound, for `steady`.
_binding: _Binding | None = None


def _bind(binding: _Binding, threads: int) -> str | None:
    """Why the threads could not be bound, or None."""
    if not hasattr(os, "sched_setaffinity"):
        return "this system does not bind threads to cores"
    try:
        chosen = choose_cpus(threads, topology(os.sched_getaffinity(0)), _busy_cpus())
        if len(chosen) < threads:
            return f"{threads} threads on {len(chosen)} CPUs"
        ids = _pool(threads)
        caller = threading.get_native_id()
        workers = [i for i in dict.fromkeys(ids) if i != caller]
        if len(workers) != threads - 1:
            return f"torch runs {threads} parts on {len(set(ids))} threads"
        binding.cpus, binding.known = chosen, _threads()
        for worker, cpu in zip(workers, chosen[1:], strict=True):
            binding.bind(worker, cpu)
    except (OSError, AttributeError) as error:
        binding.cpus = []
        return f"{type(error).__name__}: {error}"
    return None


def choose_cpus(
    threads: int, cores: Mapping[int, tuple[int, int]], busy: Mapping[int, float] | None = None
) -> list[int]:
    """So many of the CPUs, fewer where there are no more: idle cores first, each once, on as few packages as possible.

    Args:
        threads: how many.
        cores: CPU -> (package, core); CPUs of the same core share its execution units.
        busy: CPU -> the share of its time that others use.
    """
    loads = busy or {}
    packages: dict[int, dict[int, list[int]]] = {}
    for cpu, (package, core) in sorted(cores.items()):
        packages.setdefault(package, {}).setdefault(core, []).append(cpu)

    def taken(core: list[int]) -> bool:
        return any(loads.get(cpu, 0.0) > _BUSY for cpu in core)

    groups = sorted(
        (list(p.values()) for p in packages.values()), key=lambda group: sum(map(taken, group)) - len(group)
    )
    # The core of CPU 0, which serves most interrupts, comes last.
    ordered = [core for group in groups for core in sorted(group, key=lambda core: 0 in core)]
    ordered.sort(key=taken)
    return ([core[0] for core in ordered] + [cpu for core in ordered for cpu in core[1:]])[:threads]


def _busy_cpus() -> dict[int, float]:
    """The share of the last moments in which each CPU worked; empty where the system does not say."""

    def read() -> dict[int, tuple[int, int]]:
        lines = [line.split() for line in (_read(Path("/proc/stat")) or "").splitlines()]
        numbers = {int(w[0][3:]): [int(v) for v in w[1:9]] for w in lines if w and w[0][:3] == "cpu" and w[0][3:]}
        return {cpu: (sum(ticks) - ticks[3] - ticks[4], sum(ticks)) for cpu, ticks in numbers.items()}

    before = read()
    time.sleep(_LOOK_S)
    after = read()
    return {
        cpu: (after[cpu][0] - before[cpu][0]) / max(1, after[cpu][1] - before[cpu][1])
        for cpu in after.keys() & before.keys()
    }


def topology(cpus: set[int]) -> dict[int, tuple[int, int]]:
    """CPU -> (package, core); where the system does not say, each CPU is a core of its own."""

    def number(cpu: int, name: str, default: int) -> int:
        text = _read(_SYSTEM / f"cpu{cpu}" / "topology" / name)
        return int(text) if text and text.isdigit() else default

    return {cpu: (number(cpu, "physical_package_id", 0), number(cpu, "core_id", cpu)) for cpu in cpus}


def _pool(threads: int) -> list[int]:
    """The threads of torch's pool, the calling one among them."""
    ids = (ctypes.c_int64 * threads)()
    function = ctypes.CDLL(str(CPU_LIBRARY), mode=os.RTLD_NOLOAD).warpwright_thread_ids
    function.argtypes, function.restype = [ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)], None
    function(threads, ids)
    return list(ids)


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _governor() -> str | None:
    return _read(_SYSTEM / "cpu0" / "cpufreq" / "scaling_governor")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
