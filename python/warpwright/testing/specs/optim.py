"""OpSpecs of the optim family."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from warpwright import ops
from warpwright._optim_rules import RULES, Rule, code_blocks, decode_moment, encode_moment
from warpwright.reference.optim import stochastically_rounded
from warpwright.testing.spec import HALF_TYPES, BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

Tensors = Sequence[Tensor]

# ---- the op, and torch's ----


def copies(tensors: Tensors) -> list[Tensor]:
    """Copies with the same strides and offsets, to be written to; what overlaps itself is none's to write and stays."""

    def copy(tensor: Tensor) -> Tensor:
        if not all(tensor.stride()) and tensor.numel():
            return tensor
        # Dynamo traces no offsets, and no layout is compiled.
        offset = 0 if torch.compiler.is_compiling() else tensor.storage_offset()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        room = torch.empty(offset + max(last, 0) + 1, dtype=tensor.dtype, device=tensor.device)
        return room.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)

    return [copy(tensor) for tensor in tensors]


def as_outputs(moments: Sequence[Tensors], scales: Sequence[Tensors]) -> list[list[Tensor]]:
    """Moments and scales as results to compare. Codes of all tensors are one result: now and then one falls to the
    other side of a rounding, in float32 as PyTorch computes it too, but not in the same tensor."""
    if not scales:
        return [list(tensors) for tensors in moments]
    codes = [[torch.cat([t.reshape(-1) for t in tensors])] for tensors in moments]
    return [*codes, *map(list, scales)]


def _on_copies(rule: Rule) -> Callable[..., tuple[Tensor, ...]]:
    """The public function on copies of what it writes to, and returns: params, moments, scales, maxima, masters."""
    step = getattr(ops, rule.name)

    def op(
        params: Tensors, grads: Tensors, *rest: Tensors, masters: Tensors = (), **options: Any
    ) -> tuple[Tensor, ...]:
        moments = [copies(tensors) for tensors in rest[:-1]]
        scales, maxima = (
            {name: copies(options[name]) for name in names if name in options} for names in (rule.scales, rule.maxima)
        )
        written, originals = copies(params), copies(masters)
        step(written, grads, *moments, rest[-1], masters=originals, **(options | scales | maxima))
        states = as_outputs(moments, list(scales.values()))
        return tuple(t for tensors in (written, *states, *maxima.values(), originals) for t in tensors)

    return op


#: One step of torch's: (params, grads, moments, steps, options); writes to params and moments, the last of which is
#: the running maximum where `amsgrad` is among the options.
TorchStep = Callable[[list[Tensor], list[Tensor], list[list[Tensor]], Tensors, dict[str, Any]], None]


