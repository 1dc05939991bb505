"""Opens the native libraries: libwarpwright.so always, libwarpwright_cuda.so where torch has CUDA."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import torch

#: The folder of another build of this version, in the place of the package's own libraries.
ELSEWHERE = os.environ.get("WARPWRIGHT_LIBRARY_DIR")
LIBRARY_DIR = Path(ELSEWHERE or Path(__file__).resolve().parent / "lib").resolve()
CPU_LIBRARY = LIBRARY_DIR / "libwarpwright.so"
CUDA_LIBRARY = LIBRARY_DIR / "libwarpwright_cuda.so"
MIN_TORCH = (2, 10)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _load() -> str | None:
    """Opens the libraries; returns why the CUDA library is not in use, or None when it is."""
    if _torch_version() < MIN_TORCH:
        raise ImportError(f"warpwright needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer, found {torch.__version__}")
    if not CPU_LIBRARY.exists():
        raise ImportError(
            f"warpwright: {CPU_LIBRARY.name} is not built. Install the package (pip install .), or build it in place "
            "with `python csrc/build.py`."
        )
    torch.ops.load_library(str(CPU_LIBRARY))
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA"
    if not CUDA_LIBRARY.exists():
        return f"built without {CUDA_LIBRARY.name}: {build_info().get('cuda_reason', 'unknown reason')}"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"{CUDA_LIBRARY.name} did not load: {error}"
    return None


def build_info() -> dict[str, Any]:
    """What csrc/build.py recorded: version, whether CUDA was built and why not, architectures, torch."""
    try:
        info = json.loads((LIBRARY_DIR / "build_info.json").read_text())
    except (OSError, ValueError) as error:
        return {"cuda": CUDA_LIBRARY.exists(), "cuda_reason": f"build_info.json cannot be read: {error}"}
    return (
        info if isinstance(info, dict) else {"cuda": CUDA_LIBRARY.exists(), "cuda_reason": "build_info.json is damaged"}
    )


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: "baseline", "avx2" or "avx512"."""
    function = ctypes.CDLL(str(CPU_LIBRARY), mode=os.RTLD_NOLOAD).warpwright_cpu_isa
    function.restype = ctypes.c_char_p
    return function().decode()


#: Why the CUDA kernels are not in use, or None when they are.
CUDA_MISSING: str | None = _load()
