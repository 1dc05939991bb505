"""The `emulated` backend: the kernels of csrc/cuda, compiled for the CPU and run by csrc/emulator."""

from __future__ import annotations

import fcntl
import functools
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from warpwright import _gemm_plans, _library, _registry

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("warpwright_build", ROOT / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str | None:
    """Why the emulator cannot be built here, or None when it can."""
    if build_script().cuda_headers() is None:
        return "the CUDA toolkit's headers are not installed"
    return None


@functools.cache
def library() -> Path:
    """Builds the library where it is out of date. Test processes take turns: they share one build folder.

    Where Python's libraries are those of another build, such as that for the sanitizers, it is the one beside them."""
    given = _library.LIBRARY_DIR / build_script().EMULATED_LIBRARY
    if given.exists():
        return given
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    with open(folder / "emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_script().build_emulated()


def objects() -> list[Path]:
    """The emulator's own, without kernels. They are linked before any kernel, see build.emulated_library."""
    folder = library().parent / "emulated"
    return [folder / f"emulator_{part.stem}.o" for part in sorted((ROOT / "csrc" / "emulator").glob("*.cpp"))]


def build_cases(sources: list[Path], name: str, *, include: Path = ROOT / "csrc") -> Path:
    """A library of its own, in build/cases, out of a test's kernels and the emulator. `include` is looked into before
    csrc. Test processes take turns."""
    out = ROOT / "build" / "cases" / name / "cases.so"
    return _build(out, sources, objects(), f"{build_script().cxx()} -shared -o $out $in", include)


def build_planted(texts: dict[Path, str], name: str, *, more: Sequence[Path] = ()) -> Path:
    """A folder in build/cases with a library where files of csrc/cuda have other texts, and where there are `more`
    sources; WARPWRIGHT_LIBRARY_DIR makes a process use it. Headers are found in their new text by these files alone."""
    built = library().parent / "emulated"
    folder = ROOT / "build" / "cases" / name
    planted, replaced = [], set()
    for original, text in texts.items():
        place = original.relative_to(ROOT / "csrc")
        write(folder / place, text)
        if original.suffix == ".cu":
            planted.append(folder / place)
            replaced.add("_".join(place.with_suffix("").parts))
    # A source that was moved has left its object there.
    sources = {
        "_".join(path.relative_to(ROOT / "csrc").with_suffix("").parts) for path in (ROOT / "csrc").rglob("*.c*")
    }
    others = sorted(part for part in built.glob("*.o") if part.stem in sources - replaced)
    # The kernels last, see build.emulated_library.
    others.sort(key=lambda part: part.name.startswith("cuda_"))
    out = folder / build_script().EMULATED_LIBRARY
    _build(out, [*planted, *more], others, build_script().emulated_link(), include=folder)
    for other in (_library.CPU_LIBRARY, _library.LIBRARY_DIR / build_script().BUILD_INFO):
        # At once: another test's process may run what is there, and would lose it under its feet.
        new = folder / f"{other.name}.{os.getpid()}"
        shutil.copy(other, new)
        new.replace(folder / other.name)
    return folder


def write(path: Path, text: str) -> None:
    """At once, and not at all where it is there: other test processes may be compiling it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(text)
        new.replace(path)


def _build(out: Path, sources: list[Path], others: list[Path], link: str, include: Path = ROOT / "csrc") -> Path:
    build = build_script()
    folder = out.parent
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*build.CXX_FLAGS, *build.EMULATED_FLAGS, *build.INSTRUMENT_FLAGS]
    flags += [f"-I{include}", f"-I{ROOT / 'csrc'}", f"-isystem {build.cuda_headers()}"]
    ninja = build.Ninja(folder)
    # By the names of a file's headers alone ccache would miss that one is found in `include` now.
    compiler = f"CCACHE_NODIRECT=1 {build.compiler(build.cxx())}"
    ninja.rule("cxx", f"{compiler} {' '.join(flags)} -MMD -MF $out.d -c $in -o $out")
    ninja.rule("link", link, depfile=False)
    ninja.edge("link", out, [*others, *(ninja.edge("cxx", folder / f"{part.stem}.o", [part]) for part in sources)])
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja.run()
    return out


def load(path: Path) -> ModuleType:
    """The Python module that a library with the emulator is: csrc/emulator/module.cpp."""
    # pybind11 keeps one module for each full name.
    name = f"{str(path).replace('.', '_')}.warpwright_emulator"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def module() -> ModuleType:
    """That of the library which has all kernels of csrc/cuda."""
    return load(library())


@functools.cache
def activate() -> None:
    """Makes `warpwright.use_backend("emulated")` possible."""
    _registry.activate("emulated")
    torch.ops.load_library(str(library()))
    _gemm_plans.add_library("emulated", library())


def launches(kernel: str) -> int:
    """How often the kernel of this launch name has run in this process."""
    return module().launches(kernel)


def launches_another(call: Callable[[], object]) -> bool:
    """Whether `call`, whose kernels are not run for it, launches one that has not run in this process."""
    module().start_noting()
    try:
        call()
    finally:
        noted = module().take_noted()
    return not all(map(module().reached, noted))


def kernels() -> dict[str, bool]:
    """Every kernel of csrc/cuda, each instantiation of a template by itself: name -> whether it has run here."""
    listed = subprocess.run(["nm", "-C", "--defined-only", str(library())], check=True, capture_output=True, text=True)
    symbols = re.findall(
        r"^([0-9a-f]+) [tTwW] (?:void )?(warpwright::cuda::.*_kernel(?:<[^()]*>)?)\([\w:]+\)$",
        listed.stdout.replace("(anonymous namespace)::", ""),
        re.MULTILINE,
    )
    return {name: module().reached(int(at, 16)) for at, name in symbols}
