"""Each way to compute a product, forced; and the model that chooses among them."""

from __future__ import annotations

import dataclasses

import emulated
import pytest
import torch

import warpwright
from warpwright import _gemm_plans
from warpwright._gemm_plans import GemmPlan, GemmQuestion
from warpwright.testing import SPECS, Make, Sample, compare

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))


def along_k(m: int, layout: str) -> bool:
    """Whether the matrix of a product with one row or column lies along K."""
    return layout[1] == "t" if m == 1 else layout[0] == "n"


LAYOUTS = ["nt", "nn", "tt", "tn"]
#: (tile, splits, layout) of a float16 product of whole chunks; flat tiles take A along K only.
MMA_PLANS = [
    (*tile, splits, layout)
    for tile in ((128, 128), (64, 64), (16, 128))
    for splits in (1, 2)
    for layout in LAYOUTS
    if tile[0] > 16 or layout[0] == "n"
]
#: (m, n, k, layout, splits): blocks share a sum across K only, and only a long one.
VECTORS = [
    (m, n, k, layout, splits)
    for m, n, k in ((1, 264, 520), (1, 67, 61), (264, 1, 520), (33, 1, 29))
    for layout in LAYOUTS
    for splits in (1, 4)
    if splits == 1 or (k > 256 and not along_k(m, layout))
]


@pytest.fixture
def prefer():
    """Forces a plan on every product that can take it, for one test."""
    emulated.activate()

    def force(kernel: str, tile_m: int, tile_n: int, splits: int) -> None:
        _gemm_plans.prefer(emulated.library(), GemmPlan(kernel, tile_m, tile_n, splits))

    yield force
    _gemm_plans.forget(emulated.library())


def product(m: int, n: int, k: int, layout: str, dtype: torch.dtype, integers: bool = False) -> Sample:
    """matmul's operands; a layout's letters say whether each lies row by row ("n") or column by column."""
    make = Make(dtype)

    def operand(rows: int, cols: int, side: str) -> torch.Tensor:
        shape = (rows, cols) if side == "n" else (cols, rows)
        values = make.integers(*shape, low=-4, high=5).to(dtype) if integers else make.tensor(*shape, grad=False)
        return values if side == "n" else values.mT

    return Sample(f"{m} x {n} x {k} {layout}", (operand(m, k, layout[0]), operand(k, n, layout[1])))


