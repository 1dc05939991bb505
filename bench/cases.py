"""What is measured: an op of `warpwright.testing.SPECS` on realistic inputs. Shapes are the models' that are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from warpwright.testing import Make, Sample


@dataclass(frozen=True)
class Case:
    """One call to time: `sample(make)` draws its inputs in `dtype`."""

    op: str
    label: str
    dtype: torch.dtype
    sample: Callable[[Make], Sample]
    backward: bool = True


def _case(op: str, label: str, dtype: torch.dtype, args, backward: bool = True, **kwargs) -> Case:
    def sample(make: Make) -> Sample:
        named = {name: value(make) if callable(value) else value for name, value in kwargs.items()}
        return Sample(label, args(make), named)

    return Case(op, label, dtype, sample, backward)


def _angles(make: Make, sequence: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = make.tensor(sequence, pairs, low=0, high=6, grad=False, dtype=torch.float32)
    return angles.cos(), angles.sin()


def _quick(device: torch.device) -> list[Case]:
    """A minute's worth: every op once or twice, in sizes of a small transformer and a small ResNet."""
    gpu = device.type == "cuda"
    f32, half = torch.float32, torch.bfloat16
    rows, width, classes = (8192, 4096, 32000) if gpu else (1024, 1024, 8192)
    images, side = (128, 28) if gpu else (8, 28)
    tokens = (4, 2048) if gpu else (2, 256)
    cases = []
    for dtype in (half,) if gpu else (f32, half):
        cases += [
            _case("rms_norm", f"{rows} x {width}", dtype,
                  lambda m: (m.tensor(rows, width), (width,), m.tensor(width), 1e-6)),
            _case("layer_norm", f"{rows} x {width} + residual", dtype,
                  lambda m: (m.tensor(rows, width), (width,), m.tensor(width), m.tensor(width)),
                  residual=lambda m: m.tensor(rows, width)),
            _case("swiglu", f"{rows} x {width}", dtype, lambda m: (m.tensor(rows, width), m.tensor(rows, width))),
            _case("cross_entropy", f"{rows // 4} x {classes}", dtype,
                  lambda m: (m.tensor(rows // 4, classes), m.integers(rows // 4, low=0, high=classes))),
            _case("rotary_embedding", f"{tokens[0]} x {tokens[1]} x 8 x 64", dtype,
                  lambda m: (m.tensor(*tokens, 8, 64), *_angles(m, tokens[1], 32))),
            _case("linear", f"{rows} x {width} x {width}, gelu", dtype,
                  lambda m: (m.tensor(rows, width), m.tensor(width, width, low=-0.03, high=0.03), m.tensor(width)),
                  activation="gelu"),
        ]  # fmt: skip
    for dtype in (half,) if gpu else (f32,):
        cases += [
            _case("conv2d", f"{images} x 64 x {side} x {side}, 3x3, relu, residual", dtype,
                  lambda m: (m.tensor(images, 64, side, side), m.tensor(64, 64, 3, 3, low=-0.05, high=0.05),
                             m.tensor(64), 1, 1),
                  activation="relu", residual=lambda m: m.tensor(images, 64, side, side)),
            _case("quantize_fp8", f"{rows} x {width}, blocks of 128", dtype,
                  lambda m: (m.tensor(rows, width, grad=False), 128), backward=False),
        ]  # fmt: skip
    return cases


def _host(device: torch.device) -> list[Case]:
    """Tiny tensors: what a call costs before any kernel matters."""
    f32 = torch.float32
    return [
        _case("rms_norm", "4 x 16", f32, lambda m: (m.tensor(4, 16), (16,), m.tensor(16), 1e-6), backward=False),
        _case("layer_norm", "4 x 16", f32, lambda m: (m.tensor(4, 16), (16,), m.tensor(16)), backward=False),
        _case("swiglu", "4 x 16", f32, lambda m: (m.tensor(4, 16), m.tensor(4, 16)), backward=False),
        _case("linear", "4 x 16 x 16", f32, lambda m: (m.tensor(4, 16), m.tensor(16, 16)), backward=False),
        _case("conv2d", "1 x 2 x 4 x 4, 3x3", f32, lambda m: (m.tensor(1, 2, 4, 4), m.tensor(2, 2, 3, 3)),
              backward=False),
        _case("cross_entropy", "4 x 16", f32, lambda m: (m.tensor(4, 16), m.integers(4, low=0, high=16)),
              backward=False),
    ]  # fmt: skip


#: name -> (what it is, its cases on a device)
SUITES: dict[str, Callable[[torch.device], list[Case]]] = {"quick": _quick, "host": _host}


def suite(name: str, device: torch.device | str = "cpu") -> list[Case]:
    """The cases of a suite on `device`; raises RuntimeError for an unknown name."""
    if name not in SUITES:
        raise RuntimeError(f"warpwright: bench: suite must be one of {', '.join(SUITES)}, got {name!r}")
    return SUITES[name](torch.device(device))
