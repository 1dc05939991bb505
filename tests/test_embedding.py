"""Indices that are no row, rows of very many tokens, and what a row's gradient may depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import warpwright
from warpwright.testing import Make

BAD_INDICES = [-1, 5, 2**31, -(2**62), 2**62]


@pytest.mark.parametrize("bad", BAD_INDICES)
def test_an_index_that_is_no_row_is_answered(matrix, bad):
    """On the CPU by an error; elsewhere, where nobody can look without waiting, by NaN in that row alone."""
    weight = Make(torch.float32, matrix).tensor(5, 8)
    index = torch.tensor([0, bad, 4], device=matrix)
    if warpwright.current_backend() == "native" and matrix == "cpu":
        with pytest.raises(RuntimeError, match=rf"warpwright: embedding: input must be in \[0, 5\), got {bad}$"):
            warpwright.ops.embedding(index, weight)
        return
    output = warpwright.ops.embedding(index, weight)
    assert output.isnan().all(1).tolist() == [False, True, False]
    assert output.isnan().any(1).tolist() == [False, True, False]
    (grad,) = torch.autograd.grad(output.sum(), weight)
    assert grad.sum(1).tolist() == [8, 0, 0, 0, 8]


def test_bad_indices_raise_in_backward_too():
    with pytest.raises(RuntimeError, match=r"warpwright: embedding_backward: input must be in \[0, 3\), got 7"):
        torch.ops.warpwright.embedding_backward(torch.ones(2, 4), torch.tensor([0, 7]), 3, None, False)


def test_an_index_into_an_empty_table():
    with pytest.raises(RuntimeError, match=r"warpwright: embedding: input must be in \[0, 0\), got 0"):
        warpwright.ops.embedding(torch.tensor([0]), torch.empty(0, 4))
    assert warpwright.ops.embedding(torch.empty(0, dtype=torch.int64), torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_row_depends_on_its_own_tokens_alone(matrix, dtype):
    """The same bits wherever the row's tokens stand among others: pieces are counted from the row's first token."""
    make = Make(dtype, matrix)
    count, cols = 150, 24
    grad = make.tensor(count, cols, grad=False)
    results = []
    for before, after in ((0, 0), (1, 70), (63, 5), (64, 64), (100, 0)):
        index = torch.cat([torch.full((n,), row) for n, row in ((before, 0), (count, 1), (after, 2))]).to(matrix)
        others = make.tensor(before + after, cols, grad=False)
        grads = torch.cat((others[:before], grad, others[before:]))
        weight = make.tensor(4, cols)
        (found,) = torch.autograd.grad(warpwright.ops.embedding(index, weight), weight, grads)
        assert not found[3].any()
        results.append(found[1])
    assert all(torch.equal(result, results[0]) for result in results)


def test_one_token_a_hundred_thousand_times_on_several_threads():
    """Its sum keeps float32's digits, which adding one after the other in bfloat16 would not, whatever the threads."""
    make = Make(torch.bfloat16)
    index = torch.full((100_000,), 2)
    index[::1000] = 0
    weight, grad = make.tensor(3, 40), make.tensor(100_000, 40, low=0, grad=False)
    output = warpwright.ops.embedding(index, weight)
    found = torch.autograd.grad(output, weight, grad, retain_graph=True)[0]
    exact = torch.zeros(3, 40, dtype=torch.float64).index_add(0, index, grad.double())
    assert ((found.double() - exact).abs() <= exact * 2.0**-8).all()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(torch.autograd.grad(output, weight, grad)[0], found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("cols", [1, 7, 64, 1000])
def test_outputs_past_the_cache_are_whole(cols):
    """Results too large for the cache take stores of their own, also where rows start between two lines."""
    rows = (9 << 20) // (4 * cols) + 3
    weight = torch.arange(rows * cols, dtype=torch.float32).view(rows, cols).requires_grad_()
    index = torch.arange(rows - 1, -1, -1)
    index[5] = 0
    output = warpwright.ops.embedding(index, weight)
    assert torch.equal(output, weight[index])
    (found,) = torch.autograd.grad(output, weight, weight.detach())
    (wanted,) = torch.autograd.grad(F.embedding(index, weight), weight, weight.detach())
    assert torch.equal(found, wanted)


def test_a_shared_weight_gets_both_gradients():
    """Tied input and output embeddings: autograd adds what the two uses give."""
    weight = torch.randn(6, 8, requires_grad=True)
    index = torch.tensor([1, 4, 1])
    ours = warpwright.ops.linear(warpwright.ops.embedding(index, weight), weight).sum()
    theirs = F.linear(F.embedding(index, weight), weight).sum()
    (found,), (wanted,) = torch.autograd.grad(ours, weight), torch.autograd.grad(theirs, weight)
    torch.testing.assert_close(found, wanted)
