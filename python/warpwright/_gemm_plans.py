"""How C++ kernels compute a matrix product on a GPU: the model of csrc/kernels/gemm_plan.h, and what overrules it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from warpwright import _library
from warpwright._check import PRECISIONS

#: In the order of the enums of csrc/kernels.
_KERNELS = ("simple", "gemv", "mma", "tf32", "wgmma")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MOST_PLANS = 256


@dataclass(frozen=True)
class GemmPlan:
    """One way to compute a product.

    Attributes:
        kernel: "simple" (no tensor cores, any strides), "gemv" (one row or column), "mma" (mma.sync), "tf32" (mma.sync
            of float32 as TF32) or "wgmma" (Hopper).
        tile_m, tile_n: the part of the output that a block computes at a time.
        splits: blocks that share the sum of a tile.
        pingpong: whether Hopper's two consumers take turns at tiles; else they share each.
        swapped: whether tiles are those of the transposed output.
        cluster: blocks that load an operand for one another.
        seconds: predicted by the model, from datasheet rates.
    """

    kernel: str
    tile_m: int
    tile_n: int
    splits: int = 1
    pingpong: bool = False
    swapped: bool = False
    cluster: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        notes = {
            f"{self.splits} splits": self.splits > 1,
            "pingpong": self.pingpong,
            "swapped": self.swapped,
            f"clusters of {self.cluster}": self.cluster > 1,
        }
        how = "".join(f", {note}" for note, there in notes.items() if there)
        return f"{self.kernel} {self.tile_m} x {self.tile_n}{how}: {self.seconds * 1e6:.3g} us predicted"


@dataclass(frozen=True)
class GemmQuestion:
    """A product as the choice sees it: (m, k) by (k, n), `matrices` of them.

    Attributes:
        dtype, precision, batch_invariant: see `warpwright.ops.matmul`.
        a_along_k, b_along_k: whether K is the dimension of stride 1; `lines`: whether each operand has one.
        aligned: whether every line starts at a multiple of 16 bytes.
        tma: whether Hopper's kernel can read both operands; `by_tma`: whether it can store results by TMA.
        capability: 90 for sm_90; `multiprocessors`: how many.
    """

    matrices: int
    m: int
    n: int
    k: int
    dtype: torch.dtype
    precision: str = "ieee"
    capability: int = 90
    multiprocessors: int = 132
    batch_invariant: bool = False
    lines: bool = True
    a_along_k: bool = True
    b_along_k: bool = True
    aligned: bool = True
    tma: bool = True
    by_tma: bool = True

    def plans(self) -> list[GemmPlan]:
        """Every way to compute it, the one that should be fastest first."""
        question = _Question(
            self.matrices, self.m, self.n, self.k, _DTYPES.index(self.dtype), PRECISIONS.index(self.precision),
            self.capability, self.multiprocessors, self.batch_invariant, self.lines, self.a_along_k, self.b_along_k,
            self.aligned, self.tma, self.by_tma,
        )  # fmt: skip
        found = (_Plan * _MOST_PLANS)()
        count = _function(_library.CPU_LIBRARY, "warpwright_gemm_plans")(ctypes.byref(question), found, _MOST_PLANS)
        return [
            GemmPlan(
                _KERNELS[p.kernel],
                p.tile_m,
                p.tile_n,
                p.splits,
                bool(p.pingpong),
                bool(p.swapped),
                p.cluster,
                p.seconds,
            )
            for p in found[:count]
        ]


def question_of(
    a: Tensor,
    b: Tensor,
    precision: str,
    batch_invariant: bool,
    capability: int,
    multiprocessors: int,
    scaled_or_relu: bool = True,
) -> GemmQuestion:
    """The question of a (*batch, m, k) and b (*batch, n, k), tensors whose data need not exist: it is taken to start at
    a multiple of 16 bytes, as allocations do. `scaled_or_relu`: no more than scales, a bias and relu follows, and the
    output has 16 bits."""
    (m, k), n = a.shape[-2:], b.shape[-2]
    unit = 16 // a.element_size()
    aligned = _aligned(a, unit) and _aligned(b, unit)
    return GemmQuestion(
        a.shape[:-2].numel(), m, n, k, a.dtype, precision, capability, multiprocessors, batch_invariant,
        lines=1 in a.stride()[-2:] and 1 in b.stride()[-2:],
        a_along_k=a.stride(-1) == 1,
        b_along_k=b.stride(-1) == 1,
        aligned=aligned and a.element_size() == 2,
        tma=capability == 90 and aligned and (a.element_size() == 2 or _tf32_lines(a, b, precision)),
        by_tma=scaled_or_relu and a.element_size() == 2 and n % unit == 0,
    )  # fmt: skip


def _tf32_lines(a: Tensor, b: Tensor, precision: str) -> bool:
    return precision == "tf32" and a.stride(-1) == 1 and b.stride(-1) == 1


def _aligned(operand: Tensor, unit: int) -> bool:
    line = operand.stride(-2) if operand.stride(-1) == 1 else operand.stride(-1)
    batch = [stride for size, stride in zip(operand.shape[:-2], operand.stride()[:-2], strict=True) if size > 1]
    return 1 in operand.stride()[-2:] and all(stride % unit == 0 for stride in (line, *batch))


def prefer(library: Path, plan: GemmPlan, question: GemmQuestion | None = None) -> None:
    """Makes a library's kernels take `plan` for products like `question`, or for all that can take it.

    Sizes that grow with the batch (matrices, m) stand for all up to the next power of two.
    """
    from warpwright.tuning import power_of_two  # Here, so that importing warpwright does not load the tables.

    kernel = (
        _KERNELS.index(plan.kernel), plan.tile_m, plan.tile_n, plan.splits, plan.pingpong, plan.swapped, plan.cluster,
    )  # fmt: skip
    if question is None:
        preference = _Preference(0, 0, 0, 0, 0, 0, 0, 0, *kernel)
    else:
        q = question
        preference = _Preference(
            power_of_two(q.matrices), power_of_two(q.m), q.n, q.k,
            _DTYPES.index(q.dtype), PRECISIONS.index(q.precision), q.a_along_k, q.b_along_k, *kernel,
        )  # fmt: skip
    _function(library, "warpwright_gemm_prefer")(ctypes.byref(preference))


def forget(library: Path) -> None:
    """Undoes every `prefer`."""
    _function(library, "warpwright_gemm_forget")()


_PLAN = ("kernel", "tile_m", "tile_n", "splits", "pingpong", "swapped", "cluster")


class _Question(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("matrices", "m", "n", "k")),
        *((name, ctypes.c_int32) for name in ("dtype", "precision", "capability", "multiprocessors")),
        *(
            (name, ctypes.c_bool)
            for name in ("batch_invariant", "lines", "a_along_k", "b_along_k", "aligned", "tma", "by_tma")
        ),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in _PLAN),
        ("seconds", ctypes.c_double),
    )


class _Preference(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("matrices", "m", "n", "k")),
        *((name, ctypes.c_int32) for name in ("dtype", "precision", "a_along_k", "b_along_k")),
        *((name, ctypes.c_int32) for name in _PLAN),
    )


def _function(library: Path, name: str) -> ctypes._NamedFuncPointer:
    return getattr(ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD), name)
