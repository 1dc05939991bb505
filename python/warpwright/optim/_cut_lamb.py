"""LAMB's step for parameters of which each process has a part: their lengths are sums over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright.distributed._lists import Cut, together


def cut_lamb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    cut: Cut,
    masters: Sequence[Tensor] = (),
    lr: float | Tensor,
    weight_decay: float,
    found_inf: Tensor | None = None,
    **rest: Any,
) -> None:
    """warpwright.ops.lamb_ of the parts in this process, which lie as `cut` says; its arguments.

    Adam's direction is the step of length 1 from zero. The lengths of all parameters, and of their directions, are
    exchanged at once. A copy of the parameters is all that it needs more than lamb_ does.
    """
    values = [value.to(torch.float32) if value.dtype != torch.float64 else value for value in masters or params]
    zeros = [torch.zeros_like(param) for param in params]
    wide = [torch.zeros_like(value) for value in values] if values[0].dtype != params[0].dtype else []
    ops.adamw_(
        zeros, grads, exp_avgs, exp_avg_sqs, steps, masters=wide, lr=1.0, weight_decay=0.0, found_inf=found_inf, **rest
    )
    directions = [value * weight_decay - step for value, step in zip(values, wide or zeros, strict=True)]
    squares = [ops.multi_tensor_norm([tensor])[0].double().square() for tensor in (*values, *directions)]
    lengths = together(torch.stack(squares), cut, "sum").sqrt().view(2, len(values))
    trust = torch.where((lengths > 0).all(0), lengths[0] / lengths[1], 1.0).to(values[0].dtype)
    scale = trust * lr if found_inf is None else torch.where(found_inf != 0, 0.0, trust * lr)
    for i, (param, value, direction) in enumerate(zip(params, values, directions, strict=True)):
        moved = value - scale[i] * direction
        if masters:
            masters[i].copy_(moved)
        param.copy_(moved)