def run_every_plan() -> None:
    """Small products by each kernel and tile, in every dtype and layout; left alone they would choose few of them."""
    reached = set()
    for m, k, precision in ((8, 8, "tf32"), (1, 8, "ieee"), (1, 512, "ieee")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for layout in LAYOUTS:
                sample = product(m, 8, k, layout, dtype)
                a, b = sample.args
                for plan in _gemm_plans.question_of(a, b.mT, precision, False, 90, 2).plans():
                    # What Hopper's kernel is an instance of, dtypes and layouts are not.
                    kind = (plan.kernel, plan.tile_m, plan.tile_n, plan.swapped, plan.splits > 1)
                    kind += () if plan.kernel == "wgmma" else (dtype, layout)
                    if kind not in reached:
                        reached.add(kind)
                        _gemm_plans.prefer(emulated.library(), plan)
                        with warpwright.float32_precision(precision):
                            warpwright.ops.matmul(a, b)
                        _gemm_plans.forget(emulated.library())


def launched(kernel: str, sample: Sample, **arch: str) -> torch.Tensor:
    """The product, and that it was `kernel` that computed it."""
    before = emulated.launches(kernel)
    with warpwright.use_backend("emulated"):
        result = warpwright.ops.matmul(*sample.args)
    assert emulated.launches(kernel) > before
    return result


@pytest.mark.parametrize(("tile_m", "tile_n", "splits", "layout"), MMA_PLANS)
def test_small_integers_are_exact(prefer, tile_m, tile_n, splits, layout):
    prefer("mma", tile_m, tile_n, splits)
    # Splits are for few tiles.
    m, n = (72, 136) if splits == 1 else (40, 56)
    sample = product(m, n, 520, layout, torch.float16, integers=True)
    a, b = sample.args
    assert torch.equal(launched("gemm_mma", sample), (a.double() @ b.double()).half())
    assert splits == 1 or emulated.launches("reduce_splits")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("size", [(72, 68, 520), (37, 67, 515)], ids=["aligned", "unaligned"])
def test_tf32(prefer, precision, layout, splits, size):
    """Three TF32 products have float32's error; one has it for operands that TF32 holds."""
    prefer("tf32", 128, 64, splits)
    sample = product(*size, layout, torch.float32)
    if precision == "tf32":
        sample = sample.map(lambda t: t.bfloat16().float())
    with warpwright.float32_precision(precision):
        launched("gemm_tf32", sample)
        with warpwright.use_backend("emulated"):
            compared = compare(SPECS["matmul"], sample)
    assert all(c.ok for c in compared), compared


def test_tf32_rounds_its_operands_to_nearest(prefer):
    one = torch.ones(4, 4) + 2.0**-11 + 2.0**-20
    with warpwright.float32_precision("tf32"):
        result = launched("gemm_tf32", Sample("", (one, torch.eye(4))))
    assert torch.equal(result, torch.full((4, 4), 1 + 2.0**-10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k", "layout", "splits"), VECTORS)
def test_matrix_times_vector(prefer, dtype, m, n, k, layout, splits):
    prefer("gemv", 1, 1, splits)
    sample = product(m, n, k, layout, dtype)
    launched("gemv_along_k" if along_k(m, layout) else "gemv_across_k", sample)
    with warpwright.use_backend("emulated"):
        compared = compare(SPECS["matmul"], sample)
    assert all(c.ok for c in compared), compared


@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_batch_invariant_rows(monkeypatch, arch, dtype):
    """A row's bits are those that it has alone, whatever the rows beside it."""
    emulated.activate()
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", arch)
    make = Make(dtype)
    x, w, b = make.tensor(130, 264, grad=False), make.tensor(72, 264, grad=False), make.tensor(72, grad=False)
    with warpwright.use_backend("emulated"), warpwright.batch_invariant():
        full = warpwright.ops.linear(x, w, b, activation="gelu")
        for rows in (1, 2, 17, 64):
            assert torch.equal(warpwright.ops.linear(x[:rows], w, b, activation="gelu"), full[:rows])


def test_batch_invariant_products_do_not_follow_what_was_measured(prefer):
    """A winner holds for some numbers of rows, and the next one adds up in another order."""
    few = question(1, 4096, 4096, multiprocessors=2)
    other = few.plans()[1]
    _gemm_plans.prefer(emulated.library(), other, few)
    assert _gemm_plans.chosen(emulated.library(), few).text == other.text
    invariant = dataclasses.replace(few, batch_invariant=True)
    assert _gemm_plans.chosen(emulated.library(), invariant).text == invariant.plans()[0].text


# ---- explain ----


@pytest.mark.parametrize("m", [1, 24, 300])
@pytest.mark.parametrize("arch", ["80", "90"])
def test_explain_names_the_kernel_that_runs(monkeypatch, m, arch):
    emulated.activate()
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", arch)
    x, w = torch.ones(m, 64, dtype=torch.float16), torch.ones(264, 64, dtype=torch.float16)
    with warpwright.use_backend("emulated"):
        explanation = warpwright.explain("linear", x, w)
        assert f"  tile      {explanation.plans[0]}" in str(explanation)
        assert len(explanation.plans) > 1, "the alternatives"
        kernel = {"mma": "gemm_mma", "wgmma": "gemm_wgmma", "gemv": "gemv_along_k"}[explanation.plans[0].kernel]
        before = emulated.launches(kernel)
        warpwright.ops.linear(x, w)
    assert emulated.launches(kernel) == before + 1


# ---- the model ----


def question(m: int, n: int, k: int, **changes: object) -> GemmQuestion:
    return GemmQuestion(1, m, n, k, torch.bfloat16, **changes)  # type: ignore[arg-type]


def test_large_products_take_the_largest_tile():
    assert question(8192, 8192, 8192).plans()[0].kernel == "wgmma"
    assert question(8192, 8192, 8192, capability=80, multiprocessors=108).plans()[0].tile_m == 128


def test_one_row_takes_the_vector_kernel_and_few_rows_split():
    assert question(1, 4096, 14336).plans()[0].kernel == "gemv"
    few = question(16, 4096, 14336).plans()[0]
    assert (few.kernel, few.tile_m) == ("mma", 16)
    assert few.splits > 1


def test_predictions_respect_the_roofline():
    """No plan is faster than the datasheet allows."""
    for m in (1, 16, 128, 1024, 8192):
        q = question(m, 8192, 8192)
        floor = max(2 * m * 8192 * 8192 / 989.4e12, 2 * (2 * m * 8192 + 8192**2) / 3.37e12)
        assert all(plan.seconds >= floor for plan in q.plans())


def test_batch_invariance_depends_on_nothing_of_the_batch():
    """Neither the kernel's kind nor its splits may change with the number of rows."""
    for capability in (80, 90):
        kinds = {
            (plans[0].kernel, plans[0].splits)
            for m in (1, 3, 64, 4096)
            if (plans := question(m, 4096, 4096, capability=capability, batch_invariant=True).plans())
        }
        assert len(kinds) == 1


def test_what_nothing_else_takes_goes_to_the_simple_kernel():
    plans = question(100, 100, 100, lines=False, aligned=False, tma=False).plans()
    assert [plan.kernel for plan in plans] == ["simple"]
    assert [plan.kernel for plan in question(100, 100, 100, aligned=False, tma=False).plans()] == ["simple"]
