"""What is known of every operator, and the one definition of correct.

`SPECS` maps an op's name to its OpSpec. `check` runs samples on a backend and compares them with float64.
"""

from warpwright.testing.compare import (
    ERROR_FACTOR,
    Comparison,
    Expected,
    compare,
    evaluate,
    evaluate_in_place,
    to_float64,
)
from warpwright.testing.layouts import LAYOUTS, relayout
from warpwright.testing.spec import SPECS, BadInput, Cost, Make, OpSpec, Sample

from . import specs  # noqa: F401  (fills SPECS)

__all__ = [
    "ERROR_FACTOR",
    "LAYOUTS",
    "SPECS",
    "BadInput",
    "Comparison",
    "Cost",
    "Expected",
    "Make",
    "OpSpec",
    "Sample",
    "compare",
    "evaluate",
    "evaluate_in_place",
    "relayout",
    "to_float64",
]
