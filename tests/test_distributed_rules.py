"""Every sharding rule on samples of its op: two processes as exact as the rule of errors asks, nothing exchanged."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import warpwright
from warpwright.testing import SPECS, Make, Sample
from warpwright.testing.compare import Expected

PROCESSES = 2
#: Messages of a forward pass, where there are some: a mean is a sum and a count.
EXCHANGES = {"cross_entropy": 2, "nll_loss": 2, "linear_cross_entropy": 2}
#: Samples of an op, at most: each is run in every way that it can be cut.
SAMPLES = 3


class _Operators(TorchDispatchMode):
    """Notes the operators that are called, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace.startswith("warpwright"):
            self.calls.append((function._opname, args))
        return function(*args, **(kwargs or {}))


def _operator_of(name: str, sample: Sample) -> tuple[str, tuple[Any, ...]] | None:
    """The operator that a sample calls, if that is one, and all its tensors are the sample's own."""
    with torch.no_grad(), _Operators() as seen:
        SPECS[name].op(*sample.args, **sample.kwargs)
    if len(seen.calls) != 1:
        return None
    operator, args = seen.calls[0]
    own = {id(t) for t in sample.tensors()}
    foreign = [t for t in args if isinstance(t, Tensor) and id(t) not in own]
    return None if foreign else (operator, args)


def _described(value: Any) -> Any:
    """What a rule sees of a tensor."""
    if not isinstance(value, Tensor):
        return value
    return SimpleNamespace(ndim=value.ndim, shape=value.shape, tensor_meta=SimpleNamespace(dtype=value.dtype))


def _ways(operator: str, args: tuple[Any, ...]) -> Iterator[tuple[list[Any], dict[int, Any]]]:
    """How outputs lie, and how each tensor, for each way that the rule has and that its sizes allow."""
    from torch.distributed.tensor import Replicate

    from warpwright.distributed._rules import RULES

    args = tuple("sum" if isinstance(arg, str) and arg == "mean" else arg for arg in args)  # Which a mean is made of.
    for outputs, inputs in RULES[operator](*map(_described, args)):
        placed = {id(t): p for t, p in zip(args, inputs, strict=False) if isinstance(t, Tensor)}
        placed = {t: Replicate() if p is None or p.is_partial() else p for t, p in placed.items()}
        cut = [(t, placed[id(t)].dim) for t in args if isinstance(t, Tensor) and placed[id(t)].is_shard()]
        if cut and all(t.shape[d] >= PROCESSES for t, d in cut):
            yield list(outputs), placed


def _cut_call(name: str, sample: Sample, placed: dict[int, Any], mesh: Any) -> tuple[dict[str, Tensor], Any, list[int]]:
    """Outputs and gradients of a sample whose tensors are distributed; how outputs lie; messages forward, backward."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    def cut(tensor: Tensor) -> Tensor:
        placement = placed.get(id(tensor), Replicate())
        part = distribute_tensor(tensor.detach(), mesh, [placement], src_data_rank=None)
        return part.requires_grad_(tensor.requires_grad)

    call = sample.map(cut)
    with CommDebugMode() as forward:
        result = SPECS[name].op(*call.args, **call.kwargs)
    results = list(result) if isinstance(result, tuple) else [result]
    assert all(isinstance(r, DTensor) for r in results)
    values = {f"output{i}": r.detach().full_tensor() for i, r in enumerate(results)}
    generator = torch.Generator().manual_seed(1)
    leaves = [t for t in call.tensors() if t.requires_grad]
    rooted, cotangents = [r for r in results if r.requires_grad], []
    for r in rooted:  # Those of warpwright.testing.compare, which lie as a gradient does.
        c = (torch.rand(r.shape, generator=generator, dtype=torch.float64) * 2 - 1).to(r.dtype)
        way = [Replicate() if p.is_partial() else p for p in r.placements]
        cotangents.append(distribute_tensor(c, mesh, way, src_data_rank=None))
    with CommDebugMode() as backward:
        grads = torch.autograd.grad(rooted, leaves, cotangents) if leaves else ()
    values |= {f"grad{i}": g.full_tensor() for i, g in enumerate(grads)}
    return values, results[0].placements, [forward.get_total_counts(), backward.get_total_counts()]


def _check_all() -> tuple[dict[str, int], list[str]]:
    """How many ways of each operator were tried, and what was wrong."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate

    mesh = init_device_mesh("cpu", (PROCESSES,))
    assert warpwright.distributed.has_rule("linear")
    from warpwright.distributed._rules import RULES

    rank, number = dist.get_rank(), 0  # A sample's results are compared in one of the processes.
    tried: defaultdict[str, int] = defaultdict(int)
    wrong: list[str] = []
    for name, spec in SPECS.items():
        kept = 0
        if (
            name == "instance_norm"
        ):  # Its running statistics are means over the batch; its layer leaves DTensors to torch.
            continue
        for sample in spec.samples(Make(torch.float32)):
            found = _operator_of(name, sample)
            if found is None or found[0] not in RULES or kept == SAMPLES:
                continue
            expected, fits = None, False
            for outputs, placed in _ways(*found):
                fits = True
                tried[found[0]] += 1
                title = f"{name}: {sample.name}: {[str(placed[id(t)]) for t in found[1] if isinstance(t, Tensor)]}"
                try:
                    values, lies, messages = _cut_call(name, sample, placed, mesh)
                except Exception as error:
                    wrong.append(f"{title}: {type(error).__name__}: {str(error)[:300]}")
                    continue
                mean = EXCHANGES.get(name, 0) if sample.kwargs.get("reduction", "mean") == "mean" else 0
                if messages != [mean, 0]:
                    wrong.append(f"{title}: {messages} messages")
                if mean:  # All have it.
                    outputs = [Replicate()]
                if list(lies) != outputs[:1]:
                    wrong.append(f"{title}: lies as {lies}, expected {outputs[0]}")
                if number % PROCESSES == rank:
                    expected = expected or Expected.of(spec.torch_op, sample)
                    wrong += [f"{title}: {c}" for c in expected.compare(values) if not c.ok]
            kept += fits
            number += fits
    return dict(tried), wrong


def test_a_rule_exchanges_nothing_and_is_as_exact_as_one_process():
    from warpwright.distributed._rules import RULES

    assert warpwright.distributed.has_rule("linear")
    results = processes.run(_check_all, PROCESSES)
    for tried, wrong in results:
        assert not wrong, "\n".join(wrong)
        forward = {name for name in RULES if not name.endswith("_backward")}
        assert set(tried) == forward, "rules that no sample reached"


def _fresh(code: str) -> str:
    """What a new process prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_nothing_of_it_is_imported_before_it_is_needed():
    """Which would take longer than all else that `import warpwright` does."""
    found = _fresh(
        "import sys, warpwright; print([m for m in sys.modules if m.startswith('torch.distributed.tensor')])"
    )
    assert found == "[]"


def test_an_op_without_a_rule_says_so():
    """And its layer leaves the work to torch."""
    from torch.distributed.tensor import distribute_tensor

    with processes.alone() as mesh:
        x = distribute_tensor(torch.ones(4), mesh)
        message = "input must be a plain tensor, got a DTensor: this op has no sharding rule"
        with pytest.raises(RuntimeError, match=f"warpwright: binary_cross_entropy_with_logits: {message}"):
            warpwright.ops.binary_cross_entropy_with_logits(x, x)
        key = ("BCEWithLogitsLoss", "tensor subclass DTensor")
        before = warpwright.fallbacks().get(key, 0)
        warpwright.nn.BCEWithLogitsLoss()(x, x)
        assert warpwright.fallbacks()[key] == before + 1
