"""Elements further than 2^31 from the first one: rows and columns of small matrices, far apart in a sparse mapping.

Only the pages that hold elements are ever in memory, so that each backend's own index arithmetic is run on offsets that
32 bits do not hold.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial

import emulated
import pytest
import torch
import torch.nn.functional as F
from thinning import thinned
from torch import Tensor

import warpwright
from warpwright import _gemm_plans
from warpwright.ops import conv2d
from warpwright.testing import SPECS, Make, OpSpec, Sample, compare, evaluate_in_place

#: Of the last row or column from the first one, in elements, at least; lines start at multiples of 16 bytes.
FAR = 2**31 + 64
MAP_NORESERVE = 0x4000  # Of Linux: pages count once they are written to. Python names it from 3.13 on.
SAMPLES = 4  # Of each op.

pytestmark = pytest.mark.skipif(os.uname().sysname != "Linux", reason="sparse mappings are Linux's")


def far_apart(tensor: Tensor, dim: int) -> Tensor:
    """`tensor`'s values as a leaf whose dimension `dim` has a stride with which its last element is FAR away."""
    if tensor.dim() < 2 or tensor.shape[dim] < 2 or tensor.numel() == 0:
        return tensor
    count = tensor.shape[dim]
    stride = -(-FAR // (count - 1) // 16) * 16
    inner = list(tensor.movedim(dim, 0)[0].contiguous().stride())
    inner.insert(dim % tensor.dim(), stride)
    elements = (count - 1) * stride + tensor[0].numel() * tensor.shape[0]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    room = mmap.mmap(-1, elements * tensor.element_size(), flags=flags)
    moved = torch.frombuffer(room, dtype=tensor.dtype).as_strided(tensor.shape, inner)
    with torch.no_grad():
        moved.copy_(tensor)
    return moved.detach().requires_grad_(tensor.requires_grad)


def _samples(spec: OpSpec, device: str) -> Iterator[Sample]:
    """The first ones with two rows and two columns somewhere, of 16 bits where the op takes them."""
    dtype = torch.bfloat16 if torch.bfloat16 in spec.dtypes else spec.dtypes[0]
    fitting = (s for s in spec.samples(Make(dtype, device)) if any(_is_matrix(t) for t in s.tensors()))
    return itertools.islice(fitting, SAMPLES // 2 if thinned(device) else SAMPLES)


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.dim() >= 2 and min(tensor.shape[0], tensor.shape[-1]) > 1 and tensor.numel() > 0


WITH_MATRICES = [spec for spec in SPECS.values() if any(True for _ in _samples(spec, "cpu"))]


@pytest.mark.parametrize("dim", [0, -1], ids=["rows", "columns"])
@pytest.mark.parametrize("spec", WITH_MATRICES, ids=lambda spec: spec.name)
def test_elements_past_32_bits(matrix, spec, dim):
    if matrix == "cuda":
        pytest.skip("a GPU has no sparse memory")
    for sample in _samples(spec, matrix):
        ours = evaluate_in_place(spec.op, sample.map(lambda tensor: far_apart(tensor, dim)))
        wrong = [f"{sample.name}: {c}" for c in compare(spec, sample, ours) if not c.ok]
        assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
@pytest.mark.parametrize("layout", ["nt", "nn", "tt", "tn"])
@pytest.mark.parametrize(("m", "dtype"), [(24, torch.float16), (24, torch.float32), (1, torch.float16)])
def test_every_kernel_of_a_product(m, dtype, layout):
    """Lines of both operands and of the residual are far apart, and every kernel and tile computes the product."""
    emulated.activate()
    n, k = 40, 72
    make = Make(dtype)

    def operand(rows: int, cols: int, side: str) -> Tensor:
        """Row by row ("n") or column by column."""
        shape = (rows, cols) if side == "n" else (cols, rows)
        values = far_apart(make.integers(*shape, low=-4, high=5).to(dtype), 0)
        return values if side == "n" else values.mT

    a, b = operand(m, k, layout[0]), operand(k, n, layout[1])
    residual = far_apart(make.integers(m, n, low=-4, high=5).to(dtype), 0)
    expected = (a.double() @ b.double() + residual.double()).to(dtype)
    reached = set()
    for plan in _gemm_plans.question_of(a, b.mT, "tf32", False, 90, 2).plans():
        kind = (plan.kernel, plan.tile_m, plan.tile_n, plan.pingpong, plan.swapped)
        if kind in reached:
            continue
        reached.add(kind)
        _gemm_plans.prefer(emulated.library(), plan)
        try:
            with warpwright.use_backend("emulated"), warpwright.float32_precision("tf32"):
                assert torch.equal(warpwright.ops.matmul(a, b, residual=residual), expected), str(plan)
        finally:
            _gemm_plans.forget(emulated.library())
    kernels = {kernel for kernel, *_ in reached}
    vector = {"gemv"} if m == 1 else set()
    assert kernels >= vector | ({"tf32"} if dtype == torch.float32 else {"mma", "wgmma"})


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dim", [0, 1], ids=["images", "rows"])
def test_hoppers_convolutions(dim, stride):
    """Images, or their rows, of what a kernel reads are far apart, or filters. Results of tensors with gaps are another
    kernel's to write, and not asked for."""
    emulated.activate()
    make = Make(torch.float16)

    def values(*shape: int, dim: int | None = None) -> Tensor:
        """(batch, height, width, channels) as (batch, channels, height, width), far apart in `dim` of the former."""
        lying = make.integers(*shape, low=-2, high=3).to(torch.float16)
        return (lying if dim is None else far_apart(lying, dim)).movedim(-1, 1)

    def launched(kernel: str, call: Callable[[], Tensor]) -> Tensor:
        before = emulated.launches(kernel)
        with warpwright.use_backend("emulated"):
            result = call()
        assert emulated.launches(kernel) == before + 1
        return result.double()

    size = ((6 - 1) // stride + 1, (5 - 1) // stride + 1)
    x, w = values(2, 6, 5, 40), values(40, 3, 3, 40)
    far_x, far_w = values(2, 6, 5, 40, dim=dim), values(40, 3, 3, 40, dim=0)
    grad = values(2, *size, 40, dim=dim)
    # Of a residual each pixel is a step from the one before.
    pixels = make.integers(2 * size[0] * size[1], 40, low=-2, high=3).to(torch.float16)
    residual = far_apart(pixels, 0).unflatten(0, (2, *size)).movedim(-1, 1)

    for image, filters in ((far_x, w), (x, far_w)):
        exact = F.conv2d(image.double(), filters.double(), None, stride, 1)
        forward = partial(conv2d, image, filters, None, stride, 1, residual=residual)
        ours = launched("conv_fprop_wgmma", forward)
        assert torch.equal(ours, exact + residual)

    def gradient(x: Tensor, w: Tensor, of: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(conv2d(x, w, None, stride, 1), of, grad)[0]

    x.requires_grad_()
    ours = launched("conv_dgrad_wgmma", gradient(x, far_w, x))
    exact = F.conv2d(x.double(), far_w.double(), None, stride, 1)
    assert torch.equal(ours, torch.autograd.grad(exact, x, grad.double())[0].double())
    w.requires_grad_()
    ours = launched("conv_wgrad_wgmma", gradient(far_x, w, w))
    exact = F.conv2d(far_x.double(), w.double(), None, stride, 1)
    assert torch.equal(ours, torch.autograd.grad(exact, w, grad.double())[0].double())
