"""Results that no machine has measured: several suites, ops, dtypes and providers, with all that can go wrong."""

from __future__ import annotations

import math
import random

from warpwright.bench.rows import Ceiling, Results, Row

#: Markup that must be shown, never run.
EVIL = '</script><script>window.evil = 1</script><img src="http://evil.invalid/x" onerror="window.evil = 2"><b>x</b>'

BYTES_PER_SECOND = 4.2e12
FLOPS = {"float32": 50e12, "bfloat16": 760e12}
SIZE = {"float32": 4, "bfloat16": 2}
PROVIDERS = ("torch", "compile", "warpwright", "warpwright-triton", "quack")
DIRECTIONS = ("forward", "backward", "both")

#: How much of a ceiling each provider reaches on large work; launches cost what LAUNCH says.
REACH = {"torch": 0.62, "compile": 0.78, "warpwright": 0.9, "warpwright-triton": 0.84, "quack": 0.88}
MEMORY = {"torch": 1.5, "compile": 1.1, "warpwright": 0.8, "warpwright-triton": 0.9, "quack": 1.0}
LAUNCH = {"torch": 9e-6, "compile": 6e-6, "warpwright": 3e-6, "warpwright-triton": 5e-6, "quack": 5e-6}


def environment(name: str = "NVIDIA H200", time: str = "2026-03-01T10:00:00+00:00") -> dict:
    info = {
        "version": "0.1.0", "commit": "0123456789ab", "python": "3.12.3", "platform": "Linux x86_64", "torch": "2.13.0",
        "torch_cuda": "13.0", "driver": "580.65",
        "gpus": [{"name": name, "capability": "9.0", "memory": 150_000_000_000, "multiprocessors": 132}],
        "libraries": {"libwarpwright.so": None, "libwarpwright_cuda.so": None},
        "build": {"cuda": True, "cuda_archs": "90a"},
        "cpu": "Xeon, 32 cores", "threads": 16, "triton": "3.7.1", "current_backend": "auto",
    }  # fmt: skip
    return {
        "info": info, "time": time, "device": "cuda", "gpu": {"name": name, "clocks": {"sm": 1980, "memory": 3201}},
        "threads": {"threads": 16, "pinned": True, "load": [0.1, 0.2]},
        "missing": {"apex": "apex is not installed"}, "options": {"seconds": 0.3, "spread": 0.01, "baseline": "torch"},
    }  # fmt: skip


def cases() -> list[tuple[str, str, dict, float, float]]:
    """(suite, op, parameters, operations, elements) of each case."""
    found = []
    for op in ("rms_norm", "layer_norm"):
        for width in (1024, 2048, 4096, 8192, 16384):
            found.append(("norm", op, {"rows": 8192, "width": width}, 5 * 8192 * width, 2 * 8192 * width))
        for rows in (512, 2048, 32768):
            found.append(("norm", op, {"rows": rows, "width": 4096}, 5 * rows * 4096, 2 * rows * 4096))
    for rows, width in ((8192, 11008), (8192, 14336), (4096, 28672)):
        found.append(("activation", "swiglu", {"rows": rows, "width": width}, 6 * rows * width, 3 * rows * width))
    shapes = [(size, size, size) for size in (512, 1024, 2048, 4096, 8192)]
    shapes += [(m, n, k) for n, k in ((4096, 4096), (28672, 4096)) for m in (1, 16, 128, 2048)]
    for m, n, k in shapes:
        found.append(("matmul", "linear", {"M": m, "N": n, "K": k}, 2 * m * n * k, m * k + k * n + m * n))
    found.append(("optim", "adamw_", {"model": "gpt2", "sizes": [768, 768]}, 0, 7 * 124_000_000))
    return found


def rows(seed: int = 0, providers=PROVIDERS, dtypes=("bfloat16", "float32"), repeat: int = 1) -> list[Row]:
    """`repeat` makes more of the same, under other names of suites."""
    draw = random.Random(seed)
    found = []
    for copy in range(repeat):
        for suite, op, parameters, operations, elements in cases():
            for dtype in dtypes:
                for direction in DIRECTIONS if op != "adamw_" else DIRECTIONS[:1]:
                    factor = {"forward": 1, "backward": 2, "both": 3}[direction]
                    name = suite if copy == 0 else f"{suite}-{copy}"
                    what = (name, op, parameters, dtype, direction)
                    found += _group(draw, what, operations * factor, elements * factor, providers)
    return found


