"""Every Triton kernel compiles for each architecture as it is launched on a GPU, and its machine code is what it should
be. tests/triton_machine_code.py says which launches are compiled."""

from __future__ import annotations

import machine_code
import pytest
import triton_machine_code
from machine_code import Kernel

pytestmark = pytest.mark.skipif(triton_machine_code.missing() is not None, reason=str(triton_machine_code.missing()))

NAMES = triton_machine_code.kernel_names()

#: (kernel, architecture) -> why spills are right there.
INDICES = "64 x 32 addresses of 64 bits, each from an index that is divided by the image's sizes, fill the registers"
LOCAL_MEMORY = {
    **{
        (f"conv:{kernel}", arch): INDICES
        for kernel in ("_forward_kernel", "_input_grad_kernel", "_weight_grad_kernel")
        for arch in ("sm_80", "sm_90", "sm_100")
    },
    ("_gemm:_gemm_kernel", "sm_80"): "8 bytes in float32 with strides that are no multiple of 16",
}
del LOCAL_MEMORY["conv:_weight_grad_kernel", "sm_100"]

#: What multiplies 16-bit matrices on each architecture; a product on the ordinary units is many times slower.
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}
PRODUCTS = ("_gemm:_gemm_kernel", "conv:_forward_kernel", "conv:_input_grad_kernel", "conv:_weight_grad_kernel")


def test_every_kernel_is_launched():
    """By a sample of an op: nothing is known of a kernel that none reaches."""
    assert set(triton_machine_code.launches()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles(name):
    seen: dict[str, list[Kernel]] = {}
    for launch, kernels in triton_machine_code.compile_all(name):
        assert [kernel.arch for kernel in kernels] == ["sm_80", "sm_90", "sm_100"]
        for kernel in kernels:
            seen.setdefault(kernel.arch, []).append(kernel)
        if name in PRODUCTS and {"fp16", "bf16"} & set(triton_machine_code.dtypes(launch).split()):
            assert all(kernel.count(TENSOR_CORES[kernel.arch]) for kernel in kernels), launch
    for arch, kernels in seen.items():
        spills = max(k.stack + k.local_bytes("STL") + k.local_bytes("LDL") for k in kernels)
        assert spills == 0 or (name, arch) in LOCAL_MEMORY, f"{arch}: local memory, see docs/kernels.md"


def launch(kind: str, flag: bool, warps: int, aligned: int = 0) -> dict:
    return {
        "kernel": "family:_f_kernel",
        "signature": {"x_ptr": f"*{kind}", "n": "i32", "FLAG": "constexpr"},
        "constants": [[[2], flag]],
        "attrs": [[[0], [["tt.divisibility", 16]] * aligned], [[1], []]],
        "options": {"num_warps": warps, "num_stages": 3},
    }


def test_the_choice_of_launches_covers_every_value():
    half, single, warps = launch("fp16", True, 4), launch("fp32", False, 4), launch("fp32", False, 8)
    redundant, rounded = launch("fp16", False, 4), launch("fp16", True, 4, aligned=1)
    assert triton_machine_code.chosen([half, redundant, rounded, single, warps]) == [rounded, warps]
    assert triton_machine_code.chosen([half, single]) == [half, single]


def test_labels_name_what_differs():
    same = [launch("fp16", True, 4), launch("fp16", False, 4)]
    assert triton_machine_code.label(same[0], same) == "fp16, FLAG=True, 4 warps"
    assert triton_machine_code.label(same[0], same[:1]) == "fp16, 4 warps"


def test_a_cell_shows_architectures_where_they_differ():
    kernels = [Kernel("f", arch, registers, 0, 0, {}) for arch, registers in (("sm_80", 32), ("sm_90", 40))]
    assert machine_code.by_arch(kernels, lambda k: k.registers) == "32 / 40"
    assert machine_code.by_arch(kernels, lambda k: k.stack) == "0"
