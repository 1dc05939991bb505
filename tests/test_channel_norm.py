"""What the OpSpecs of the channel norms do not say: layouts, threads, samples, NaN, running statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import warpwright
from warpwright import ops
from warpwright.testing import Make


def _last(x: Tensor) -> Tensor:
    return x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_(x.requires_grad)


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (2, 8, 7), (2, 8, 2, 3, 2)])
@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
def test_the_output_lies_as_the_input(matrix, norm, shape):
    for x in (Make(torch.float32, matrix).tensor(*shape), _last(Make(torch.float32, matrix).tensor(*shape))):
        y = ops.group_norm(x, 4) if norm == "group_norm" else ops.batch_norm(x, None, None, training=True)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        assert y.stride() == x.stride() == grad.stride()


def test_a_sample_does_not_notice_the_others(matrix):
    """Its output and gradient have the bits that they have alone."""
    if warpwright.current_backend() == "reference":
        pytest.skip("the definitions are torch's sums, whose order depends on the number of rows")
    for x in (Make(torch.bfloat16, matrix).tensor(3, 8, 150), _last(Make(torch.bfloat16, matrix).tensor(3, 8, 150))):
        weight = Make(torch.bfloat16, matrix, 1).tensor(8)

        def run(x: Tensor, weight: Tensor = weight) -> tuple[Tensor, Tensor]:
            y = ops.group_norm(x, 2, weight, activation="silu")
            return y, torch.autograd.grad(y.float().square().sum(), x)[0]

        for ours, alone in zip(run(x), run(x[1:2].detach().requires_grad_()), strict=True):
            assert torch.equal(_bits(ours[1:2]), _bits(alone))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 32])
def test_threads_do_not_change_a_bit(groups, last):
    x = Make(torch.float32).tensor(2, 64, 60, 50)
    x = _last(x) if last else x
    weight = Make(torch.float32, seed=1).tensor(64)

    def run() -> list[Tensor]:
        y = ops.group_norm(x, groups, weight, activation="silu")
        return [y, *torch.autograd.grad(y.square().sum(), [x, weight])]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(torch.equal(_bits(a), _bits(b)) for a, b in zip(run(), one, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("last", [False, True])
def test_nan_and_infinity_go_where_torchs_go(matrix, value, last):
    x = Make(torch.float32, matrix).tensor(2, 4, 6, grad=False)
    x[1, 2, 3] = value
    x = _last(x) if last else x
    running = torch.zeros(4, device=matrix), torch.ones(4, device=matrix)
    pairs = [
        (ops.group_norm(x, 2), F.group_norm(x, 2)),
        (ops.group_norm(x, 2, activation="silu"), F.silu(F.group_norm(x, 2))),
        (ops.batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True)),
        (ops.batch_norm(x, *running, activation="relu"), F.relu(F.batch_norm(x, *running))),
        (ops.instance_norm(x), F.instance_norm(x)),
    ]
    for ours, theirs in pairs:
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


def test_an_outlier_in_front_costs_the_variance_no_digits(matrix):
    """What is first in a slab is what the others are compared with."""
    x = Make(torch.float32, matrix).tensor(1, 8, 300, low=999, high=1001, grad=False)
    x[..., :20] = 0
    for moved in (x, _last(x)):
        truth, theirs = F.group_norm(x.double(), 8), F.group_norm(x, 8)
        error, torch_error = ((y.double() - truth).abs().max() for y in (ops.group_norm(moved, 8), theirs))
        assert error <= 2 * torch_error + 1e-6


def test_running_statistics_move_as_torchs(matrix):
    x = Make(torch.float32, matrix).tensor(5, 3, 4, grad=False)
    for momentum in (0.1, 1.0, 0.0, -0.5):
        found = []
        for function in (ops.batch_norm, F.batch_norm, ops.instance_norm, F.instance_norm):
            mean, var = torch.full((3,), 0.5, device=matrix), torch.full((3,), 2.0, device=matrix)
            function(x, mean, var, None, None, True, momentum)
            found.append((mean, var))
        torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[2], found[3], rtol=1e-6, atol=1e-6)


def test_an_empty_batch_leaves_the_running_statistics(matrix):
    mean, var = torch.zeros(3, device=matrix), torch.ones(3, device=matrix)
    x = torch.empty(0, 3, 4, device=matrix, requires_grad=True)
    weight = torch.ones(3, device=matrix, requires_grad=True)
    y = ops.batch_norm(x, mean, var, weight, training=True)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, weight])
    assert torch.equal(grads[1], torch.zeros_like(weight))
    assert torch.equal(mean, torch.zeros_like(mean))
    assert torch.equal(var, torch.ones_like(var))


def test_an_expanded_image_is_read_in_place(matrix):
    x = Make(torch.float32, matrix).tensor(1, 4, 6, grad=False).expand(3, 4, 6)
    torch.testing.assert_close(ops.group_norm(x, 2), F.group_norm(x.contiguous(), 2))
    torch.testing.assert_close(
        ops.batch_norm(x, None, None, training=True), F.batch_norm(x.contiguous(), None, None, training=True)
    )


def test_a_compiled_training_step_moves_the_running_statistics():
    torch._dynamo.reset()
    x = Make(torch.float32).tensor(4, 3, 5)

    def step(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return ops.batch_norm(x, mean, var, training=True, activation="relu")

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        mean, var = torch.zeros(3), torch.ones(3)
        y = function(x, mean, var)
        results.append([y.detach(), torch.autograd.grad(y.square().sum(), x)[0], mean, var])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_without_a_momentum_the_running_statistics_are_the_average(backend):
    torch._dynamo.reset()
    theirs, ours = torch.nn.BatchNorm1d(3, momentum=None), warpwright.nn.BatchNorm1d(3, momentum=None)
    call = ours if backend is None else torch.compile(ours, fullgraph=True, backend=backend)
    for seed in range(3):
        x = Make(torch.float32, seed=seed).tensor(6, 3, grad=False)
        torch.testing.assert_close(call(x), theirs(x), rtol=1e-5, atol=1e-5)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert not warpwright.fallbacks()


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("name", "arguments"), [("GroupNorm", (2, 6)), ("BatchNorm2d", (6,))])
def test_a_layer_applies_an_activation(name, arguments, activation):
    theirs = getattr(torch.nn, name)(*arguments)
    ours = getattr(warpwright.nn, name)(*arguments, activation=activation)
    x = Make(torch.float32).tensor(2, 6, 3, 4, grad=False)
    function = torch.relu if activation == "relu" else F.silu
    torch.testing.assert_close(ours(x), function(theirs(x)), rtol=1e-5, atol=1e-5)
    assert repr(ours) == repr(theirs)[:-1] + f", activation='{activation}')"


def test_an_activation_without_a_kernel_raises():
    with pytest.raises(RuntimeError, match=r"warpwright: nn\.BatchNorm2d: activation must be one of none, relu, silu"):
        warpwright.nn.BatchNorm2d(3, activation="gelu")


def test_half_precision_beside_float32_parameters():
    """The mix that autocast makes of a network."""
    theirs, ours = torch.nn.BatchNorm2d(6), warpwright.nn.BatchNorm2d(6)
    x = Make(torch.bfloat16).tensor(4, 6, 3, 4, grad=False)
    torch.testing.assert_close(ours(x), theirs(x), rtol=2e-2, atol=2e-2)
    assert not warpwright.fallbacks()
