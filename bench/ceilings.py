"""What this machine can do at most, measured in the run that needs it: a copy's bytes, a large product's FLOP/s.

Datasheets name clocks that a machine does not hold; a share of what was reached here, in the same minutes, says what is
left to gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from warpwright.bench.rows import Ceiling
from warpwright.bench.timing import Candidate, measure

#: Well past every last-level cache.
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
#: (M, N, K). A CPU goes up to the size that it has the time for; of a GPU's all are measured, because which is fastest
#: depends on how its tiles divide among its multiprocessors.
_PRODUCTS = {
    "cpu": ((256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 4096)),
}
#: A product of a CPU is made at least so often.
_CPU_CALLS = 20
#: Whose product stands for that of a dtype without one, the first that was measured.
_NEAREST = {
    "float8_e4m3fn": ("bfloat16", "float16", "float32"),
    "float8_e5m2": ("bfloat16", "float16", "float32"),
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float16", "float32"),
}

Measure = Callable[..., Any]


def measure_ceilings(
    device: torch.device | str, dtypes: Sequence[torch.dtype], *, seconds: float, measure: Measure = measure
) -> list[Ceiling]:
    """The copy, and a product for each dtype.

    Args:
        device: where.
        dtypes: of the products; one that torch cannot multiply there is left out.
        seconds: for each ceiling, at most, on top of a warm-up of as much.
        measure: `bench.timing.measure`.

    Returns:
        The copy first. Each is the best of what was tried, and its `what` says which.
    """
    device = torch.device(device)
    found = [_copy(device, seconds, measure)]
    for dtype in dtypes:
        product = _product(device, dtype, seconds, measure)
        found += [] if product is None else [product]
    return found


def _copy(device: torch.device, seconds: float, measure: Measure) -> Ceiling:
    size = _COPY_BYTES[device.type]
    source = torch.rand(size // 4, device=device)
    other, target = torch.rand_like(source), torch.empty_like(source)
    moved = {"copy": 2 * size, "triad": 3 * size}
    calls = {
        "copy": Candidate(lambda i: target.copy_(source)),
        # a + 0.5 b: on some CPUs more reads for each write reach more.
        "triad": Candidate(lambda i: torch.add(source, other, alpha=0.5, out=target)),
    }
    rates = {name: moved[name] / t.p20 for name, t in measure(calls, device, seconds=seconds / len(calls)).items()}
    best = max(rates, key=lambda name: rates[name])
    return Ceiling("copy", "", rates[best], f"{best} of {size >> 20} MiB", device.type)


def _product(device: torch.device, dtype: torch.dtype, seconds: float, measure: Measure) -> Ceiling | None:
    best: Ceiling | None = None
    shapes = _PRODUCTS[device.type]
    for m, n, k in shapes:
        try:
            call = _product_call(device, dtype, m, n, k)
            timing = measure({"product": Candidate(call)}, device, seconds=seconds / len(shapes))["product"]
        except RuntimeError:  # Torch has no such product here, or the memory does not do for it.
            break
        rate = 2 * m * n * k / timing.p20
        if best is None or rate > best.value:
            best = Ceiling("matmul", _name(dtype), rate, f"{m} x {n} x {k}", device.type)
        # The next is eight times as much work.
        if device.type == "cpu" and 8 * timing.p20 * _CPU_CALLS > seconds:
            break
    return best


def _product_call(device: torch.device, dtype: torch.dtype, m: int, n: int, k: int) -> Callable[[int], Any]:
    """On random operands: with zeros a GPU keeps higher clocks than any real work lets it."""
    left, right = (torch.rand(shape, device=device).mul_(2).sub_(1).to(dtype) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, device=device, dtype=dtype)
    return lambda i: torch.mm(left, right, out=out)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the roofline ----


def product_ceiling(dtype: str, ceilings: Sequence[Ceiling]) -> Ceiling | None:
    """The product that limits work in this dtype: its own, or the nearest one's, whose `dtype` then is another."""
    products = {c.dtype: c for c in ceilings if c.name == "matmul"}
    return next((products[name] for name in (dtype, *_NEAREST.get(dtype, ())) if name in products), None)


def share(flops: int, bytes: int, seconds: float, dtype: str, ceilings: Sequence[Ceiling]) -> tuple[float, str] | None:
    """How much of the machine's ceiling a call reached: the time that the measured ceilings allow / its time.

    Args:
        flops, bytes: the call's least work.
        seconds: its time.
        dtype: such as "bfloat16". An 8-bit type is held to the product of a wider one, where it has none of its own; a
            dtype without any, such as an integer type, to the copy alone.
        ceilings: of the same device and run.

    Returns:
        (share, "compute" or "memory", whichever takes the longer), or None without a ceiling for the work.
    """
    copy = next((c for c in ceilings if c.name == "copy"), None)
    product = product_ceiling(dtype, ceilings)
    times = {"memory": bytes / copy.value if copy else 0.0, "compute": flops / product.value if product else 0.0}
    bound = max(times, key=lambda name: times[name])
    return (times[bound] / seconds, bound) if times[bound] > 0 and seconds > 0 else None
