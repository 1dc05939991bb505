"""The bytes that the CUDA kernels of the fused ops move, counted by the emulator: what docs/traffic.md shows.

A tensor that holds at least a quarter of the elements of the largest one is large: each byte of it should cross the
memory bus once. What is smaller (weights, statistics, targets) is read again by every row, out of a cache. Workspace is
what a call writes and reads itself; its size does not grow with the rows, or the op's docstring says how.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import emulated
import torch
from torch import Tensor

import warpwright
from warpwright.bench.case import OPERATORS, Draw
from warpwright.testing import SPECS, Sample

CACHE = emulated.ROOT / "build" / "traffic"

#: Where more is moved than each byte once, and why: (op, direction).
_TWICE = "sums over a group or a channel, which many blocks make, come before what is made with them"
MORE: dict[tuple[str, str], str] = {
    ("group_norm", "forward"): _TWICE,
    ("group_norm", "backward"): _TWICE,
    ("batch_norm", "forward"): _TWICE,
    ("batch_norm", "backward"): _TWICE,
    ("conv2d_batch_norm", "backward"): f"{_TWICE}, and each of the convolution's two gradients reads the product's",
}

_ROWS = {"rows": 64, "width": 1024}
#: What is metered: op -> the parameters of its benchmark.
CASES: dict[str, dict[str, Any]] = {
    "rms_norm": _ROWS,
    "layer_norm": {**_ROWS, "residual": True},
    "l2_normalize": _ROWS,
    "rms_norm_quantize": {**_ROWS, "block_size": 128},
    "layer_norm_quantize": {**_ROWS, "block_size": None},
    "qk_norm_rotary": {"batch": 2, "sequence": 16, "heads": 8, "key_heads": 4, "head_dim": 64},
    "group_norm": {"batch": 2, "channels": 64, "size": 16, "activation": "silu", "channels_last": True},
    "batch_norm": {"batch": 4, "channels": 64, "size": 8, "residual": True, "activation": "relu"},
    "conv2d_batch_norm": {
        "batch": 8,
        "channels": 64,
        "size": 8,
        "kernel": 1,
        "residual": True,
        "activation": "relu",
        "channels_last": True,
    },
    "causal_conv1d": {"batch": 2, "channels": 16, "length": 512, "kernel": 4, "activation": "silu"},
    "gelu": _ROWS,
    "swiglu": _ROWS,
    "softmax": _ROWS,
    "log_softmax": _ROWS,
    "dropout_add": _ROWS,
    "cross_entropy": {"rows": 64, "classes": 1024},
    "binary_cross_entropy_with_logits": _ROWS,
    "kl_div": {"rows": 64, "classes": 1024},
    "rotary_embedding": {"batch": 2, "sequence": 32, "heads": 4, "head_dim": 64},
    "rotary_embedding_qk": {"batch": 2, "sequence": 16, "heads": 8, "key_heads": 4, "head_dim": 64},
    "embedding": {"tokens": 64, "vocabulary": 64, "width": 512},
    "quantize": {**_ROWS, "granularity": "block"},
    "quantize_fp8": {**_ROWS, "block_size": 128},
    "dequantize_fp8": {**_ROWS, "block_size": 128},
}


@dataclass(frozen=True)
class Traffic:
    """What one direction of a call moved.

    Attributes:
        kernels: as launched, in order.
        elements: of the largest tensor.
        moved: bytes of large tensors that were read or written.
        least: the same with each byte of them once.
        cached: bytes read from and written to small tensors.
        workspace: bytes written to and read from what the call needs for itself.
    """

    op: str
    case: str
    direction: str
    kernels: tuple[str, ...]
    elements: int
    moved: int
    least: int
    cached: int
    workspace: int

    def each(self, count: int) -> str:
        """Bytes for each element of the largest tensor."""
        return f"{count / self.elements:.2f}"


def _metered(op: str, case: str, direction: str, call: Any, kept: Any) -> tuple[Traffic, Any]:
    """Runs `call`; kept(result) are the tensors that outlive it."""
    emulated.module().start_traffic()
    result = call()
    launches = emulated.module().take_traffic()
    outside = {t.data_ptr() for t in kept(result)}
    moved: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for _, tensors in launches:
        for address, size, read, written in tensors:
            if read or written:
                entry = moved[address]
                entry[:] = [max(entry[0], size), entry[1] + read, entry[2] + written]
    numels = [t.numel() for t in kept(result)]
    itemsize = min(t.element_size() for t in kept(result) if t.numel() == max(numels))
    large = max(numels) * itemsize / 4
    counts = {"moved": 0, "least": 0, "cached": 0, "workspace": 0}
    for address, (size, read, written) in moved.items():
        if address not in outside and read and written:
            counts["workspace"] += read + written
        elif size < large:
            counts["cached"] += read + written
        else:
            counts["moved"] += read + written
            counts["least"] += size * (bool(read) + bool(written))
    kernels = tuple(name for name, _ in launches)
    return Traffic(op, case, direction, kernels, max(numels), **counts), result


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, without those that nobody asked for."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [t for t in values if isinstance(t, Tensor) and t.numel()]


def _measure(op: str, parameters: dict[str, Any], dtype: torch.dtype) -> list[Traffic]:
    emulated.activate()
    spec = SPECS[op]
    sample: Sample = OPERATORS[op].sample(Draw(dtype), **parameters)
    inputs = sample.tensors()
    with warpwright.use_backend("emulated"):
        forward, result = _metered(
            op, sample.name, "forward", lambda: spec.op(*sample.args, **sample.kwargs),
            lambda r: [*inputs, *_tensors(r)],
        )  # fmt: skip
        leaves = [t for t in inputs if t.requires_grad]
        outputs = [t for t in _tensors(result) if t.requires_grad]
        if not spec.gradcheck or not leaves or not outputs:
            return [forward]
        grads = [torch.ones_like(t) for t in outputs]
        saved = [*inputs, *_tensors(result), *grads]
        backward, _ = _metered(
            op, sample.name, "backward", lambda: torch.autograd.grad(outputs, leaves, grads),
            lambda r: [*saved, *_tensors(r)],
        )  # fmt: skip
    return [forward, backward]


@functools.cache
def _version() -> str:
    return hashlib.sha256(emulated.library().read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]


def measure(op: str, dtype: torch.dtype = torch.bfloat16) -> list[Traffic]:
    """Forward, and backward where there is one. Kept under build/ for these kernels."""
    kept = CACHE / f"{_version()}-{op}.json"
    if kept.exists():
        return [Traffic(**{**row, "kernels": tuple(row["kernels"])}) for row in json.loads(kept.read_text())]
    found = _measure(op, CASES[op], dtype)
    emulated.write(kept, json.dumps([asdict(row) for row in found]))
    return found


def table() -> str:
    lines = [
        "| op | case | direction | kernels | bytes an element | least | from caches | workspace |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for op in CASES:
        for row in measure(op):
            kernels = ", ".join(f"{k} x{row.kernels.count(k)}" if row.kernels.count(k) > 1 else k
                                for k in dict.fromkeys(row.kernels))  # fmt: skip
            counts = (row.moved, row.least, row.cached, row.workspace)
            cells = (f"`{op}`", row.case, row.direction, kernels, *map(row.each, counts))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Made with {made_with()} by `make docs`."]
    reasons = [f"- `{op}`, {direction}: {why}" for (op, direction), why in MORE.items()]
    return "\n".join([*lines, *(["", "More than the least:", "", *reasons] if reasons else [])])


def made_with() -> str | None:
    """The compiler, which may drop a load that the source repeats; None where the emulator cannot be built."""
    if emulated.missing():
        return None
    compiler = emulated.build_script().cxx()
    shown = subprocess.run([compiler, "-dumpversion"], check=True, capture_output=True, text=True)
    return f"{Path(compiler).name} {shown.stdout.strip()}"
