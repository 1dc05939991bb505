"""tests/gemm_entry.cu for Python: products of NumPy arrays by one kernel and one configuration of it."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np
import torch

Batch = ctypes.c_int64 * 3  # kMaxBatchDims.


class GemmParams(ctypes.Structure):
    """csrc/kernels/matmul.h."""

    _fields_ = (
        ("a", ctypes.c_void_p), ("a_batch", Batch), ("a_row", ctypes.c_int64), ("a_col", ctypes.c_int64),
        ("b", ctypes.c_void_p), ("b_batch", Batch), ("b_row", ctypes.c_int64), ("b_col", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p), ("residual_batch", Batch),
        ("residual_row", ctypes.c_int64), ("residual_col", ctypes.c_int64),
        ("output", ctypes.c_void_p), ("preact", ctypes.c_void_p), ("batch", Batch),
        ("m", ctypes.c_int64), ("n", ctypes.c_int64), ("k", ctypes.c_int64),
        ("alpha", ctypes.c_float), ("beta", ctypes.c_float), ("output_scale", ctypes.c_float),
        ("activation", ctypes.c_int32), ("dtype", ctypes.c_int32), ("output_dtype", ctypes.c_int32),
        ("precision", ctypes.c_int32), ("batch_invariant", ctypes.c_bool),
    )  # fmt: skip


class WgmmaConfig(ctypes.Structure):
    """csrc/cuda/matmul/gemm_wgmma.cuh."""

    _fields_ = (
        ("tile_m", ctypes.c_int), ("tile_n", ctypes.c_int), ("pingpong", ctypes.c_bool), ("swapped", ctypes.c_bool),
        ("cluster", ctypes.c_int), ("splits", ctypes.c_int), ("band", ctypes.c_int),
    )  # fmt: skip

    def but(self, **changes: int) -> WgmmaConfig:
        return WgmmaConfig(**{name: changes.get(name, getattr(self, name)) for name, _ in self._fields_})

    def __str__(self) -> str:
        schedule = "swapped" if self.swapped else "pingpong" if self.pingpong else "cooperative"
        return f"{self.tile_m}x{self.tile_n} {schedule} cluster {self.cluster} splits {self.splits} band {self.band}"


#: Of the enums of csrc/kernels/common.h.
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3, "float8_e4m3fn": 4, "float8_e5m2": 5}
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "leaky_relu", "hardswish")
PRECISIONS = ("ieee", "tf32", "tf32x3")

#: What NumPy holds the bits in.
WORDS = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16}
WORDS |= {"float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}

#: Bytes around each array that belong to no other one: more than 256 lines.
GUARD = 1 << 19


def guarded(shape: tuple[int, ...], dtype: np.dtype | type, pitch: int | None = None, offset: int = 0) -> np.ndarray:
    """An array of NaNs at a multiple of 16 bytes plus `offset` elements, with nothing beside it; `pitch`: elements from
    one row to the next, more than it has."""
    itemsize = np.dtype(dtype).itemsize
    row = shape[-1] if pitch is None else pitch
    count = int(np.prod(shape[:-1])) * row
    raw = np.full(GUARD + count * itemsize + GUARD, 0xFF, dtype=np.uint8)
    first = GUARD + -raw.ctypes.data % 16 + offset * itemsize
    return raw[first : first + count * itemsize].view(dtype).reshape(*shape[:-1], row)[..., : shape[-1]]


@dataclass
class Product:
    """output_scale * activation(alpha * a @ b.T + bias + beta * residual), of arrays of bits: bfloat16 is words of 16.

    a (*batch, m, k), b (*batch, n, k), residual (*batch, m, n), any strides."""

    a: np.ndarray
    b: np.ndarray
    output: np.ndarray
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    preact: np.ndarray | None = None
    alpha: float = 1.0
    beta: float = 1.0
    output_scale: float = 1.0
    activation: str = "none"
    dtype: str = "float16"
    output_dtype: str = "float16"
    precision: str = "ieee"
    batch_invariant: bool = False

    def params(self) -> GemmParams:
        batch = self.output.shape[:-2]
        p = GemmParams(
            bias=None if self.bias is None else self.bias.ctypes.data,
            output=self.output.ctypes.data,
            preact=None if self.preact is None else self.preact.ctypes.data,
            batch=Batch(*(1,) * (3 - len(batch)), *batch),
            m=self.a.shape[-2], n=self.b.shape[-2], k=self.a.shape[-1],
            alpha=self.alpha, beta=self.beta, output_scale=self.output_scale,
            activation=ACTIVATIONS.index(self.activation), dtype=DTYPES[self.dtype],
            output_dtype=DTYPES[self.output_dtype], precision=PRECISIONS.index(self.precision),
            batch_invariant=self.batch_invariant,
        )  # fmt: skip
        for name in ("a", "b", "residual"):
            array = getattr(self, name)
            if array is None:
                continue
            strides = [stride // array.itemsize for stride in array.strides]
            setattr(p, name, array.ctypes.data)
            setattr(p, f"{name}_batch", Batch(*(0,) * (5 - array.ndim), *strides[:-2]))
            setattr(p, f"{name}_row", strides[-2])
            setattr(p, f"{name}_col", strides[-1])
        return p


def _extent(array: np.ndarray) -> Any:
    """The bytes from an array's first element to its last one."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return (ctypes.c_uint8 * (high - low)).from_address(low)


