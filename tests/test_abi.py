"""The two libraries stand on LibTorch's stable C ABI alone, and no code for a newer processor leaks into the others."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from warpwright import _library

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [p for p in (_library.CPU_LIBRARY, _library.CUDA_LIBRARY) if p.exists()]

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="binutils (nm, readelf) is not installed")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_undefined_symbols_are_c_functions_of_torch(library):
    symbols = [line.split()[-1] for line in _run("nm", "-D", "--undefined-only", str(library)).splitlines()]
    names = {s.split("@")[0] for s in symbols}
    cpp = {n for n in names if re.match(r"_ZN?K?(3c10|2at|5torch)", n)}
    assert not cpp, f"C++ symbols of libtorch: {sorted(cpp)}"
    python = {n for n in names if n.startswith(("Py", "_Py"))}
    assert not python, f"Python symbols: {sorted(python)}"
    assert any(n.startswith(("aoti_torch_", "torch_")) for n in names)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_needed_libraries(library):
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", _run("readelf", "-d", str(library))))
    ours = {"libtorch_cpu.so", "libtorch_cuda.so"}
    system = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|ld-linux")
    assert not {n for n in needed - ours if not system.match(n)}, needed
    assert "RUNPATH" not in _run("readelf", "-d", str(library))


def test_the_schema_library_exports_nothing_but_its_probes():
    exported = [line.split() for line in _run("nm", "-DC", "--defined-only", str(_library.CPU_LIBRARY)).splitlines()]
    functions = {" ".join(parts[2:]) for parts in exported if parts[1] == "T"}
    assert functions <= {"warpwright_cpu_isa", "warpwright_gemm_plans", "warpwright_thread_ids", "_init", "_fini"}


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_code_for_an_instruction_set_stays_in_its_namespace(isa):
    """A shared inline function compiled with AVX-512 could be the copy that the linker keeps for every processor."""
    objects = sorted((ROOT / "build" / "native" / "cpu" / isa).glob("*.o"))
    if not objects:
        pytest.skip("no object files: not an x86-64 source build")
    leaks = []
    for path in objects:
        for line in _run("nm", "-C", "--defined-only", str(path)).splitlines():
            _, kind, name = line.split(" ", 2)
            if kind in "TWVuD" and f"warpwright::cpu::{isa}::" not in name and not name.startswith("DW.ref."):
                leaks.append(f"{path.name}: {kind} {name}")
    assert not leaks, "\n".join(leaks)