def _torch_op(rule: Rule, step: TorchStep) -> Callable[..., tuple[Tensor, ...]]:
    """The same out of torch's own step, in the dtype of the moments: on the masters, where there are some."""

    def op(
        params: Tensors,
        grads: Tensors,
        *rest: Tensors,
        masters: Tensors = (),
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        grad_multiplier: Tensor | None = None,
        rounding_seed: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        *moments, steps = rest
        scales, maxima = (
            [options.pop(name) for name in names if name in options] for names in (rule.scales, rule.maxima)
        )
        own = moments[0][0].dtype if moments[0] else params[0].dtype
        work = torch.float32 if scales or masters or rounding_seed is not None else own
        work = torch.float64 if params[0].dtype == torch.float64 else work
        values = [t.to(work, copy=True) for t in masters or params]
        pairs = [list(zip(c, s, strict=True)) for c, s in zip(moments, scales, strict=True)] if scales else []
        states = [[decode_moment(c, s, k == 0, work) for c, s in pair] for k, pair in enumerate(pairs)]
        states = states or [[t.to(work, copy=True) for t in tensors] for tensors in moments]
        if found_inf is not None and found_inf.item():
            return tuple(t for tensors in (params, *as_outputs(moments, scales), *maxima, masters) for t in tensors)
        if maxima:
            options["amsgrad"] = True
            states = [*states, *([t.to(work, copy=True) for t in tensors] for tensors in maxima)]
        scale = 1.0 if grad_scale is None else grad_scale
        multiplier = 1.0 if grad_multiplier is None else grad_multiplier
        if isinstance(options.get("lr"), Tensor):
            options["lr"] = options["lr"].item()
        gradients = [(g.to(work) / scale * multiplier).to(work) for g in grads]
        step(values, gradients, states, steps, options)
        new = [v.to(p.dtype) for v, p in zip(values, params, strict=True)]
        if rounding_seed is not None:
            new = [
                stochastically_rounded(v.float(), rounding_seed, i, steps[i]).to(params[i].dtype)
                for i, v in enumerate(values)
            ]
        maxima = [states.pop()] if maxima else []
        if scales:
            coded = [[encode_moment(t, k == 0) for t in tensors] for k, tensors in enumerate(states)]
            codes = [[codes for codes, _ in tensors] for tensors in coded]
            states = as_outputs(codes, [[scale for _, scale in tensors] for tensors in coded])
        return tuple(t for tensors in (new, *states, *maxima, values if masters else ()) for t in tensors)

    return op


_ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False, "amsgrad": False, "foreach": False}


def _torch_adamw(values: Any, grads: Any, states: Any, steps: Tensors, options: dict[str, Any]) -> None:
    counts = [(s - 1).cpu() for s in steps]
    update: Any = adamw  # Its annotations list the arguments of another wrapper.
    lists = states if options.get("amsgrad") else [*states, []]
    update(values, grads, *lists, counts, **(_ADAM | {"weight_decay": 1e-2} | options))


def _torch_adam(values: Any, grads: Any, states: Any, steps: Tensors, options: dict[str, Any]) -> None:
    counts = [(s - 1).cpu() for s in steps]
    update: Any = adam
    lists = states if options.get("amsgrad") else [*states, []]
    update(values, grads, *lists, counts, **(_ADAM | {"weight_decay": 0.0} | options))


def _torch_sgd(values: Any, grads: Any, states: Any, steps: Tensors, options: dict[str, Any]) -> None:
    defaults = {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False,
                "maximize": False}  # fmt: skip
    for i, step in enumerate(steps):
        has_buffer = bool(states[0]) and step.item() > 1
        buffers: list[Tensor | None] = [states[0][i] if has_buffer else None]
        sgd([values[i]], [grads[i]], buffers, foreach=False, **(defaults | options))
        if states[0]:
            assert buffers[0] is not None
            states[0][i] = buffers[0]


def _torch_lion(values: Any, grads: Any, states: Any, steps: Tensors, options: dict[str, Any]) -> None:
    o = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False} | options
    for value, grad, moment in zip(values, grads, states[0], strict=True):
        grad = -grad if o["maximize"] else grad
        value.mul_(1 - o["lr"] * o["weight_decay"])
        value.add_((moment * o["beta1"]).add(grad, alpha=1 - o["beta1"]).sign(), alpha=-o["lr"])
        moment.mul_(o["beta2"]).add_(grad, alpha=1 - o["beta2"])


def _torch_lamb(values: Any, grads: Any, states: Any, steps: Tensors, options: dict[str, Any]) -> None:
    o = _ADAM | {"eps": 1e-6, "weight_decay": 1e-2} | options
    for value, grad, m, v, step in zip(values, grads, *states, steps, strict=True):
        grad, count = -grad if o["maximize"] else grad, step.item()
        m.lerp_(grad, 1 - o["beta1"])
        v.mul_(o["beta2"]).addcmul_(grad, grad, value=1 - o["beta2"])
        second = (v.sqrt() / (1 - o["beta2"] ** count) ** 0.5).add(o["eps"])
        direction = (m / (1 - o["beta1"] ** count) / second).add(value, alpha=o["weight_decay"])
        lengths = value.norm(), direction.norm()
        trust = lengths[0] / lengths[1] if lengths[0] > 0 and lengths[1] > 0 else 1.0
        value.add_(direction * trust, alpha=-o["lr"])


