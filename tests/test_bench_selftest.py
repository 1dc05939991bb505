"""The planted kernels of `warpwright bench selftest`: that they cheat, that they are caught, what is made of times."""

from __future__ import annotations

import pytest
import torch

from warpwright.bench import runner, selftest
from warpwright.bench.rows import Row
from warpwright.bench.timing import Timing


def played(changes: dict[str, float], width: float = 0.002):
    """In the place of `measure`: calls everyone sixty times, and finds these changes of time."""

    def measure(candidates, device, **_):
        found = {}
        for name, candidate in candidates.items():
            for i in range(60):
                candidate.call(i)
            time = 1e-3 * (1 + changes.get(name, 0.0))
            ratio = 1e-3 / time
            found[name] = Timing(
                time, time, time, time, time, repeats=60, calls=1, clock="host", settled=True, host=None, ratio=ratio,
                ratio_low=ratio * (1 - width), ratio_high=ratio * (1 + width),
            )  # fmt: skip
        return found

    return measure


def findings(monkeypatch, changes: dict[str, float], width: float = 0.002) -> dict[str, selftest.Finding]:
    monkeypatch.setattr(runner, "measure", played(changes, width))
    monkeypatch.setitem(selftest._ROWS, "cpu", 16)
    return {finding.name: finding for finding in selftest.run_selftest("cpu", seconds=0.01)}


def test_slower_kernels_are_told_apart_and_cheats_are_caught(monkeypatch):
    found = findings(monkeypatch, {"2% slower": 0.02, "10% slower": 0.1})
    assert [f for f in found.values() if not f.ok] == []
    assert len(found) == 7
    assert found["2% slower"].found.startswith("SLOWER, +2.00%")
    assert found["wrong by 0.1%"].found.startswith("wrong: its error is")
    assert "did not follow" in found["stops working after 50 calls"].found


def test_what_a_noisy_machine_hides_is_missed(monkeypatch):
    found = findings(monkeypatch, {"2% slower": 0.02, "10% slower": 0.1}, width=0.03)
    assert [f.name for f in found.values() if not f.ok] == ["the same kernel", "2% slower"]
    assert found["2% slower"].found.startswith("UNCLEAR")
    blind = findings(monkeypatch, {})
    assert [f.name for f in blind.values() if not f.ok] == ["2% slower", "10% slower"]


def test_a_cheat_that_is_timed_is_a_finding():
    row = Row("selftest", "softmax", "16 x 1024", "float32", "forward", "cheat", "cpu", p50=1e-3)
    finding = selftest._caught("cheat", row)
    assert not finding.ok
    assert finding.found == "timed: 0.001 s"


@pytest.mark.parametrize("make", [selftest._remembers, selftest._writes_once, selftest._tires])
def test_cheats_are_right_once_and_stale_later(make):
    cheat, x = make(), torch.randn(4, 8)
    assert torch.equal(cheat(x, -1), torch.softmax(x, -1))
    for _ in range(60):
        cheat(x, -1)
    x.copy_(torch.randn(4, 8))
    assert not torch.allclose(cheat(x, -1), torch.softmax(x, -1))
