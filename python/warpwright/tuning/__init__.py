"""Tile configurations: which one a kernel is launched with, and the search for better ones.

`selector` is what launchers ask, `tables` the files that hold measured winners, `launches` which launches an op makes,
`search` the measuring behind `warpwright tune`. Nothing is timed unless that command is given.
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