# ---- calls ----


def _call(
    rule: Rule,
    make: Make,
    *shapes: tuple[int, ...],
    step: float = 3,
    masters: bool = False,
    state: Any = None,
    coded: bool = False,
    moments: bool = True,
    amsgrad: bool = False,
) -> Sample:
    """Random parameters, gradients and moments; `state` is the dtype of the moments, unless they are coded."""
    state = torch.float32 if masters or coded or rule.name == "lamb_" else state or make.dtype

    def each(low: float, high: float, dtype: torch.dtype | None = None) -> list[Tensor]:
        return [make.tensor(*shape, low=low, high=high, grad=False, dtype=dtype) for shape in shapes]

    values = each(-1, 1, torch.float32)
    params = [c.to(make.dtype) for c in values] if masters else each(-1, 1)
    counts = [torch.tensor(step + i, dtype=torch.float32, device=make.device) for i in range(len(shapes))]
    # Moments as of gradients up to 1; the second stays off 0, where a step is the quotient of two roundings.
    grads, ranges = each(-1, 1), ((-0.5, 0.5), (0.1, 0.5))
    states = [each(*ranges[k], state) if moments else [] for k in range(len(rule.moments))]
    options: dict[str, Any] = {"masters": values} if masters else {}
    if coded:
        pairs = [[encode_moment(t, k == 0) for t in tensors] for k, tensors in enumerate(states)]
        states = [[codes for codes, _ in tensors] for tensors in pairs]
        options |= {name: [s for _, s in tensors] for name, tensors in zip(rule.scales, pairs, strict=True)}
    if amsgrad:
        # About as many are raised by the step as are not.
        options |= {name: each(0.1, 0.5, state) for name in rule.maxima}
    return Sample("", (params, grads, *states, counts), options)


