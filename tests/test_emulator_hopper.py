"""What the emulator says of kernels that use Hopper's asynchronous instructions wrongly in one way each."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import emulated
import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parent / "hopper_cases.cpp"

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(emulated.build_cases([SOURCE], "hopper")))
    loaded.hopper_case.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(params=range(4))
def seed(request, monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(request.param))


def run(library, name: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(the tensor, what the kernel wrote, what the emulator said)."""
    raw = np.zeros(64 * 64 + 4, dtype=np.float32)
    first = -raw.ctypes.data % 16 // 4
    tensor = raw[first : first + 64 * 64].reshape(64, 64)
    tensor[...] = np.arange(64 * 64).reshape(64, 64)
    out = np.zeros(256, dtype=np.float32) if name != "read_stored" else tensor
    if name.startswith("read_"):
        out = tensor.reshape(-1)
    message = library.hopper_case(name.encode(), ctypes.c_void_p(tensor.ctypes.data), ctypes.c_void_p(out.ctypes.data))
    return tensor, out, message.decode()


def line_of(name: str) -> str:
    (number,) = [i for i, line in enumerate(SOURCE.read_text().splitlines(), 1) if line.endswith(f"// line: {name}")]
    return rf"hopper_cases\.cpp:{number}"


def test_right_kernels_are_right(library, seed):
    tensor, out, message = run(library, "load")
    assert message == ""
    assert out[:64].tolist() == [*tensor[0, :32], *tensor[4, :32]]
    tensor, _, message = run(library, "store")
    assert message == ""
    assert (tensor[:4, :32] == 0).all()
    assert (tensor[4:8, :32] == 1).all()
    assert tensor[8, 0] == 8 * 64
    assert run(library, "read_stored")[1][1] == 4
    assert run(library, "named")[1][:32].tolist() == list(range(31, -1, -1))
    assert run(library, "cluster")[1][:64].tolist() == [*range(32, 64), *range(32)]
    assert run(library, "product")[1][:128].tolist() == [16] * 128
    assert run(library, "integers")[1][:128].tolist() == [32] * 128
    assert run(library, "sparse")[1][:128].tolist() == [16] * 128
    assert run(library, "atomic")[1][0] == 96
    # PTX ISA 8.9, "Causality order": a proxy fence anywhere between the write and the asynchronous read will do.
    for name in ("fence_by_reader", "read_stored", "named", "cluster", "product", "registers", "remote_arrive"):
        assert run(library, name)[2] == "", name


