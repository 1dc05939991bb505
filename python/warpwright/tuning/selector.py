"""Which configuration a Triton kernel is launched with: the user's own table, then the package's, then the default.

A kernel that can be tuned has a `Tunable` beside it, which names its sizes, its default and the configurations that may
be tried. Its launcher hands `Tunable.launch` a function that launches with a given configuration.

Sizes are bucketed before a table is asked: the one that grows with the batch (rows, pixels) to the next power of two,
the others, which a model fixes, exactly. Tables are read once in a process, and each choice is kept, so that a call
costs a look-up; nothing waits for the GPU, so a choice may be made while a CUDA graph is captured.

A configuration decides in which order a sum is added up. Results repeat bitwise with the same tables, and may differ in
their last bits from those with others, or between batch sizes whose buckets have other configurations.

`products` is the same for the C++ kernels, which choose for themselves.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from warpwright import _gemm_plans
from warpwright._files import FileError
from warpwright.tuning import tables
from warpwright.tuning.tables import Config, Entry, Problem

#: The name that stands for a GPU where kernels are interpreted on the CPU; its times mean nothing elsewhere.
INTERPRETED = "interpreted"

#: By name; filled by the modules of triton_kernels.
TUNABLES: dict[str, Tunable] = {}


def power_of_two(size: int) -> int:
    """The next power of two: the bucket of sizes that grow with the batch."""
    return 1 << max(0, size - 1).bit_length()


def exact(size: int) -> int:
    """The bucket of sizes that a model fixes."""
    return size


@dataclass(frozen=True)
class Limits:
    """What a device gives one block; without limits where kernels are interpreted.

    Attributes:
        shared_memory: bytes, or None.
        warps: whether there are warps and stages to choose.
    """

    shared_memory: int | None
    warps: bool = True


@dataclass(frozen=True)
class Choice:
    """A configuration, and where it is from."""

    config: Config
    source: str


@dataclass(frozen=True)
class Launch:
    """One launch of a tunable kernel, before it is made.

    Attributes:
        tunable: the kernel.
        device, dtype, sizes, layout: see `Tunable.launch`.
        run: run(config) launches it; it may be run again with another configuration, and writes the same results.
        written: the tensors that it writes.
    """

    tunable: Tunable
    device: torch.device
    dtype: torch.dtype
    sizes: tuple[int, ...]
    layout: str
    run: Callable[[Config], None] = field(repr=False)
    written: tuple[Tensor, ...] = field(repr=False)

    @property
    def problem(self) -> Problem:
        return self.tunable.problem(self.dtype, self.sizes, self.layout)

    @property
    def choice(self) -> Choice:
        return choose(self.tunable, self.device, self.dtype, self.sizes, self.layout)

    @property
    def default(self) -> Config:
        return self.tunable.default(*self.sizes)

    @property
    def candidates(self) -> list[Config]:
        """What may be tried in the default's place."""
        every = self.tunable.configs(self.problem, self.dtype, limits_of(self.device))
        return [config for config in every if config != self.default]

    @property
    def sources(self) -> str:
        return self.tunable.sources

    @property
    def terms(self) -> int:
        """Of a sum: what a result's rounding grows with."""
        sizes = dict(self.problem.sizes)
        return math.prod(sizes[name] for name in self.tunable.summed)

    @contextmanager
    def forced(self, config: Config) -> Iterator[None]:
        """Every launch of the kernel has this configuration."""

        def force(launch: Launch) -> None:
            launch.run(config if launch.tunable is self.tunable else launch.choice.config)

        with intercept(force):
            yield


