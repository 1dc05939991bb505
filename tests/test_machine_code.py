"""The machine code of the CUDA kernels: what each kernel declares in the line above it, and no local memory."""

from __future__ import annotations

import emulated
import machine_code
import pytest
from machine_code import Declaration, Kernel

needs_library = pytest.mark.skipif(machine_code.missing() is not None, reason=str(machine_code.missing()))

#: kernel without its template arguments -> why a stack frame or spills are right there; every kernel does without.
LOCAL_MEMORY: dict[str, str] = {
    "norm_forward_kernel": "for bfloat16 layer norms on sm_90a a thread of a block is three registers short",
    "qk_norm_backward_kernel": "for float32 heads with gaps between their elements on sm_80: five registers",
}

CUBINS = sorted(machine_code.cubins()) if machine_code.missing() is None else []


def test_every_kernel_says_what_its_machine_code_holds():
    silent = [name for name, declared in machine_code.all_declarations().items() if declared is None]
    assert not silent, f"no line `// machine code: ...` directly above {silent}"


@pytest.mark.parametrize("cubin", CUBINS)
def test_machine_code_is_as_declared(cubin):
    declared = machine_code.all_declarations()
    wrong = []
    for kernel in machine_code.kernels_of(cubin):
        promise = declared[kernel.function]
        assert promise is not None
        wrong += [f"{kernel.name}: {broken}" for broken in promise.broken(kernel)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("cubin", CUBINS)
def test_no_kernel_spills_or_has_a_stack_frame(cubin):
    """Unless the list says why: local memory is global memory, reached through the caches."""
    wrong = [
        f"{k.name} ({k.arch}): {k.stack} bytes of stack, {k.local_bytes('STL')} stored, {k.local_bytes('LDL')} loaded"
        for k in machine_code.kernels_of(cubin)
        if k.uses_local_memory and k.function not in LOCAL_MEMORY
    ]
    assert not wrong, "\n".join(wrong)


@needs_library
@pytest.mark.skipif(not machine_code.default_archs(), reason="WARPWRIGHT_CUDA_ARCHS is not the default")
def test_every_clause_of_a_declaration_speaks_of_a_kernel():
    """One whose condition never holds would promise nothing."""
    declared = machine_code.all_declarations()
    left = {(name, clause) for name, d in declared.items() if d is not None for clause in d.text.split("; ")}
    left -= {(k.function, declared[k.function].clause(k)) for k in machine_code.kernels()}
    assert not left


@needs_library
@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
def test_the_gpu_and_the_emulator_have_the_same_kernels():
    """Each architecture holds every instantiation that the emulator runs, and no other."""
    found: dict[str, set[str]] = {}
    for kernel in machine_code.kernels():
        found.setdefault(kernel.arch, set()).add(kernel.name)
    expected = set(emulated.kernels())
    assert found
    for arch, names in found.items():
        assert names == expected, arch


# ---- the reading itself, on texts ----

ASSEMBLY = """
        .target sm_90a
//--------------------- .text._Z1fv --------------------------
        .section        .text._Z1fv,"ax",@progbits
_Z1fv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
        /*0020*/              @UP1 UTMALDG.2D [UR4], [UR8], desc[UR6] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT ;
        /*0040*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0050*/                   STL.64 [R1], R2 ;
        /*0060*/                   STL [R1+0x8], R2 ;
        /*0070*/                   LDL.U8 R2, [R1] ;
        /*10080*/                  EXIT ;
        .section        .text._Z1gv,"ax",@progbits
        /*0000*/                   STG.E.128.STRONG.SM [R2.64], R4 ;
        /*0010*/                   STG.E.128 [R2.64], R4 ;
"""


def test_assembly_is_read():
    found = machine_code.opcodes(ASSEMBLY)
    assert list(found) == ["_Z1fv", "_Z1gv"]
    assert found["_Z1gv"] == {"STG.E.128.STRONG.SM": 1, "STG.E.128": 1}
    f = kernel(found["_Z1fv"])
    assert f.code_bytes == 9 * 16
    assert [f.count(p) for p in ("LDG.128", "LDG.64", "HGMMA.BF16", "HGMMA.F16", "UTMALDG", "EXIT")] == [
        1,
        0,
        1,
        0,
        1,
        1,
    ]
    assert (f.local_bytes("STL"), f.local_bytes("LDL")) == (12, 1)
    assert f.uses_local_memory
    assert f.notable == ["HGMMA", "UTMALDG", "LDG.128"]


def test_resources_are_read():
    report = "Fatbin\n Function _Z1fv:\n  REG:38 STACK:8 SHARED:64 LOCAL:0 CONSTANT[2]:24 TEXTURE:0\n Common:\n"
    used = machine_code.resources(report)
    assert used["_Z1fv"]["REG"] == 38
    assert used["_Z1fv"]["STACK"] == 8
    assert used["_Z1fv"]["SHARED"] == 64


def kernel(instructions, name="warpwright::cuda::f_kernel<float, 4>", arch="sm_90a") -> Kernel:
    return Kernel(name, arch, 32, 0, 0, dict(instructions))


def test_names_are_taken_apart():
    assert machine_code.without_parameters("void a::(anonymous namespace)::f<g<1>>(a::P)") == "a::f<g<1>>"
    assert machine_code.without_parameters("a::f(a::P)") == "a::f"
    assert (kernel({}).function, kernel({}).arguments) == ("f_kernel", "<float, 4>")
    assert (kernel({}, "a::f").function, kernel({}, "a::f").arguments) == ("f", "")


HOPPER = "sm_90a: HGMMA, UTMALDG, STSM, UTMASTG; else: empty"
HOPPER_CODE = {"HGMMA.64x128x16.F32": 8, "UTMALDG.2D": 4, "STSM.16.M88.4": 4, "UTMASTG.2D": 1}


@pytest.mark.parametrize(
    ("text", "arch", "code", "broken"),
    [
        (HOPPER, "sm_90a", HOPPER_CODE, []),
        (HOPPER, "sm_90a", {**HOPPER_CODE, "UTMASTG.2D": 0}, ["0 UTMASTG, declared UTMASTG"]),
        (HOPPER, "sm_80", {"MOV": 1, "IMAD.MOV.U32": 1, "EXIT": 1, "BRA": 1, "NOP": 9}, []),
        (HOPPER, "sm_80", {"EXIT": 1, "LDG.E": 2}, ["not empty: LDG.E"]),
        (
            "HMMA, LDGSTS, 16-byte",
            "sm_80",
            {"HMMA.16816.F32": 1, "LDGSTS.E.128": 1, "LDG.E.128": 1, "STG.E.128": 1},
            [],
        ),
        ("16-byte", "sm_80", {"LDG.E.128": 1, "STG.E": 4}, ["0 STG.128, declared 16-byte"]),
        ("2 x LDG.128", "sm_80", {"LDG.E.128": 1, "LDG.E.128.CONSTANT": 1}, []),
        ("3 x LDG.128", "sm_80", {"LDG.E.128": 2}, ["2 LDG.128, declared 3 x LDG.128"]),
        ("1>: FFMA; else: HMMA", "sm_80", {"HMMA": 1}, []),
        ("4>: FFMA; else: HMMA", "sm_80", {"HMMA": 1}, ["0 FFMA, declared FFMA"]),
        ("sm_90a: HGMMA", "sm_80", {}, []),
        ("not sm_90a: empty; else: QGMMA", "sm_80", {"LDG.E": 1}, ["not empty: LDG.E"]),
        ("not sm_90a: empty; else: QGMMA", "sm_90a", {"LDG.E": 1}, ["0 QGMMA, declared QGMMA"]),
        ("plain", "sm_80", {}, []),
    ],
)
def test_a_declaration_is_held_to_the_code(text, arch, code, broken):
    assert Declaration(text).broken(kernel(code, arch=arch)) == broken


@pytest.mark.parametrize("text", ["sm90a: HGMMA", "Float: HMMA", "hmma", "HMMA LDSM", "HMMA;LDSM", "x HMMA"])
def test_a_declaration_that_cannot_be_read_is_refused(text):
    with pytest.raises(AssertionError, match="machine code declaration"):
        Declaration(text).broken(kernel({}))


SOURCE = """
// What it does.
// machine code: HMMA
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, 2) first_kernel(const Params p) {
}

// machine code: plain
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads<int>(1)) second_kernel(const P p) {
}

// machine code: HMMA

// The line is not directly above.
template <class T>
__global__ void third_kernel(const Params p) {
}
__global__ void fourth_kernel(const Params p) {}
"""


def test_declarations_are_found_in_sources():
    found = machine_code.declarations(SOURCE)
    assert {name: declared and declared.text for name, declared in found.items()} == {
        "first_kernel": "HMMA",
        "second_kernel": "plain",
        "third_kernel": None,
        "fourth_kernel": None,
    }


def test_two_kernels_of_one_name_are_refused(tmp_path):
    for name in ("a.cu", "b.cu"):
        (tmp_path / name).write_text("// machine code: plain\n__global__ void f_kernel(const P p) {}\n")
    with pytest.raises(AssertionError, match="two kernels are called f_kernel"):
        machine_code.all_declarations(sorted(tmp_path.iterdir()))
