"""What is left out where the CPU stands in for a GPU: a kernel takes a thousand times longer there.

WARPWRIGHT_TEST_EVERYTHING=1 leaves out nothing.
"""

from __future__ import annotations

import os

import warpwright

EVERYTHING = os.environ.get("WARPWRIGHT_TEST_EVERYTHING") == "1"


def slow(device: str) -> bool:
    """Whether the current backend's kernels are interpreted or emulated on `device`."""
    return device == "cpu" and warpwright.current_backend() in ("triton", "emulated")


def thinned(device: str) -> bool:
    return slow(device) and not EVERYTHING
