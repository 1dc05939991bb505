"""`warpwright tune`: only what is right and faster wins, and nothing is measured twice."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from simulated_clock import Measure, SimulatedClock
from tuned_linear import CPU, TILE, Spy, chosen, entry, linear, problem, save, tables_in

import warpwright
from warpwright.bench.case import Case
from warpwright.cli import main
from warpwright.cli import tune as command
from warpwright.testing import SPECS
from warpwright.triton_kernels import _gemm
from warpwright.tuning import search
from warpwright.tuning.launches import TUNABLE_OPS
from warpwright.tuning.tables import Entry, Store


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    with tables_in(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def spy(monkeypatch):
    def put(change=lambda kwargs, args: None) -> Spy:
        found = Spy(_gemm._gemm_kernel, change)
        monkeypatch.setattr(_gemm, "_gemm_kernel", found)
        return found

    return put


# ---- the search ----


def text(config: dict[str, int]) -> str:
    return json.dumps(config)


class Bench:
    """A case of linear's forward pass and the search for it."""

    case = Case("", "linear", torch.float32, ("forward",), {"m": 64, "n": 16, "k": 40})

    def __init__(self):
        self.store = Store("interpreted")
        self.steps: list[search.Step] = []

    def tune(self, measure: Measure | None = None, **options) -> list[Entry]:
        with pytest.MonkeyPatch.context() as patch:
            if measure is not None:
                patch.setattr(search, "measure", measure)
            return list(search.tune(self.case, self.store, search.Options(CPU, **options), self.steps.append))

    @property
    def configs(self) -> list[dict[str, int]]:
        return search.problems_of(self.case, search.Options(CPU))[problem()]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(Case, "sample", lambda self, device, seed=0: linear().map(lambda t: t.to(device)))
    monkeypatch.setattr(search, "Accuracy", SimpleNamespace(of=accuracy))
    monkeypatch.setattr(search, "_GROUP", 4)
    return Bench()


def accuracy(case, direction, device):
    from warpwright.testing import Expected

    sample = case.sample(device)
    return SimpleNamespace(sample=sample, expected=Expected.of(SPECS[case.op].torch_op, sample))


def fastest(config: dict[str, int]) -> float:
    return 0.5 if config == TILE else 0.9


def test_the_fastest_wins_is_saved_and_used(bench, spy):
    clock = Measure(fastest)
    (found,) = bench.tune(clock)
    assert (found.problem, found.config) == (problem(), TILE)
    assert (found.seconds, found.default_seconds, found.gain) == (0.5, 1.0, 2.0)
    assert found.spread == pytest.approx(0.001)
    assert (found.candidates, found.failed, found.wrong) == (len(bench.configs), 0, 0)
    assert found.torch == torch.__version__
    assert found.sources == _gemm.GEMM.sources
    assert sorted(clock.quick) == sorted(map(text, bench.configs))  # Each once,
    assert clock.passes[-1][0] == text(TILE)  # and a few once more.
    assert len(clock.passes[-1]) == 6
    assert (bench.steps[-1].done, bench.steps[-1].total, bench.steps[-1].best) == (*[len(bench.configs)] * 2, 0.5)
    kernel = spy()
    warpwright.ops.linear(*linear().args)
    assert kernel.launched == [TILE]


class KnownTimes(SimulatedClock):
    """It knows how long each configuration takes, by what a candidate launches when it is called."""

    def __init__(self, kernel: Spy):
        super().__init__()
        self.kernel = kernel
        self.known: dict[int, tuple[object, float]] = {}  # With the candidate, so that its id stays its own.

    def time(self, candidate, first: int, count: int) -> float:
        if id(candidate) not in self.known:
            candidate.call(first)
            config = self.kernel.launched[-1]
            default = config == _gemm.GEMM.default(64, 16, 40)
            self.known[id(candidate)] = candidate, 1.0 if default else fastest(config)
        self.seconds += 0.01
        return count * self.known[id(candidate)][1]


def test_what_is_timed_is_the_launch_of_each_configuration(bench, spy):
    (found,) = bench.tune(clock=KnownTimes(spy()))
    assert (found.config, found.seconds, found.default_seconds, found.spread) == (TILE, 0.5, 1.0, 0.0)


@pytest.mark.parametrize(("seconds", "spread"), [(1.1, 0.001), (1.0, 0.001), (0.985, 0.02)])
def test_what_is_not_faster_by_more_than_the_spread_never_wins(bench, seconds, spread):
    (found,) = bench.tune(Measure(lambda config: seconds, spread=spread))
    assert (found.config, found.seconds) == (None, 1.0)
    assert chosen().source == "default, which nothing beat: tuned here"


