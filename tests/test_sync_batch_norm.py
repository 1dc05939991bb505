"""Batch norm over several processes: gloo on this machine, against one process that has the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from warpwright import nn, ops
from warpwright.testing import SPECS, Make, Sample
from warpwright.testing.compare import Expected
from warpwright.testing.specs.channel_norm import affine_parameters, lying_last, running_statistics

#: Samples of each process; none is among them.
PARTS = (3, 0, 2)
WHOLE = sum(PARTS)


def _norm_samples(make: Make) -> Iterator[Sample]:
    x = make.tensor(WHOLE, 3, 4, 3)
    yield Sample("training", (x, *running_statistics(make, 3), *affine_parameters(make, 3), True, 0.3))
    fused = {"residual": lying_last(make.tensor(WHOLE, 8, 2, 3)), "activation": "relu"}
    x = lying_last(make.tensor(WHOLE, 8, 2, 3))
    yield Sample("channels last", (x, *running_statistics(make, 8), *affine_parameters(make, 8), True), fused)
    fused = {"residual": make.tensor(WHOLE, 4, 7), "activation": "silu"}
    yield Sample("silu", (make.tensor(WHOLE, 4, 7), None, None, *affine_parameters(make, 4), True), fused)
    yield Sample("no affine", (make.tensor(WHOLE, 4, 6), None, None, None, None, True))
    added = {"residual": make.tensor(WHOLE, 5)}
    yield Sample("no positions", (make.tensor(WHOLE, 5), None, None, *affine_parameters(make, 5), True), added)
    x = make.tensor(WHOLE, 3, 20, low=999, high=1001)
    yield Sample("large mean", (x, *running_statistics(make, 3), *affine_parameters(make, 3), True))


def _conv_samples(make: Make) -> Iterator[Sample]:
    training = {"training": True}
    x, w = make.tensor(WHOLE, 3, 6, 5), make.tensor(4, 3, 3, 3)
    yield Sample("bias", (x, w, *running_statistics(make, 4), *affine_parameters(make, 4), make.tensor(4), 2), training)
    x, w = lying_last(make.tensor(WHOLE, 16, 6, 5)), lying_last(make.tensor(24, 16, 3, 3))
    fused = {"residual": lying_last(make.tensor(WHOLE, 24, 6, 5)), "activation": "relu", **training}
    yield Sample("fused", (x, w, *running_statistics(make, 24), *affine_parameters(make, 24), None, 1, 1), fused)
    x, w = make.tensor(WHOLE, 8, 5, 6), make.tensor(8, 1, 3, 3)
    fused = {"activation": "silu", **training}
    yield Sample("depthwise", (x, w, None, None, *affine_parameters(make, 8), None, 1, 1, 1, 8), fused)


SAMPLES = {"batch_norm": _norm_samples, "conv2d_batch_norm": _conv_samples}
#: Where a function has running mean and variance.
RUNNING = {"batch_norm": (1, 2), "conv2d_batch_norm": (2, 3)}


def _cotangent(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """That of warpwright.testing.compare."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return values.to(dtype)


