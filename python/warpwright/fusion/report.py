"""What was fused in the graphs that went through the backend, and what was not, and why."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch.fx import Node

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fusion:
    """One place where several operations became one.

    Attributes:
        pattern: what was there, such as "linear + relu".
        op: the warpwright op that took its place.
        where: the module and the source line.
    """

    pattern: str
    op: str
    where: str


@dataclass(frozen=True)
class Skip:
    """One place that looks like a pattern and was left as it is: `where`, and the `reason`."""

    pattern: str
    where: str
    reason: str


class FusionReport:
    """What happened in the graphs compiled so far; `print` shows a table.

    Attributes:
        fused: a `Fusion` for each place, in the order of the graphs.
        skipped: a `Skip` for each place that was left.
        graphs: how many graphs were looked at. Each graph break adds one, and so does each recompilation.
    """

    def __init__(self) -> None:
        self.fused: list[Fusion] = []
        self.skipped: list[Skip] = []
        self.graphs = 0
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Op -> in how many places it took several operations' place."""
        return dict(Counter(fusion.op for fusion in self.fused))

    def clear(self) -> None:
        """Forgets what was recorded."""
        with self._lock:
            self.fused, self.skipped, self.graphs = [], [], 0

    def add(self, other: FusionReport) -> None:
        """Appends another report."""
        with self._lock:
            self.fused += other.fused
            self.skipped += other.skipped
            self.graphs += other.graphs

    def __str__(self) -> str:
        if not self.graphs:
            return "nothing was compiled yet: a model is compiled when it is first called"
        places: dict[tuple[str, str], list[str]] = {}
        for fusion in self.fused:
            places.setdefault((fusion.pattern, fusion.op), []).append(fusion.where)
        for skip in self.skipped:
            places.setdefault((skip.pattern, f"skipped: {skip.reason}"), []).append(skip.where)
        rows = [("pattern", "count", "result", "where")]
        rows += [(pattern, str(len(found)), what, _summary(found)) for (pattern, what), found in places.items()]
        wide = [max(len(row[i]) for row in rows) for i in (0, 1, 2)]
        lines = [f"{a:<{wide[0]}}  {n:>{wide[1]}}  {what:<{wide[2]}}  {where}".rstrip() for a, n, what, where in rows]
        graphs = "1 graph" if self.graphs == 1 else f"{self.graphs} graphs"
        return "\n".join([*lines, f"{len(self.fused)} fused, {len(self.skipped)} skipped in {graphs}"])

    __repr__ = __str__


def _summary(places: list[str], most: int = 3) -> str:
    """Places that differ in their layers' numbers alone are one."""
    kinds = Counter(re.sub(r"(?<=\.)\d+(?=[. ]|$)", "*", place) for place in places)
    if len(places) == 1:
        return places[0]
    shown = list(kinds)[:most]
    return ", ".join(shown) + (", ..." if len(kinds) > most else "")


def place_of(node: Node) -> str:
    """The module and the source line that a node comes from, as far as the graph tells."""
    stack = node.meta.get("nn_module_stack") or {}
    module = ""
    if stack:
        path = str(next(reversed(stack.values()))[0])
        path = re.sub(r"^L\['\w+'\](\[\d+\])?", "", path)
        path = re.sub(r"\[(\d+)\]|\['([^']*)'\]", lambda found: f".{found[1] or found[2]}", path)
        module = path.replace("._modules", "").strip(".") or "(model)"
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [line for line in lines if _PACKAGE not in Path(line[0]).parents]  # Whoever called our layer.
    source = f"({Path(lines[-1][0]).name}:{lines[-1][1]})" if lines else ""
    return " ".join(filter(None, (module, source))) or node.name
