"""Whole training steps: forward, loss, backward and optimizer, of real models at real sizes.

A call is `zero_grad, loss, backward, step` on a module and its optimizer, which a provider makes at its first call out
of the parameters that were drawn, and keeps. It returns the gradients. What `precision` says is done to the model:

    plain      everything in the case's dtype
    autocast   float32 parameters; torch.autocast to the case's dtype
    masters    parameters and arithmetic in the case's dtype, steps on float32 copies of the parameters
    fp8        autocast, and the products of linear layers but the last of 8-bit floats: operands e4m3, gradients e5m2,
               a scale for each row

For `torch` and `compile` that is PyTorch's own: its layers, fused optimizers, and torch._scaled_mm; for `warpwright` it
is `replace_modules`, `convert_to_float8_training` and warpwright.optim.

What is compared with float64 are the gradients of a smooth twin, by the bound of any op: where a ReLU's input is a
rounding away from zero its derivative is a matter of luck, and one such gradient is all that the largest error would
tell of. Of layers alike, which are one behind another, the gradients are compared as one tensor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

import warpwright
from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._models import MODELS, Trained, bounds, smooth
from warpwright.bench.operators._torch_training import Masters, convert_to_float8
from warpwright.bench.timing import Candidate, peak_memory
from warpwright.testing import Cost, Sample

Model = Literal["gpt2", "llama", "resnet50", "vit"]
Precision = Literal["plain", "autocast", "masters", "fp8"]

#: A row's loss is that after so many steps from the parameters that were drawn, on one batch.
STEPS = 10


@dataclass(frozen=True)
class _Sizes:
    """Of a model: GPT-2 small, Llama 3.2 1B, ResNet-50 and ViT-B/16 unless a case says otherwise."""

    width: int
    layers: int
    classes: int
    size: int


_SIZES = {
    "gpt2": _Sizes(768, 12, 50257, 1024),
    "llama": _Sizes(2048, 16, 128256, 1024),
    "resnet50": _Sizes(64, 6, 1000, 224),
    "vit": _Sizes(768, 12, 1000, 224),
}


@dataclass(frozen=True)
class Plan:
    """What is trained, and how: the part of a case that is no tensor."""

    model: Model
    sizes: _Sizes
    precision: Precision
    dtype: torch.dtype
    compared: bool = False

    @property
    def reads_tokens(self) -> bool:
        return self.model in ("gpt2", "llama")

    def build(self, device: torch.device | str) -> Trained:
        with torch.device(device):
            model = MODELS[self.model](self.sizes.width, self.sizes.layers, self.sizes.classes, self.sizes.size)
            return Trained(smooth(model) if self.compared else model)


# ---- providers ----


class Trainer:
    """A module and its optimizer, of one provider.

    Args:
        kind: "torch", "compile" or "warpwright".
        plan: what is trained.
        params: the drawn parameters; copied, as each provider goes its own way from there. In float64 precision and
            provider make no difference: that is what the others are compared with.
    """

    def __init__(self, kind: str, plan: Plan, params: list[Tensor]):
        exact = params[0].dtype == torch.float64
        self.kind, self.plan, self.device = kind, plan, params[0].device.type
        self.module = plan.build(params[0].device).to(params[0].dtype)
        if not plan.reads_tokens:
            self.module.to(memory_format=torch.channels_last)
        # In the order of `params`, whatever the swap does.
        self.names, self.parameters = zip(*self.module.named_parameters(), strict=True)
        narrow = plan.precision in ("autocast", "fp8") and plan.dtype != torch.float32 and not exact
        self.autocast = plan.dtype if narrow else None
        self.has_masters = plan.precision == "masters" and params[0].dtype in (torch.bfloat16, torch.float16)
        if plan.precision == "fp8" and not exact:
            convert = _our_float8 if kind == "warpwright" else convert_to_float8
            convert(self.module)
        if kind == "warpwright":
            _swap(self.module)
        self.run = torch.compile(self.module, dynamic=False) if kind == "compile" else self.module
        self.load(params)

    @torch.no_grad()
    def load(self, params: list[Tensor]) -> None:
        """Training begins anew from these parameters."""
        for target, value in zip(self.parameters, params, strict=True):
            target.copy_(value)
        self.version = params[0]._version
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer | Masters:
        """AdamW; SGD with momentum for ResNet-50, as it was published."""
        name, options = "AdamW", {"lr": 1e-3, "weight_decay": 1e-2}
        if self.plan.model == "resnet50":
            name, options = "SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
        if self.kind == "warpwright":
            return getattr(warpwright.optim, name)(list(self.parameters), master_weights=self.has_masters, **options)
        make = functools.partial(getattr(torch.optim, name), fused=True, **options)
        return Masters(self.parameters, make) if self.has_masters else make(list(self.parameters))

    def step(self, inputs: Tensor, targets: Tensor, update: bool = True) -> tuple[Tensor, ...]:
        """The gradients, and with `update` a step of the optimizer; `loss` has the loss."""
        self.drop_gradients()
        scope = nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)
        with torch.enable_grad():
            with scope:
                loss = self.run(inputs, targets)
            loss.backward()
        if update:
            self.optimizer.step()
        self.loss = loss.detach()
        return self._alike() if self.plan.compared else tuple(p.grad for p in self.parameters if p.grad is not None)

    def _alike(self) -> tuple[Tensor, ...]:
        """The gradients, those of one place in every block of a kind in one tensor."""
        found: dict[tuple[str, torch.Size], list[Tensor]] = {}
        for name, p in zip(self.names, self.parameters, strict=True):
            assert p.grad is not None
            found.setdefault((re.sub(r"\.\d+\.", ".", name, count=1), p.shape), []).append(p.grad)
        return tuple(torch.stack(grads) for grads in found.values())

    def drop_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def resident(self) -> int:
        """Bytes between two steps: parameters, buffers and what the optimizer keeps."""
        held = [*self.parameters, *self.module.buffers()]
        optimizer = self.optimizer
        if isinstance(optimizer, Masters):
            held += optimizer.masters
            optimizer = optimizer.optimizer
        held += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)


def _swap(module: nn.Module) -> None:
    """The one place where warpwright comes in, as in a user's own script."""
    warpwright.nn.replace_modules(module)


