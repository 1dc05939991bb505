"""Where something was measured: enough to say why two runs of the same kernel differ, ready for JSON.

What the driver knows of a GPU is read through NVML, the library that comes with it, which starts no CUDA context and no
program. Nothing is set. Whatever cannot be read is None.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import torch

import warpwright
from warpwright.bench.providers.peers import DISTRIBUTIONS

#: Bits of nvmlDeviceGetCurrentClocksThrottleReasons, by what they mean; an idle GPU is no throttled one.
THROTTLE_REASONS = {
    1 << 0: "idle",
    1 << 1: "applications clocks setting",
    1 << 2: "software power cap",
    1 << 3: "hardware slowdown",
    1 << 4: "sync boost",
    1 << 5: "software thermal slowdown",
    1 << 6: "hardware thermal slowdown",
    1 << 7: "hardware power brake",
    1 << 8: "display clock setting",
}
_SM_CLOCK, _MEMORY_CLOCK, _CORE_TEMPERATURE = 1, 2, 0


def environment(device: torch.device | str, *, threads: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a run's rows were measured on.

    Args:
        device: where the run is.
        threads: the report of `bench.threads.pinned`.

    Returns:
        time (UTC, ISO 8601), device ("cpu" or "cuda"), torch (version), info (`warpwright.info()`), peers (name ->
        version of those that are installed), load (of the host, over a minute), threads, and gpu (None on the CPU).
        What changes from one moment to the next is under the GPU's own `load`.
    """
    device = torch.device(device)
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "torch": torch.__version__,
        "info": warpwright.info().as_dict(),
        "peers": peer_versions(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "gpu": _gpu(device) if device.type == "cuda" else None,
    }


def peer_versions() -> dict[str, str]:
    """Peer -> version, of those that are installed; nothing is imported."""
    found = {}
    for peer, distribution in DISTRIBUTIONS.items():
        try:
            found[peer] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine_slug(environment: Mapping[str, Any]) -> str:
    """A machine's folder in bench/results/, such as "nvidia-h200" or "amd-epyc-2-cores"."""
    gpu = environment.get("gpu") or {}
    name = str(gpu.get("name") or environment["info"]["cpu"])
    name = re.sub(r"\((r|tm|c)\)|\bprocessor\b|\bcpu\b|@.*?hz", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


# ---- the GPU ----


def _gpu(device: torch.device) -> dict[str, Any]:
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "cuda_runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "l2_cache": getattr(properties, "L2_cache_size", None),
        **read_nvml(str(getattr(properties, "uuid", ""))),
    }


def read_nvml(uuid: str, load: Callable[[str], Any] = ctypes.CDLL) -> dict[str, Any]:
    """What NVML knows of the GPU that torch gives this UUID; every value may be None."""
    reader = _Nvml(load)
    try:
        gpu = reader.find(uuid)
        reasons = reader.number("nvmlDeviceGetCurrentClocksThrottleReasons", gpu, kind=ctypes.c_ulonglong)
        throttled = None if reasons is None else [text for bit, text in THROTTLE_REASONS.items() if reasons & bit]
        return {
            "driver": reader.text("nvmlSystemGetDriverVersion"),
            "cuda_driver": _cuda_version(reader.system_number("nvmlSystemGetCudaDriverVersion_v2")),
            "max_clocks": {
                "sm": reader.number("nvmlDeviceGetMaxClockInfo", gpu, _SM_CLOCK),
                "memory": reader.number("nvmlDeviceGetMaxClockInfo", gpu, _MEMORY_CLOCK),
            },
            "power_limit": _watts(reader.number("nvmlDeviceGetEnforcedPowerLimit", gpu)),
            "ecc": reader.mode("nvmlDeviceGetEccMode", gpu),
            "mig": reader.mode("nvmlDeviceGetMigMode", gpu),
            "load": {
                "clocks": {
                    "sm": reader.number("nvmlDeviceGetClockInfo", gpu, _SM_CLOCK),
                    "memory": reader.number("nvmlDeviceGetClockInfo", gpu, _MEMORY_CLOCK),
                },
                "throttled": throttled,
                "temperature": reader.number("nvmlDeviceGetTemperature", gpu, _CORE_TEMPERATURE),
                "power": _watts(reader.number("nvmlDeviceGetPowerUsage", gpu)),
            },
        }
    finally:
        reader.close()


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _cuda_version(number: int | None) -> str | None:
    """13000 -> "13.0"."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


class _Nvml:
    """NVML's functions; each answers None where there is no such function, no such GPU or no permission."""

    def __init__(self, load: Callable[[str], Any]):
        self._library: Any = None
        try:
            library = load("libnvidia-ml.so.1")
            self._library = library if library.nvmlInit_v2() == 0 else None
        except (OSError, AttributeError):
            pass

    def close(self) -> None:
        if self._library is not None:
            self._library.nvmlShutdown()

    def _call(self, name: str, *arguments: Any) -> bool:
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == 0

    def find(self, uuid: str) -> ctypes.c_void_p | None:
        """By its UUID, because CUDA_VISIBLE_DEVICES renumbers torch's GPUs, but not NVML's; or as the only one."""
        gpu, count = ctypes.c_void_p(), ctypes.c_uint()
        if self._call("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}".encode(), ctypes.byref(gpu)):
            return gpu
        alone = self._call("nvmlDeviceGetCount_v2", ctypes.byref(count)) and count.value == 1
        return (
            gpu if alone and self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(gpu)) else None
        )

    def text(self, name: str) -> str | None:
        value = ctypes.create_string_buffer(96)
        known = self._call(name, value, ctypes.c_uint(len(value)))
        return value.value.decode(errors="replace") if known else None

    def system_number(self, name: str) -> int | None:
        value = ctypes.c_int()
        return value.value if self._call(name, ctypes.byref(value)) else None

    def number(self, name: str, gpu: ctypes.c_void_p | None, *which: int, kind: Any = ctypes.c_uint) -> int | None:
        value = kind()
        known = gpu is not None and self._call(name, gpu, *map(ctypes.c_uint, which), ctypes.byref(value))
        return value.value if known else None

    def mode(self, name: str, gpu: ctypes.c_void_p | None) -> bool | None:
        """Whether something is on now; the driver also tells what it will be after a restart."""
        now, later = ctypes.c_uint(), ctypes.c_uint()
        known = gpu is not None and self._call(name, gpu, ctypes.byref(now), ctypes.byref(later))
        return bool(now.value) if known else None
