"""What is left out where the CPU stands in for a GPU, whose kernels take a thousand times longer there, and of the
reference, which repeats what the other backends show of the code above kernels.

WARPWRIGHT_TEST_EVERYTHING=1 leaves out nothing, here and where EVERYTHING is asked for: planted faults, architectures.
"""

from __future__ import annotations

import os

import warpwright
from warpwright.testing import Sample

EVERYTHING = os.environ.get("WARPWRIGHT_TEST_EVERYTHING") == "1"


def slow(device: str) -> bool:
    """Whether the current backend's kernels are interpreted or emulated on `device`."""
    return device == "cpu" and warpwright.current_backend() in ("triton", "emulated")


def thinned(device: str) -> bool:
    return (slow(device) or warpwright.current_backend() == "reference") and not EVERYTHING


def many_rows(sample: Sample) -> bool:
    """A launch of hundreds of programs: it shows that partial sums meet, once is enough."""
    return any(t.dim() > 0 and t.shape[0] > 250 for t in sample.tensors())