def _our_float8(module: nn.Module) -> None:
    warpwright.nn.convert_to_float8_training(module, filter=lambda name, _: not name.endswith(("head", "fc")))


class Step:
    """A provider's training_step_: keeps a Trainer for each set of parameters as long as that lives."""

    def __init__(self, kind: str):
        self.kind = kind
        self.trainers = WeakIdKeyDictionary()

    def trainer(self, plan: Plan, params: list[Tensor]) -> Trainer:
        found: Trainer | None = self.trainers.get(params[0])
        if found is None:
            found = self.trainers[params[0]] = Trainer(self.kind, plan, params)
        elif found.version != params[0]._version:  # Someone wrote new numbers into them.
            found.load(params)
        return found

    def __call__(self, plan: Plan, inputs: Tensor, targets: Tensor, params: list[Tensor]) -> tuple[Tensor, ...]:
        return self.trainer(plan, params).step(inputs, targets)


def _gradients(plan: Plan, inputs: Tensor, targets: Tensor, params: list[Tensor]) -> tuple[Tensor, ...]:
    """What a step is compared with: the gradients of PyTorch's layers."""
    return Trainer("torch", plan, params).step(inputs, targets, update=False)


def _outcome(step: Callable[..., Any], sample: Sample, device: torch.device) -> dict[str, Any]:
    """The loss of STEPS steps from the drawn parameters, and the memory that training takes in all."""
    if not isinstance(step, Step):
        return {}  # A user's own.
    trainer = step.trainer(sample.args[0], sample.args[3])
    for _ in range(STEPS):
        step(*sample.args)
    loss = trainer.loss.item()
    trainer.drop_gradients()
    peak = peak_memory(Candidate(lambda i: step(*sample.args)), device)
    return {"loss": loss, "peak_memory": None if peak is None else trainer.resident() + peak}


# ---- what a step costs, and how a case is drawn ----


@functools.cache
def _drawn(model: Model, sizes: _Sizes) -> list[tuple[torch.Size, float, float]]:
    """The shape of each parameter, and between what it is drawn."""
    module = Plan(model, sizes, "plain", torch.float32).build("meta")
    return [(parameter.shape, low, high) for parameter, low, high in bounds(module)]


