"""What this machine's processor has."""

from __future__ import annotations

from pathlib import Path


def isas() -> list[str]:
    """The instruction sets of csrc/cpu that run here, by the names that WARPWRIGHT_CPU_ISA takes."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    has = {"baseline": True, "avx2": "avx2" in flags and "fma" in flags, "avx512": "avx512dq" in flags}
    return [isa for isa, there in has.items() if there]
