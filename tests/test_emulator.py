"""The emulator itself: what it computes for right kernels, and what it says of wrong ones; and that the tests of the
ops reach every kernel of csrc/cuda through it."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import machine_code
import numpy as np
import pytest
import test_conv_plans
import test_conv_tf32
import test_conv_wgmma
import test_gemm_plans
import torch
from thinning import EVERYTHING

import warpwright
from warpwright import _gemm_plans
from warpwright.testing import LAYOUTS, SPECS, Make, compare, evaluate, evaluate_in_place, relayout

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing())),
    pytest.mark.skipif(shutil.which(emulated.build_script().cxx()) is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def cases():
    """The library of tests/emulator_cases.cpp."""
    out = emulated.build_cases([ROOT / "tests" / "emulator_cases.cpp"], "emulator")
    library = ctypes.CDLL(str(out))
    library.emulator_case.restype = ctypes.c_char_p
    library.emulator_case.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
    library.module = emulated.load(out)
    return library


def run(cases, name: str, size: int = 1, count: int = 0) -> tuple[np.ndarray, str]:
    """(what the kernel wrote, what the emulator said)."""
    out = np.zeros(size, dtype=np.float32)
    message = cases.emulator_case(name.encode(), out.ctypes.data, count)
    return out, message.decode()


@pytest.fixture(params=range(4))
def seed(request, monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(request.param))


def test_shared_memory_with_its_barrier_is_right_in_every_order(cases, seed):
    out, message = run(cases, "reverse", 96)
    assert message == ""
    assert out.tolist() == list(range(95, -1, -1))


@pytest.mark.parametrize("name", ["two_rounds", "warp_wait", "copies"])
def test_what_barriers_order_is_no_race(cases, seed, name):
    assert run(cases, name, 96)[1] == ""


def test_coordinates_cover_the_grid_once(cases, seed):
    blocks, threads = 2 * 3 * 4, 3 * 2 * 5
    out, message = run(cases, "coordinates", blocks * threads)
    assert message == ""
    assert out.tolist() == [b * 1000 + t for b in range(blocks) for t in range(threads)]


def test_warp_exchanges(cases, seed):
    out, message = run(cases, "warp", 7 * 80)
    assert message == ""
    for thread in range(80):
        lane, first, lanes = thread % 32, thread - thread % 32, 32 if thread < 64 else 16
        xor, down, at2, ballot, any15, all16, wide = out[7 * thread : 7 * thread + 7]
        if lane ^ 5 < lanes:
            assert xor == first + (lane ^ 5)
        if lane + 3 < lanes or lanes == 32:
            assert down == (thread + 3 if lane + 3 < 32 else thread)
        assert at2 == first + 2
        assert int(ballot) == sum(1 << i for i in range(0, lanes, 3)) & 0xFFFFFF
        assert any15 == 1
        assert all16 == (lanes == 16)
        assert wide == first + (lane ^ 1) + 0.5


def test_the_seed_decides_the_order(cases, monkeypatch):
    orders = []
    for value in ("1", "1", "2"):
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", value)
        orders.append(run(cases, "order", 64)[0].tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(64))
    blocks = [min(range(8), key=lambda b, o=order: o[8 * b]) for order in orders]
    threads = [np.argsort(order[:8]).tolist() for order in orders]
    assert blocks != [0, 0, 0], "no seed starts with another block than the first"
    assert threads != [list(range(8))] * 3, "no seed changes the order of threads"


def line_of(name: str) -> str:
    """Where emulator_cases.cpp says that `name` goes wrong."""
    lines = (ROOT / "tests" / "emulator_cases.cpp").read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"// line: {name}")]
    return rf"emulator_cases\.cpp:{number}"


WITHOUT_BARRIER = "race in shared memory: this (read|write) and the (read|write) of thread {} at {} have no barrier"
BETWEEN_BLOCKS = "race in global memory: this write and the write of thread 0 of block [01] at {} are not ordered"
#: What the emulator says against a case, as a regular expression.
STOPPED = {
    "unfinished_copy": "ends with 1 asynchronous copies that it has not waited for",
    "no_copy_wait": rf"{line_of('no_copy_wait')}: read of shared memory that the asynchronous copy of thread \d+ at "
    r"emulator_cases\.cpp:\d+ may still be writing",
    "copy_wait_for_barrier": f"{line_of('no_copy_wait')}: (race in shared|read of shared memory that)",
    "copy_over_reads": r"emulator_cases\.cpp:\d+: (cp.async: )?race in shared memory: this (write|read) and the",
    "misaligned_copy": r"emulator_cases\.cpp:\d+: cp.async: both addresses must be 16-byte aligned",
    "copy_to_global": r"emulator_cases\.cpp:\d+: cp.async: the destination is not shared memory",
    "skipped_barrier": "deadlock: 48 threads wait at __syncthreads, 0 in a warp exchange, 48 have ended",
    "skipped_shuffle": "deadlock: 0 threads wait at __syncthreads, 48 in a warp exchange, 48 have ended",
    "mask_without_caller": "a warp exchange whose mask leaves out the caller",
    "dynamic_past": f"{line_of('dynamic')}: write beside the 1000 bytes of dynamic shared memory",
    "dynamic_before": f"{line_of('dynamic')}: write beside the 1000 bytes of dynamic shared memory",
    "no_wait": f"{line_of('no_wait')}: (race in shared memory|read of shared memory that nothing has written)",
    "no_second_wait": rf"emulator_cases\.cpp:\d+: {WITHOUT_BARRIER.format(r'[0-9]+', r'emulator_cases.cpp:[0-9]+')}",
    "no_warp_wait": f"{line_of('no_warp_wait')}: (race in shared|read of shared memory that nothing has written)",
    "shuffle_for_warp_wait": f"{line_of('no_warp_wait')}: (race in shared|read of shared memory that nothing)",
    "warp_wait_for_block": f"{line_of('warp_wait_for_block')}: (race in shared|read of shared memory that nothing)",
    "uninitialised": f"{line_of('uninitialised')}: read of shared memory that nothing has written",
    "two_threads_write": f"{line_of('two_threads_write')}: race in global memory: this write and the write of thread",
    "two_blocks_write": f"{line_of('two_blocks_write')}: {BETWEEN_BLOCKS.format(line_of('two_blocks_write'))}",
    "reads_another_block": r"emulator_cases\.cpp:\d+: race in global memory: .* are not ordered: blocks never are",
    "misaligned": f"{line_of('misaligned')}: misaligned access, 16-byte alignment is needed .* 4 bytes off",
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_wrong_kernel_is_stopped_and_named(cases, seed, name):
    _, message = run(cases, name, 96, 1000)
    where = rf"warpwright emulator: kernel {name}, block \([01], 0, 0\), thread \(\d+, 0, 0\): "
    assert re.match(where + STOPPED[name], message), message
    out, message = run(cases, "reverse", 96)
    assert message == "", "the next launch is not the worse for it"
    assert out[0] == 95


REFUSED = {
    "block_too_large": "a block has 1056 threads, 1 to 1024 are possible",
    "block_empty": "a block has 0 threads, 1 to 1024 are possible",
    "grid_empty": r"the grid \(0, 1, 1\) is empty or beyond \(2147483647, 65535, 65535\)",
    "grid_too_high": r"the grid \(1, 65536, 1\) is empty or beyond",
    "grid_too_deep": r"the grid \(1, 1, 65536\) is empty or beyond",
    "shared_too_large": "232449 bytes of dynamic shared memory, at most 232448 are possible",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_beyond_the_hardware_is_refused(cases, name):
    message = run(cases, name)[1]
    assert re.match(f"warpwright emulator: kernel {name}: {REFUSED[name]}", message), message


@pytest.mark.parametrize(("name", "count"), [("shared_largest", 0), ("dynamic_last", 1000)])
def test_the_last_byte_of_shared_memory_may_be_used(cases, name, count):
    assert run(cases, name, 1, count)[1] == ""


def test_launches_are_counted(cases):
    before = cases.module.launches("reverse")
    run(cases, "reverse", 96)
    assert cases.module.launches("reverse") == before + 1
    assert cases.module.launches("never heard of") == 0


def test_a_noted_launch_does_not_run(cases):
    before = cases.module.launches("reverse")
    cases.module.start_noting()
    unwritten, _ = run(cases, "reverse", 96)
    (kernel,) = cases.module.take_noted()
    assert cases.module.launches("reverse") == before
    assert cases.module.reached(kernel) == (before > 0)
    written, _ = run(cases, "reverse", 96)
    assert cases.module.reached(kernel)
    assert not np.array_equal(written, unwritten)


#: A call of an op whose kernel has lost the test for its last row.
BEYOND = """
import emulated, torch, warpwright
emulated.activate()
gate, up = torch.ones(2, 3, 7)
assert emulated.library().parent.name == "planted"
with warpwright.use_backend("emulated"):
    try:
        warpwright.ops.swiglu(gate, up)
    except RuntimeError as error:
        print(error)
