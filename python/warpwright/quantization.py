"""`warpwright.quantize`: the linear layers of a model in 8 or 4 bits, in place, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from warpwright._check import fail
from warpwright.nn._exchange import Exchanged, ExchangeReport, exchange
from warpwright.nn._replace import Selection
from warpwright.nn.quantized import LinearFP8, LinearInt8, LinearW4A16, LinearW8A16, QuantizedLinear

#: The formats of `quantize` -> their layers.
FORMATS: Mapping[str, type[QuantizedLinear]] = {
    "fp8": LinearFP8,
    "int8": LinearInt8,
    "w4a16": LinearW4A16,
    "w8a16": LinearW8A16,
}


def quantize(
    model: torch.nn.Module,
    format: str,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
    inputs: Any = None,
    restorable: bool = True,
    frozen: bool = False,
    **settings: Any,
) -> ExchangeReport:
    """Quantises the linear layers of `model` in place: torch.nn.Linear, warpwright.nn.Linear, whose activation is kept,
    and the Conv1D of Hugging Face's GPT-2.

    Args:
        model: any module; it may itself be a layer.
        format: "fp8", 8-bit floats on both sides; "int8", int8 on both sides; "w4a16" and "w8a16", weights of packed
            integers beside inputs that stay floats.
        include, exclude: which layers, as in `nn.replace_modules`.
        inputs: sample inputs, for the error of each layer's output: a tensor, a tuple of arguments, or a dict of
            keywords. The model runs once on them as it is, in eval mode and without gradients.
        restorable: False to let the float weights go, where the report would keep them for `restore()`.
        frozen: the layers may be trained through in training mode, adapters beside them for one; their weights have no
            gradient. Without it a backward pass through them raises while they are in training mode.
        settings: the format's own: granularity of "fp8" ("row", or "block" for 128 x 128), group_size and symmetric of
            "w4a16" and "w8a16". See `nn.LinearFP8` and `nn.LinearW4A16`.

    Returns:
        A report with `replaced`, `skipped` (name -> reason), `weight_error`, `output_error`, `stored` and `restore()`;
        print shows a table. The float weights live as long as it does.

    Raises:
        RuntimeError: format, settings, inputs or a selection mean nothing, or the model is scripted or compiled
            already. The model is unchanged then.

    Only the class, parameters and buffers of each layer object change, so hooks, names, shared modules and biases stay.
    Left as they are, with a reason in the report: a weight tied to another module's (an embedding), which would be
    stored twice; a layer that would not become smaller; what the format cannot hold. Modules of other kinds, such as
    `nn.Experts`, are not listed. Quantising again changes nothing: `restore()` first for another format.

    A state saved before loads after it, with strict=True: float weights are quantised on their way in. A quantised
    state loads into a model that was quantised the same way.
    """
    form = FORMATS.get(format)
    if form is None:
        fail("quantize", f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    unknown = [name for name in settings if name not in form.settings]
    if unknown:
        fail("quantize", f"{format} has no setting {unknown[0]!r}; it has {', '.join(form.settings) or 'none'}")
    form(0, 0, device="meta", **settings)  # Values that mean nothing raise here, in the layer's words.

    def make(linear: torch.nn.Module, name: str) -> Exchanged:
        layer = form.from_float(linear, **settings)
        layer.label = name
        layer.frozen = frozen
        return layer

    return exchange(
        "quantize", model, form, make, include=include, exclude=exclude, inputs=inputs, restorable=restorable
    )