@functools.cache
def _forward_flops(model: Model, sizes: _Sizes, batch: int) -> int:
    plan = Plan(model, sizes, "plain", torch.float32)
    module = plan.build("meta")
    shape = (batch, sizes.size) if plan.reads_tokens else (batch, 3, sizes.size, sizes.size)
    inputs = torch.empty(shape, dtype=torch.int64 if plan.reads_tokens else torch.float32, device="meta")
    with FlopCounterMode(display=False) as counter:
        module.model(inputs)
    return int(counter.get_total_flops())


def _cost(plan: Plan, inputs: Tensor, targets: Tensor, params: list[Tensor]) -> Cost:
    """A backward pass is twice a forward pass. The batch is read; parameters, and what the optimizer keeps of them in
    float32, are read and written."""
    count = sum(p.numel() for p in params)
    kept = 1 if plan.model == "resnet50" else 2
    masters = plan.precision == "masters" and params[0].element_size() == 2
    batch = sum(t.numel() * t.element_size() for t in (inputs, targets))
    moved = batch + 2 * count * (params[0].element_size() + 4 * (kept + masters))
    return Cost(3 * _forward_flops(plan.model, plan.sizes, inputs.shape[0]), moved)


def _smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """Half of the first that is above its least: batches of one have no statistics, and heads have 64 columns."""
    full = _SIZES[parameters["model"]]
    image = parameters["model"] in ("resnet50", "vit")
    narrow = 16 if parameters["model"] == "resnet50" else 64  # And what a width must be a multiple of.
    least = {"batch": 2, "layers": 1, "classes": 64, "width": narrow, "size": 32}
    for name, smallest in least.items():
        value = parameters.get(name) or getattr(full, name)
        step = narrow if name == "width" else 16 if image and name == "size" else 1
        if value > smallest:
            return parameters | {name: max(smallest, value // 2 // step * step)}
    return None


def _factories() -> dict[str, Callable[[], Step]]:
    return {kind: functools.partial(Step, kind) for kind in ("torch", "compile", "warpwright")}


@operator(
    "training_step_",
    family="training",
    torch_op=_gradients,
    cost=_cost,
    smaller=_smaller,
    dtypes=(torch.float32, torch.bfloat16),
    gradient=False,
    functions=_factories(),
    compared=lambda parameters: parameters | {"compared": True},
    outcome=_outcome,
    sets=1,
)
def training_step_(
    draw: Draw,
    *,
    model: Model,
    batch: int,
    precision: Precision = "plain",
    width: int | None = None,
    layers: int | None = None,
    classes: int | None = None,
    size: int | None = None,
    compared: bool = False,
) -> Sample:
    """`size`: tokens of a sequence, or pixels of an image's side; `classes`: of an image, or the vocabulary; `layers`:
    blocks, at most so many in each stage of ResNet-50. None is the published model's. `compared`: see above."""
    given = {"width": width, "layers": layers, "classes": classes, "size": size}
    full = _SIZES[model]
    sizes = _Sizes(**{name: value or getattr(full, name) for name, value in given.items()})
    if model != "resnet50" and sizes.width % 64:
        raise RuntimeError(f"warpwright: bench: width must be a multiple of 64, a head's, got {sizes.width}")
    if model == "vit" and sizes.size % 16:
        raise RuntimeError(f"warpwright: bench: size must be a multiple of 16, a patch's, got {sizes.size}")
    plan = Plan(model, sizes, precision, draw.dtype, compared)
    wide = precision in ("autocast", "fp8") and draw.dtype == torch.bfloat16
    dtype = torch.float32 if wide else draw.dtype
    params = [
        draw.tensor(*shape, low=low, high=high, grad=False, dtype=dtype) for shape, low, high in _drawn(model, sizes)
    ]
    if plan.reads_tokens:
        inputs = draw.integers(batch, sizes.size, low=0, high=sizes.classes)
        targets = draw.integers(batch, sizes.size, low=0, high=sizes.classes)
    else:
        inputs = draw.tensor(batch, 3, sizes.size, sizes.size, grad=False, dtype=dtype)
        inputs = inputs.to(memory_format=torch.channels_last)
        targets = draw.integers(batch, low=0, high=sizes.classes)
    changed = "".join(f" {name} {value}" for name, value in given.items() if value and name != "size")
    way = "" if precision == "plain" else f", {precision}"
    twin = ", smooth" if compared else ""
    return Sample(f"{model} N{batch} @{sizes.size}{changed}{way}{twin}", (plan, inputs, targets, params))
