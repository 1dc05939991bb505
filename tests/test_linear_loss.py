"""What the OpSpec cannot say of the losses behind a linear layer: how much of the logits exists at once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import warpwright
from warpwright import ops
from warpwright.ops.linear_loss import CHUNK_BYTES, chunk_of


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


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_are_never_whole(reduction):
    rows, features, classes = 4096, 4, 16384
    x, weight = torch.randn(rows, features, requires_grad=True), torch.randn(classes, features, requires_grad=True)
    target = torch.randint(0, classes, (rows,))
    whole = rows * classes * 4

    def call():
        ops.linear_cross_entropy(x, weight, target, reduction=reduction).sum().backward()

    call()
    assert 0 < peak_bytes(call) < whole / 6
    assert peak_bytes(lambda: torch.nn.functional.linear(x, weight)) >= whole


def test_chunks_are_a_tenth_or_what_is_small():
    weight = torch.empty(131072, 8, dtype=torch.bfloat16, device="meta")
    large = torch.empty(8192, 8, dtype=torch.bfloat16, device="meta")
    assert chunk_of(large, weight, None) == 768
    assert chunk_of(large[:64], weight, None) * 131072 * 2 <= CHUNK_BYTES
    assert chunk_of(large[:32], weight[:100], None) == 32
    assert chunk_of(large, weight, 5) == 5


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
