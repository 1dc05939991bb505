"""The products that an operator of the conv family makes on a GPU, as csrc/bindings/conv.cpp makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warpwright._conv import channels_last, empty_in_format, in_format, output_sizes
from warpwright._conv_plans import Convolution
from warpwright._gemm_plans import GemmQuestion

#: The ops that are a convolution each; their gradients are two more.
OPS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
OPERATORS = ("convolution", "convolution_backward", "convolution_batch_norm", "convolution_moments")
#: Numbers of the operators, in the order of their arguments.
_GEOMETRY = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")

#: A question, and the call that makes the product and no other: an operator with its arguments.
Made = tuple[GemmQuestion, str, tuple[Any, ...]]


def products_of(library: Path, name: str, values: dict[str, Any], args: tuple[Any, ...]) -> Iterator[Made]:
    """Of a call of an operator, the depthwise ones left out.

    Args:
        library: whose kernels.
        name: of `OPERATORS`.
        values: its arguments by name; args: in order.
    """
    call = _Call(library, values)
    if name == "convolution_backward":
        yield from call.gradients()
        return
    residual, measured = values.get("residual"), name == "convolution_moments"
    if name == "convolution_batch_norm":
        measured = values["training"]
        # The norm is part of the convolution, and the residual with it, or a kernel of its own that adds it.
        residual = None if values["training"] or values["save_product"] else residual
    question = call.forward(residual, measured)
    if question is not None:
        yield question, name, args


class _Call:
    """A convolution's arguments: those of an operator."""

    def __init__(self, library: Path, values: dict[str, Any]) -> None:
        self.library = library
        plain: dict[str, Any] = {"transposed": False, "output_padding": []}
        self.values = plain | values
        self.input: Tensor = values["input"]
        self.weight: Tensor = values["weight"]
        self.transposed: bool = self.values["transposed"]

    def forward(self, residual: Tensor | None, measured: bool) -> GemmQuestion | None:
        numbers = [self.values[name] for name in _GEOMETRY]
        sizes = output_sizes("convolution", self.input, self.weight, *numbers)
        output = self._empty(sizes, channels_last(self.input, self.weight))
        role = "input gradient" if self.transposed else "forward"
        return self._between(self.input, self.weight, output).question(self.library, role, residual, measured)

    def gradients(self) -> Iterator[Made]:
        v, input, weight = self.values, self.input, self.weight
        grad = v["grad_output"]
        if v["activation"] != "none":  # The products read the pre-activation's gradient, a new tensor.
            grad = in_format(grad, channels_last(input, weight))
        for role, tensor in (("input", input), ("weight", weight)):
            if not v[f"need_{role}"]:
                continue
            written = self._empty(tensor.shape, channels_last(tensor))
            if role == "input":
                found = self._between(written, weight, grad)
                question = found.question(self.library, "forward" if self.transposed else "input gradient")
            else:
                question = self._between(input, written, grad).question(self.library, "weight gradient")
            if question is not None:
                numbers = [v[name] for name in _GEOMETRY]
                needs = (role == "input", role == "weight", False, False)
                args = (grad, input, weight, None, *numbers, "none", v["precision"], *needs)
                yield question, "convolution_backward", args

    def _empty(self, sizes: Any, last: bool) -> Tensor:
        return empty_in_format(torch.empty(0, dtype=self.input.dtype, device="meta"), sizes, last)

    def _between(self, input: Tensor, weight: Tensor, output: Tensor) -> Convolution:
        """Of tensors in the roles of the call: `input` and `output`, or gradients of theirs."""
        v, dims = self.values, weight.dim() - 2
        x, y = (output, input) if self.transposed else (input, output)
        numbers = (v["stride"], v["padding"][:dims], v["dilation"])
        return Convolution(x, weight, y, *numbers, v["groups"], v["precision"], self.input.device)
