"""How C++ kernels compute a matrix product, or a convolution, on a GPU: the model of csrc/kernels/gemm_plan.h, and what
overrules it.

A library overrules the model by what it was told to `prefer`: by the winners of `warpwright tune`, which
`warpwright.tuning.products` hands over when a kind of device is first used.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from warpwright import _library
from warpwright._check import PRECISIONS

#: In the order of the enums of csrc/kernels.
KERNELS = ("simple", "gemv", "mma", "tf32", "wgmma")
ROLES = ("matrices", "forward", "input gradient", "weight gradient")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MOST_PLANS = 256
#: More blocks than these never share a tile's sum, of each role.
MOST_SPLITS = {"matrices": 32, "forward": 1, "input gradient": 1, "weight gradient": 256}

#: backend -> the library that has its kernels; see `add_library`.
LIBRARIES: dict[str, Path] = {}


def device_kind(device: torch.device, backend: str) -> tuple[int, int]:
    """(compute capability, multiprocessors)."""
    if backend == "emulated":  # csrc/emulator/runtime.h.
        arch = os.environ.get("WARPWRIGHT_EMULATOR_ARCH", "90")
        return int(arch), int(os.environ.get("WARPWRIGHT_EMULATOR_MULTIPROCESSORS", "2"))
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


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
        measured: seconds that `warpwright tune` measured of it for such a product; None where it did not, or where
            another plan won.
    """

    kernel: str
    tile_m: int
    tile_n: int
    splits: int = 1
    pingpong: bool = False
    swapped: bool = False
    cluster: int = 1
    seconds: float = 0.0
    measured: float | None = None

    @property
    def text(self) -> str:
        """Such as "mma 64 x 64, 2 splits"."""
        notes = {
            f"{self.splits} splits": self.splits > 1,
            "pingpong": self.pingpong,
            "swapped": self.swapped,
            f"clusters of {self.cluster}": self.cluster > 1,
        }
        how = "".join(f", {note}" for note, there in notes.items() if there)
        return f"{self.kernel} {self.tile_m} x {self.tile_n}{how}"

    def __str__(self) -> str:
        predicted = f"{self.seconds * 1e6:.3g} us predicted"
        if self.measured is None:
            return f"{self.text}: {predicted}"
        return f"{self.text}: {self.measured * 1e6:.3g} us measured by warpwright tune, {predicted}"


@dataclass(frozen=True)
class GemmQuestion:
    """A product as the choice sees it: (m, k) by (k, n), `matrices` of them.

    Attributes:
        dtype, precision, batch_invariant: see `warpwright.ops.matmul`.
        a_along_k, b_along_k: whether K is the dimension of stride 1; `lines`: whether each operand has one.
        aligned: whether every line starts at a multiple of 16 bytes.
        tma: whether Hopper's kernel can read both operands; `by_tma`: whether it can store results by TMA.
        capability: 90 for sm_90; `multiprocessors`: how many.
        measured: whether a convolution's statistics are wanted.
        role: of `ROLES`: whether it is of matrices, or of a convolution and which.
        channels: of a convolution's group, those that each tap has in k, or in n of a weight's gradient; 0 of matrices.
        gathered: elements of the tensor that a convolution gathers pixels from.

    Of a convolution `lines` says whether it is one for the tensor cores at all, and `aligned` whether channels are read
    in vectors.
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
    measured: bool = False
    role: str = "matrices"
    channels: int = 0
    gathered: int = 0

    def plans(self) -> list[GemmPlan]:
        """Every way to compute it, the one that should be fastest first."""
        question, found = _as_c(self), (_Plan * _MOST_PLANS)()
        count = function_of(_library.CPU_LIBRARY, "warpwright_gemm_plans")(ctypes.byref(question), found, _MOST_PLANS)
        return [_of_c(plan) for plan in found[:count]]

    def bucketed(self) -> GemmQuestion:
        """It with the sizes that grow with the batch rounded up to powers of two: what stands for all like it.

        These are `matrices`, and `m`; of a weight's gradient, neither of whose operands lies along K, `k`.
        """
        from warpwright.tuning import power_of_two  # Here, so that importing warpwright does not load the tables.

        grows = "m" if self.a_along_k or self.b_along_k else "k"
        sizes = {name: power_of_two(getattr(self, name)) for name in ("matrices", grows)}
        return dataclasses.replace(self, **sizes)  # type: ignore[arg-type]


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

    Products are like it when they have its `bucketed` sizes, dtype, precision and layout, on a device of its capability
    and number of multiprocessors. What was preferred for them before is replaced.
    """
    kernel = (
        KERNELS.index(plan.kernel), plan.tile_m, plan.tile_n, plan.splits, plan.pingpong, plan.swapped, plan.cluster,
        plan.measured or 0.0,
    )  # fmt: skip
    if question is None:
        preference = _Preference(*[0] * 12, *kernel)
    else:
        q = question.bucketed()
        preference = _Preference(
            q.matrices, q.m, q.n, q.k, q.channels, ROLES.index(q.role), DTYPES.index(q.dtype),
            PRECISIONS.index(q.precision), q.a_along_k, q.b_along_k, q.capability, q.multiprocessors, *kernel,
        )  # fmt: skip
    function_of(library, "warpwright_gemm_prefer")(ctypes.byref(preference))


