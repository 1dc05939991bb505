"""Tile configurations: which one a kernel is launched with, and the search for better ones.

`selector` is what launchers of Triton kernels ask, `launches` which of these an op makes; `products` is both for the
products of the C++ kernels. `tables` are the files that hold measured winners, `search` is the measuring behind
`warpwright tune`. Nothing is timed unless that command is given.
"""

from warpwright.tuning.selector import (
    TUNABLES,
    Choice,
    Launch,
    Limits,
    Tunable,
    exact,
    intercept,
    power_of_two,
    reload,
)
from warpwright.tuning.tables import Config, Problem

__all__ = [
    "TUNABLES",
    "Choice",
    "Config",
    "Launch",
    "Limits",
    "Problem",
    "Tunable",
    "exact",
    "intercept",
    "power_of_two",
    "reload",
]
