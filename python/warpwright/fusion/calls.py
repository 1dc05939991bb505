"""What a node of a graph computes, whichever of torch's spellings it is written in.

`F.relu(x)`, `torch.relu(x)`, `x.relu()` and `x.relu_()` are one call, "relu", with the arguments of one signature. The
public functions of warpwright.ops are read too, under their names with "ops." before.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from warpwright import ops
from warpwright._check import LEAKY_SLOPE


@dataclass(frozen=True)
class Call:
    """A node as a call of `name`; `args` has every parameter, with its default where none was given.

    `inplace`: the result is written to the first argument.
    """

    node: Node
    name: str
    args: dict[str, Any]
    inplace: bool

    def __getitem__(self, parameter: str) -> Any:
        return self.args[parameter]


_SIGNATURES: dict[str, inspect.Signature] = {}
#: A function, or a method's name -> (call, whether it works in place).
_TARGETS: dict[Any, tuple[str, bool]] = {}


def _define(
    name: str,
    signature: Callable[..., None],
    functions: Iterable[Any] = (),
    methods: Iterable[str] = (),
    inplace: Iterable[Any] = (),
) -> None:
    _SIGNATURES[name] = inspect.signature(signature)
    _TARGETS.update({target: (name, False) for target in (*functions, *methods)})
    _TARGETS.update({target: (name, True) for target in inplace})


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1): ...  # type: ignore[no-untyped-def]


def _transposed(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1): ...  # type: ignore[no-untyped-def]


def _batch_norm(  # type: ignore[no-untyped-def]
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
): ...


def _cross_entropy(  # type: ignore[no-untyped-def]
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0
): ...


_define("linear", lambda input, weight, bias=None: None, [F.linear])
_define("matmul", lambda input, other: None, [torch.matmul, operator.matmul], ["matmul", "__matmul__"])
_define("mm", lambda input, mat2: None, [torch.mm], ["mm"])
_define("bmm", lambda input, mat2: None, [torch.bmm], ["bmm"])
_define("addmm", lambda input, mat1, mat2, *, beta=1, alpha=1: None, [torch.addmm], ["addmm"])
for _dims in (1, 2, 3):
    _define(f"conv{_dims}d", _convolution, [getattr(torch, f"conv{_dims}d")])
    _define(f"conv_transpose{_dims}d", _transposed, [getattr(torch, f"conv_transpose{_dims}d")])

_define("relu", lambda input, inplace=False: None, [F.relu, torch.relu], ["relu"], [torch.relu_, "relu_"])
_define("gelu", lambda input, approximate="none": None, [F.gelu])
_define("silu", lambda input, inplace=False: None, [F.silu])
_define("sigmoid", lambda input: None, [torch.sigmoid, F.sigmoid], ["sigmoid"], [torch.sigmoid_, "sigmoid_"])
_define("tanh", lambda input: None, [torch.tanh, F.tanh], ["tanh"], [torch.tanh_, "tanh_"])
_define("leaky_relu", lambda input, negative_slope=0.01, inplace=False: None, [F.leaky_relu])
_define("hardswish", lambda input, inplace=False: None, [F.hardswish])
_define("glu", lambda input, dim=-1: None, [F.glu])

_define(
    "add", lambda input, other, *, alpha=1: None, [operator.add, torch.add], ["add", "__add__", "__radd__"],
    [operator.iadd, "add_", "__iadd__"],
)  # fmt: skip
_define(
    "mul", lambda input, other: None, [operator.mul, torch.mul, torch.multiply], ["mul", "multiply", "__mul__"],
    [operator.imul, "mul_", "__imul__"],
)  # fmt: skip
_define(
    "div", lambda input, other, *, rounding_mode=None: None, [operator.truediv, torch.div], ["div", "__truediv__"],
    [operator.itruediv, "div_"],
)  # fmt: skip
_define("pow", lambda input, exponent: None, [operator.pow, torch.pow], ["pow", "__pow__"], ["pow_"])
_define("square", lambda input: None, [torch.square], ["square"], ["square_"])
_define("neg", lambda input: None, [operator.neg, torch.neg], ["neg", "__neg__"], ["neg_"])
_define("erf", lambda input: None, [torch.erf, torch.special.erf], ["erf"], ["erf_"])
_define("rsqrt", lambda input: None, [torch.rsqrt], ["rsqrt"], ["rsqrt_"])
_define("cos", lambda input: None, [torch.cos], ["cos"])
_define("sin", lambda input: None, [torch.sin], ["sin"])
_define("mean", lambda input, dim=None, keepdim=False, *, dtype=None: None, [torch.mean], ["mean"])
_define("cat", lambda tensors, dim=0: None, [torch.cat, torch.concat])
_define("getitem", lambda input, index: None, [operator.getitem], ["__getitem__"])
_define("unsqueeze", lambda input, dim: None, [torch.unsqueeze], ["unsqueeze"])
_define("chunk", lambda input, chunks, dim=0: None, [torch.chunk], ["chunk"])
_define("dropout", lambda input, p=0.5, training=True, inplace=False: None, [F.dropout])
_define("masked_fill", lambda input, mask, value: None, [torch.masked_fill], ["masked_fill"], ["masked_fill_"])

_define("batch_norm", _batch_norm, [F.batch_norm])
_define("layer_norm", lambda input, normalized_shape, weight=None, bias=None, eps=1e-5: None, [F.layer_norm])
_define("rms_norm", lambda input, normalized_shape, weight=None, eps=None: None, [F.rms_norm, torch.rms_norm])
_define("softmax", lambda input, dim=None, _stacklevel=3, dtype=None: None, [F.softmax])
_define("softmax_method", lambda input, dim, dtype=None: None, [torch.softmax], ["softmax"])
_define("cross_entropy", _cross_entropy, [F.cross_entropy])

for _name in ops.__all__:
    _function = getattr(ops, _name)
    if inspect.isfunction(_function):
        _define(f"ops.{_name}", _function, [_function])

#: Methods that are one thing with different arguments: what they did is read off the values.
_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as"}
_VIEWS = {"view", "reshape"}
_ONE_INPUT = inspect.signature(lambda input: None)


def read(node: Any) -> Call | None:
    """What `node` computes, or None where it is nothing that a pattern is made of."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return None
    if node.op == "call_method" and node.target in _CASTS | _VIEWS and node.args:
        return Call(node, "cast" if node.target in _CASTS else "view", {"input": node.args[0]}, False)
    if node.target is torch.reshape and node.args:
        return Call(node, "view", {"input": node.args[0]}, False)
    try:
        name, inplace = _TARGETS[node.target]
    except (KeyError, TypeError):  # A target need not be hashable.
        return None
    try:
        bound = _SIGNATURES[name].bind(*node.args, **node.kwargs)
    except TypeError:  # An overload with other arguments, or `out`.
        return None
    bound.apply_defaults()
    args = dict(bound.arguments)
    if name == "softmax_method":
        name = "softmax"
    return Call(node, name, args, inplace or args.get("inplace") is True)


def activation_of(call: Call | None) -> str | None:
    """The name that warpwright's epilogues have for an activation; None for anything else."""
    if call is None:
        return None
    if call.name in ("relu", "silu", "sigmoid", "tanh", "hardswish"):
        return call.name
    if call.name == "leaky_relu":
        return "leaky_relu" if call["negative_slope"] == LEAKY_SLOPE else None
    if call.name in ("gelu", "ops.gelu"):
        if call.args.get("bias") is not None:
            return None
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(call["approximate"])
    if call.name in ("ops.relu", "ops.silu"):
        return call.name.removeprefix("ops.") if call["bias"] is None else None
    return None
