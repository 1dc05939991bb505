"""One planted bug, and where its tests run."""

from __future__ import annotations

from dataclasses import dataclass

#: Where the tests of a room run, by the start of its path: the matrix' name of the backend.
BACKENDS = {
    "csrc/cpu/": "native-cpu",
    "csrc/bindings/": "native-cpu",
    "csrc/kernels/": "native-cpu",
    "csrc/cuda/": "emulated-cpu",
    "triton_kernels/": "triton-cpu",
    "python/warpwright/reference/": "reference-cpu",
    "python/warpwright/ops/": "native-cpu",
}


@dataclass(frozen=True)
class Mutation:
    """Replace `old`, which must occur exactly once, by `new` in `path`; the tests of `op` must fail."""

    op: str
    what: str
    path: str
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.op}: {self.what} ({self.path})"

    @property
    def backend(self) -> str:
        return next(backend for start, backend in BACKENDS.items() if self.path.startswith(start))


def planted_in(path: str, *bugs: tuple[str, str, str, str]) -> list[Mutation]:
    return [Mutation(op, what, path, old, new) for op, what, old, new in bugs]
