"""Data parallel and fully sharded training by two gloo processes, against one process that has the whole batch."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import distributed_models as models
import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import warpwright
from warpwright import amp, nn, optim

PROCESSES = 2

#: What each is made with; large steps, so that mistakes show.
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: optim.AdamW(p, lr=0.05),
    "Adam, AMSGrad": lambda p: optim.Adam(p, lr=0.05, amsgrad=True, weight_decay=0.1),
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Lion": lambda p: optim.Lion(p, lr=0.01, weight_decay=0.1),
    "Lamb": lambda p: optim.Lamb(p, lr=0.05),
    "clipping": lambda p: optim.AdamW(p, lr=0.05, max_grad_norm=0.3),
}
CLIPPED = 0.2


def _rows() -> slice:
    return slice(dist.get_rank(), None, dist.get_world_size())


def _sharded(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def _clip(model: torch.nn.Module) -> Callable[[], Any]:
    return lambda: warpwright.clip_grad_norm_(model.parameters(), CLIPPED)


def _accumulate(model: torch.nn.Module, silent: Callable[[bool], Any], rows: slice = slice(None)) -> None:
    """One step of the sum of three batches' gradients, exchanged with the last; `silent(True)` is around the others."""
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    for i, (tokens, targets) in enumerate(models.batches(3)):
        with silent(i < 2):
            models.loss_of(model(tokens[rows]), targets[rows]).backward()
    optimizer.step()


# ---- what the processes do ----


def _data_parallel() -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = DistributedDataParallel(models.network())
    models.train(model, OPTIMIZERS["AdamW"](model.parameters()), _rows(), _clip(model))
    found["DDP"] = models.whole_state(model)
    model = DistributedDataParallel(models.network())
    _accumulate(model, lambda silent: model.no_sync() if silent else contextlib.nullcontext(), _rows())
    found["DDP, accumulated"] = models.whole_state(model)
    return found


def _fully_sharded() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, make in OPTIMIZERS.items():
        model = _sharded(models.network())
        optimizer = make(model.parameters())
        models.train(model, optimizer, _rows(), _clip(model) if name == "AdamW" else lambda: None)
        found[name] = models.whole_state(model)
        if name == "clipping":
            found["norm"] = optimizer.grad_norm
    model = _sharded(models.network())
    last = {"sync": True}

    @contextlib.contextmanager
    def silent(on: bool) -> Any:
        model.set_requires_gradient_sync(not on)
        yield last

    _accumulate(model, silent, _rows())
    found["accumulated"] = models.whole_state(model)
    return found


def _saved_and_loaded() -> dict[str, Any]:
    """Two steps, a checkpoint, one step; and that step again from the checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    folder = [tempfile.mkdtemp(prefix="warpwright-checkpoint-")]
    dist.broadcast_object_list(folder)
    found = {}
    model = _sharded(models.network(torch.bfloat16))  # With masters, which are part of the state.
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    models.train(model, optimizer, _rows(), steps=2)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    models.train(model, optimizer, _rows(), steps=(2, 3))
    found["continued"] = models.whole_state(model)

    torch.manual_seed(5)
    model = _sharded(models.Network().bfloat16())
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    models.train(model, optimizer, _rows(), steps=(2, 3))
    found["loaded"] = models.whole_state(model)
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])
    return found


def _mixed_precision() -> dict[str, Any]:
    """Gradients under FSDP2's policy, of torch's layers and, replaced before they are sharded, of ours."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {}
    for name in ("torch", "warpwright"):
        model = _torchs_layers()
        if name == "warpwright":
            report = nn.replace_modules(model)
            assert len(report.replaced) == 5, report
        fully_shard(model, mp_policy=policy)
        x, cotangent = _rows_in_and_out()
        model(x[_rows()]).float().mul(cotangent[_rows()]).sum().mul(PROCESSES).backward()  # FSDP2 takes the mean.
        found[name] = {key: models.whole(p.grad) for key, p in model.named_parameters()}
    return found


