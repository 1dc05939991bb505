"""`warpwright.sparsify`: the linear layers of a model without half of their weights, in place, and back."""

from __future__ import annotations

from typing import Any

import torch

from warpwright.nn._exchange import ExchangeReport, exchange
from warpwright.nn._replace import Selection
from warpwright.nn.sparse import SparseLinear


def sparsify(
    model: torch.nn.Module,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
    inputs: Any = None,
    restorable: bool = True,
) -> ExchangeReport:
    """Prunes the linear layers of `model` to 2:4 sparsity in place: of each four neighbours of a weight's row the two
    largest magnitudes stay. Takes torch.nn.Linear, warpwright.nn.Linear, whose activation is kept, and the Conv1D of
    Hugging Face's GPT-2.

    Args:
        model: any module; it may itself be a layer.
        include, exclude: which layers, as in `nn.replace_modules`.
        inputs: sample inputs, for the error of each layer's output: a tensor, a tuple of arguments, or a dict of
            keywords. The model runs once on them as it is, in eval mode and without gradients.
        restorable: False to let the dense weights go, where the report would keep them for `restore()`.

    Returns:
        A report with `replaced`, `skipped` (name -> reason), `weight_error`, `output_error`, `stored` and `restore()`;
        print shows a table. The dense weights live as long as it does.

    Raises:
        RuntimeError: inputs or a selection mean nothing, or the model is scripted or compiled already. The model is
            unchanged then.

    Half of a trained weight is a lot to lose: train the model on, with an optimizer that is made after the call, since
    the parameters are new ones. The mask stays as it is, see `nn.SparseLinear`. Layers that were trained are not put
    back by `restore()`, which says so; `to_float` gives the dense form of one.

    Hooks, shared and tied weights, states saved before, and what is left as it is: see `quantize`.
    """
    return exchange(
        "sparsify",
        model,
        SparseLinear,
        lambda linear, name: SparseLinear.from_float(linear),
        include=include,
        exclude=exclude,
        inputs=inputs,
        restorable=restorable,
    )
