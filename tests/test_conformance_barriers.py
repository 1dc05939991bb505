"""Named barriers, mbarrier objects, setmaxnreg and clusters do what the PTX ISA says: see test_conformance.py."""

from __future__ import annotations

import numpy as np
import pytest


def words(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, shape, dtype=np.uint32)


@pytest.mark.parametrize("ids", [(1, 2), (15, 3), (8, 14)])
def test_named_barriers_of_two_halves_keep_apart(conformance, ids, emulator_seed):
    """9.7.13.1, "barrier.sync" with a number of threads: each half of the block has its own barrier and rounds."""
    given = words(emulator_seed, 128)
    rounds = 1 + emulator_seed
    out = conformance.run("named_sync", given, np.zeros(128, dtype=np.uint32), [128, *ids, rounds])
    expected = given.reshape(2, 64)
    for r in range(rounds):
        expected = 3 * expected[:, ::-1] + np.uint32(r)
    assert np.array_equal(out.reshape(2, 64), expected)


@pytest.mark.parametrize("ids", [(1, 2), (15, 7)])
def test_barrier_arrive_lets_producers_go_on(conformance, ids, emulator_seed):
    """9.7.13.1, "barrier.arrive": counts like sync and does not wait."""
    rounds = 1 + 2 * emulator_seed
    given = words(emulator_seed, rounds, 3, 32)
    out = conformance.run("named_arrive", given, np.zeros(32, dtype=np.uint32), [128, *ids, rounds])
    expected = np.zeros(32, dtype=np.uint32)
    for cells in given:
        expected = 5 * expected + cells[0] + 2 * cells[1] + 3 * cells[2]
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("arrivals", [1, 2, 7])
@pytest.mark.parametrize("phases", [1, 2, 5])
def test_a_phase_ends_with_its_last_arrival(hopper, arrivals, phases, emulator_seed):
    """9.7.13.15.4 and 9.7.13.15.16: test_wait is false for the phase that runs, true for the one before it. The phase
    before the first one has odd parity."""
    given = words(emulator_seed, 2)
    one_life = [*([0, 1] * arrivals), 1] * phases
    expected = [*one_life, given[0], *one_life, given[1]]
    out = hopper.run("mbarrier_trace", given, np.full(len(expected), 9, dtype=np.uint32), [1, arrivals, phases])
    assert out.tolist() == [int(x) for x in expected]


def consumed(given: np.ndarray, consumers: int) -> np.ndarray:
    """What each consumer of a ring makes of items x producers words."""
    t = np.arange(consumers)
    sums = np.zeros(consumers, dtype=np.uint32)
    producers = given.shape[1]
    for item in given:
        sums = 7 * sums + item[t % producers] + 2 * item[(5 * t + 1) % producers]
    return sums


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("threads", "producers"), [(64, 32), (96, 1), (128, 96)])
def test_a_ring_of_full_and_empty_barriers(hopper, stages, threads, producers, emulator_seed):
    """9.7.13.15.6: phases follow each other with the count given to init, and arrive releases what wait acquires."""
    items = stages * 3 + emulator_seed
    given = words(emulator_seed, items, producers)
    out = np.zeros(threads - producers, dtype=np.uint32)
    hopper.run("mbarrier_ring", given, out, [threads, stages, items, producers])
    assert np.array_equal(out, consumed(given, threads - producers))


@pytest.mark.parametrize("stages", [1, 3])
def test_setmaxnreg_moves_registers_from_producers_to_consumers(hopper, stages, emulator_seed):
    """9.7.19.5, "setmaxnreg": 3 x 168 registers become 40 + 2 x 232. inc waits until dec has given them back."""
    items = 2 * stages + emulator_seed
    given = words(emulator_seed, items, 128)
    out = hopper.run("setmaxnreg", given, np.zeros(256, dtype=np.uint32), [384, stages, items])
    assert np.array_equal(out, consumed(given, 256))


@pytest.mark.parametrize("turns", [1, 2, 3, 7, 9])
def test_warpgroups_take_turns(hopper, turns, emulator_seed):
    """cuda/tile/turns.cuh: each turn sees what the turn before wrote, whichever groups have none left."""
    given = words(emulator_seed, turns, 128)
    out = hopper.run("turns", given, np.zeros((3, 128), dtype=np.uint32), [384, turns])
    expected = np.ones(128, dtype=np.uint32)
    for cells in given:
        expected = 3 * expected + cells
    assert (out == expected).all()


CLUSTERS = [1, 2, 4, 8]


@pytest.mark.parametrize("size", CLUSTERS)
def test_blocks_know_their_place_in_the_cluster(hopper, size, emulator_seed):
    """10.16, "%cluster_ctarank", and 10.17, "%cluster_nctarank": along x, clusters are runs of blocks."""
    blocks = 3 * size
    out = hopper.run("cluster_place", np.zeros(1), np.zeros((blocks, 2), dtype=np.uint32), [blocks, size])
    assert out.tolist() == [[block % size, size] for block in range(blocks)]


@pytest.mark.parametrize("size", CLUSTERS)
def test_blocks_read_and_write_each_others_shared_memory(hopper, size, emulator_seed):
    """9.7.9.23, "mapa", and 9.7.13.3, "barrier.cluster": what was written before arrive is seen after wait."""
    clusters, rounds = 2, 1 + emulator_seed % 3
    cells = given = words(emulator_seed, clusters, size, 64)
    t = np.arange(64)
    for _ in range(rounds):
        sums = sum((other + 1) * cells[:, other, (t + other) % 64] for other in range(size)).astype(np.uint32)
        cells = np.repeat(sums[:, None, ::-1], size, axis=1)
    out = np.zeros((clusters, size, 64), dtype=np.uint32)
    hopper.run("cluster_memory", given, out, [clusters * size, size, rounds])
    assert np.array_equal(out, cells)


@pytest.mark.parametrize(("size", "at"), [(1, 0), (2, 0), (2, 1), (4, 3)])
@pytest.mark.parametrize("phases", [1, 3])
def test_remote_arrivals_count(hopper, size, at, phases, emulator_seed):
    """9.7.13.15.13, "mbarrier.arrive" in shared::cluster: a phase ends when the last block has arrived."""
    clusters = 2
    out = np.full((clusters, phases, size), 9, dtype=np.uint32)
    hopper.run("remote_arrive", np.zeros(1), out, [clusters * size, size, at, phases])
    assert (out[:, :, :-1] == 0).all()
    assert (out[:, :, -1] == 1).all()


@pytest.mark.parametrize("size", CLUSTERS)
def test_remote_arrivals_in_any_order(hopper, size, emulator_seed):
    phases = 1 + emulator_seed
    out = hopper.run("remote_all", np.zeros(1), np.zeros((size, 64), dtype=np.uint32), [size, size, phases])
    assert (out == 2).all()
