"""warpwright.optim: the same training as torch's, the same checkpoints, and what torch's cannot do."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import warpwright
from warpwright.optim import SGD, Adam, AdamW, Lamb, Lion


def model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].to(memory_format=torch.channels_last)
    return net.to(dtype)


def batch(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 4, 4, generator=generator).to(dtype), torch.randint(3, (8,), generator=generator)


def train(net, optimizer, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        x, target = batch(step, next(net.parameters()).dtype)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(a, b, **tolerance):
    torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()), **tolerance)


#: Ours, torch's, and options that reach every branch of both.
PAIRS = [
    (AdamW, torch.optim.AdamW, {}),
    (AdamW, torch.optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.3}),
    (AdamW, torch.optim.AdamW, {"maximize": True}),
    (AdamW, torch.optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.9), "amsgrad": True}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.3, "amsgrad": True}),
    (Adam, torch.optim.Adam, {}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.3, "maximize": True}),
    (SGD, torch.optim.SGD, {"lr": 0.05}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "maximize": True}),
]
pairs = pytest.mark.parametrize(
    ("ours", "theirs", "options"), PAIRS, ids=[f"{kind.__name__}-{i}" for i, (kind, _, _) in enumerate(PAIRS)]
)
EVERY = [(AdamW, {}), (AdamW, {"amsgrad": True}), (Adam, {}), (SGD, {"momentum": 0.9}), (Lion, {}), (Lamb, {})]
NAMES = [kind.__name__ + "-amsgrad" * ("amsgrad" in options) for kind, options in EVERY]
every = pytest.mark.parametrize(("kind", "options"), EVERY, ids=NAMES)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_trains_as_torchs_does(dtype, ours, theirs, options):
    nets = model(dtype), model(dtype)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    losses = train(nets[0], ours(nets[0].parameters(), **options), 20)
    expected = train(nets[1], theirs(nets[1].parameters(), **options), 20)
    assert losses == pytest.approx(expected, rel=1e-4)
    same(*nets, **close)


def test_groups_schedulers_and_frozen_parameters():
    def run(kind):
        net = model()
        net[4].requires_grad_(False)
        groups = [{"params": net[0].parameters(), "lr": 0.1, "weight_decay": 0.0}, {"params": net[2:].parameters()}]
        optimizer = kind(groups, lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(6):
            train(net, optimizer, 1, step)
            schedule.step()
        return net

    same(run(AdamW), run(torch.optim.AdamW), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masters_keep_the_steps_that_half_parameters_lose(dtype):
    """A step far below the last place of a parameter: without a master nothing ever moves."""

    def run(**options):
        param = nn.Parameter(torch.full((4,), 100.0, dtype=dtype))
        optimizer = AdamW([param], lr=1e-3, weight_decay=0.0, **options)
        for _ in range(1000):
            param.grad = torch.ones_like(param)
            optimizer.step()
        return param, optimizer.state[param]

    stuck, state = run(master_weights=False)
    assert stuck.tolist() == [100.0] * 4
    assert state["exp_avg"].dtype == dtype
    assert "master" not in state
    moved, state = run()
    assert state["master"].tolist() == pytest.approx([99.0] * 4, abs=1e-3)
    assert torch.equal(moved, state["master"].to(dtype))
    assert state["exp_avg"].dtype == torch.float32


def checkpoint(value):
    """Through a file, as safely as users load it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


