"""What the OpSpec cannot say of the losses behind a linear layer: how much of the logits exists at once."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import warpwright
from warpwright import ops
from warpwright.testing import Make
from warpwright.triton_kernels._linear_loss import CHUNK_BYTES, chunk_of


def peak_bytes(call) -> int:
    """The most that the CPU's allocator held during a call, above what was there."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _losses(rows, features, classes):
    """What eager PyTorch and we do of one output layer: name -> (eager, ours)."""
    x, weight = torch.randn(rows, features, requires_grad=True), torch.randn(classes, features) / features**0.5
    weight.requires_grad_()
    target = torch.randint(0, classes, (rows,))
    taught = torch.randn(rows, features), torch.randn(classes, features) / features**0.5

    def kl_div():
        student, teacher = ((t @ w.t()).log_softmax(-1) for t, w in ((x, weight), taught))
        return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)

    linear = torch.nn.functional.linear
    return {
        "linear_cross_entropy": (
            lambda: torch.nn.functional.cross_entropy(linear(x, weight), target),
            lambda: ops.linear_cross_entropy(x, weight, target),
        ),
        "linear_cross_entropy, none": (
            lambda: torch.nn.functional.cross_entropy(linear(x, weight), target, reduction="none"),
            lambda: ops.linear_cross_entropy(x, weight, target, reduction="none"),
        ),
        "linear_kl_div": (kl_div, lambda: ops.linear_kl_div(x, weight, *taught)),
    }


@pytest.mark.parametrize("name", _losses(1, 1, 1))
def test_a_tenth_of_eagers_memory(name):
    """Forward and backward with the gradients themselves, of sixteen tokens for each feature."""
    peaks = []
    for loss in _losses(4096, 256, 16384)[name]:

        def call(loss=loss):
            loss().sum().backward()

        peaks.append(peak_bytes(call))
    eager, ours = peaks
    assert eager > 4096 * 16384 * 4, "the meter saw no logits"
    assert 0 < ours <= eager / 10


def test_parts_of_the_classes_make_the_whole_gradient(matrix):
    """More classes than one part of the weight's gradient takes, and several chunks."""
    if matrix == "cpu" and warpwright.current_backend() in ("emulated", "triton"):
        pytest.skip("a minute and a half: a part is 8 MiB, and the CPU stands in for a GPU")
    rows, features, classes = 4, 16384, 130
    make = Make(torch.float32, matrix)
    x, weight, target = (
        make.tensor(rows, features),
        make.tensor(classes, features),
        make.integers(rows, low=0, high=classes),
    )
    grads = []
    for chunk_rows in (2, rows):
        loss = ops.linear_cross_entropy(x * 0.01, weight, target, chunk_rows=chunk_rows)
        grads.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*grads)


def test_chunks_are_a_tenth_or_what_is_small():
    weight = torch.empty(131072, 8, dtype=torch.bfloat16, device="meta")
    large = torch.empty(8192, 8, dtype=torch.bfloat16, device="meta")
    assert chunk_of(large, weight, None) == 768
    assert chunk_of(large[:64], weight, None) * 131072 * 2 <= CHUNK_BYTES
    assert chunk_of(large[:32], weight[:100], None) == 32
    assert chunk_of(large, weight, 5) == 5
    assert chunk_of(large, weight, None, layers=2) == 384


@pytest.mark.parametrize(("rows", "classes"), [(40, 1 << 20), (100, 1 << 20), (900, 5000)])
@pytest.mark.parametrize(("loss", "layers"), [("cross_entropy", 1), ("kl_div", 2)])
def test_the_libraries_have_the_same_chunks(loss, layers, rows, classes):
    """Seen in the bits of the weight's gradient, which is added up over them."""
    make = Make(torch.float32)
    x, weight, target = make.tensor(rows, 2), make.tensor(classes, 2), make.integers(rows, low=0, high=classes)

    def grad(chunk_rows):
        if loss == "cross_entropy":
            found = ops.linear_cross_entropy(x, weight, target, chunk_rows=chunk_rows)
        else:
            found = ops.linear_kl_div(x, weight, -x.detach(), weight.detach(), chunk_rows=chunk_rows)
        return torch.autograd.grad(found, weight)[0]

    chunk, default = chunk_of(x, weight, None, layers), grad(None)
    assert chunk < rows
    assert torch.equal(default, grad(chunk))
    assert not torch.equal(default, grad(chunk + 1))


@pytest.mark.parametrize("loss", ["cross_entropy", "kl_div"])
def test_batches_of_other_lengths_compile_nothing_anew(loss):
    """How many rows a chunk has is no constant of the compiled function, of which there is one for the first number of
    rows and one for any number."""
    torch._dynamo.reset()
    weight = torch.zeros(4096, 2, requires_grad=True)

    def call(x):
        if loss == "cross_entropy":
            return ops.linear_cross_entropy(x, weight, x.detach()[:, 0].long())
        return ops.linear_kl_div(x, weight, x.detach(), weight.detach() + 1.0)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for rows in (30, 31, 33, 900, 1200, 1400, 2900):
        x = torch.linspace(0.0, 1.0, 2 * rows).view(rows, 2).requires_grad_()
        for result in zip(_with_grads(compiled, x, weight), _with_grads(call, x, weight), strict=True):
            assert torch.equal(*result)
    assert counter.frame_count == 2


def _with_grads(call, *leaves):
    loss = call(leaves[0])
    return loss.detach(), *torch.autograd.grad(loss, leaves)


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "reduction", "expected"), [
    (torch.bfloat16, "mean", "linear_loss_backward"),
    (torch.bfloat16, "none", "linear_cross_entropy_backward"),
    (torch.float16, "mean", "linear_cross_entropy_backward"),
])  # fmt: skip
def test_where_gradients_are_computed(dtype, reduction, expected):
    x, weight = torch.randn(6, 4, dtype=dtype, requires_grad=True), torch.randn(9, 4, dtype=dtype)
    with _Names() as seen:
        ops.linear_cross_entropy(x, weight, torch.arange(6), reduction=reduction).sum().backward()
    assert [n for n in seen.names if n.endswith(("loss_backward", "entropy_backward"))] == [expected]
    assert warpwright.current_backend() == "auto"


def test_a_target_that_is_no_class_is_answered():
    with pytest.raises(RuntimeError, match=r"warpwright: linear_cross_entropy: target must be in \[0, 9\) .*got 9"):
        ops.linear_cross_entropy(torch.randn(2, 4), torch.randn(9, 4), torch.tensor([0, 9]))
