"""What a warp does is what the PTX ISA's tables say: on the emulator, and on a GPU where there is one.

What is expected is computed in NumPy from the ISA's own formulas, here and in the other test_conformance files, so that
neither the emulator nor its author's idea of an instruction is the judge. Sections are those of PTX ISA 9.1.
"""

from __future__ import annotations

import subprocess

import emulated
import numpy as np
import pytest
from conformance_library import SOURCES

BUILD = emulated.build_script()


def fragments(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """9.7.14.5.15 and .16: lane l's register j holds elements 2 (l % 4) and the next of row l / 4 of matrix j."""
    words = np.zeros((32, 4), dtype=np.uint32)
    for matrix in range(4):
        seen = matrices[matrix].T if transposed else matrices[matrix]
        for lane in range(32):
            low, high = seen[lane // 4, 2 * (lane % 4)], seen[lane // 4, 2 * (lane % 4) + 1]
            words[lane, matrix] = int(high) << 16 | int(low)
    return words


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_x4(conformance, transposed, emulator_seed):
    """9.7.14.5.15: lanes 8 j to 8 j + 7 name the rows of matrix j."""
    random = np.random.default_rng(emulator_seed)
    matrices = random.integers(0, 1 << 16, (4, 8, 8), dtype=np.uint16)
    places = random.permutation(32)
    rows = np.zeros((32, 8), dtype=np.uint16)
    rows[places] = matrices.reshape(32, 8)
    out = np.zeros((32, 4), dtype=np.uint32)
    conformance.run("ldmatrix_trans" if transposed else "ldmatrix", rows, out, places)
    assert np.array_equal(out, fragments(matrices, transposed))


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_x4(hopper, transposed, emulator_seed):
    """9.7.14.5.16, "stmatrix": the same, the other way."""
    random = np.random.default_rng(emulator_seed)
    matrices = random.integers(0, 1 << 16, (4, 8, 8), dtype=np.uint16)
    places = random.permutation(32)
    out = np.zeros((32, 8), dtype=np.uint16)
    hopper.run("stmatrix_trans" if transposed else "stmatrix", fragments(matrices, transposed), out, places)
    assert np.array_equal(out[places], matrices.reshape(32, 8))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_fills_up_with_zeros(conformance, size, emulator_seed):
    """9.7.9.25.3.1, "cp.async": bytes beyond src-size are zeros."""
    given = np.random.default_rng(emulator_seed).integers(1, 256, (2, 32, size), dtype=np.uint8)
    out = conformance.run(f"cp_async_{size}", given, np.zeros((2, 32, size), dtype=np.uint8))
    expected = given.copy()
    for thread in range(32):
        expected[:, thread, thread % (size + 1) :] = 0
    assert np.array_equal(out, expected[:, ::-1])


def test_elect_chooses_one_lane_of_each_warp_and_the_same_again(hopper, emulator_seed):
    """9.7.13.14, "elect.sync": for the same mask the same leader every time."""
    out = hopper.run("elect", np.zeros(1, dtype=np.uint32), np.full((4, 32, 2), 9, dtype=np.uint32))
    assert (out.sum(axis=1) == 1).all()
    assert np.array_equal(out[:, :, 0], out[:, :, 1])
    assert (out == out[:1]).all()


def test_shuffles(conformance, emulator_seed):
    """9.7.9.6, "shfl.sync": bfly, down and idx with a clamp of 31 and no segments."""
    random = np.random.default_rng(emulator_seed)
    values = random.integers(0, 1 << 64, 32, dtype=np.uint64)
    sources = random.integers(0, 64, 32, dtype=np.uint32)
    mask, delta = (int(x) for x in random.integers(1, 32, 2))
    given = np.concatenate([values.view(np.uint32), sources])
    out = conformance.run("shuffle", given, np.zeros((32, 9), dtype=np.uint32), [mask, delta])
    for lane in range(32):
        chosen = [lane ^ mask, lane + delta if lane + delta <= 31 else lane, int(sources[lane]) & 31]
        assert out[lane, :6].view(np.uint64).tolist() == values[chosen].tolist()
        assert out[lane, 6:].tolist() == [int(v) & 0xFFFFFFFF for v in values[chosen]]


@pytest.mark.parametrize("votes", ["some", "none", "all"])
def test_votes(conformance, votes, emulator_seed):
    """9.7.13.9, "vote.sync": over the lanes of the mask alone; the others' bits of a ballot are 0."""
    random = np.random.default_rng(emulator_seed)
    mask = 0xFFFFFFFF if emulator_seed == 0 else int(random.integers(1, 1 << 32))
    inside = (mask >> np.arange(32)) & 1 == 1
    predicates = {"some": random.integers(0, 3, 32), "none": np.zeros(32), "all": 1 + random.integers(0, 3, 32)}[votes]
    predicates = np.where(inside, predicates, 1 - (predicates != 0)).astype(np.uint32)
    given = np.concatenate([[mask], predicates]).astype(np.uint32)
    out = conformance.run("vote", given, np.full((32, 3), 7, dtype=np.uint32))
    for_it = (predicates != 0) & inside
    ballot = sum(1 << int(lane) for lane in np.flatnonzero(for_it))
    expected = [ballot, int(for_it.any()), int(for_it[inside].all())]
    for lane in range(32):
        assert out[lane].tolist() == (expected if inside[lane] else [7, 7, 7])


@pytest.mark.skipif(BUILD.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_inline_assembly_is_accepted(source, tmp_path):
    """By the assembler of every architecture that ships, so that no GPU is needed to see a typo."""
    archs = BUILD.gencode_flags(BUILD.DEFAULT_ARCHS)
    command = [BUILD.find_nvcc(), "-O2", "-std=c++20", *archs, "-Werror=all-warnings", f"-I{BUILD.CSRC}", "-c"]
    subprocess.run([*command, str(source), "-o", str(tmp_path / "cases.o")], check=True)
