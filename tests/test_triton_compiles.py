"""Every Triton kernel compiles for each architecture as it is launched on a GPU, and its machine code is what it should
be. tests/triton_machine_code.py says which launches are compiled."""

from __future__ import annotations

import machine_code
import pytest
import thinning
import triton_machine_code
from machine_code import Kernel

pytestmark = pytest.mark.skipif(triton_machine_code.missing() is not None, reason=str(triton_machine_code.missing()))

KERNELS = (machine_code.ROOT / "docs" / "kernels.md").read_text()
NAMES = triton_machine_code.kernel_names()

#: (kernel, dtypes) -> why a stack frame or spills are right there.
ADDRESSES = "float32 products on the ordinary units hold 64 x 64 sums beside the 64-bit addresses of strided operands"
BYTES = "a thread holds the 64-bit address of each byte of a strided operand, or a block's sums beside the totals"
LOCAL_MEMORY = {
    ("conv:_dgrad_kernel", "fp32"): ADDRESSES,
    ("conv:_fprop_kernel", "fp32"): ADDRESSES,
    ("gated:_gated_kernel", "fp32"): ADDRESSES,
    ("grouped:_grouped_kernel", "fp32 i32"): ADDRESSES,
    ("scaled:_scaled_kernel", "u8 fp32"): BYTES,
    ("scaled:_scaled_kernel", "u8 fp32 bf16"): BYTES,
}

#: What multiplies 16-bit matrices on each architecture; a product on the ordinary units is many times slower.
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}
PRODUCTS = (
    "_gemm:_gemm_kernel",
    "_gemm_persistent:gemm_persistent_kernel",
    "conv:_fprop_kernel",
    "conv:_dgrad_kernel",
    "conv:_wgrad_kernel",
    "gated:_gated_kernel",
    "grouped:_grouped_kernel",
    "grouped:_weight_grad_kernel",
    "packed:_linear_kernel",
    "sparse:_linear_sparse24_kernel",
)
#: The same for 8 bits: as they are, or as float16.
OF_8_BITS = {
    "sm_80": ("IMMA", "HMMA"),
    # Tiles of few rows take mma.sync everywhere.
    "sm_90": ("IGMMA", "QGMMA", "HGMMA", "IMMA", "HMMA"),
    "sm_100": ("IMMA", "UTCQMMA", "UTCHMMA", "HMMA"),
}
PRODUCTS_OF_8_BITS = {"scaled:_scaled_kernel": OF_8_BITS, "scaled_conv:_scaled_conv_kernel": OF_8_BITS}


def test_every_kernel_is_launched():
    """By a sample of an op: nothing is known of a kernel that none reaches."""
    assert set(triton_machine_code.launches()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles(name):
    """All launches on Hopper, and one on each architecture: WARPWRIGHT_TEST_EVERYTHING=1 compiles all for each."""
    made = triton_machine_code.compile_all(name, thinning.EVERYTHING)
    assert [kernel.arch for kernel in made[0][1]] == ["sm_80", "sm_90", "sm_100"]
    assert all("sm_90" in [kernel.arch for kernel in kernels] for _, kernels in made)
    spilling = set()
    for launch, kernels in made:
        dtypes = triton_machine_code.dtypes(launch)
        if name in PRODUCTS and dtypes.split()[0] in ("fp16", "bf16"):  # Of the first operand.
            assert all(kernel.count(TENSOR_CORES[kernel.arch]) for kernel in kernels), launch
        if name in PRODUCTS_OF_8_BITS:
            assert all(any(map(kernel.count, PRODUCTS_OF_8_BITS[name][kernel.arch])) for kernel in kernels), launch
        if any(kernel.uses_local_memory for kernel in kernels):
            spilling.add((name, dtypes))
    allowed = {entry for entry in LOCAL_MEMORY if entry[0] == name}
    assert spilling <= allowed, "local memory: its columns in docs/kernels.md say how much"
    # Another Triton may spill less; with that of the table an entry that nothing needs any more goes.
    if thinning.EVERYTHING and f"Made with {triton_machine_code.made_with()} " in KERNELS:
        assert spilling == allowed


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