def _group(draw: random.Random, what: tuple, operations: int, elements: int, providers) -> list[Row]:
    suite, op, parameters, dtype, direction = what
    nbytes = elements * SIZE[dtype]
    least = max(operations / FLOPS[dtype], nbytes / BYTES_PER_SECOND)
    label = " x ".join(str(v) for v in parameters.values())
    base = None
    found = []
    for provider in providers:
        time = LAUNCH[provider] + least / REACH[provider] * math.exp(draw.gauss(0, 0.06))
        base = base or time
        ratio = base / time
        width = draw.uniform(0.004, 0.03)
        common = {
            "parameters": parameters, "flops": operations or None, "bytes": nbytes,
            "error": None if provider == "torch" else draw.uniform(0.2, 0.8),
            "sources": "a" * 64 if provider.startswith("warpwright") else None,
        }  # fmt: skip
        key = (suite, op, label, dtype, direction, provider, "cuda")
        if (status := _trouble(op, label, dtype, direction, provider)) is not None:
            found.append(Row(*key, **common | status))
            continue
        found.append(
            Row(*key, **common, p20=time * 0.99, p50=time, p80=time * 1.02, low=time * (1 - width / 2),
                high=time * (1 + width / 2), repeats=120, calls=16, clock="graph", settled=draw.random() > 0.02,
                host=LAUNCH[provider], peak_memory=int(nbytes * draw.uniform(0.4, 0.7) * MEMORY[provider]),
                bound="compute" if operations / FLOPS[dtype] > nbytes / BYTES_PER_SECOND else "memory",
                ceiling=least / time, ratio=ratio, ratio_low=ratio * (1 - width), ratio_high=ratio * (1 + width),
                checked=f"{label} / 8" if op == "linear" else None)
        )  # fmt: skip
    return found


def _trouble(op: str, label: str, dtype: str, direction: str, provider: str) -> dict | None:
    """Why a row is not timed, for some of them."""
    if provider == "quack" and op in ("linear", "adamw_"):
        return {"status": "missing", "reason": f"quack has no {op}", "error": None}
    if provider == "warpwright-triton" and op == "layer_norm" and label == "8192 x 16384" and direction == "backward":
        return {"status": "failed", "reason": "OutOfResources: shared memory, 262144 > 232448 bytes", "error": None}
    if provider == "quack" and op == "swiglu" and dtype == "bfloat16" and direction == "forward":
        return {"status": "wrong", "reason": "error is 3.1 times what is allowed", "error": 3.1}
    return None


def results(**options) -> Results:
    """One run on one machine; `options` are those of `rows`."""
    found = Results()
    found.add(environment())
    found.add(Ceiling("copy", "", BYTES_PER_SECOND, "4 GiB to 4 GiB", "cuda"))
    for dtype, value in FLOPS.items():
        found.add(Ceiling("matmul", dtype, value, "8192 x 8192 x 8192", "cuda"))
    for row in rows(**options):
        found.add(row)
    return found


def row(case="a", provider="mine", **fields) -> Row:
    """A timed one, unless `fields` say other."""
    values = {"p50": 1e-3, "ratio": 1.0, "parameters": {"rows": 1}} | fields
    return Row(values.pop("suite", "s"), values.pop("op", "op"), case, "float32", "forward", provider, "cpu", **values)


def results_of(*rows: Row, **fields) -> Results:
    """One run with these rows; `fields` are the environment's."""
    found = Results()
    found.add(environment() | fields)
    for one in rows:
        found.add(one)
    return found


def demo_summary() -> dict:
    """What `warpwright demo` hands to its report, with the rows of one suite."""
    info = environment()["info"]
    rows = [r.as_dict() for r in results().rows if r.suite == "activation"]
    training = {
        "task": "gpt", "title": EVIL, "steps": 2, "accuracy": {"torch": 0.5, "warpwright": 0.5}, "agree": True,
        "seconds": {"torch": 1.0, "warpwright": 1.0}, "losses": {"torch": [2.0, 1.0], "warpwright": [2.0, 1.0]},
        "largest_gap": 0.0, "replaced": {}, "skipped": {}, "fallbacks": {},
    }  # fmt: skip
    check = {"op": "gelu", "backend": "cpu", "dtype": "float32", "samples": 1, "bad_inputs": 1, "worst_ratio": 0.1}
    return {
        "info": info | {"cpu_isa": "avx2"}, "info_text": EVIL, "device": "cuda", "ok": True, "seconds": 1.0,
        "training": [training], "bench": rows, "host": rows[:4],
        "check": {"samples": 1, "failures": 0, "results": [check | {"failures": []}]},
    }  # fmt: skip
