"""Tensor parallel layers, sequence parallel norms, pipeline stages, and a mesh of two dimensions.

Outputs, gradients and steps are those of one process, and the messages are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distributed_models as models
import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import warpwright
from warpwright import nn, optim

PROCESSES = 2
CLIPPED = 0.2


def _mesh(*sizes: int, names: tuple[str, ...] | None = None) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def _plan(sequence: bool) -> dict[str, Any]:
    """Megatron's for a block, where norms hold all of a sequence or a part of it."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
    )

    if not sequence:
        return {"up": ColwiseParallel(), "down": RowwiseParallel()}
    return {
        "": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }


def _network(mesh: Any, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Blocks, embedding and head cut by columns and rows; the norm before the head is whole in each process."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = models.network(dtype)
    for block in model.blocks:
        parallelize_module(block, mesh, _plan(sequence=False))
    ends = {
        "embedding": ColwiseParallel(output_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, ends)


def _clipped(model: torch.nn.Module) -> Callable[[], Any]:
    return lambda: warpwright.clip_grad_norm_(model.parameters(), CLIPPED)


# ---- what two processes do ----


def _messages(counts: Any) -> dict[str, int]:
    return {
        str(name).split(".")[-1].removesuffix("_into_tensor").removesuffix("_tensor"): n for name, n in counts.items()
    }


def _block(mesh: Any, sequence: bool) -> dict[str, Any]:
    """A block's output, gradients, and messages forward and backward."""
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.distributed.tensor.parallel import parallelize_module

    block = parallelize_module(models.network().blocks[0], mesh, _plan(sequence))
    x = _activations().requires_grad_()
    part = x.chunk(PROCESSES, 1)[dist.get_rank()].detach().requires_grad_() if sequence else x
    with CommDebugMode() as forward:
        y = block(part)
    if sequence:
        assert isinstance(y, DTensor)
        assert y.placements == (Shard(1),)
    cotangent = _activations(3)
    whole = models.whole(y)
    if sequence:
        y, cotangent = y.to_local(), cotangent.chunk(PROCESSES, 1)[dist.get_rank()]
    with CommDebugMode() as backward:
        y.backward(cotangent)
    grads = {name: models.whole(p.grad) for name, p in block.named_parameters()}
    return {
        "output": whole,
        "input": part.grad,
        "grads": grads,
        "messages": [_messages(mode.get_comm_counts()) for mode in (forward, backward)],
    }


def _activations(seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(models.BATCH, models.LENGTH, models.WIDTH, generator=generator, dtype=torch.float64) * 2 - 1


def _trained(mesh: Any) -> dict[str, Any]:
    found = {}
    for make in (optim.AdamW, optim.Lamb):
        model = _network(mesh)
        optimizer = make(model.parameters(), lr=0.05)
        models.train(model, optimizer, between=_clipped(model))
        found[make.__name__] = models.whole_state(model)
    return found


def _sequence_step(mesh: Any) -> dict[str, Tensor]:
    """A step of a norm's weights, whose gradients are parts of a sum: each process saw a part of the sequence."""
    from torch.distributed.tensor.parallel import parallelize_module

    block = parallelize_module(models.network().blocks[0], mesh, _plan(sequence=True))
    optimizer = optim.AdamW(block.parameters(), lr=0.05, max_grad_norm=0.5)
    y = block(_activations().chunk(PROCESSES, 1)[dist.get_rank()])
    y.to_local().square().sum().backward()
    optimizer.step()
    return models.whole_state(block) | {"norm": optimizer.grad_norm}


def _compiled(mesh: Any) -> list[Tensor]:
    """Eager and compiled: a block's output and the gradient of its input."""
    from torch.distributed.tensor.parallel import parallelize_module

    found = []
    for compiled in (False, True):
        block = parallelize_module(models.network().blocks[0], mesh, _plan(sequence=False))
        run = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
        x = _activations().requires_grad_()
        y = run(x)
        y.square().sum().backward()
        found += [y.detach(), x.grad]
    return found


def _losses(mesh: Any) -> dict[str, Any]:
    """Losses of a batch that is cut: ours, with a row that does not count, and the gradient of the logits."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import loss_parallel

    generator = torch.Generator().manual_seed(4)
    logits = torch.rand(8, 12, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 12, (8,), generator=generator)
    target[1] = -100
    found: dict[str, Any] = {"given": (logits, target)}

    def cut(placement: Any, of_target: Any) -> tuple[Tensor, Tensor]:
        x = distribute_tensor(logits, mesh, [placement], src_data_rank=None).requires_grad_()
        return x, distribute_tensor(target, mesh, [of_target], src_data_rank=None)

    x, t = cut(Shard(0), Shard(0))
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)(x, t)
    loss.backward()
    found["batch"] = (models.whole(loss), models.whole(x.grad))
    before = dict(warpwright.fallbacks())
    x, t = cut(Shard(1), Replicate())
    with loss_parallel():
        loss = nn.CrossEntropyLoss()(x, t)
        loss.backward()
    found["classes"] = (models.whole(loss), models.whole(x.grad))
    found["counted"] = {key: n for key, n in warpwright.fallbacks().items() if key not in before}
    return found


def _embedded(mesh: Any) -> dict[str, Any]:
    """A table that is cut by rows is torch's, and counted."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    layer = parallelize_module(models.network().embedding, mesh, RowwiseParallel(input_layouts=Replicate()))
    tokens, _ = next(models.batches())
    return {"rows": models.whole(layer(tokens)), "counted": dict(warpwright.fallbacks())}


def _dropped(mesh: Any) -> dict[str, Any]:
    """Parts have masks of their own, copies the same."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    found: dict[str, Any] = {}
    torch.manual_seed(0)
    layer = nn.Dropout(0.5)
    for name, placement in (("parts", Shard(0)), ("copies", Replicate())):
        x = distribute_tensor(torch.ones(32, 16), mesh, [placement]).requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert torch.equal(x.grad.to_local(), y.detach().to_local())
        found[name] = y.to_local().detach()
    torch.manual_seed(dist.get_rank())
    warpwright.distributed._local._seen_alike.clear()
    try:
        layer(distribute_tensor(torch.ones(32, 16), mesh, [Replicate()]))
    except RuntimeError as error:
        found["error"] = str(error)
    return found


def _batch_norm(mesh: Any) -> dict[str, Any]:
    """In training over a batch that is cut: the statistics are the whole batch's."""
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    layer = distribute_module(nn.BatchNorm2d(3, activation="relu").double(), mesh)
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    part = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
    with CommDebugMode() as messages:
        y = layer(part)
    assert layer.weight.placements == (Replicate(),)
    y.square().sum().backward()
    values = {"y": y, "input": part.grad, "weight": layer.weight.grad, "mean": layer.running_mean}
    return {key: models.whole(value) for key, value in values.items()} | {
        "given": x,
        "gathers": messages.get_total_counts(),
    }


def _pipeline() -> dict[str, Any]:
    """Two stages, a block each; gradients of the mean over micro-batches, for each schedule."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    rank, found = dist.get_rank(), {}
    for schedule in (ScheduleGPipe, Schedule1F1B):
        model = models.network()
        ends = (model.embedding, model.blocks[0]), (model.blocks[1], model.norm, model.head)
        names = (("embedding", "blocks.0"), ("blocks.1", "norm", "head"))[rank]
        stage = PipelineStage(torch.nn.Sequential(*ends[rank]), rank, PROCESSES, torch.device("cpu"))
        tokens, targets = next(models.batches())
        run = schedule(stage, n_microbatches=2, loss_fn=models.loss_of)
        losses: list[Tensor] = []
        if rank == 0:
            run.step(tokens)
        else:
            run.step(target=targets, losses=losses)
        grads = {
            f"{name}.{key}": p.grad
            for name, part in zip(names, ends[rank], strict=True)
            for key, p in part.named_parameters()
        }
        found[schedule.__name__] = (grads, losses)
    return found


def _all() -> dict[str, Any]:
    mesh = _mesh(PROCESSES)
    warpwright.fallbacks().clear()
    found: dict[str, Any] = {"block": [_block(mesh, sequence) for sequence in (False, True)]}
    for check in (_trained, _sequence_step, _compiled, _batch_norm):
        found[check.__name__] = check(mesh)
    found["_pipeline"] = _pipeline()
    found["fallbacks"] = dict(warpwright.fallbacks())
    for check in (_losses, _embedded, _dropped):
        found[check.__name__] = check(mesh)
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What two processes found, all of it by one start of them."""
    return processes.run(_all, PROCESSES)


def _close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=what)


# ---- and what one does ----


@pytest.mark.parametrize("sequence", [False, True], ids=["whole sequences", "sequence parallel"])
def test_a_block_exchanges_what_megatrons_does(results, sequence):
    """One sum in each pass; of parts of sequences its halves, a gather and a scattered sum. Nothing else."""
    block, x = models.network().blocks[0], _activations().requires_grad_()
    y = block(x)
    y.backward(_activations(3))
    once = {"all_gather": 1, "reduce_scatter": 1} if sequence else {"all_reduce": 1}
    parts = x.grad.chunk(PROCESSES, 1) if sequence else [x.grad] * PROCESSES
    for result, part in zip(results, parts, strict=True):
        found = result["block"][sequence]
        assert found["messages"] == [once, once]
        _close(found["output"], y.detach(), "output")
        _close(found["input"], part, "gradient of the input")
        for name, parameter in block.named_parameters():
            _close(found["grads"][name], parameter.grad, name)


def test_tensor_parallel_steps_are_those_of_one_process(results):
    for make in (optim.AdamW, optim.Lamb):
        model = models.network()
        optimizer = make(model.parameters(), lr=0.05)
        models.train(model, optimizer, between=_clipped(model))
        for result in results:
            for name, value in model.state_dict().items():
                _close(result["_trained"][make.__name__][name], value, f"{make.__name__}: {name}")


def test_gradients_that_are_parts_of_sums_are_added_before_a_step(results):
    block = models.network().blocks[0]
    optimizer = optim.AdamW(block.parameters(), lr=0.05, max_grad_norm=0.5)
    block(_activations()).square().sum().backward()
    optimizer.step()
    for result in results:
        found = result["_sequence_step"]
        _close(found.pop("norm"), optimizer.grad_norm, "norm")
        for name, value in block.state_dict().items():
            _close(found[name], value, name)


def test_a_parallel_layer_compiles_into_one_graph(results):
    for result in results:
        y, grad, compiled, its_grad = result["_compiled"]
        assert torch.equal(y, compiled)
        assert torch.equal(grad, its_grad)


def test_a_pipelines_gradients_are_those_of_one_process(results):
    model = models.network()
    tokens, targets = next(models.batches())
    loss = models.loss_of(model(tokens), targets)
    loss.backward()
    for schedule in ("ScheduleGPipe", "Schedule1F1B"):
        grads = {name: grad for result in results for name, grad in result["_pipeline"][schedule][0].items()}
        for name, parameter in model.named_parameters():
            _close(grads[name], parameter.grad, f"{schedule}: {name}")
        losses = results[1]["_pipeline"][schedule][1]
        _close(torch.stack(losses).mean(), loss.detach(), schedule)


def test_no_layer_left_its_work_to_torch(results):
    assert [result["fallbacks"] for result in results] == [{}, {}]


def test_a_loss_is_that_of_the_whole_batch(results):
    """Cut by rows it is ours; by classes torch's loss_parallel, and counted."""
    for result in results:
        found = result["_losses"]
        logits, target = found["given"]
        for key, smoothing in (("batch", 0.1), ("classes", 0.0)):
            x = logits.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(x, target, label_smoothing=smoothing)
            loss.backward()
            _close(found[key][0], loss.detach(), key)
            _close(found[key][1], x.grad, key)
        assert found["counted"] == {("CrossEntropyLoss", "DTensor whose classes are cut"): 1}


def test_a_table_cut_by_rows_is_torchs(results):
    tokens, _ = next(models.batches())
    expected = models.network().embedding(tokens).detach()
    for result in results:
        _close(result["_embedded"]["rows"], expected, "embedding")
        assert result["_embedded"]["counted"]["Embedding", "DTensor whose rows of the table are cut"] == 1


def test_parts_drop_elements_of_their_own(results):
    first, second = (result["_dropped"] for result in results)
    assert not torch.equal(first["parts"], second["parts"])
    assert torch.equal(first["copies"], second["copies"])
    assert {0.0, 2.0} == set(first["parts"].unique().tolist()) == set(first["copies"].unique().tolist())
    for found in (first, second):
        assert found["error"].startswith(
            "warpwright: dropout_add: processes that hold the same part of input must draw"
        )


def test_a_batch_norm_takes_the_statistics_of_the_whole_batch(results):
    for result in results:
        found = result["_batch_norm"]
        layer, x = torch.nn.BatchNorm2d(3).double(), found["given"].clone().requires_grad_()
        y = torch.relu(layer(x))
        y.square().sum().backward()
        expected = {"y": y.detach(), "input": x.grad, "weight": layer.weight.grad, "mean": layer.running_mean}
        for key, value in expected.items():
            _close(found[key], value, key)
        assert found["gathers"] <= 1


# ---- two dimensions ----


def _two_dimensions() -> dict[str, dict[str, Tensor]]:
    """FSDP2 over one and tensor parallel over the other; and FSDP2 over both, with copies of the parts over one."""
    from torch.distributed.fsdp import fully_shard

    mesh = _mesh(2, 2, names=("data", "tensor"))
    warpwright.fallbacks().clear()
    found = {"layer": _cut_twice(mesh)}
    for name, make in (("AdamW", optim.AdamW), ("Lamb", optim.Lamb), ("copies", optim.Lamb)):
        both = name == "copies"
        model = models.network() if both else _network(mesh["tensor"])
        over = mesh if both else mesh["data"]
        for block in model.blocks:
            fully_shard(block, mesh=over)
        fully_shard(model, mesh=over)
        rows = slice(dist.get_rank(), None, 4) if both else slice(mesh["data"].get_local_rank(), None, 2)
        models.train(model, make(model.parameters(), lr=0.05), rows, _clipped(model))
        found[name] = models.whole_state(model)
    assert not warpwright.fallbacks(), str(warpwright.fallbacks())
    return found


def _cut_twice(mesh: Any) -> dict[str, Tensor]:
    """A linear layer whose rows are cut over one dimension, and whose columns over the other."""
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    layer = models.network().blocks[0].up
    x, weight, bias = (
        distribute_tensor(t.detach(), mesh, placements, src_data_rank=None).requires_grad_()
        for t, placements in (
            (_activations(), [Shard(0), Replicate()]),
            (layer.weight, [Replicate(), Shard(0)]),
            (layer.bias, [Replicate(), Shard(0)]),
        )
    )
    with CommDebugMode() as messages:
        y = warpwright.ops.linear(x, weight, bias, activation="gelu")
        y.backward(torch.ones_like(y))
    assert messages.get_total_counts() == 0
    assert y.placements == (Shard(0), Shard(2))
    assert x.grad.placements == (Shard(0), Partial())
    assert weight.grad.placements == (Partial(), Shard(0))
    return {"y": models.whole(y), "x": models.whole(x.grad), "weight": models.whole(weight.grad)}


def test_four_processes_shard_data_and_layers():
    results = processes.run(_two_dimensions, 4)
    for name, make in (("AdamW", optim.AdamW), ("Lamb", optim.Lamb)):
        model = models.network()
        models.train(model, make(model.parameters(), lr=0.05), between=_clipped(model))
        for result in results:
            for key, value in model.state_dict().items():
                for of in (name, "copies") if name == "Lamb" else (name,):
                    _close(result[of][key], value, f"{of}: {key}")
    layer, x = models.network().blocks[0].up, _activations().requires_grad_()
    y = layer(x)
    y.sum().backward()
    for result in results:
        for key, value in (("y", y.detach()), ("x", x.grad), ("weight", layer.weight.grad)):
            _close(result["layer"][key], value, key)
