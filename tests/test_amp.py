"""warpwright.amp.GradScaler and warpwright.clip_grad_norm_ are torch's."""

from __future__ import annotations

import math

import pytest
import torch
from test_optim import batch, every, model, same
from torch import nn

import warpwright
from warpwright import optim
from warpwright.amp import GradScaler


def run(scaler, kind, options, *, unscale=False, clip=None, steps=6, bad=(2,)):
    """Training with gradients that are infinite at the steps `bad`."""
    net = model()
    optimizer = kind(net.parameters(), **options)
    scales = []
    for step in range(steps):
        x, target = batch(step)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(net(x), target)).backward()
        if step in bad:
            net[2].weight.grad[0, 0] = math.inf
        if unscale:
            scaler.unscale_(optimizer)
        if clip is not None:
            clip(net.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return net, scales, scaler.state_dict()


def scalers():
    return [kind("cpu", init_scale=256.0, growth_interval=2) for kind in (GradScaler, torch.amp.GradScaler)]


@pytest.mark.parametrize("unscale", [False, True], ids=["in the step", "unscale_"])
@every
def test_it_scales_as_torchs_does(kind, options, unscale):
    """With warpwright's optimizers: the same scales, the same parameters."""
    ours, theirs = (run(scaler, kind, options, unscale=unscale) for scaler in scalers())
    assert ours[1:] == theirs[1:]
    assert ours[1] == [256, 512, 256, 256, 512, 512]
    same(ours[0], theirs[0], rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
@pytest.mark.parametrize("unscale", [False, True], ids=["in the step", "unscale_"])
def test_it_works_with_torchs_optimizers(unscale, fused):
    options = {"lr": 0.01, "fused": fused}
    ours, theirs = (run(scaler, torch.optim.AdamW, options, unscale=unscale) for scaler in scalers())
    assert ours[1:] == theirs[1:]
    same(ours[0], theirs[0], rtol=0, atol=0)


@every
def test_clipping_in_the_step_is_clipping_after_unscale(kind, options):
    scaler, _ = scalers()
    ours = run(scaler, kind, options | {"max_grad_norm": 0.05})
    _, scaler = scalers()
    theirs = run(scaler, kind, options, unscale=True, clip=torch.nn.utils.clip_grad_norm_)
    assert ours[1:] == theirs[1:]
    same(ours[0], theirs[0], rtol=1e-3, atol=2e-4 if kind is optim.Lion else 1e-5)


def test_a_step_reads_its_gradients_once_to_measure_them(monkeypatch):
    """The norm that finds infinities is the norm that clips."""
    calls = []
    measure = warpwright.ops.multi_tensor_norm
    monkeypatch.setattr(warpwright.ops, "multi_tensor_norm", lambda *args: calls.append(1) or measure(*args))
    scaler, _ = scalers()
    run(scaler, optim.AdamW, {"max_grad_norm": 0.05}, steps=3, bad=())
    assert len(calls) == 3


def test_state_dicts_are_torchs():
    ours, theirs = scalers()
    run(ours, optim.AdamW, {})
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict() == ours.state_dict()
    fresh = GradScaler("cpu")
    fresh.load_state_dict(theirs.state_dict())
    assert fresh.state_dict() == ours.state_dict()


def test_it_can_be_switched_off():
    scaler = GradScaler("cpu", enabled=False)
    _, scales, state = run(scaler, optim.AdamW, {}, bad=())
    assert (set(scales), state) == ({1.0}, {})


def test_unscaling_float16_gradients_is_torchs_error():
    param = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = optim.AdamW([param])
    scaler = GradScaler("cpu")
    scaler.scale(param.sum()).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)  # In the step it is what masters are for.


def test_unscaling_twice_is_torchs_error():
    net = model()
    optimizer, scaler = optim.AdamW(net.parameters()), GradScaler("cpu")
    scaler.scale(net(batch(0)[0]).sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        scaler.unscale_(optimizer)


def test_sparse_gradients_are_torchs():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.5)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(embedding(torch.tensor([1])).sum()).backward()
    before = embedding.weight.detach().clone()
    scaler.step(optimizer)
    assert (before - embedding.weight).abs().max().item() == pytest.approx(0.5)


# ---- clip_grad_norm_ ----


def parameters(*dtypes, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.zeros(5, n, dtype=d)) for n, d in zip((7, 1, 300), dtypes, strict=False)]
    for param in found:
        param.grad = (scale * torch.randn(param.shape, generator=generator)).to(param.dtype)
    return [*found, nn.Parameter(torch.zeros(2))]  # One without a gradient.


@pytest.mark.parametrize("order", [2.0, math.inf, "inf", 1.0])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clip_grad_norm_is_torchs(matrix, dtype, max_norm, order):
    if dtype == torch.float64 and (matrix != "cpu" or warpwright.current_backend() == "emulated"):
        pytest.skip("float64 is the CPU's")
    ours, theirs = parameters(*[dtype] * 3), parameters(*[dtype] * 3)
    for param in ours:
        param.data = param.data.to(matrix)
    norm = warpwright.clip_grad_norm_(ours, max_norm, order)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, float(order))
    tolerance = {"rtol": 2e-2, "atol": 0} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(norm.double().cpu(), expected.double(), **tolerance)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, **tolerance)


def test_gradients_of_several_dtypes_have_one_norm():
    mixed = parameters(torch.float32, torch.bfloat16, torch.float16)
    expected = torch.cat([p.grad.flatten().double() for p in mixed[:-1]]).norm()
    assert warpwright.clip_grad_norm_(mixed, 1.0).item() == pytest.approx(expected.item(), rel=1e-6)
    clipped = torch.cat([p.grad.flatten().double() for p in mixed[:-1]]).norm()
    assert clipped.item() == pytest.approx(1.0, rel=1e-2)


def test_one_tensor_and_none():
    param = parameters(torch.float32)[0]
    assert warpwright.clip_grad_norm_(param, 1e6).item() == pytest.approx(param.grad.norm().item())
    assert warpwright.clip_grad_norm_([], 1.0).item() == 0
    assert warpwright.clip_grad_norm_(iter([nn.Parameter(torch.ones(2))]), 1.0).item() == 0


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_norm_that_is_not_finite(value):
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    for params in (ours, theirs):
        params[0].grad[0, 0] = value
    with pytest.raises(RuntimeError, match="clip_grad_norm_: the norm of order 2 of the gradients must be finite"):
        warpwright.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    warpwright.clip_grad_norm_(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, equal_nan=True)