def _run_samples(name: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """This process's part of each sample: the output, the running statistics, the gradients."""
    rank, found = dist.get_rank(), []
    first = sum(PARTS[:rank])
    whole_batch = slice(first, first + PARTS[rank])
    for sample in SAMPLES[name](Make(dtype)):
        args, kwargs = list(sample.args), dict(sample.kwargs)

        def part(tensor: Tensor) -> Tensor:
            return tensor.detach()[whole_batch].requires_grad_()

        args[0] = part(args[0])
        if "residual" in kwargs:
            kwargs["residual"] = part(kwargs["residual"])
        y = getattr(ops, name)(*args, process_group=dist.group.WORLD, **kwargs)
        values = {"output0": y.detach()}
        values |= {f"output{i + 1}": args[at] for i, at in enumerate(RUNNING[name]) if args[at] is not None}
        leaves = [t for t in Sample("", tuple(args), kwargs).tensors() if t.requires_grad]
        grads = torch.autograd.grad(y, leaves, _cotangent((WHOLE, *y.shape[1:]), y.dtype)[whole_batch])
        found.append(values | {f"grad{i}": g for i, g in enumerate(grads)})
    return found


def _joined(parts: tuple[dict[str, Tensor], ...], sample: Sample) -> dict[str, Tensor]:
    """What one process would have returned. Gradients of parameters are summed, as data parallel training does."""
    leaves = [t for t in sample.tensors() if t.requires_grad]
    joined = {}
    for name, first in parts[0].items():
        values = [p[name] for p in parts]
        leaf = leaves[int(name[4:])] if name.startswith("grad") else None
        if name == "output0" or leaf is sample.args[0] or (leaf is not None and leaf is sample.kwargs.get("residual")):
            joined[name] = torch.cat(values)
        elif leaf is not None:
            joined[name] = torch.stack([v.double() for v in values]).sum(0).to(first.dtype)
        else:
            assert all(torch.equal(v, first) for v in values), f"{name} differs between processes"
            joined[name] = first
    return joined


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SAMPLES)
def test_processes_are_as_exact_as_one(matrix, name, dtype):
    """Outputs, running statistics and all gradients, by the rule; one of the processes has no samples."""
    results = processes.run(_run_samples, len(PARTS), name, dtype)
    for sample, *parts in zip(SAMPLES[name](Make(dtype)), *results, strict=True):
        expected = Expected.of(SPECS[name].torch_op, sample)
        for comparison in expected.compare(_joined(tuple(parts), sample)):
            assert comparison.ok, f"{sample.name}: {comparison}"


# ---- layers ----


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.ConvBnAct2d(3, 8, 3, padding=1, activation="relu"),
        nn.Conv2d(8, 6, 3, stride=2),
        nn.BatchNorm2d(6, activation="silu"),
        torch.nn.BatchNorm2d(6, momentum=None),
        torch.nn.Flatten(),
        nn.Linear(24, 5),
    ).double()


BATCH = 6


