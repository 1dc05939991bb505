"""What `warpwright.quantize` and `warpwright.sparsify` share: linear layers of a model take another form, in place, and
back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from warpwright._backend import missing_for
from warpwright._check import fail
from warpwright.nn._floats import FLOATS, FloatLinear, float_linear, is_conv1d, is_linear
from warpwright.nn._reasons import kind_reason
from warpwright.nn._replace import Selection
from warpwright.nn._replace._select import exclusions, names_of, require_eager
from warpwright.nn.quantized import QuantizedLinear
from warpwright.nn.sparse import SparseLinear

#: What a linear layer becomes.
Exchanged = QuantizedLinear | SparseLinear
#: Modules that read the weight of a linear layer inside them and never call it.
_READERS = ("LinearCrossEntropyLoss", "LinearKLDivLoss")


@dataclass
class _Saved:
    """A float layer: what `restore` puts back."""

    kind: type[torch.nn.Module]
    form: type[torch.nn.Module]
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    added: list[str]
    parts: FloatLinear


@dataclass(repr=False)
class ExchangeReport:
    """What `warpwright.quantize` or `warpwright.sparsify` did. `print` shows a table.

    Attributes:
        replaced: the name of each layer that has another form -> its class now. A layer with several names is listed
            under each.
        skipped: the name of each linear layer that was left as it is -> why.
        weight_error: name -> ||weight - its new form|| / ||weight||, for layers that are not on the meta device.
        output_error: name -> the same of the layer's output, given the inputs of its float self, where the sample
            inputs reached it.
        stored: name -> bytes of the weight before and after.
    """

    replaced: dict[str, type[torch.nn.Module]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    weight_error: dict[str, float] = field(default_factory=dict)
    output_error: dict[str, float] = field(default_factory=dict)
    stored: dict[str, tuple[int, int]] = field(default_factory=dict)
    _modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    _saved: dict[torch.nn.Module, _Saved] = field(default_factory=dict)

    def restore(self) -> dict[str, str]:
        """Makes each layer the float one that it was, its weight the same Parameter with the same bits; a second call
        does nothing. Where a layer has been moved or cast since, so is its float weight.

        Returns:
            Name -> why it was left: its weight has changed since (trained, loaded), something else has changed its
            class (parametrize, FSDP2), or nothing was kept (restorable=False).
        """
        left = {}
        for name, module in self._modules.items():
            saved = self._saved.get(module)
            reason = "its float weight was not kept" if saved is None else _put_back(module, saved)
            if reason is not None:
                left[name] = reason
        return left

    def __str__(self) -> str:
        rows = [["layer", "class", "weight error", "output error", "bytes"]]
        for name, kind in self.replaced.items():
            errors = [
                f"{error[name]:.2e}" if name in error else "-" for error in (self.weight_error, self.output_error)
            ]
            rows.append([name or "(model)", kind.__name__, *errors, "{} -> {}".format(*self.stored[name])])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows += [[name or "(model)", f"skipped: {reason}"] for name, reason in self.skipped.items()]
        widths[0] = max(len(row[0]) for row in rows)
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) for row in rows]  # noqa: B905
        before, after = (sum(pair[i] for pair in self._stored_once()) for i in (0, 1))
        counts = f"{len(self.replaced)} replaced, {len(self.skipped)} skipped"
        return "\n".join([*map(str.rstrip, lines), f"{counts}; weights of {before} bytes in {after}"])

    __repr__ = __str__

    def _stored_once(self) -> list[tuple[int, int]]:
        """Of each layer, whatever number of names it has."""
        return list({id(module): self.stored[name] for name, module in self._modules.items()}.values())


def exchange(
    function: str,
    model: torch.nn.Module,
    form: type[Exchanged],
    make: Callable[[torch.nn.Module, str], Exchanged],
    *,
    include: Selection | None,
    exclude: Selection | None,
    inputs: Any,
    restorable: bool,
) -> ExchangeReport:
    """Gives the linear layers of `model` the form that `make(layer, name)` returns; `function` is the caller's name.

    Every layer is made and measured before the first one changes, so an error leaves the model as it was.
    """
    names = names_of(model)
    require_eager(function, names)
    left_out = exclusions(function, names, include, exclude)
    owners = _owners(names)
    read = {child for module in names if type(module).__name__ in _READERS for child in module.children()}

    report = ExchangeReport()
    made: dict[torch.nn.Module, tuple[FloatLinear, Exchanged]] = {}
    for module, known in names.items():
        if not (isinstance(module, (torch.nn.Linear, QuantizedLinear, SparseLinear)) or is_conv1d(type(module))):
            continue
        reason: str | None
        if module in left_out:
            reason = left_out[module]
        elif module in read:
            reason = "the module around it reads its weight"
        else:
            reason = _structure_reason(module) or _tied_reason(module, owners, names)
        if reason is None:
            parts = float_linear(function, module)
            reason = form.reason_against(parts)
        if reason is None:
            layer = make(module, known[0])
            before, after = parts.weight.nbytes, layer.stored()
            reason = None if after < before else f"no smaller: {after} bytes, {before} as it is"
        if reason is not None:
            report.skipped |= dict.fromkeys(known, reason)
            continue
        made[module] = parts, layer
        report.replaced |= dict.fromkeys(known, type(layer))
        report.stored |= dict.fromkeys(known, (before, after))
        report._modules |= dict.fromkeys(known, module)
        if not parts.weight.is_meta:
            error = _Error()
            error.add(layer.float_weight(), parts.weight)
            report.weight_error |= dict.fromkeys(known, error.relative())

    if inputs is not None:
        for module, error in _output_errors(function, model, inputs, made).items():
            report.output_error |= dict.fromkeys(names[module], error.relative())
    for module, (parts, layer) in made.items():
        saved = _graft(module, layer, parts)
        if restorable:
            report._saved[module] = saved
    return report


# ---- why a layer stays as it is ----


def _structure_reason(module: torch.nn.Module) -> str | None:
    """Why a module cannot be taken for `activation(input @ weight.T + bias)`."""
    kind = type(module)
    if isinstance(module, (QuantizedLinear, SparseLinear)):
        return f"a {kind.__name__} already"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "parametrised (torch.nn.utils.parametrize)"
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) or any(map(is_lazy, module.parameters(False))):
        return "lazy: its parameters are not initialised yet"
    if not is_linear(kind):
        return f"a subclass: {kind.__module__}.{kind.__qualname__}"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    more = [*module._parameters, *module._buffers, *module._modules]
    more = [name for name in more if name not in ("weight", "bias")]
    weight = module._parameters.get("weight")
    if more or weight is None:
        return f"it holds more than a weight and a bias: {', '.join(more)}" if more else "its weight is no parameter"
    if weight.dtype not in FLOATS:
        return f"a weight in {weight.dtype}"
    return kind_reason(weight) or missing_for(weight.device)


def _owners(names: Mapping[torch.nn.Module, list[str]]) -> dict[int, list[torch.nn.Module]]:
    """A parameter's id -> the modules that hold it."""
    owners: dict[int, list[torch.nn.Module]] = {}
    for module in names:
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return owners