def _variants(rule: Rule) -> dict[str, dict[str, Any]]:
    """Other numbers that lead to other branches."""
    if rule.name == "sgd_":
        momentum = {"momentum": 0.9}
        return {
            "dampening": momentum | {"dampening": 0.3, "weight_decay": 0.1},
            "nesterov": momentum | {"nesterov": True},
            "maximize": momentum | {"maximize": True, "weight_decay": 0.1},
        }
    numbers = {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
    return {"maximize, other betas": numbers | {"maximize": True} | ({"eps": 1e-3} if "eps" in rule.numbers else {})}


def _samples(rule: Rule) -> Callable[[Make], Iterator[Sample]]:
    usual: dict[str, Any] = {"momentum": 0.9} if rule.name == "sgd_" else {}

    def samples(make: Make) -> Iterator[Sample]:
        def sample(name: str, *shapes: tuple[int, ...], options: dict[str, Any] | None = None, **kinds: Any) -> Sample:
            call = _call(rule, make, *shapes, **kinds)
            return Sample(name, call.args, call.kwargs | usual | (options or {}))

        def scalar(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float32, device=make.device)

        yield sample("three tensors", (5, 7), (33,), ())
        yield sample("first step", (40,), step=1, options={"lr": 0.1, "weight_decay": 0.0})
        for name, options in _variants(rule).items():
            yield sample(name, (3, 4), (2,), options=options)
        yield sample("grad_scale", (6, 5), options={"grad_scale": scalar(8), "found_inf": scalar(0)})
        yield sample("found_inf", (6, 5), options={"grad_scale": scalar(8), "found_inf": scalar(1)})
        scalars = {"lr": scalar(0.0625), "grad_multiplier": scalar(0.25), "grad_scale": scalar(2)}
        yield sample("lr on the device, grad_multiplier", (7, 3), options=scalars)
        yield sample("more than a chunk", (16385,), (3,), options={"lr": 0.05})
        yield sample("more than a launch", *[(2,)] * 50, options={"lr": 0.05})
        yield sample("an empty one", (0, 3), (2, 2))
        if make.dtype in HALF_TYPES:
            yield sample("masters", (5, 7), (33,), masters=True, options={"lr": 1e-2})
            yield sample("masters, found_inf", (9,), masters=True, options={"found_inf": scalar(2)})
            yield sample("float32 moments", (5, 7), state=torch.float32, options={"lr": 0.05})
        if make.dtype == torch.bfloat16:
            yield sample("stochastic rounding", (5, 7), (301,), options={"rounding_seed": 3, "lr": 0.05})
        if rule.name == "sgd_":
            call = _call(rule, make, (5, 7), (300,), moments=False)
            yield Sample("without momentum", call.args, call.kwargs | {"weight_decay": 0.1})
        if rule.scales:
            yield sample("8-bit moments", (3, 100), (7,), (0, 2), (256,), coded=True, options={"lr": 0.05})
            yield sample("8-bit moments, found_inf", (5, 60), coded=True, options={"found_inf": scalar(1)})
        if rule.maxima:
            yield from _amsgrad_samples(sample, scalar, make)

    return samples


def _amsgrad_samples(sample: Callable[..., Sample], scalar: Callable[[float], Tensor], make: Make) -> Iterator[Sample]:
    def amsgrad(name: str, *shapes: tuple[int, ...], **kinds: Any) -> Sample:
        return sample(f"amsgrad{name}", *shapes, amsgrad=True, **kinds)

    yield amsgrad("", (5, 7), (33,), (), (0, 2), options={"lr": 0.05})
    yield amsgrad(", first step, decay, maximize", (40,), step=1, options={"weight_decay": 0.1, "maximize": True})
    yield amsgrad(", more than a chunk", (16385,), (3,), options={"grad_scale": scalar(2)})
    yield amsgrad(", found_inf", (6, 5), options={"found_inf": scalar(1)})
    yield amsgrad(", 8-bit moments", (3, 100), (7,), coded=True, options={"lr": 0.05})
    if make.dtype in HALF_TYPES:
        yield amsgrad(", masters", (5, 7), (33,), masters=True, options={"lr": 1e-2})
    if make.dtype == torch.bfloat16:
        yield amsgrad(", stochastic rounding", (301,), options={"rounding_seed": 3, "lr": 0.05})


def _draw(rule: Rule) -> Callable[[Make, random.Random], Sample]:
    def draw(make: Make, rng: random.Random) -> Sample:
        shapes = [tuple(draw_size(rng, 20) for _ in range(rng.randint(0, 3))) for _ in range(rng.randint(1, 4))]
        half = make.dtype in HALF_TYPES
        masters = half and rng.random() < 0.5
        state = rng.choice([make.dtype, torch.float32])
        amsgrad = bool(rule.maxima) and rng.random() < 0.5
        call = _call(rule, make, *shapes, step=rng.choice([1, 2, 1000]), masters=masters, state=state, amsgrad=amsgrad)
        options = {"lr": rng.choice([0.0, 1e-3, 0.1]), "weight_decay": rng.choice([0.0, 0.1])}
        options |= {"momentum": 0.9} if rule.name == "sgd_" else {}
        return Sample(f"{shapes} {options} masters={masters} amsgrad={amsgrad}", call.args, call.kwargs | options)

    return draw


def _bad_inputs(rule: Rule) -> Callable[[Make], Iterator[BadInput]]:
    usual: dict[str, Any] = {"momentum": 0.9} if rule.name == "sgd_" else {}
    first = rule.moments[0]

    def bad_inputs(make: Make) -> Iterator[BadInput]:
        params, grads, m, *others, steps = _call(rule, make, (2, 3), (4,)).args

        def bad(name: str, message: str, options: dict[str, Any] | None = None, **lists: Any) -> BadInput:
            args = {"params": params, "grads": grads, "m": m} | lists
            rest = lists.get("others", others), lists.get("steps", steps)
            return BadInput(name, (args["params"], args["grads"], args["m"], *rest[0], rest[1]), message,
                            usual | (options or {}))  # fmt: skip

        def number(name: str, value: float, message: str) -> BadInput:
            return bad(name, message, {name: value})

        if rule.name != "lamb_":  # It looks at the moments first.
            yield bad("param dtype", r"params\[0\] must be float32, ", params=[p.long() for p in params])
            expected = rf"{first}\[0\] must be torch.float32 or have the dtype of params"
            yield bad("moment dtype", f"{expected}, got torch.float16", m=[t.half() for t in m])
        else:
            yield bad("moment dtype", r"exp_avgs\[0\] must be torch.float32 of shape .* got torch.bfloat16",
                      m=[t.bfloat16() for t in m])  # fmt: skip
        mixed = [params[0], params[1].double()]
        yield bad("mixed params", r"params\[1\] must be torch.float32 of shape \(4,\) on ", params=mixed)
        yield bad("too few grads", "grads must hold 2 tensors, .*got 1", grads=grads[:1])
        shape = r"grads\[1\] must be .*shape \(4,\) .*shape \(3,\)"
        yield bad("grad shape", shape, grads=[grads[0], grads[1][:3]])
        if others:
            yield bad("second moments", "exp_avg_sqs must hold 2 tensors, .*got 1", others=[others[0][:1]])
        masters = "masters must be empty for torch.float32 params, got 2"
        yield bad("masters", masters, {"masters": params})
        yield bad("steps", r"steps\[0\] must be 1 element of torch.float32, got 1 of torch.float64",
                  steps=[s.double() for s in steps])  # fmt: skip
        yield bad("expanded", r"params\[1\] must not be expanded", params=[params[0], params[1][:1].expand(4)])
        two = torch.zeros(2, device=make.device)
        for name in ("found_inf", "grad_scale", "grad_multiplier", "lr"):
            yield bad(name, f"{name} must be 1 element of torch.float32, got 2", {name: two})
        yield bad("rounding_seed", "rounding_seed must be None unless params are torch.bfloat16 without masters",
                  {"rounding_seed": 1})  # fmt: skip
        yield from _bad_scales(rule, bad, params, m, make)
        if rule.maxima:
            yield from _bad_maxima(bad, params, m, make)
        yield number("lr", -1.0, "lr must be at least 0, got -1")
        if "beta1" in rule.numbers:
            yield number("beta1", 1.0, r"beta1 must be in \[0, 1\), got 1")
            yield number("beta2", -0.5, r"beta2 must be in \[0, 1\), got -0.5")
        if "eps" in rule.numbers:
            yield number("eps", -1e-8, "eps must be at least 0, got -1e-08")
        if rule.name == "sgd_":
            yield number("momentum", -0.5, "momentum must be at least 0, got -0.5")
            yield number("momentum", 0.0, "momentum_buffers must hold no tensor without momentum, got 2")
            yield bad("no buffers", "momentum_buffers must hold a tensor for each of params, got 0", m=[])
            yield bad("nesterov", "nesterov must come with a momentum above 0 and a dampening of 0",
                      {"nesterov": True, "dampening": 0.1})  # fmt: skip
        yield number("weight_decay", -1.0, "weight_decay must be at least 0, got -1")

    return bad_inputs


def _bad_scales(
    rule: Rule, bad: Callable[..., BadInput], params: Tensors, m: Tensors, make: Make
) -> Iterator[BadInput]:
    if not rule.scales:
        return
    fitting = [torch.zeros(code_blocks(p.numel()), device=make.device) for p in params]
    name, moment = rule.scales[0], rule.moments[0]
    every = {scales: fitting for scales in rule.scales}
    yield bad("scales of no codes", rf"{moment}\[0\] must be torch.uint8 with scales, got torch.float32", every)
    codes: dict[str, Any] = {"m": [torch.zeros_like(t, dtype=torch.uint8) for t in m]}
    codes |= {"others": [codes["m"]] * (len(rule.moments) - 1)}
    others = r"of shape \(2, 3\) .*" if rule.name == "lamb_" else "or have the dtype of params"
    expected = rf"{moment}\[0\] must be torch.float32 {others}"
    yield bad("codes of no scales", f"{expected}, got torch.uint8", **codes)
    wrong = every | {name: [fitting[0], fitting[1].double()]}
    yield bad("scale dtype", rf"{name}\[1\] must be torch.float32 of shape \(1,\), got torch.float64", wrong, **codes)
    if len(rule.scales) == 2:
        second = rule.scales[1]
        yield bad("second scales alone", f"{second} must be empty without {name}, got 2 tensors", {second: fitting})


def _bad_maxima(bad: Callable[..., BadInput], params: Tensors, m: Tensors, make: Make) -> Iterator[BadInput]:
    name, zeros = "max_exp_avg_sqs", [torch.zeros_like(p) for p in params]
    yield bad("too few maxima", f"{name} must hold 2 tensors, one for each of params, got 1", {name: zeros[:1]})
    half = {name: [t.half() for t in zeros]}
    yield bad("dtype of maxima", rf"{name}\[0\] must be torch.float32 of shape \(2, 3\) .*got torch.float16", half)
    shape = rf"{name}\[1\] must be .*shape \(4,\) .*shape \(3,\)"
    yield bad("shape of maxima", shape, {name: [zeros[0], zeros[1][:3]]})
    yield bad("expanded maxima", rf"{name}\[1\] must not be expanded", {name: [zeros[0], zeros[1][:1].expand(4)]})
    # Beside codes they are numbers.
    codes = [torch.zeros_like(t, dtype=torch.uint8) for t in m]
    scales = [torch.zeros(code_blocks(p.numel()), device=make.device) for p in params]
    coded: dict[str, Any] = {"exp_avg_scales": scales, "exp_avg_sq_scales": scales, name: codes}
    message = rf"{name}\[0\] must be torch.float32 of shape \(2, 3\) .*got torch.uint8"
    yield bad("codes as maxima", message, coded, m=codes, others=[codes])


def _cost(rule: Rule, flops: int) -> Callable[..., Cost]:
    def cost(params: Tensors, grads: Tensors, *rest: Tensors, masters: Tensors = (), **options: Any) -> Cost:
        elements = sum(p.numel() for p in params)
        lists = [options.get(name, ()) for name in (*rule.scales, *rule.maxima)]
        state = nbytes(*[t for tensors in (*rest[:-1], *lists, masters) for t in tensors])
        # A parameter with a master is only written.
        return Cost(flops * elements, 2 * state + nbytes(*grads) + nbytes(*params) * (1 if masters else 2))

    return cost


_TORCH: dict[str, tuple[TorchStep, int]] = {
    "adamw_": (_torch_adamw, 14),
    "adam_": (_torch_adam, 15),
    "lamb_": (_torch_lamb, 20),
    "sgd_": (_torch_sgd, 6),
    "lion_": (_torch_lion, 10),
}

for _name, (_step, _flops) in _TORCH.items():
    _rule = RULES[_name]
    add(
        OpSpec(
            name=_name,
            family="optim",
            op=_on_copies(_rule),
            torch_op=_torch_op(_rule, _step),
            samples=_samples(_rule),
            draw=_draw(_rule),
            bad_inputs=_bad_inputs(_rule),
            cost=_cost(_rule, _flops),
            kernels=(_name,),
            gradcheck=False,
        )
    )