def forget(library: Path) -> None:
    """Undoes every `prefer`."""
    function_of(library, "warpwright_gemm_forget")()


def chosen(library: Path, question: GemmQuestion) -> GemmPlan:
    """The plan that a library's kernels would take now."""
    plan, choose = _Plan(), function_of(library, "warpwright_gemm_choose")
    choose.restype = ctypes.c_double
    measured = choose(ctypes.byref(_as_c(question)), ctypes.byref(plan))
    return _of_c(plan, measured or None)


# ---- measured winners ----

_OnDevice = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_int32)
#: Kept, because a library keeps their addresses.
_loaders: dict[str, Callable[[int, int], None]] = {}


def add_library(backend: str, library: Path) -> None:
    """Says which library has a backend's kernels, and gives it measured winners once a device is used: no file is read
    before. What a product is called by, Python or compiled code, does not matter."""

    def load(capability: int, multiprocessors: int) -> None:
        try:
            from warpwright.tuning import products

            products.load(backend, capability, multiprocessors)
        except Exception as error:  # The product must not fail for it, and a callback cannot raise.
            warnings.warn(f"warpwright: tables are not used: {error}", RuntimeWarning, stacklevel=2)

    LIBRARIES[backend] = library
    _loaders[backend] = _OnDevice(load)
    function_of(library, "warpwright_gemm_on_device")(_loaders[backend])


def suspend(backend: str) -> None:
    """Takes a library's preferences away, until `reload`."""
    forget(LIBRARIES[backend])
    function_of(LIBRARIES[backend], "warpwright_gemm_on_device")(None)


def reload() -> None:
    """Makes every library ask for measured winners again."""
    for backend, library in LIBRARIES.items():
        forget(library)
        function_of(library, "warpwright_gemm_on_device")(_loaders[backend])


# ---- the library's own types ----

_PLAN = ("kernel", "tile_m", "tile_n", "splits", "pingpong", "swapped", "cluster")


class Question(ctypes.Structure):
    """GemmQuestion of csrc/kernels/gemm_plan.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("matrices", "m", "n", "k")),
        *((name, ctypes.c_int32) for name in ("dtype", "precision", "capability", "multiprocessors")),
        *(
            (name, ctypes.c_bool)
            for name in ("batch_invariant", "lines", "a_along_k", "b_along_k", "aligned", "tma", "by_tma", "measured")
        ),
        ("role", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("channels", "gathered")),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in _PLAN),
        ("seconds", ctypes.c_double),
    )


class _Preference(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("matrices", "m", "n", "k", "channels")),
        *((name, ctypes.c_int32) for name in ("role", "dtype", "precision", "a_along_k", "b_along_k")),
        *((name, ctypes.c_int32) for name in ("capability", "multiprocessors")),
        *((name, ctypes.c_int32) for name in _PLAN),
        ("seconds", ctypes.c_double),
    )


#: What is a number in C.
_NAMES = {"dtype": DTYPES, "precision": PRECISIONS, "role": ROLES}


def _as_c(question: GemmQuestion) -> Question:
    values = {field[0]: getattr(question, field[0]) for field in Question._fields_}
    return Question(**{name: _NAMES[name].index(v) if name in _NAMES else v for name, v in values.items()})


def question_from(found: Question) -> GemmQuestion:
    """The library's own as Python has it."""
    values = {field[0]: getattr(found, field[0]) for field in Question._fields_}
    return GemmQuestion(**{name: _NAMES[name][v] if name in _NAMES else v for name, v in values.items()})


def _of_c(p: _Plan, measured: float | None = None) -> GemmPlan:
    how = (KERNELS[p.kernel], p.tile_m, p.tile_n, p.splits, bool(p.pingpong), bool(p.swapped), p.cluster)
    return GemmPlan(*how, p.seconds, measured)


@functools.cache
def function_of(library: Path, name: str) -> ctypes._NamedFuncPointer:
    """Of a library that is loaded."""
    return getattr(ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD), name)


if _library.CUDA_MISSING is None:
    add_library("native", _library.CUDA_LIBRARY)