class Gemm:
    """The library's products. Kernels may touch the arrays of the one that is run, and nothing else."""

    def __init__(self, library: ctypes.CDLL, emulator: ModuleType):
        self.library, self.emulator = library, emulator
        for name in ("run_mma", "run_wgmma"):
            getattr(library, name).restype = ctypes.c_char_p
        library.wgmma_workspace_bytes.restype = ctypes.c_int64
        library.wgmma_allows.restype = ctypes.c_bool
        self.workspace = guarded((1 << 20,), np.uint8)

    def allow(self, product: Product, workspace_bytes: int) -> None:
        self.emulator.allow_everything()
        arrays = [getattr(product, member.name) for member in fields(product)] + [self.workspace[:workspace_bytes]]
        for array in arrays:
            if isinstance(array, np.ndarray) and array.size > 0:
                self.emulator.allow(_extent(array))

    def configs(self, product: Product) -> list[WgmmaConfig]:
        found = (WgmmaConfig * 64)()
        count = self.library.wgmma_configs(ctypes.byref(product.params()), found, len(found))
        assert count <= len(found)
        return [found[i].but() for i in range(count)]

    def allows(self, product: Product, config: WgmmaConfig) -> bool:
        return self.library.wgmma_allows(ctypes.byref(product.params()), ctypes.byref(config))

    def run(self, product: Product, config: WgmmaConfig | None) -> str:
        """Computes it, by wgmma as configured or by mma.sync; what went wrong, or ""."""
        params = product.params()
        if config is None:
            self.allow(product, 0)
            return self.library.run_mma(ctypes.byref(params)).decode()
        needed = 0
        if self.allows(product, config):
            needed = self.library.wgmma_workspace_bytes(ctypes.byref(params), ctypes.byref(config))
        assert needed <= self.workspace.size
        self.workspace[:needed] = 0xFF
        self.allow(product, needed)
        workspace = ctypes.c_void_p(self.workspace.ctypes.data if needed else None)
        return self.library.run_wgmma(ctypes.byref(params), ctypes.byref(config), workspace).decode()


# ---- products of random numbers ----


def stored(values: torch.Tensor, dtype: str, *, pitch: int | None = None, offset: int = 0) -> np.ndarray:
    """The bits of numbers in an array of their own, see gemm_entry.guarded."""
    bits = values.to(getattr(torch, dtype)).contiguous()
    word = {1: torch.uint8, 2: torch.uint16, 4: torch.float32}[bits.itemsize]
    array = guarded(tuple(values.shape), WORDS[dtype], pitch, offset)
    array[...] = bits.view(word).numpy()
    return array


def loaded(array: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(array.copy()).view(getattr(torch, dtype)).double()


@functools.cache
def numbers(name: str, shape: tuple[int, ...], integers: bool) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(map(ord, name)) + sum(shape))
    if integers:
        return torch.randint(-1, 2, shape, generator=random).double()
    return torch.randn(shape, generator=random, dtype=torch.float64) / 2


def make(
    m: int,
    n: int,
    k: int,
    *,
    batch: tuple[int, ...] = (),
    a_batch: tuple[int, ...] | None = None,
    layout: str = "nt",
    dtype: str = "float16",
    output_dtype: str | None = None,
    integers: bool = True,
    bias: bool = False,
    residual: str = "",
    keep: bool = False,
    **scalars: object,
) -> Product:
    """`layout`: "n" for a whose k lies together and for b whose n does, else "t". `a_batch`: a's own, broadcast to
    `batch`. `residual`: "", "rows" (aligned), "offset" (not), or "column", one number for a row."""
    a = numbers("a", (*(batch if a_batch is None else a_batch), m, k), integers)
    b = numbers("b", (*batch, n, k), integers)
    a_array = stored(a, dtype) if layout[0] == "n" else stored(a.mT, dtype).swapaxes(-1, -2)
    b_array = stored(b, dtype) if layout[1] == "t" else stored(b.mT, dtype).swapaxes(-1, -2)
    a_array = np.broadcast_to(a_array, (*batch, m, k))
    residual_array = None
    if residual == "column":
        column = stored(numbers("residual", (*batch, m, 1), integers), dtype)
        residual_array = np.broadcast_to(column, (*batch, m, n))
    elif residual:
        values = numbers("residual", (*batch, m, n), integers)
        residual_array = stored(values, dtype, pitch=n + 8, offset=int(residual == "offset"))
    output_dtype = output_dtype or dtype
    return Product(
        a_array,
        b_array,
        guarded((*batch, m, n), WORDS[output_dtype]),
        stored(numbers("bias", (n,), integers), dtype, offset=1) if bias else None,
        residual_array,
        guarded((*batch, m, n), WORDS[dtype]) if keep else None,
        dtype=dtype,
        output_dtype=output_dtype,
        **scalars,
    )


def truth(p: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """(the output, what is kept for the activation's gradient), in float64."""
    value = p.alpha * (loaded(p.a, p.dtype) @ loaded(p.b, p.dtype).mT)
    if p.bias is not None:
        value = value + loaded(p.bias, p.dtype)
    if p.residual is not None:
        value = value + p.beta * loaded(p.residual, p.dtype)
    activate = {
        "none": lambda x: x,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
        "tanh": torch.tanh,
        "hardswish": torch.nn.functional.hardswish,
    }[p.activation]
    kept = value if p.activation in ("gelu", "silu", "hardswish") else activate(value)
    return p.output_scale * activate(value), kept


def erase(p: Product) -> None:
    """Fills what a kernel writes with NaNs."""
    for array in (p.output, p.preact):
        if array is not None:
            array.view(np.uint8)[...] = 0xFF