"""


def test_a_kernel_that_leaves_its_tensors_is_stopped():
    """Global memory is the tensors of the call, without a sanitizer: memory that belongs to somebody else counts."""
    source = ROOT / "csrc" / "cuda" / "activation" / "glu.cu"
    check = "  if (place.row >= p.rows) return;\n"
    text = source.read_text()
    assert text.count(check) == 1
    folder = emulated.build_planted({source: text.replace(check, "\n")}, "planted")
    variables = os.environ | {"WARPWRIGHT_LIBRARY_DIR": str(folder), "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run([sys.executable, "-c", BEYOND], env=variables, capture_output=True, text=True, check=True)
    place = r"warpwright emulator: kernel glu, block \(0, 0, 0\), thread \(\d+, 0, 0\): pack\.cuh:\d+: "
    found = re.fullmatch(
        rf"{place}write of 4 bytes of global memory, to (\d+) bytes past the end of an array of 84 bytes\n", done.stdout
    )
    assert found, done
    assert 4 <= int(found[1]) <= (256 - 21) * 4


#: Ops that take other kernels before Hopper, which is what the emulator is otherwise.
BY_ARCHITECTURE = [
    "linear",
    "linear_glu",
    "grouped_matmul",
    "scaled_matmul",
    "linear_sparse24",
    "conv2d",
    "conv_transpose2d",
    "conv2d_batch_norm",
    "rms_norm",
    "layer_norm",
]
#: The kernels that they take on Hopper alone.
HOPPER = [
    "gemm_wgmma",
    "gated_wgmma",
    "grouped_wgmma",
    "grouped_weight_grad_wgmma",
    "scaled_wgmma",
    "linear_sparse24_wgmma",
    "conv_fprop_wgmma",
    "conv_fprop_measured_wgmma",
    "conv_dgrad_wgmma",
    "conv_wgrad_wgmma",
]


@pytest.fixture
def ampere(monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", "80")


@pytest.mark.parametrize("name", BY_ARCHITECTURE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_samples_on_ampere(ampere, name, dtype):
    emulated.activate()
    before = [emulated.launches(kernel) for kernel in HOPPER]
    wrong = []
    with warpwright.use_backend("emulated"):
        turns = itertools.cycle(LAYOUTS)
        for i, sample in enumerate(SPECS[name].samples(Make(dtype))):
            layout = next(turns)
            both = (sample, sample.map(lambda t, layout=layout: relayout(t, layout)))
            # As it is in one dtype, in another layout in the other.
            for moved in both if EVERYTHING else (both[(i + (dtype == torch.float16)) % 2],):
                ours = evaluate_in_place(SPECS[name].op, moved)
                wrong += [f"{sample.name}: {c}" for c in compare(SPECS[name], sample, ours) if not c.ok]
    assert not wrong, "\n".join(wrong)
    assert [emulated.launches(kernel) for kernel in HOPPER] == before, "Ampere has no wgmma"


def test_every_cuda_kernel_is_reached(monkeypatch):
    """A kernel, or an instantiation of one, that no sample launches would be tested by nothing."""
    emulated.activate()
    with warpwright.use_backend("emulated"):
        for spec in SPECS.values():
            for dtype in spec.dtypes:
                for arch in ("80", "90") if spec.name in BY_ARCHITECTURE else ("90",):
                    monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", arch)
                    for sample in spec.samples(Make(dtype)):
                        call = functools.partial(evaluate, spec.op, sample)
                        if emulated.launches_another(call):
                            call()
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_ARCH", "90")
        test_gemm_plans.run_every_plan()
        test_conv_tf32.run_every_kernel()
        test_conv_wgmma.run_every_kernel()
        gathered = test_conv_plans.LAYERS["channels first"]
        test_conv_plans.run_every_plan([gathered, dataclasses.replace(gathered, dtype=torch.bfloat16)])
        _gemm_plans.forget(emulated.library())
    kernels = emulated.kernels()
    assert {re.sub(r"<.*", "", name).rsplit("::", 1)[-1] for name in kernels} == set(machine_code.all_declarations())
    assert not [name for name, reached in kernels.items() if not reached]
