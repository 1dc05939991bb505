"""Every barrier, wait, fence, arrival and predicate of Hopper's gated, grouped, 8-bit and sparse products and of its
convolutions matters to the emulator, as in test_dropped_statements.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dropped_products
import dropped_statements
import emulated
import pytest
import thinning

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
WRITER = CUDA / "tile" / "box_writer.cuh"

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

#: The files whose statements are dropped, by family.
FILES = {
    "gated": [CUDA / "gated" / "gated_wgmma.cu", WRITER],
    "grouped": [CUDA / "grouped" / "grouped_wgmma.cu"],
    "scaled": [CUDA / "scaled" / "scaled_wgmma.cu"],
    "sparse": [CUDA / "sparse" / "linear_sparse24_wgmma.cu"],
    "conv": [CUDA / "conv" / f"{name}.cuh" for name in ("conv_wgmma_kernel", "wgmma_epilogue", "wgmma_loader")],
}
#: What is made of rewritten headers, and stays as it is.
USERS = [CUDA / "conv" / f"{name}_wgmma.cu" for name in ("conv", "wgrad")]
ENTRY = '#include "dropped_site.h"\nint dropped_site = 0;\n'
ENTRY += 'extern "C" __attribute__((visibility("default"))) void drop_site(int site) { dropped_site = site; }\n'


def _rewritten() -> tuple[dict[Path, str], dict[str, list[dropped_statements.Site]]]:
    texts: dict[Path, str] = {}
    sites: dict[str, list[dropped_statements.Site]] = {}
    for family, paths in FILES.items():
        for path in paths:
            texts[path], found = dropped_statements.rewrite(path, 1 + sum(map(len, sites.values())))
            sites.setdefault(family, []).extend(found)
    return texts, sites


TEXTS, SITES = _rewritten()

#: (file, statement) -> why no product of dropped_products.py can miss it.
_AGAIN = "what is not kept is stored where the output is stored after it: nothing but time is lost"
UNMISSED = {
    ("gated_wgmma.cu", "gated.gate != nullptr"): _AGAIN,
    ("gated_wgmma.cu", "keep"): _AGAIN,
    ("grouped_wgmma.cu", "tile.group >= 0"): "a tile of no group has no rows, and nothing is done with it",
    ("grouped_wgmma.cu", "left < kSpan"): "no line is cleared of a whole span",
    (
        "scaled_wgmma.cu",
        "part % kParts == 0",
    ): "a box is opened and waited for again: nothing but time is lost",
}


def test_what_nobody_misses_is_still_there():
    assert UNMISSED.keys() <= {(site.file, site.text) for sites in SITES.values() for site in sites}


@pytest.mark.parametrize("family", FILES)
def test_what_is_dropped_is_missed(family):
    folder = ROOT / "build" / "cases" / "dropped_products"
    emulated.write(folder / dropped_statements.SWITCH, dropped_statements.SWITCH_TEXT)
    emulated.write(folder / "dropped_entry.cpp", ENTRY)
    emulated.build_planted(
        TEXTS | {path: path.read_text() for path in USERS}, folder.name, more=[folder / "dropped_entry.cpp"]
    )
    chosen = [site for site in SITES[family] if (site.file, site.text) not in UNMISSED]
    # Each takes a second or five.
    chosen = chosen if thinning.EVERYTHING else chosen[::4]
    numbers = ["0", *(str(site.number) for site in chosen)]
    variables = os.environ | {"WARPWRIGHT_LIBRARY_DIR": str(folder)}
    command = [sys.executable, dropped_products.__file__, family, *numbers]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    missed = json.loads(done.stdout)
    assert missed.pop("0") == "", "nothing is left out, and something is wrong"
    assert [str(site) for site in chosen if missed[str(site.number)] == ""] == [], "nobody misses these"
