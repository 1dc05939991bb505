"""The structures that Python shares with the libraries through ctypes lie in memory as C++ has them: of one that does
not, a library would read its neighbours."""

from __future__ import annotations

import ctypes
import subprocess

import emulated
import gemm_entry
import pytest
from machine_code import ROOT

from warpwright import _conv_plans, _gemm_plans

#: Those that a .cu file defines for itself are not among them: it needs the CUDA toolkit.
MIRRORS = {
    "ConvTensor": ("kernels/conv.h", _conv_plans._Tensor),
    "PerChannel": ("kernels/conv.h", _conv_plans._PerChannel),
    "ConvNorm": ("kernels/conv.h", _conv_plans._Norm),
    "ConvParams": ("kernels/conv.h", _conv_plans._Params),
    "GemmQuestion": ("kernels/gemm_plan.h", _gemm_plans.Question),
    "GemmPlan": ("kernels/gemm_plan.h", _gemm_plans._Plan),
    "GemmParams": ("kernels/matmul.h", gemm_entry.GemmParams),
}


def program(struct: str, header: str, fields: list[str]) -> str:
    """Prints the offset and size of each field, then the size of all."""
    lines = [f'printf("{f} %zu %zu\\n", offsetof({struct}, {f}), sizeof({struct}::{f}));' for f in fields]
    return "\n".join(
        [
            f'#include "{header}"',
            "#include <cstddef>\n#include <cstdio>",
            "using namespace warpwright;",
            "int main() {",
            *lines,
            f'printf("%zu\\n", sizeof({struct}));',
            "}",
        ]
    )


@pytest.mark.parametrize("struct", MIRRORS)
def test_fields_lie_where_the_header_has_them(struct, tmp_path):
    header, mirror = MIRRORS[struct]
    fields = [name for name, *_ in mirror._fields_]
    source = tmp_path / "layout.cpp"
    source.write_text(program(struct, header, fields))
    flags = ["-std=c++20", "-Wno-invalid-offsetof", f"-I{ROOT / 'csrc'}"]
    subprocess.run([emulated.build_script().cxx(), *flags, str(source), "-o", str(tmp_path / "layout")], check=True)
    there = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.splitlines()
    here = [f"{name} {getattr(mirror, name).offset} {getattr(mirror, name).size}" for name in fields]
    assert [*here, str(ctypes.sizeof(mirror))] == there