ANY = r"hopper_cases\.cpp:\d+"
#: What the emulator says against a case, after the kernel's, block's and thread's names, as a regular expression.
STOPPED = {
    "no_init": f"{ANY}: mbarrier: not an initialised object",
    "no_init_fence": f"{ANY}: mbarrier: no fence.mbarrier_init between its initialisation at {ANY} and its use",
    "no_init_barrier": f"{ANY}: mbarrier: (no barrier between its initialisation at {ANY}|not an initialised object)",
    "no_load_wait": f"{line_of('read')}: read of shared memory that (the TMA load at|nothing has written)",
    "wrong_parity": f"{line_of('read')}: read of shared memory that (the TMA load at|nothing has written)|deadlock",
    "too_few_bytes": f"deadlock: .* at the mbarrier initialised at {ANY}, which waits for 0 arrivals and has got 16 "
    "bytes that nobody announced",
    "too_many_bytes": f"deadlock: .* at the mbarrier initialised at {ANY}, which waits for 0 arrivals and 16 bytes",
    "no_bytes": f"{line_of('read')}: read of shared memory that|a phase of the mbarrier .* ends while|{ANY}: TMA: "
    "its mbarrier has begun another phase",
    "two_arrivals": f"{ANY}: mbarrier: more arrivals in a phase than the 1 it was initialised with at {ANY}",
    "two_inits": f"{ANY}: mbarrier: initialised again without mbarrier.inval",
    "load_over_reads": rf"{line_of('load')}: TMA: race in shared memory: this write and the read of thread \d+ at "
    f"{line_of('read')}|{line_of('read')}: read of shared memory that the TMA load at {line_of('load')} may still",
    "misaligned_load": f"{line_of('load')}: TMA: the box must be 128-byte aligned in shared memory and is 16 bytes off|"
    f"{line_of('load')}: TMA: the box of 512 bytes is not inside the block's shared memory",
    "load_past_the_end": f"{line_of('load')}: TMA: the box of 512 bytes is not inside the block's shared memory",
    "load_to_global": f"{line_of('load')}: TMA: the box of 512 bytes is not inside the block's shared memory",
    "no_map": f"{line_of('load')}: TMA: not a tensor map",
    "barrier_touched": f"{line_of('barrier_touched')}: read of shared memory that is an mbarrier object, initialised",
    "zero_arrivals": f"{ANY}: mbarrier: 1 to 2\\^20 - 1 arrivals are possible",
    "no_store_fence": f"{line_of('store')}: TMA: the async proxy's read of shared memory does not see the write of "
    rf"thread \d+ at {line_of('write')}: no fence.proxy.async between them",
    "no_store_barrier": f"{line_of('store')}: TMA: (race in shared memory|read of shared memory that nothing)",
    "no_store_commit": rf"{line_of('write')}: write of shared memory that the TMA store at {line_of('store')} may",
    "no_store_wait": rf"{line_of('write')}: write of shared memory that the TMA store at {line_of('store')}",
    "write_over_store": rf"{line_of('write')}: write of shared memory that the TMA store at {line_of('store')} may",
    "two_threads_store": f"{line_of('store')}: TMA: write of global memory that the TMA store at {line_of('store')}",
    "read_before_written": f"{line_of('read_stored')}: read of global memory that the TMA store at {ANY} may still be",
    "named_other_count": rf"{ANY}: barrier 1 of (64|96) threads, of (64|96) for those that have arrived already",
    "named_none": f"{ANY}: barrier 16: a block has barriers 0 to 15",
    "named_part_of_a_warp": f"{ANY}: (a barrier of 48 threads: whole warps only|barrier 1 of)",
    "named_other_barrier": "deadlock: .* 32 at named barriers",
    "registers_never_released": r"deadlock: .* for registers \(setmaxnreg\), of which the block has 0 left",
    "registers_released_upwards": f"{ANY}: setmaxnreg: releases registers down or up to 240 from 168",
    "cluster_no_barrier": f"{line_of('cluster')}: (race in shared|read of shared memory that nothing has written)",
    "cluster_no_last_barrier": f"{line_of('cluster')}: read of the shared memory of a block that has ended",
    "cluster_block_barrier": f"{line_of('cluster')}: (race in shared|read of shared memory that nothing has written)",
    "cluster_two_arrivals": f"{ANY}: arrives at the cluster's barrier twice without having waited",
    "cluster_no_arrival": f"{ANY}: waits at the cluster's barrier without having arrived",
    "cluster_no_such_block": f"{ANY}: mapa: block 2 of a cluster of 2",
    "cluster_ended_block": f"{line_of('cluster')}: read of the shared memory of a block that has ended",
    "remote_arrive_no_fence": f"{ANY}: mbarrier: no fence.mbarrier_init between its initialisation at {ANY} and",
    "product_no_fence": f"{line_of('wgmma')}: wgmma: no wgmma.fence since its registers were touched last",
    "product_no_commit": f"{line_of('sums')}: read of a register that a wgmma may still be writing",
    "product_no_wait": f"{line_of('sums')}: read of a register that a wgmma may still be writing",
    "product_over_operands": f"{line_of('over_operands')}: write of shared memory that the wgmma at {line_of('wgmma')}|"
    f"{line_of('wgmma')}: wgmma: A: race in shared memory",
    "product_no_proxy_fence": f"{line_of('wgmma')}: wgmma: A: the async proxy's read of shared memory does not see the",
    "product_no_barrier": f"{line_of('wgmma')}: wgmma: [AB]: (race in shared|read of shared memory that nothing)",
    "product_three_warps": "deadlock: .* for products that other warps of the warpgroup have not started",
    "product_one_differs": f"{line_of('wgmma')}: wgmma: differs from what other threads of the warpgroup have started",
    "product_outside": f"{line_of('wgmma')}: wgmma: the descriptor of B leads out of shared memory",
    "product_not_waited_for": "ends with 1 products on the tensor cores that it has not waited for",
    "integers_no_wait": f"{line_of('integers')}: read of a register that a wgmma may still be writing",
    "sparse_unordered": f"{line_of('sparse')}: the metadata of four elements of a sparse matrix must name two of them",
    "sparse_narrow_swizzle": f"{line_of('sparse')}: wgmma.sp: 64 bytes of B's k do not fit into a swizzle of 32",
    "sparse_metadata_written": f"{line_of('metadata')}: write of a register that a wgmma may still be reading",
    "product_part_of_a_warpgroup": f"{ANY}: wgmma: the block does not consist of whole warpgroups",
    "atomic_and_write": rf"{ANY}: race in global memory: this (read|write) and the (read|write) of thread \d+ at {ANY}",
    "atomic_and_read": rf"{ANY}: race in global memory: this (read|write) and the (read|write) of thread \d+ at {ANY}",
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_wrong_kernel_is_stopped_and_named(library, seed, name):
    message = run(library, name)[2]
    where = rf"warpwright emulator: kernel {name}, block \(\d, 0, 0\), thread \(\d+, 0, 0\): "
    assert re.match(f"{where}({STOPPED[name]})", message), message
    assert run(library, "load")[2] == "", "the next launch is not the worse for it"


@pytest.mark.parametrize(("name", "blocks", "cluster"), [("cluster_uneven", 3, 2), ("cluster_too_large", 16, 16)])
def test_impossible_clusters_are_refused(library, name, blocks, cluster):
    message = run(library, name)[2]
    expected = rf"clusters of {cluster} blocks in a grid {blocks} blocks wide: 1 to 8 are possible, and the width must"
    assert re.match(f"warpwright emulator: kernel {name}: {expected}", message), message