@dataclass(frozen=True, eq=False)
class Tunable:
    """A kernel whose configuration can be chosen.

    Attributes:
        name: of the kernel, in tables.
        files: of triton_kernels, which hold its source; where one changes, what was measured before is not used.
        buckets: size name -> its bucket, in the order of `launch`'s sizes.
        summed: the sizes whose product is the number of terms of a sum: what a result's rounding grows with.
        space: configuration name -> the values that are tried.
        default: default(*sizes) where no table says more.
        fits: fits(config, sizes by name (bucketed), dtype, limits): whether a configuration of the space can run, and
            is worth trying.
        backend: whose kernel it is.
    """

    name: str
    files: tuple[str, ...]
    buckets: Mapping[str, Callable[[int], int]]
    summed: tuple[str, ...]
    space: Mapping[str, tuple[int, ...]]
    default: Callable[..., Config]
    fits: Callable[[Config, Mapping[str, int], torch.dtype, Limits], bool]
    backend: str = "triton"

    def __post_init__(self) -> None:
        TUNABLES[self.name] = self

    @functools.cached_property
    def sources(self) -> str:
        """Hash of the source files."""
        import warpwright.triton_kernels as triton_kernels

        home = Path(str(triton_kernels.__file__)).parent
        digest = hashlib.sha256()
        for name in self.files:
            digest.update((home / name).read_bytes())
        return digest.hexdigest()[:16]

    def problem(self, dtype: torch.dtype, sizes: tuple[int, ...], layout: str) -> Problem:
        """What is looked up in a table."""
        bucketed = tuple((name, bucket(size)) for (name, bucket), size in zip(self.buckets.items(), sizes, strict=True))
        return Problem(self.backend, self.name, str(dtype).removeprefix("torch."), bucketed, layout)

    def configs(self, problem: Problem, dtype: torch.dtype, limits: Limits) -> list[Config]:
        """Every configuration of the space that fits."""
        space = dict(self.space)
        if not limits.warps:
            space |= {name: values[:1] for name, values in space.items() if name in ("num_warps", "num_stages")}
        sizes = dict(problem.sizes)
        every = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
        return [config for config in every if self.fits(config, sizes, dtype, limits)]

    def allows(self, config: Config, problem: Problem, dtype: torch.dtype, limits: Limits) -> bool:
        """Whether a configuration out of a file is one that could have been measured."""
        known = config.keys() == self.space.keys() and all(config[name] in self.space[name] for name in config)
        return known and self.fits(config, dict(problem.sizes), dtype, limits)

    def launch(
        self,
        run: Callable[[Config], None],
        like: Tensor,
        sizes: tuple[int, ...],
        written: tuple[Tensor, ...],
        layout: str = "",
    ) -> None:
        """Calls run(config) with the configuration that is chosen.

        Args:
            run: launches the kernel.
            like: a tensor of the device and dtype.
            sizes: in the order of `buckets`.
            written: the tensors that the launch writes.
            layout: how the operands lie in memory, where that makes another problem of it.
        """
        if _hook is not None:
            _hook(Launch(self, like.device, like.dtype, sizes, layout, run, written))
            return
        run(choose(self, like.device, like.dtype, sizes, layout).config)


# ---- the choice ----


@functools.lru_cache(maxsize=8192)
def choose(tunable: Tunable, device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...], layout: str) -> Choice:
    """The configuration for a launch. Reads files on a kernel's first call in a process only."""
    gpu = gpu_name(device)
    default = tunable.default(*sizes)
    if gpu is None:
        return Choice(default, "default")
    problem = tunable.problem(dtype, sizes, layout)
    file = tables.file_name(gpu)
    paths = {"tuned here": tables.folder() / file, "shipped table": tables.SHIPPED / file}
    read = {where: table(path) for where, path in paths.items()}  # Both now, so that no later call reads one.
    for where, entries in read.items():
        entry = entries.get(problem)
        if entry is None or entry.sources != tunable.sources:
            continue
        if entry.config is None:
            return Choice(default, f"default, which nothing beat: {where}")
        if not tunable.allows(entry.config, problem, dtype, limits_of(device)):
            warn(f"{paths[where]}: config of {problem} cannot be launched: {entry.config}")
            continue
        return Choice(dict(entry.config), where)
    return Choice(default, "default")


@functools.lru_cache
def gpu_name(device: torch.device) -> str | None:
    """The name that tables go by; None where no table can be meant."""
    from warpwright.triton_kernels._common import interpreted

    if interpreted():
        return INTERPRETED
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@functools.lru_cache
def limits_of(device: torch.device) -> Limits:
    """What one block may use."""
    if gpu_name(device) in (None, INTERPRETED):
        return Limits(None, warps=False)
    properties = torch.cuda.get_device_properties(device)
    # What a kernel may opt in to; every block has the other without asking.
    return Limits(int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)))


@functools.lru_cache
def table(path: Path) -> dict[Problem, Entry]:
    """The entries of a table, read once in a process; none, and a warning, where it is damaged."""
    try:
        return tables.read_table(path)
    except FileError as error:
        warn(str(error).removeprefix("warpwright: "))
        return {}


def warn(message: str) -> None:
    """Warns of what is wrong with a table."""
    warnings.warn(f"warpwright: {message}; the default configuration is used", RuntimeWarning, stacklevel=2)


def reload() -> None:
    """Makes this process read the tables again, after they have changed."""
    for cache in (choose, gpu_name, limits_of, table):
        cache.cache_clear()
    _gemm_plans.reload()


# ---- looking on ----

#: One for the process: CUDA's backward passes run in a thread of their own.
_hook: Callable[[Launch], None] | None = None


@contextmanager
def intercept(hook: Callable[[Launch], None]) -> Iterator[None]:
    """Hands every launch of a tunable kernel to `hook`, which may run it, meanwhile."""
    global _hook
    before, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = before
