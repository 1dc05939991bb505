"""The pass over one graph: every pattern family in turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule

from warpwright.fusion.activation import fuse_gates, fuse_written_activations
from warpwright.fusion.batch_norm import fuse_batch_norms
from warpwright.fusion.clean import drop_dead_calls, drop_identities, thread_in_place_results
from warpwright.fusion.dropout import fuse_dropouts
from warpwright.fusion.epilogue import fuse_epilogues
from warpwright.fusion.graph import Rewriter
from warpwright.fusion.loss import fuse_losses
from warpwright.fusion.norm import fuse_residuals, fuse_written_rms_norms
from warpwright.fusion.public import restore_public_calls
from warpwright.fusion.report import FusionReport
from warpwright.fusion.rotary import fuse_rotary_embeddings
from warpwright.fusion.softmax import fuse_softmaxes

#: In this order. What is written out in pieces is one call before it can be an epilogue, and an MLP is found before its
#: layers take their activations. A residual goes to the product before it, if there is one: its epilogue reads it on
#: the way, where a norm behind would read the product and the residual and write the sum.
PASSES: tuple[Callable[[Rewriter], None], ...] = (
    restore_public_calls,
    thread_in_place_results,
    drop_dead_calls,
    drop_identities,
    fuse_written_activations,
    fuse_written_rms_norms,
    fuse_rotary_embeddings,
    fuse_softmaxes,
    fuse_losses,
    fuse_gates,
    fuse_batch_norms,
    fuse_epilogues,
    fuse_dropouts,
    fuse_residuals,
)


def rewrite(module: GraphModule, report: FusionReport) -> None:
    """Fuses what is found in a graph, in place, and adds to the report."""
    rewriter = Rewriter(module, report)
    for node in module.graph.nodes:
        if node.target is torch.ops.higher_order.tag_activation_checkpoint:  # Its body is a graph like any other.
            rewrite(getattr(module, node.args[0].target), report)
    if rewriter.fake_mode is None:
        return
    for step in PASSES:
        step(rewriter)
    module.graph.lint()
    module.recompile()
