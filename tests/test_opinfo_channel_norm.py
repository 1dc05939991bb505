"""PyTorch's own samples (torch.testing's OpInfo) of the channel norms, through warpwright.ops and warpwright.nn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import warpwright
from warpwright import ops
from warpwright.testing.compare import Expected, evaluate
from warpwright.testing.spec import Sample

INFOS = {info.name.removeprefix("nn.functional."): info for info in op_db if info.name.startswith("nn.functional.")}


def _batch_norm(input: Any, running_mean: Any, running_var: Any, *args: Any, **kwargs: Any) -> Any:
    return _in_training(ops.batch_norm)(input, running_mean, running_var, *args, **kwargs)


def _in_training(function: Callable[..., Any]) -> Callable[..., Any]:
    """With copies of the running statistics, which it writes to."""

    def call(input: Any, running_mean: Any = None, running_var: Any = None, *args: Any, **kwargs: Any) -> Any:
        copies = [None if t is None else t.detach().clone() for t in (running_mean, running_var)]
        return function(input, *copies, *args, **kwargs)

    return call


OURS = {
    "group_norm": (ops.group_norm, torch.nn.functional.group_norm),
    "batch_norm": (_batch_norm, _in_training(torch.nn.functional.batch_norm)),
    "instance_norm": (_in_training(ops.instance_norm), _in_training(torch.nn.functional.instance_norm)),
}


def _samples(name: str, dtype: torch.dtype) -> list[Sample]:
    found = []
    for i, s in enumerate(INFOS[name].sample_inputs("cpu", dtype, requires_grad=True)):
        if s.input.dim() < 2:  # No channels: PyTorch gives an empty tensor back before it looks.
            continue
        kwargs = {k: v for k, v in s.kwargs.items() if k != "cudnn_enabled"}
        found.append(Sample(f"{i}: {tuple(s.input.shape)} {kwargs}"[:200], (s.input, *s.args), kwargs))
    assert found
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_through_ops(name, dtype):
    ours, theirs = OURS[name]
    wrong = []
    for sample in _samples(name, dtype):
        try:
            expected = Expected.of(theirs, sample)
        except (RuntimeError, ValueError) as error:
            if "Expected more than 1" in str(error):  # We say so too, in our words.
                with pytest.raises(RuntimeError, match=f"warpwright: {name}: input must have more than one value"):
                    ours(*sample.args, **sample.kwargs)
                continue
            raise
        wrong += [f"{sample.name}: {c}" for c in expected.compare(evaluate(ours, sample)) if not c.ok]
    assert not wrong, "\n".join(wrong)


def _layers(name: str, sample: Sample) -> tuple[torch.nn.Module, torch.nn.Module] | None:
    """torch's layer and ours with a sample's parameters; None where no layer makes such a call."""
    x = sample.args[0]
    kwargs = dict(sample.kwargs)
    affine = kwargs.get("weight") is not None and kwargs.get("bias") is not None
    if affine != (kwargs.get("weight") is not None or kwargs.get("bias") is not None):
        return None
    eps = kwargs.get("eps", 1e-5)
    if name == "group_norm":
        kind, arguments = "GroupNorm", (sample.args[1], x.shape[1], eps, affine)
        running = (None, None)
    else:
        if not 3 <= x.dim() <= 5 or (name == "batch_norm" and x.dim() == 2):
            return None
        running = sample.args[1:3] if len(sample.args) > 2 else (kwargs.get("running_mean"), kwargs.get("running_var"))
        if (running[0] is None) != (running[1] is None):
            return None
        prefix = "BatchNorm" if name == "batch_norm" else "InstanceNorm"
        kind = f"{prefix}{x.dim() - 2}d"
        arguments = (x.shape[1], eps, kwargs.get("momentum", 0.1), affine, running[0] is not None)
    layers = []
    for module in (torch.nn, warpwright.nn):
        layer = getattr(module, kind)(*arguments).to(x.dtype)
        state = {"weight": kwargs.get("weight"), "bias": kwargs.get("bias"), "running_mean": running[0],
                 "running_var": running[1]}  # fmt: skip
        layer.load_state_dict({k: v.detach().clone() for k, v in state.items() if v is not None}, strict=False)
        layer.train(kwargs.get("training", False) if name == "batch_norm" else kwargs.get("use_input_stats", True))
        layers.append(layer)
    return layers[0], layers[1]


@pytest.mark.parametrize("name", OURS)
def test_through_layers(name):
    reached = 0
    for sample in _samples(name, torch.float32):
        pair = _layers(name, sample)
        if pair is None:
            continue
        x = sample.args[0].detach()
        try:
            expected = pair[0](x)
        except ValueError:
            continue
        torch.testing.assert_close(pair[1](x), expected, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(pair[1].buffers(), pair[0].buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        reached += 1
    assert reached > 0
    assert not warpwright.fallbacks()
