"""`warpwright.fallbacks()`: how often a warpwright.nn layer ran PyTorch's own forward, and why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Fallbacks(Mapping[tuple[str, str], int]):
    """(layer type, reason) -> how many calls, for the whole process and live; `print` shows a table."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def __getitem__(self, key: tuple[str, str]) -> int:
        return self._counts[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(list(self._counts))

    def __len__(self) -> int:
        return len(self._counts)

    def clear(self) -> None:
        """Counts from zero again."""
        with self._lock:
            self._counts.clear()

    def add(self, layer: str, reason: str) -> None:
        """Counts one fallback."""
        with self._lock:
            self._counts[layer, reason] = self._counts.get((layer, reason), 0) + 1

    def __str__(self) -> str:
        if not self._counts:
            return "no fallbacks"
        rows = [("layer", "calls", "reason")]
        by_count = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        rows += [(layer, str(count), reason) for (layer, reason), count in by_count]
        wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(f"{layer:<{wide[0]}}  {count:>{wide[1]}}  {reason}" for layer, count, reason in rows)

    __repr__ = __str__


_FALLBACKS = Fallbacks()


def fallbacks() -> Fallbacks:
    """How often warpwright.nn layers ran PyTorch's forward in place of their own, by layer type and reason.

    Returns:
        A live mapping (layer type, reason) -> count of this process; `print(fallbacks())` shows a table and
        `fallbacks().clear()` starts again. In code compiled by torch.compile a fallback counts once for each
        compilation, not once for each call.
    """
    return _FALLBACKS


def run_at_trace_time(function: _Function) -> _Function:
    """torch.compiler.assume_constant_result without its import of torch._dynamo, which takes most of a second.

    torch.compile calls such a function while it traces and takes its result for a constant.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@run_at_trace_time
def count_fallback(layer: str, reason: str) -> bool:
    """Counts one fallback; torch.compile runs it while it traces, so compiled code pays nothing and does not break."""
    _FALLBACKS.add(layer, reason)
    return True
