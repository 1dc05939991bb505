"""Rewrites a kernel's source so that each barrier, wait, fence, arrival and predicate can be dropped at run time.

One compilation serves all mutants: site N is left out while `dropped_site` is N.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: Calls that order something. What they return, if anything, is not used.
ORDERS = (
    r"__syncthreads|__syncwarp|turns\.(?:wait|pass)|"
    r"ptx::(?:cp_async_commit|cp_async_wait<[^;()]*>|mbarrier_\w+|fence_\w+|named_barrier_\w+|cluster_(?:sync|arrive|wait)|"
    r"wgmma_fence|wgmma_commit|wgmma_wait<[^;()]*>|tma_store_commit|tma_store_wait\w*<[^;()]*>|"
    r"release_registers<[^;()]*>)"
)
_CALL = re.compile(rf"(?<![\w:])(?:{ORDERS})\(")
_CONDITION = re.compile(r"\bif \(|\bconst bool \w+ = ")
#: Where device code begins and ends in a file that has launchers too.
_BANNERS = ("// CUDA kernels\n", "// Kernel launchers\n")

#: A header that every rewritten file includes.
SWITCH = "dropped_site.h"
SWITCH_TEXT = """#pragma once
extern int dropped_site;
__attribute__((no_sanitize("thread"))) inline bool dropped(int site) { return dropped_site == site; }
"""


@dataclass(frozen=True)
class Site:
    """`text` of line `line` of `file`, the `number`-th thing that can be dropped."""

    number: int
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens just before `start` closes."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError("unbalanced parentheses")


def _terms(condition: str) -> list[tuple[int, int]]:
    """The parts of a && b && c, outside parentheses; a condition joined by || is one part."""
    cuts, depth, start = [], 0, 0
    for at, char in enumerate(condition):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth == 0 and condition.startswith("&&", at):
            cuts.append((start, at))
            start = at + 2
    return [*cuts, (start, len(condition))]


def rewrite(path: Path, first: int) -> tuple[str, list[Site]]:
    """The source with switches, and its sites, numbered from `first` on."""
    text = path.read_text()
    begin, end = 0, len(text)
    if _BANNERS[0] in text:
        begin, end = text.index(_BANNERS[0]), text.index(_BANNERS[1])
    edits: list[tuple[int, int, str]] = []  # start, end, new text with {} for the site's number
    for match in _CALL.finditer(text, begin, end):
        close = _closing(text, match.end())
        if text[close + 1] == ";":
            edits.append((match.start(), match.start(), "if (!dropped({})) "))
    for match in _CONDITION.finditer(text, begin, end):
        stop = _closing(text, match.end()) if match[0] == "if (" else text.index(";", match.end())
        for a, b in _terms(text[match.end() : stop]):
            edits.append((match.end() + a, match.end() + b, "({old} || dropped({}))"))
    sites, out, at = [], [], 0
    for start, stop, new in sorted(edits):
        number = first + len(sites)
        old = text[start:stop].strip()
        shown = old or text[start : text.index(";", start)]
        sites.append(Site(number, path.name, text.count("\n", 0, start) + 1, " ".join(shown.split())))
        out += [text[at:start], new.format(number, old=old)]
        at = stop
    include = text.rindex("#include", 0, begin if begin else end)
    after = text.index("\n", include) + 1
    rewritten = "".join([*out, text[at:]])
    return rewritten[:after] + f'#include "{SWITCH}"\n' + rewritten[after:], sites