def corrupt(where):
    """Breaks the launches of configurations, as a kernel that is wrong for one tile would be."""

    def change(kwargs, args):
        if where(kwargs):
            args[13][-1, -1] += 0.1  # The output.

    return change


def test_what_is_wrong_never_wins(bench, spy):
    spy(corrupt(lambda kwargs: kwargs["BLOCK_M"] == 16))
    (found,) = bench.tune(Measure(lambda config: 0.1 if config["BLOCK_M"] == 16 else 0.8))
    assert found.config["BLOCK_M"] != 16
    assert found.wrong == sum(config["BLOCK_M"] == 16 for config in bench.configs) > 0
    assert found.seconds == 0.8


def test_what_agrees_with_the_default_is_still_held_against_float64(bench, spy, monkeypatch):
    monkeypatch.setattr(search, "_agree", lambda *args: True)
    spy(corrupt(lambda kwargs: {n: kwargs[n] for n in TILE} == TILE))
    (found,) = bench.tune(Measure(fastest))
    assert (found.seconds, found.wrong) == (0.9, 1)
    assert found.config != TILE


def test_unwritten_results_are_wrong(bench, monkeypatch):
    """The memory of an earlier launch must not pass for a result."""

    class Lazy(Spy):
        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                if kwargs["BLOCK_M"] == 32:
                    self.kernel[grid](*args, **kwargs)

            return launch

    monkeypatch.setattr(_gemm, "_gemm_kernel", Lazy(_gemm._gemm_kernel))
    (found,) = bench.tune(Measure(lambda config: 0.1))
    assert found.config["BLOCK_M"] == 32
    assert found.wrong == sum(config["BLOCK_M"] != 32 for config in bench.configs) > 0


def test_what_does_not_launch_is_counted(bench, spy):
    def fail(kwargs, args):
        if kwargs["BLOCK_K"] == 64 and kwargs["BLOCK_M"] == 16:
            raise RuntimeError("out of resources")

    spy(fail)
    (found,) = bench.tune(Measure(fastest))
    assert found.config == TILE
    assert found.failed == sum(c["BLOCK_K"] == 64 and c["BLOCK_M"] == 16 for c in bench.configs) > 0


def test_a_failure_that_breaks_the_device_ends_the_search_and_is_not_repeated(bench, spy):
    bad = bench.configs[3]
    state = {"broken": False}

    def fail(kwargs, args):
        state["broken"] |= {n: kwargs[n] for n in TILE} == bad
        if state["broken"]:
            raise RuntimeError("an illegal memory access was encountered")

    kernel = spy(fail)
    with pytest.raises(RuntimeError, match=r"nothing runs any more; the next start leaves it out: an illegal memory"):
        bench.tune(Measure(fastest))
    state["broken"] = False
    kernel.launched.clear()
    (found,) = bench.tune(Measure(fastest))
    assert (found.config, found.failed) == (TILE, 1)
    assert bad not in kernel.launched


