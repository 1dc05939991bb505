"""The steps of examples/hopper_matmul, built for each target that this machine can run, and called."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import dropped_statements
import emulated
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "hopper_matmul"


def _steps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hopper_matmul_steps", FOLDER / "steps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: examples/hopper_matmul/steps.py.
steps = _steps()
SOURCES: list[Path] = steps.SOURCES
STEPS = [source.stem for source in SOURCES]

#: Of which numbers k and n must be multiples, by the first step that asks for it.
MULTIPLES = {1: (1, 1), 4: (8, 1), 10: (8, 8)}


def multiples(step: str) -> tuple[int, int]:
    """(of k, of n)."""
    return next(given for first, given in reversed(MULTIPLES.items()) if int(step[:2]) >= first)


def missing(target: str) -> str | None:
    """Why this target cannot be run here, or None when it can."""
    build = emulated.build_script()
    if target == "emulated":
        return emulated.missing() or (None if shutil.which(build.cxx()) else "no C++ compiler")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return "torch sees no GPU of compute capability 9.0"
    return None if build.find_nvcc() else "no nvcc"


TARGETS = [target for target in ("emulated", "cuda") if missing(target) is None]


def _built_for_the_gpu() -> Path:
    nvcc = emulated.build_script().find_nvcc()
    assert nvcc is not None
    folder = ROOT / "build" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "hopper_matmul.so"
    parts = [*FOLDER.glob("*.[ch]*"), *(ROOT / "csrc" / "cuda").rglob("*.cuh"), *(ROOT / "csrc").rglob("*.h")]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists() or out.stat().st_mtime < max(part.stat().st_mtime for part in parts):
            steps.build(nvcc, out)
    return out


class Library:
    def __init__(self, target: str, path: Path):
        self.path = path
        self.device = "cuda" if target == "cuda" else "cpu"
        self._functions = ctypes.CDLL(str(path))
        self._emulator = emulated.load(path) if target == "emulated" else None

    def run(self, step: str, a: Tensor, b: Tensor) -> tuple[Tensor, str]:
        """(a times b transposed, as the step computes it; what went wrong, or an empty text).

        Numbers beside the result's own may not change."""
        a, b = (matrix.to(self.device) for matrix in (a, b))
        m, n = a.shape[0], b.shape[0]
        beside = 64
        memory = torch.full((beside + m * n + beside,), -1, dtype=torch.int16, device=self.device)
        c = memory[beside : beside + m * n].view(torch.bfloat16).view(m, n)
        if self._emulator is not None:
            for matrix in (a, b, c):
                self._emulator.allow(matrix.view(torch.int16).numpy())
        try:
            message = steps.call(self._functions, step, a, b, c)
        finally:
            if self._emulator is not None:
                self._emulator.allow_everything()
        memory = memory.cpu()
        assert (memory[:beside] == -1).all()
        assert (memory[-beside:] == -1).all()
        return c.cpu(), message

    def drop_site(self, site: int) -> None:
        """Leaves out this site from now on, 0: none. Of `switched` alone."""
        self._functions.drop_site(site)


@functools.cache
def library(target: str) -> Library:
    built = emulated.build_cases(SOURCES, "examples") if target == "emulated" else _built_for_the_gpu()
    return Library(target, built)


# ---- the same with each barrier, wait, fence and predicate behind a switch ----

_SWITCH = """int dropped_site = 0;
extern "C" __attribute__((visibility("default"))) void drop_site(int site) { dropped_site = site; }
"""


@functools.cache
def _rewritten() -> tuple[dict[str, str], list[dropped_statements.Site]]:
    """(the texts of the files, everything that can be dropped)."""
    texts: dict[str, str] = {}
    sites: list[dropped_statements.Site] = []
    for path in sorted(path for path in FOLDER.iterdir() if path.suffix in (".cu", ".cuh", ".h")):
        text, found = dropped_statements.rewrite(path, 1 + len(sites))
        # Lines keep their numbers, for what the emulator says of them.
        include = f'#include "{dropped_statements.SWITCH}"\n'
        before, after = text.split(include)
        texts[path.name] = f'{before}{include}#line {before.count(chr(10)) + 1} "{path.name}"\n{after}'
        sites += found
    return texts, [site for site in sites if site.file != "matmul.h"]  # That one is the host's.


def sites() -> list[dropped_statements.Site]:
    return _rewritten()[1]


@functools.cache
def switched() -> Library:
    """The emulated library in which a site can be dropped."""
    folder = ROOT / "build" / "examples_switched"
    texts = {**_rewritten()[0], dropped_statements.SWITCH: dropped_statements.SWITCH_TEXT, "switch.cpp": _SWITCH}
    for name, text in texts.items():
        emulated.write(folder / name, text)
    sources = [folder / name for name in texts if name.endswith((".cu", ".cpp"))]
    return Library("emulated", emulated.build_cases(sources, "examples_switched", include=folder))