def _rows_in_and_out() -> tuple[Tensor, Tensor]:
    drawn = torch.rand(2, models.BATCH, models.WIDTH, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return drawn[0], drawn[1]


def _torchs_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.LayerNorm(models.WIDTH), torch.nn.Linear(models.WIDTH, 32), torch.nn.GELU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(32, models.WIDTH), torch.nn.RMSNorm(models.WIDTH))


def _scaled() -> dict[str, Any]:
    """Loss scaling, where one process alone sees an infinity: with unscale_ and clipping, and in the step itself."""
    found: dict[str, Any] = {}
    for clipped in (True, False):
        model = _sharded(models.network(torch.float32))
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        scaler = amp.GradScaler("cpu", init_scale=1024.0)
        states, scales = [], []
        for step, (tokens, targets) in enumerate(models.batches(3)):
            optimizer.zero_grad()
            scaler.scale(models.loss_of(model(tokens[_rows()]), targets[_rows()])).backward()
            if step == 1 and dist.get_rank() == 1:
                model.head.weight.grad.to_local()[0, 0] = float("inf")
            if clipped:
                scaler.unscale_(optimizer)
                warpwright.clip_grad_norm_(model.parameters(), CLIPPED)
            scaler.step(optimizer)
            scaler.update()
            states.append(models.whole_state(model))
            scales.append(scaler.get_scale())
        found["clipped" if clipped else "plain"] = (states, scales)
    return found