def test_an_interrupted_search_goes_on_where_it_was(bench):
    first = Measure(fastest, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        bench.tune(first)
    assert bench.store.entries() == {}
    second = Measure(fastest)
    (found,) = bench.tune(second)
    assert found.config == TILE
    before, after = [name for names in first.passes for name in names], second.quick
    assert before
    assert after
    assert sorted(before + after) == sorted(map(text, bench.configs))  # Each was measured once.
    assert not bench.store.rest.exists()
    third = Measure(fastest)
    assert bench.tune(third) == []  # Finished cases are not measured again.
    assert third.passes == []


def test_an_interrupted_last_pass_repeats_that_pass_only(bench):
    full = Measure(fastest)
    bench.tune(full)
    bench.store.clear()
    with pytest.raises(KeyboardInterrupt):
        bench.tune(Measure(fastest, stop_at=len(full.passes) - 1))
    last = Measure(fastest)
    (found,) = bench.tune(last)
    assert (found.config, len(last.passes)) == (TILE, 1)


def test_other_sources_begin_anew(bench, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        bench.tune(Measure(fastest, stop_at=1))
    monkeypatch.setitem(_gemm.GEMM.__dict__, "sources", "0123456789abcdef")
    clock = Measure(fastest)
    (found,) = bench.tune(clock)
    assert sorted(clock.quick) == sorted(map(text, bench.configs))
    monkeypatch.undo()
    assert found.sources != _gemm.GEMM.sources


def test_the_deadline_ends_a_search_between_groups(bench):
    with pytest.raises(search.OutOfTime):
        bench.tune(Measure(fastest), deadline=-math.inf)
    (found,) = bench.tune(Measure(fastest))
    assert found.config == TILE


def test_rounding_is_no_disagreement_and_an_error_is():
    theirs = torch.rand(100, 100) - 0.5
    assert search._agree(theirs * (1 + 1e-7), theirs, 100)
    for wrong in (theirs + 1e-3, theirs * math.nan, torch.where(theirs == theirs.max(), 0, theirs)):
        assert not search._agree(wrong, theirs, 100)
    assert not search._agree((theirs + 0.1).bfloat16(), theirs.bfloat16(), 100)


# ---- the command ----


@pytest.fixture
def cli(capsys, monkeypatch, bench):
    """`warpwright tune` on one case and a simulated clock: (exit code, stdout, stderr)."""
    measure = Measure(fastest)
    monkeypatch.setattr(command, "_cases", lambda *args: [("triton", bench.case)])
    monkeypatch.setattr(search, "measure", measure)
    monkeypatch.setattr(Case, "label", "64 x 16 x 40")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["tune", *arguments])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    run.measure = measure
    return run


def test_the_command_tunes_lists_and_clears(cli, bench, folder):
    count = len(bench.configs)
    code, out, err = cli("--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["problems"] == [
        {"backend": "triton", "problem": str(problem()), "configurations": count, "tuned": False}
    ]
    assert not folder.exists()
    code, out, err = cli("--json")
    report = json.loads(out)
    assert (code, report["ok"], report["gpu"], report["finished"], report["stopped"]) == (
        0,
        True,
        "interpreted",
        1,
        None,
    )
    assert report["tuned"][0]["config"] == TILE
    assert report["tuned"][0]["gain"] == 2.0
    assert "these times mean nothing" in err
    assert "tuned" in cli("--dry-run")[1]
    code, out, err = cli("--list", "--json")
    (listed,) = json.loads(out)["tables"].values()
    assert (code, err, listed[0]["state"]) == (0, "", "in use")
    assert "0 launches tuned now" in cli()[1]
    assert str(folder / "interpreted.json") in cli("--clear")[1]
    assert "nothing is tuned" in cli("--list")[1]
    assert "nothing to remove" in cli("--clear")[1]


def test_the_list_names_stale_entries(cli, folder):
    gone = dataclasses.replace(entry(), problem=problem()._replace(kernel="gone"))
    save(folder, entry(sources="0123456789abcdef"), gone)
    out = cli("--list", "--json")[1]
    (listed,) = json.loads(out)["tables"].values()
    assert [e["state"] for e in listed] == ["not used: the kernel's source has changed", "not used: no such kernel"]
    assert "gemm" in cli("--list")[1]


def test_ctrl_c_and_the_budget_end_the_command_and_save(cli):
    cli.measure.stop_at = 1
    code, out, _ = cli("--json")
    assert (code, json.loads(out)["stopped"], json.loads(out)["tuned"]) == (130, "interrupted", [])
    assert Store("interpreted").unfinished(problem(), _gemm.GEMM.sources).ratios
    assert "start again to go on" in cli()[1]
    cli.measure.stop_at = None
    code, out, _ = cli("--budget", "0")
    assert code == 0
    assert "the budget is spent" in out


def test_a_case_that_fails_is_named(cli, spy):
    def fail(kwargs, args):
        raise RuntimeError("out of resources")

    spy(fail)
    code, out, _ = cli()
    assert code == 1
    assert "FAILED linear 64 x 16 x 40 float32, triton: out of resources" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "swiglu"], f"--op must be one of {', '.join(TUNABLE_OPS)}, got 'swiglu'"),
        (["--backend", "cuda"], "--backend must be one of native, triton, got 'cuda'"),
        (["--backend", "native"], "nothing can be tuned: there is no CUDA GPU"),
        (["--device", "tpu"], "--device must be one of cpu, cuda, got 'tpu'"),
        (["--device", "cuda"], "--device cuda: torch sees no CUDA GPU"),
    ],
)
def test_a_wrong_option_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["tune", *arguments])
    assert (end.value.code, capsys.readouterr().err) == (1, f"warpwright: tune: {message}\n")


def test_where_nothing_can_be_tuned_it_says_so(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit) as end:
        main(["tune"])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("warpwright: tune: nothing can be tuned: there is no CUDA GPU")
