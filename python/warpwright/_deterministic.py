"""`warpwright.deterministic()`: what is bitwise the same from run to run, and the switch for what is not."""

from __future__ import annotations

from types import TracebackType

import torch


class Determinism:
    """The answer of `deterministic`: true when everything that warpwright runs repeats bitwise. `str()` says why.

    As a context manager it restores the settings that `deterministic(mode)` found.

    Attributes:
        ops: whether warpwright's own operators repeat; they always do.
        fallbacks: whether PyTorch's kernels, which layers fall back to, are held to deterministic ones.
        reason: in words.
    """

    def __init__(self, previous: tuple[bool, bool, bool] | None):
        self.ops = True
        self.fallbacks, self.reason = _state()
        self._previous = previous

    def __bool__(self) -> bool:
        return self.ops and self.fallbacks

    def __str__(self) -> str:
        return f"{'deterministic' if self else 'not deterministic'}: {self.reason}"

    __repr__ = __str__

    def __enter__(self) -> Determinism:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            enabled, warn_only, benchmark = self._previous
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark


def deterministic(mode: bool | None = None) -> Determinism:
    """Whether results are bitwise the same from run to run, and the switch for what PyTorch contributes to them.

    warpwright's own operators always repeat: sums are taken in an order that depends on sizes alone, and no kernel
    uses atomics that reorder them. "The same" means the same inputs, machine, library versions and number of threads.
    There is nothing to switch. But a warpwright.nn layer may fall back to PyTorch (`warpwright.fallbacks()`), whose
    kernels repeat only under `torch.use_deterministic_algorithms`.

    Args:
        mode: None only asks. True calls `torch.use_deterministic_algorithms(True)` and turns cuDNN's benchmarking off,
            after which PyTorch raises where it has no deterministic kernel; on CUDA some of its kernels also ask for
            the environment variable CUBLAS_WORKSPACE_CONFIG, and say so. False calls
            `torch.use_deterministic_algorithms(False)`. Both are process-wide.

    Returns:
        A `Determinism`: its truth value is the answer, `.reason` says why, and with a mode it restores the earlier
        settings at the end of a `with` block.
    """
    previous = None
    if mode is not None:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        previous = (torch.are_deterministic_algorithms_enabled(), warn_only, torch.backends.cudnn.benchmark)
        torch.use_deterministic_algorithms(mode)
        if mode:
            torch.backends.cudnn.benchmark = False
    return Determinism(previous)


def _state() -> tuple[bool, str]:
    ours = "warpwright's operators always repeat bitwise"
    if not torch.are_deterministic_algorithms_enabled():
        return False, f"{ours}; PyTorch's, which layers fall back to, may not (warpwright.deterministic(True))"
    if torch.is_deterministic_algorithms_warn_only_enabled():
        return False, f"{ours}; PyTorch only warns where its kernels do not (warn_only)"
    if torch.backends.cudnn.benchmark and torch.cuda.is_available():
        return False, f"{ours}; cuDNN's benchmarking may pick another kernel in another run"
    return True, f"{ours}; PyTorch's, which layers fall back to, are held to deterministic kernels"
