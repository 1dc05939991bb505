"""Which source files a kernel is made of, as one hash: a row that was measured with other sources is out of date."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import warpwright
from warpwright.testing import SPECS

#: The checkout, where this is one: the package lies in its python/.
ROOT = Path(warpwright.__file__).resolve().parents[2]

#: Of which backends a provider runs the kernels.
_BACKENDS = {
    "warpwright-cpu": ("cpu",),
    "warpwright-cuda": ("cuda",),
    "warpwright-triton": ("triton",),
    "warpwright": ("cpu", "cuda", "triton"),
}
#: Families that run another family's kernels, too: in the backward pass, or on the CPU.
_ALSO = {
    "matmul": ("epilogue",),
    "conv": ("epilogue",),
    "conv_batch_norm": ("channel_norm", "conv", "epilogue"),
    "sync_batch_norm": ("channel_norm",),
    **dict.fromkeys(("gated", "grouped", "packed", "sparse"), ("epilogue", "matmul")),
    "linear_loss": ("epilogue", "loss", "matmul"),
    "distillation": ("epilogue", "linear_loss", "loss", "matmul"),
}
#: Further files of a family whose C++ is more than one of its name; on a GPU all files of its folder are.
_PARTS = {
    "causal_conv": ("causal_conv_backward",),
    "channel_norm": ("channel_norm_backward",),
    "conv": ("conv_fold", "depthwise"),
    "linear_loss": ("linear_cross_entropy",),
    "loss": ("loss_sums", "nll_loss"),
    "optim": ("lamb",),
    "packed": ("quantize_packed",),
    "quantize": ("quantize_matrix",),
    "scaled_conv": ("conv",),
}

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_TRITON = "warpwright.triton_kernels"


def source_hash(op: str, provider: str, root: Path = ROOT) -> str | None:
    """A hash of the files that this op's kernels are compiled from, whatever they include or import with them.

    Args:
        op: its kernels are those of its family.
        provider: "warpwright-cpu", "warpwright-cuda", "warpwright-triton", or "warpwright" for all of them.
        root: the checkout.

    Returns:
        16 hexadecimal digits; None for an op or provider whose sources are not ours, and where there is no checkout.
    """
    if op not in SPECS or provider not in _BACKENDS:
        return None
    files = source_files(SPECS[op].family, _BACKENDS[provider], root)
    return _hash(files, root) if files else None


@functools.cache
def source_files(family: str, backends: tuple[str, ...], root: Path = ROOT) -> tuple[Path, ...]:
    """The files, sorted; none outside a checkout. Read once in a process, which runs what it has loaded."""
    csrc, triton = root / "csrc", root / "triton_kernels"
    if not csrc.is_dir() or not triton.is_dir():
        return ()
    families = (family, *_ALSO.get(family, ()))
    found: set[Path] = set()
    for backend in backends:
        if backend == "triton":
            found |= _closure([triton / f"{family}.py"], lambda path: _imported(path, triton))
        else:
            starts = [start for name in families for start in _compiled(csrc, name, backend)]
            found |= _closure(starts, lambda path: _included(path, csrc))
    return tuple(sorted(found))


def _compiled(csrc: Path, family: str, backend: str) -> list[Path]:
    """The files that a compiler is given for this family and backend, and the glue that all families share."""
    names = (family, *_PARTS.get(family, ()))
    glue = [csrc / "bindings" / f"{name}.cpp" for name in ("common", *names)]
    if backend == "cpu":
        own = [csrc / "cpu" / f"{name}.cpp" for name in names]
        return [*glue, csrc / "bindings" / "onednn" / f"{family}.cpp", *own]
    return [*glue, *sorted((csrc / "cuda" / family).glob("*.cu"))]


def _closure(starts: Iterable[Path], next_of: Callable[[Path], Iterable[Path]]) -> set[Path]:
    """The starts that exist and what can be reached from them."""
    found: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += next_of(path)
    return found


def _included(path: Path, csrc: Path) -> list[Path]:
    """Headers named in quotes, from csrc/. Those of the emulator are for the tests."""
    names = _INCLUDE.findall(path.read_text(encoding="utf-8"))
    return [csrc / name for name in names if not name.startswith("emulator/")]


def _imported(path: Path, folder: Path) -> list[Path]:
    """Modules of the Triton kernels that a module imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    inner = [name.removeprefix(f"{_TRITON}.") for name in names if name.startswith(f"{_TRITON}.")]
    return [folder / f"{name.split('.')[0]}.py" for name in inner]


@functools.cache
def _hash(files: tuple[Path, ...], root: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