def _train(distributed: bool) -> dict[str, Tensor]:
    """Three steps of SGD; each process has every second sample."""
    model = _model()
    at = slice(None)
    if distributed:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        at = slice(dist.get_rank(), None, dist.get_world_size())
    trained = DistributedDataParallel(model) if distributed else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.rand(BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
        target = torch.randint(0, 5, (BATCH,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trained(x[at]), target[at]).backward()
        optimizer.step()
    return dict(model.state_dict())


def test_data_parallel_training_is_that_of_one_process():
    """Parameters and running statistics after some steps under DDP, of layers that convert_sync_batchnorm made."""
    alone = _train(False)
    for state in processes.run(_train, 2, True):
        assert state.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11, msg=name)


def _of_a_subgroup() -> list[Tensor]:
    """Processes 0 and 1 exchange, and 2 alone has a group of one."""
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    rank = dist.get_rank()
    layer = nn.SyncBatchNorm(4, process_group=groups[rank // 2])
    x = Make(torch.float32, seed=rank).tensor(3, 4, 5, grad=False)
    y = layer(x)
    layer.eval()
    return [x, y.detach(), layer.running_mean, layer(x).detach()]


def test_a_group_of_processes_exchanges_with_itself_alone():
    results = processes.run(_of_a_subgroup, 3)
    for ranks in ([0, 1], [2]):
        layer = torch.nn.BatchNorm1d(4)
        x = torch.cat([results[rank][0] for rank in ranks])
        expected = layer(x), layer.running_mean, layer.eval()(x)
        assert layer.running_mean is not None
        y, evaluated = (torch.cat([results[rank][i] for rank in ranks]) for i in (1, 3))
        for rank in ranks:
            torch.testing.assert_close(results[rank][2], expected[1])
        torch.testing.assert_close(y, expected[0])
        torch.testing.assert_close(evaluated, expected[2])


def _under_autocast() -> list[Any]:
    x = Make(torch.float32).tensor(4, 8, 6, 6)
    norm, conv = nn.SyncBatchNorm(8, activation="relu"), nn.ConvBnAct2d(8, 4, 3)
    nn.SyncBatchNorm.convert_sync_batchnorm(conv)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(norm(x))
    y.float().sum().backward()
    assert norm.weight.grad is not None
    assert conv.conv.weight.grad is not None
    assert x.grad is not None
    return [y.dtype, norm.weight.grad.dtype, conv.conv.weight.grad.dtype, x.grad.dtype]


def test_it_runs_under_autocast():
    """In bfloat16 between the layers; parameters and their gradients stay in float32."""
    for found in processes.run(_under_autocast, 2):
        assert found == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


def _compiled() -> list[tuple[Tensor, Tensor]]:
    """(eager, compiled) outputs, gradients and buffers; the whole in one graph, the exchange in it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.ConvBnAct2d(3, 4, 3, activation="relu"), nn.BatchNorm2d(4))
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    x = Make(torch.float32, seed=dist.get_rank()).tensor(2 + dist.get_rank(), 3, 6, 6)
    found = []
    for compiled in (False, True):
        own = copy.deepcopy(model)
        run = torch.compile(own, backend="aot_eager", fullgraph=True) if compiled else own
        y = run(x)
        y.square().mean().backward()
        found.append([y.detach(), *(p.grad for p in own.parameters()), *own.buffers()])
    return list(zip(*found, strict=True))


def test_it_compiles_into_one_graph():
    for pairs in processes.run(_compiled, 2):
        for eager, compiled in pairs:
            torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


# ---- one process ----


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_without_a_group_it_is_a_batch_norm(training):
    torch.manual_seed(0)
    x = torch.rand(4, 6, 5)
    plain, sync = nn.BatchNorm1d(6, activation="silu"), nn.SyncBatchNorm(6, activation="silu")
    for layer in (plain, sync):
        layer.train(training)
    assert torch.equal(plain(x), sync(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, sync.state_dict()[name]), name


def test_layers_are_converted_in_place():
    model = _model()
    before = {name: p for name, p in model.named_parameters()}
    calls = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    expected = copy.deepcopy(model)(x)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model) is model
    found = [type(m) for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert found == [nn.SyncBatchNorm] * 3
    assert all(before[name] is p for name, p in model.named_parameters())
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert calls
    assert model[2].activation == "silu"


def test_it_takes_the_place_of_torchs_layer():
    """By constructor, by state, and by replace_modules and back."""
    theirs, ours = torch.nn.SyncBatchNorm(5, momentum=None), nn.SyncBatchNorm(5, momentum=None)
    theirs.running_mean.fill_(3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert repr(ours) == repr(theirs)
    model = torch.nn.Sequential(theirs)
    report = nn.replace_modules(model)
    assert type(model[0]) is nn.SyncBatchNorm
    model(torch.rand(3, 5))
    report.restore()
    assert type(model[0]) is torch.nn.SyncBatchNorm


def test_what_the_layer_cannot_take():
    with pytest.raises(
        RuntimeError, match=r"nn\.SyncBatchNorm: activation must be one of none, relu, silu, got 'gelu'"
    ):
        nn.SyncBatchNorm(4, activation="gelu")
    with pytest.raises(ValueError, match="expected at least 2D input"):
        nn.SyncBatchNorm(4)(torch.rand(4))


def test_moments_can_be_joined_by_hand(matrix):
    """The public stages, as one who exchanges by other means calls them: a batch in three parts."""
    make = Make(torch.float32, matrix)
    x, w, b = (make.tensor(*shape, grad=False) for shape in ((7, 6, 5), (6,), (6,)))
    parts = x.split([2, 1, 4])
    running = torch.zeros(6, device=matrix), torch.ones(6, device=matrix)
    moments = torch.stack([ops.batch_norm_moments(part) for part in parts])
    mean, var, elements = ops.batch_norm_join(moments, *running)
    assert elements.tolist() == [35.0] * 6
    y = torch.cat([ops.batch_norm(part, mean, var, w, b) for part in parts])
    same = torch.zeros(6, device=matrix), torch.ones(6, device=matrix)
    torch.testing.assert_close(y, ops.batch_norm(x, *same, w, b, True))
    torch.testing.assert_close(running, same)


def test_a_common_mean_costs_no_digits(matrix):
    """Where all batches have one mean it is theirs to the bit, and adds nothing to the variance, however large."""
    counts = torch.tensor([3.0, 500.0, 77.0, 1001.0, 7.0])
    value = torch.tensor([10000 + 1 / 3, -1e6 / 7, 0.1])
    moments = torch.stack((value.expand(5, 3), torch.ones(5, 3), counts[:, None].expand(5, 3)), 1).to(matrix)
    mean, var, _ = ops.batch_norm_join(moments)
    assert torch.equal(mean.cpu(), value)
    torch.testing.assert_close(var.cpu(), torch.ones(3), rtol=2e-7, atol=0)