def _stochastic() -> dict[str, Any]:
    """Random rounding: parts of one parameter have other bits, and what is whole in both the same."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, found = init_device_mesh("cpu", (PROCESSES,)), {}
    for name, placement in (("cut", Shard(0)), ("whole", Replicate())):
        start = distribute_tensor(torch.ones(64, 8, dtype=torch.bfloat16), mesh, [placement])
        parameter = torch.nn.Parameter(start)
        parameter.grad = torch.ones_like(parameter)
        optim.SGD([parameter], lr=1e-3, stochastic_rounding=True).step()
        found[name] = (parameter.to_local().detach(), models.whole(parameter))
    try:
        parameter = torch.nn.Parameter(distribute_tensor(torch.ones(64), mesh, [Shard(0)]))
        parameter.grad = torch.ones_like(parameter)
        optim.AdamW([parameter], eight_bit=True).step()
    except RuntimeError as error:
        found["refused"] = str(error)
    return found


CHECKS = (_data_parallel, _fully_sharded, _saved_and_loaded, _mixed_precision, _scaled, _stochastic)


def _all() -> dict[str, dict[str, Any]]:
    warpwright.fallbacks().clear()
    found = {check.__name__: check() for check in CHECKS}
    found["fallbacks"] = dict(warpwright.fallbacks())
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[str, dict[str, Any]]]:
    """What two processes found, all of it by one start of them."""
    return processes.run(_all, PROCESSES)


def _same(results: list[dict[str, Any]], check: Callable[[], Any], name: str, alone: dict[str, Tensor]) -> None:
    """All processes have what one has that does the whole by itself."""
    for result in results:
        state = result[check.__name__][name]
        assert state.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-11, msg=f"{name}: {key}")


# ---- and what one does ----


def test_data_parallel_training_is_that_of_one_process(results):
    model = models.network()
    models.train(model, OPTIMIZERS["AdamW"](model.parameters()), between=_clip(model))
    _same(results, _data_parallel, "DDP", model.state_dict())


def test_fully_sharded_training_is_that_of_one_process(results):
    for name, make in OPTIMIZERS.items():
        model = models.network()
        optimizer = make(model.parameters())
        models.train(model, optimizer, between=_clip(model) if name == "AdamW" else lambda: None)
        _same(results, _fully_sharded, name, model.state_dict())
        if name == "clipping":
            for result in results:
                torch.testing.assert_close(result["_fully_sharded"]["norm"], optimizer.grad_norm)


def test_gradients_are_exchanged_once_for_several_batches(results):
    model = models.network()
    _accumulate(model, lambda silent: contextlib.nullcontext())
    _same(results, _data_parallel, "DDP, accumulated", model.state_dict())
    _same(results, _fully_sharded, "accumulated", model.state_dict())


def test_a_sharded_checkpoint_continues_as_if_nothing_had_been(results):
    for result in results:
        found = result["_saved_and_loaded"]
        for key, value in found["continued"].items():
            assert torch.equal(found["loaded"][key], value), key


def test_layers_under_a_precision_policy_are_as_exact_as_torchs(results):
    exact = _torchs_layers().double()
    x, cotangent = _rows_in_and_out()
    exact(x.double()).mul(cotangent).sum().backward()
    for result in results:
        found = result["_mixed_precision"]
        for key, parameter in exact.named_parameters():
            error, torchs = ((found[by][key] - parameter.grad).abs().max() for by in ("warpwright", "torch"))
            floor = torch.finfo(torch.bfloat16).eps * parameter.grad.abs().max()
            assert error <= 2 * torchs + floor, key


def test_an_infinity_in_one_process_skips_the_step_of_all(results):
    for result in results:
        for states, scales in result["_scaled"].values():
            assert scales == [1024.0, 512.0, 512.0]
            for key, value in states[1].items():
                assert torch.equal(value, states[0][key]), key
                assert value.isfinite().all()
            assert not torch.equal(states[2]["head.weight"], states[1]["head.weight"])
    first, second = (result["_scaled"]["clipped"][0][2] for result in results)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_random_bits_follow_the_parts(results):
    (part, all_parts), (other, _) = (result["_stochastic"]["cut"] for result in results)
    assert not torch.equal(part, other)
    assert sorted(all_parts.unique().tolist()) == [0.99609375, 1.0]  # 1 - 1e-3 lies between them.
    first, second = (result["_stochastic"]["whole"][0] for result in results)
    assert torch.equal(first, second)
    for result in results:
        assert result["_stochastic"]["refused"].startswith("warpwright: AdamW: eight_bit moments need whole parameters")


def test_no_layer_left_its_work_to_torch(results):
    assert [result["fallbacks"] for result in results] == [{}, {}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masters", [True, False], ids=["masters", "no masters"])
def test_lambs_step_on_parts_is_its_step_on_the_whole(dtype, masters):
    """A part that is all there is: what differs is how the step is composed. With zeros, no decay, a skipped step."""
    from torch.distributed.tensor import Shard, distribute_tensor

    generator = torch.Generator().manual_seed(3)
    start = [torch.rand(6, 5, generator=generator) - 0.5, torch.zeros(7), torch.rand(3, generator=generator)]
    found = []
    with processes.alone() as mesh:
        for cut in (False, True):
            params = [torch.nn.Parameter(t.to(dtype, copy=True)) for t in start]
            if cut:
                params = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params]
            groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0, "lr": torch.tensor(0.05)}]
            optimizer = optim.Lamb(groups, lr=0.1, maximize=True, master_weights=masters, max_grad_norm=0.5)
            grads = torch.Generator().manual_seed(4)
            for step in range(4):
                for p in params:
                    grad = torch.rand(p.shape, generator=grads).to(dtype)
                    p.grad = distribute_tensor(grad, mesh, [Shard(0)]) if cut else grad
                optimizer.found_inf = torch.tensor(float(step == 2))
                optimizer.step()
            state = [optimizer.state[p].get("master", p) for p in params]
            found.append([models.whole(t).float() for t in (*params, *state)])
    for whole, part in zip(*found, strict=True):
        # A rounding of each of four steps.
        assert (whole - part).abs().max() <= 4 * torch.finfo(dtype).eps * whole.abs().max()
