"""`warpwright.info()`: what is installed, what runs here, and why something does not."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from warpwright import _library
from warpwright._backend import current_backend, triton_interpreted, triton_missing
from warpwright._version import __version__


@dataclass(frozen=True)
class BackendState:
    """A backend on a device, and why it cannot run here (None when it can)."""

    backend: str
    device: str
    missing: str | None

    @property
    def name(self) -> str:
        """Such as "native-cpu", "triton-interpreted" or "triton-cuda"."""
        interpreted = self.backend == "triton" and self.device == "cpu"
        return f"{self.backend}-{'interpreted' if interpreted else self.device}"


def backend_states() -> list[BackendState]:
    """Every backend on every device, in the order in which `warpwright check` runs them."""
    cuda = torch.cuda.is_available()
    no_gpu = None if cuda else "torch sees no CUDA GPU"
    absent = triton_missing() if importlib.util.find_spec("triton") is None else None
    compiled = absent or no_gpu or ("TRITON_INTERPRET=1 is set" if triton_interpreted() else None)
    interpreted = absent or (None if triton_interpreted() else "set TRITON_INTERPRET=1 before Python starts")
    return [
        BackendState("native", "cpu", None),
        BackendState("native", "cuda", _library.CUDA_MISSING or no_gpu),
        BackendState("triton", "cpu", interpreted),
        BackendState("triton", "cuda", compiled),
        BackendState("reference", "cpu", None),
        BackendState("reference", "cuda", no_gpu),
    ]


@dataclass(frozen=True)
class Info:
    """What `warpwright.info()` found. `as_dict()` is ready for JSON, `str()` is a table.

    Attributes:
        version: of warpwright.
        commit: of the checkout that is imported, "+changes" after it where files differ; None for an installed wheel.
        python: version of the interpreter.
        platform: operating system and architecture.
        torch: version.
        torch_cuda: the CUDA version that torch was built for, None for a CPU-only torch.
        driver: version of NVIDIA's driver, None without one.
        gpus: name, capability, memory (bytes) and multiprocessors of each GPU that torch sees.
        libraries: file name -> None when it is loaded, else why it is not.
        build: what the build recorded: whether CUDA was built or why not, architectures, torch; and the folder of the
            libraries, where WARPWRIGHT_LIBRARY_DIR names another than the package's own.
        cpu: the processor's name.
        cpu_isa: the instruction set that the CPU kernels use: "baseline", "avx2" or "avx512".
        threads: how many threads torch's CPU ops, and so our CPU kernels, may use.
        triton: version, None when it is not installed.
        triton_interpreted: whether TRITON_INTERPRET makes Triton kernels run on the CPU.
        backends: name -> None when it can run here, else why it cannot.
        current_backend: what `use_backend` chose.
    """

    version: str
    commit: str | None
    python: str
    platform: str
    torch: str
    torch_cuda: str | None
    driver: str | None
    gpus: list[dict[str, Any]]
    libraries: dict[str, str | None]
    build: dict[str, Any]
    cpu: str
    cpu_isa: str
    threads: int
    triton: str | None
    triton_interpreted: bool
    backends: dict[str, str | None]
    current_backend: str

    def as_dict(self) -> dict[str, Any]:
        """A copy as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("warpwright", self.version + (f", commit {self.commit}" if self.commit else "")),
            ("python", f"{self.python}, {self.platform}"),
            ("torch", f"{self.torch} ({f'CUDA {self.torch_cuda}' if self.torch_cuda else 'CPU only'})"),
            ("triton", (self.triton or "not installed") + (", interpreted" if self.triton_interpreted else "")),
            ("driver", self.driver or "none found"),
        ]
        for gpu in self.gpus:
            memory = f"{gpu['memory'] / 2**30:.0f} GiB"
            rows.append(("gpu", f"{gpu['name']}, sm_{gpu['capability']}, {gpu['multiprocessors']} SMs, {memory}"))
        if not self.gpus:
            rows.append(("gpu", "none"))
        rows.append(("cpu", f"{self.cpu}, {self.threads} threads, {self.cpu_isa} kernels"))
        rows += [("library", f"{name}: {reason or 'loaded'}") for name, reason in self.libraries.items()]
        rows += [("build", f"{name}: {value}") for name, value in self.build.items()]
        rows += [("backend", f"{name}: {reason or 'available'}") for name, reason in self.backends.items()]
        rows.append(("using", self.current_backend))
        width = max(len(label) for label, _ in rows)
        shown = []
        previous = None
        for label, value in rows:
            shown.append(f"{label if label != previous else '':<{width}}  {value}")
            previous = label
        return "\n".join(shown)


def info() -> Info:
    """What is installed, what can run on this machine, and why the rest cannot. Works on every machine.

    Returns:
        An `Info`: attributes, `as_dict()` and a printable table.
    """
    return Info(
        version=__version__,
        commit=_commit(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        driver=_driver(),
        gpus=_gpus(),
        libraries={
            _library.CPU_LIBRARY.name: None,  # warpwright cannot be imported without it.
            _library.CUDA_LIBRARY.name: _library.CUDA_MISSING,
        },
        build=_library.build_info() | ({"folder": str(_library.LIBRARY_DIR)} if _library.ELSEWHERE else {}),
        cpu=_cpu_name(),
        cpu_isa=_library.cpu_isa(),
        threads=torch.get_num_threads(),
        triton=_triton_version(),
        triton_interpreted=triton_interpreted(),
        backends={state.name: state.missing for state in backend_states()},
        current_backend=current_backend(),
    )


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "csrc").is_dir():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}{properties.minor}",
                "memory": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def _driver() -> str | None:
    """Asked of NVML, the library that comes with the driver: starts no CUDA context and no program."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        text = ctypes.create_string_buffer(96)
        status = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace") if status == 0 else None


def _cpu_name() -> str:
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{named.group(1) if named else platform.processor() or platform.machine()}, {cores} cores"


def _triton_version() -> str | None:
    """From the package's metadata: importing Triton costs half a second, and fixes TRITON_INTERPRET."""
    if importlib.util.find_spec("triton") is None:
        return None
    for package in ("triton", "pytorch-triton"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"
