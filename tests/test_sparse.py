"""2:4 sparse weights: what is kept, where the metadata say it was, and which kernels take them."""

from __future__ import annotations

import itertools
import math

import emulated
import pytest
import torch

import warpwright
from warpwright.ops import Sparse24Weight, dense_from_sparse24, linear_sparse24, prune_24
from warpwright.testing import SPECS, Make, Sample, compare, relayout
from warpwright.testing.specs.sparse import draw_sparse24

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bit patterns, with one for every NaN: PyTorch's own gather changes those of bfloat16."""
    same = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return torch.where(tensor.isnan(), -1, tensor.contiguous().view(same).to(torch.int64))


def test_the_metadata_are_laid_out_as_documented(matrix):
    """Bits 2 (j % 4) and the next of byte j / 4 belong to kept element j."""
    weight = torch.tensor([[0, 5, 0, 7, 1, 0, 2, 0, 0, 0, 3, 4]], dtype=torch.float32, device=matrix)
    values, metadata = prune_24(weight)
    assert values.tolist() == [[5, 7, 1, 2, 3, 4]]
    assert metadata.tolist() == [[1 | 3 << 2 | 0 << 4 | 2 << 6, 2 | 3 << 2]]


@DTYPES
def test_the_largest_two_are_kept_and_of_equal_ones_the_first(matrix, dtype):
    """Every group of four of these numbers, against Python's own sort."""
    numbers = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 2.5]
    groups = list(itertools.product(numbers, repeat=4))
    weight = torch.tensor(groups, dtype=dtype).reshape(64, -1).to(matrix)
    values, metadata = prune_24(weight)
    kept, expected = [], []
    for group in groups:
        size = [math.inf if math.isnan(x) else abs(x) for x in group]
        places = sorted(sorted(range(4), key=lambda i, size=size: -size[i])[:2])
        kept += [group[i] for i in places]
        expected.append(places[0] | places[1] << 2)
    assert torch.equal(bits(values), bits(torch.tensor(kept, dtype=dtype).reshape(64, -1).to(matrix)))
    pairs = torch.tensor(expected, dtype=torch.uint8).reshape(64, -1, 2)
    assert torch.equal(metadata.cpu(), pairs[..., 0] | pairs[..., 1] << 4)


@DTYPES
@pytest.mark.parametrize("k", [4, 8, 12, 2080])
def test_round_trips_keep_every_bit(matrix, dtype, k):
    weight = draw_sparse24(Make(dtype, matrix), 5, k)
    dense = weight.to_dense()
    assert int((dense != 0).sum()) == 5 * k // 2
    for again in (Sparse24Weight.from_dense(dense), prune_24(dense)):
        assert torch.equal(bits(again.values), bits(weight.values))
        assert torch.equal(again.metadata, weight.metadata)
    assert torch.equal(bits(again.to_dense()), bits(dense))


def test_a_dense_weight_is_refused_with_its_first_crowded_group(matrix):
    weight = torch.zeros(3, 16, device=matrix)
    weight[1, 4:6], weight[1, 8:11], weight[2, 0:4] = 1, torch.tensor([1.0, -2.0, 3.0], device=matrix), 1
    message = r"from_dense: .* at most 2 .*, got \[1.0, -2.0, 3.0, 0.0\] in row 1, columns 8 to 11"
    with pytest.raises(RuntimeError, match=message):
        Sparse24Weight.from_dense(weight)
    weight[1, 9], weight[2, 1:3] = 0, 0
    assert torch.equal(Sparse24Weight.from_dense(weight).to_dense(), weight)
    for shape in ((0, 8), (3, 0)):
        assert Sparse24Weight.from_dense(weight.new_ones(shape)).to_dense().shape == shape
    with pytest.raises(RuntimeError, match="prune_24: weight must have 2 dimensions and a multiple of 4 columns"):
        Sparse24Weight.from_dense(weight[:, :6])


def test_a_step_of_an_optimizer_leaves_the_mask_as_it_is(matrix):
    make = Make(torch.float32, matrix)
    x, dense = make.tensor(9, 24, grad=False), make.tensor(6, 24, grad=False)
    pruned = prune_24(dense)
    assert not pruned.values.requires_grad
    weight = Sparse24Weight(torch.nn.Parameter(pruned.values), pruned.metadata)
    mask = (pruned.to_dense() != 0).float()
    expected = (dense * mask).requires_grad_()
    torch.nn.functional.gelu(x @ (expected * mask).t()).square().sum().backward()
    linear_sparse24(x, weight, activation="gelu").square().sum().backward()
    torch.optim.SGD([weight.values, expected], lr=0.1).step()
    assert torch.allclose(weight.to_dense(), expected, rtol=1e-5, atol=1e-5)


def test_a_penalty_on_the_dense_weight_reaches_the_values(matrix):
    weight = draw_sparse24(Make(torch.float32, matrix), 4, 16)
    (dense_from_sparse24(weight) ** 2).sum().backward()
    assert torch.equal(weight.values.grad, 2 * weight.values)


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
@pytest.mark.parametrize("arch", ["80", "90"], ids=["emulated-cpu-80", "emulated-cpu-90"])
@pytest.mark.parametrize(
    ("layouts", "k", "taken"),
    [
        ((None, None, None), 128, True),
        ((None, None, None), 96, False),
        (("padded", "padded", "padded"), 128, True),
        (("transposed", None, None), 128, True),
        (("offset", None, None), 128, False),
        (("stepped", None, None), 128, False),
        ((None, "offset", None), 128, False),
        ((None, "transposed", None), 128, False),
        ((None, None, "offset"), 128, False),
        ((None, None, "transposed"), 128, False),
    ],
)
def test_which_calls_the_sparse_tensor_cores_take(monkeypatch, arch, layouts, k, taken):
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", arch)
    emulated.activate()
    name = "linear_sparse24" if not taken else "linear_sparse24_mma" if arch == "80" else "linear_sparse24_wgmma"
    make = Make(torch.float16)
    tensors = [make.tensor(16, k), *draw_sparse24(make, 24, k)]
    moved = [t if layout is None else relayout(t, layout) for t, layout in zip(tensors, layouts, strict=True)]
    sample = Sample("moved", (moved[0].detach(), Sparse24Weight(moved[1].detach(), moved[2])))
    before = emulated.launches(name)
    with warpwright.use_backend("emulated"):
        compared = compare(SPECS["linear_sparse24"], sample, {"output0": linear_sparse24(*sample.args)})
    assert all(c.ok for c in compared), compared
    assert emulated.launches(name) == before + 1


@DTYPES
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_few_and_many_rows_on_the_cpu(dtype, rows):
    """The weight is multiplied as it lies, or made dense first."""
    make = Make(dtype)
    sample = Sample("rows", (make.tensor(rows, 516), draw_sparse24(make, 130, 516)), {"activation": "silu"})
    compared = compare(SPECS["linear_sparse24"], sample)
    assert all(c.ok for c in compared), compared


def test_explain_names_the_parts_of_a_weight():
    weight = draw_sparse24(Make(torch.float32), 6, 8)
    told = warpwright.explain("linear_sparse24", torch.zeros(4, 8), weight)
    assert [facts.name for facts in told.inputs] == ["input", "weight.values", "weight.metadata"]
    assert told.flops == 4 * 6 * 8
    with pytest.raises(RuntimeError, match=r"fn must be one of warpwright\.ops"):
        warpwright.explain("Sparse24Weight", weight)