#: Ours, torch's, options, and what a parameter's state holds for each.
CHECKPOINTS = {
    "AdamW": (AdamW, torch.optim.AdamW, {}, {"step", "exp_avg", "exp_avg_sq"}),
    "Adam": (Adam, torch.optim.Adam, {}, {"step", "exp_avg", "exp_avg_sq"}),
    # Of short memory, so that a second moment falls, and a maximum that was lost would be missed.
    "AdamW amsgrad": (
        AdamW, torch.optim.AdamW, {"betas": (0.9, 0.5), "amsgrad": True},
        {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    ),
    "Adam amsgrad": (
        Adam, torch.optim.Adam, {"betas": (0.9, 0.5), "amsgrad": True},
        {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    ),
    "SGD": (SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1}, {"step", "momentum_buffer"}),
    "SGD without momentum": (SGD, torch.optim.SGD, {}, {"step"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("source", [0, 1], ids=["from warpwright", "from torch"])
@pytest.mark.parametrize("target", [0, 1], ids=["to warpwright", "to torch"])
def test_checkpoints_move_between_torch_and_warpwright(source, target, name):
    *kinds, options, keys = CHECKPOINTS[name]
    straight = model()
    train(straight, kinds[1](straight.parameters(), lr=0.02, **options), 10)
    first = model()
    optimizer = kinds[source](first.parameters(), lr=0.02, **options)
    train(first, optimizer, 5)
    second = model(seed=1)
    resumed = kinds[target](second.parameters(), lr=0.5, **options)
    resumed.load_state_dict(checkpoint(optimizer.state_dict()))
    second.load_state_dict(checkpoint(first.state_dict()))
    train(second, resumed, 5, first=5)
    same(second, straight, rtol=1e-4, atol=1e-5)
    if target == 0:
        assert set(next(iter(resumed.state.values()))) == keys


def test_a_group_that_only_torch_can_run_is_refused():
    net = model()
    theirs = torch.optim.AdamW(net.parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="warpwright: Lamb: amsgrad is not supported"):
        Lamb(net.parameters()).load_state_dict(theirs.state_dict())
    differentiable = torch.optim.AdamW(net.parameters(), differentiable=True)
    with pytest.raises(ValueError, match="warpwright: AdamW: differentiable is not supported"):
        AdamW(net.parameters()).load_state_dict(differentiable.state_dict())
    with pytest.raises(ValueError, match="warpwright: SGD: differentiable is not supported"):
        SGD(net.parameters(), differentiable=True)
    with pytest.raises(ValueError, match="warpwright: Adam: decoupled_weight_decay must be False"):
        Adam(net.parameters(), decoupled_weight_decay=True)
    with pytest.raises(TypeError, match="master_weight"):
        AdamW(net.parameters(), master_weight=False)


#: What states there are: masters, codes, masters and codes, random rounding.
STATES = [{}, {"eight_bit": True}, {"eight_bit": True, "master_weights": False}, {"stochastic_rounding": True}]


@every
@pytest.mark.parametrize("kernel", STATES, ids=lambda kernel: " ".join(kernel) or "masters")
def test_a_checkpoint_resumes_bit_for_bit(kind, options, kernel):
    dtype, options = torch.bfloat16, options | kernel | {"lr": 0.02}
    straight = model(dtype)
    train(straight, kind(straight.parameters(), **options), 10)
    first = model(dtype)
    optimizer = kind(first.parameters(), **options)
    train(first, optimizer, 5)
    second = model(dtype, seed=1)
    resumed = kind(second.parameters(), **(options | {"lr": 0.5}))
    resumed.load_state_dict(checkpoint(optimizer.state_dict()))
    second.load_state_dict(checkpoint(first.state_dict()))
    train(second, resumed, 5, first=5)
    same(second, straight, rtol=0, atol=0)


def test_torchs_checkpoint_of_a_half_model_gets_masters_of_the_model_loaded_later():
    theirs = model(torch.bfloat16)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.02)
    train(theirs, optimizer, 3)
    ours = model(torch.bfloat16, seed=1)
    resumed = AdamW(ours.parameters())
    resumed.load_state_dict(checkpoint(optimizer.state_dict()))
    ours.load_state_dict(theirs.state_dict())  # After the optimizer's.
    weight = ours[2].weight.detach().clone()
    train(ours, resumed, 1, first=3)
    state = resumed.state[ours[2].weight]
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert (ours[2].weight - weight).abs().max() < 0.1
    back = torch.optim.AdamW(theirs.parameters())
    back.load_state_dict(checkpoint(resumed.state_dict()))
    train(theirs, back, 1)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_torchs_gradient_scaler_unscales_and_skips_on_the_device(amsgrad):
    def run(kind):
        net = model()
        optimizer = kind(net.parameters(), lr=0.02, betas=(0.9, 0.5), amsgrad=amsgrad)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        for step in range(4):
            x, target = batch(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            if step == 2:
                loss = loss * math.inf
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return net, scaler.get_scale(), {s["step"].item() for s in optimizer.state.values()}

    ours, theirs = run(AdamW), run(torch.optim.AdamW)
    same(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    assert ours[1:] == theirs[1:]
    assert ours[2] == {3.0}


def test_a_closure_is_called_with_gradients():
    net = model()
    optimizer = AdamW(net.parameters())

    def closure():
        optimizer.zero_grad()
        loss = net(batch(0)[0]).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > optimizer.step(closure).item()


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = AdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="warpwright: AdamW: gradients must be dense, got a sparse one"):
        optimizer.step()


BAD = [
    ({"lr": -1.0}, "Invalid learning rate: -1.0"),
    ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
    ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ({"max_grad_norm": 0.0}, "Invalid max_grad_norm: 0.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(options)) for options, _ in BAD])
@pytest.mark.parametrize("kind", [AdamW, Lamb, Lion])
def test_bad_hyperparameters_are_torchs_error(kind, options, message):
    if kind is Lion and "eps" in options:
        pytest.skip("Lion has no eps")
    with pytest.raises(ValueError, match=message):
        kind(model().parameters(), **options)


@every
def test_an_optimizer_can_be_copied_and_shown(kind, options):
    net = model()
    optimizer = kind(net.parameters(), **options)
    train(net, optimizer, 1)
    assert kind.__name__ in repr(optimizer)
    twin = copy.deepcopy(optimizer)
    assert twin.master_weights
    assert len(twin.state) == len(optimizer.state)


def test_a_graph_that_saved_a_parameter_notices_the_step():
    weight = nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight])
    saved = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_no_parameters_is_no_work():
    assert warpwright.ops.adamw_([], [], [], [], []) is None


def test_parameters_with_other_strides_than_their_gradients():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    twin = nn.Parameter(weight.detach().clone())
    for param, kind in ((weight, AdamW), (twin, torch.optim.AdamW)):
        param.grad = torch.arange(48.0).reshape(4, 3, 2, 2)
        kind([param], lr=0.1).step()
    torch.testing.assert_close(weight, twin)
