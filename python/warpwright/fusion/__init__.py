"""`warpwright.fuse` and torch.compile's backend "warpwright": operations of a graph become warpwright's fused ops.

The pass sees the graph that Dynamo takes from a model: calls of torch's functions (and of warpwright's operators, from
layers of warpwright.nn), before autograd and before in-place operations are taken apart. A fused op there brings its
own backward pass along, which is what training needs, and what was added to or activated in place can still be told.
What is left goes to Inductor.
"""

from warpwright.fusion.compiler import compile_graph, fuse, fuse_graph, fuse_report, register_backend
from warpwright.fusion.report import Fusion, FusionReport, Skip

__all__ = ["Fusion", "FusionReport", "Skip", "compile_graph", "fuse", "fuse_graph", "fuse_report", "register_backend"]