def _tied_reason(
    module: torch.nn.Module, owners: dict[int, list[torch.nn.Module]], names: Mapping[torch.nn.Module, list[str]]
) -> str | None:
    others = [other for other in owners[id(module._parameters["weight"])] if other is not module]
    return f"its weight is tied to {names[others[0]][0] or 'the model'}'s" if others else None


# ---- errors ----


class _Error:
    """||values - truth|| / ||truth|| over several tensors."""

    def __init__(self) -> None:
        self._apart: Tensor | float = 0.0
        self._whole: Tensor | float = 0.0

    def add(self, value: Tensor, truth: Tensor) -> None:
        exact = torch.float64 if truth.dtype == torch.float64 else torch.float32
        truth = truth.detach().to(exact)
        self._apart += (value.detach().to(exact) - truth).square().sum(dtype=torch.float64)
        self._whole += truth.square().sum(dtype=torch.float64)

    def relative(self) -> float:
        apart, whole = float(self._apart), float(self._whole)
        return (apart / whole) ** 0.5 if whole else (float("inf") if apart else 0.0)


def _output_errors(
    function: str,
    model: torch.nn.Module,
    inputs: Any,
    made: Mapping[torch.nn.Module, tuple[FloatLinear, Exchanged]],
) -> dict[torch.nn.Module, _Error]:
    """Runs the float model once, in eval mode, and beside each of its layers the new form."""
    errors: dict[torch.nn.Module, _Error] = {}

    def measure(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (input,) = (*args, *kwargs.values())
        # The functions themselves: hooks of the layer are for its calls.
        errors.setdefault(module, _Error()).add(made[module][1].forward(input), type(module).forward(module, input))

    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_pre_hook(measure, with_kwargs=True) for module in made]
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(inputs, Tensor):
                model(inputs)
            elif isinstance(inputs, Mapping):
                model(**inputs)
            elif isinstance(inputs, (tuple, list)):
                model(*inputs)
            else:
                kind = type(inputs).__name__
                fail(function, f"inputs must be a tensor, a tuple of arguments or a dict of keywords, got a {kind}")
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return errors


# ---- the change, and back ----


def _graft(module: torch.nn.Module, layer: Exchanged, parts: FloatLinear) -> _Saved:
    """`module` becomes what `layer` is, and stays the object that hooks and other modules know."""
    own = module.__dict__
    added = [name for name in vars(layer) if name not in own]
    saved = _Saved(type(module), type(layer), own["_parameters"], own["_buffers"], added, parts)
    own.update({name: vars(layer)[name] for name in (*added, "_parameters", "_buffers")})
    module.__class__ = type(layer)
    return saved


def _put_back(module: torch.nn.Module, saved: _Saved) -> str | None:
    """Why the module stays as it is, or None when it is the float layer again."""
    if type(module) is saved.kind:
        return None
    if type(module) is not saved.form:
        return f"its class became {type(module).__qualname__} after it was replaced"
    assert isinstance(module, (QuantizedLinear, SparseLinear))
    device, dtype = _place(module)
    weight = saved.parts.weight
    if not (weight.is_meta or device.type == "meta" or module.made_of(weight.to(device))):
        return "its weight has changed since: it was trained or loaded"
    parameter = saved.parameters["weight"]
    parameter.data = parameter.data.to(device, dtype)
    saved.parameters["bias"] = module._parameters["bias"]
    own = module.__dict__
    for name in saved.added:
        own.pop(name, None)
    own.update(_parameters=saved.parameters, _buffers=saved.buffers)
    module.__class__ = saved.kind  # type: ignore[assignment]
    return None


def _place(layer: Exchanged) -> tuple[torch.device, torch.dtype]:
    """Where the layer is now, and to what it was cast."""
    if isinstance(layer, SparseLinear):
        return layer.weight_values.device, layer.weight_values.dtype
    return next(layer.buffers(False)).device, layer.dtype
