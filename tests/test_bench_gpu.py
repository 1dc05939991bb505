"""bench/gpu.py with steps of a few milliseconds and a clock of our own: nothing here needs a GPU or depends on time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from warpwright.bench import gpu, gpu_steps
from warpwright.bench.gpu import AGAIN, DONE, FAILED, Runner, Step

MACHINE = {"gpu": "NVIDIA H200", "torch": "2.13.0"}


class Clock:
    """Seconds that pass only when a step runs: `cost` of the next one."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(name: str, code: str = "", estimate: float = 10, **more) -> Step:
    return Step(name, (sys.executable, "-S", "-c", code), estimate, **more)


def start(out: Path, steps: list[Step], budget: float = 100, costs: dict[str, float] | None = None):
    """Runs the steps; each takes its cost (1 s unless given) of the simulated time."""
    clock, said = Clock(), []
    runner = Runner(out, budget, say=said.append, clock=clock, reserve=0)
    execute = runner._execute

    def timed(one: Step, env, left: float):
        clock.now += (costs or {}).get(one.name, 1)
        return execute(one, env, left)

    runner._execute = timed
    runner.load()
    return runner.run(steps, {}), runner, said


def statuses(runner: Runner) -> dict[str, str]:
    return {name: outcome.status for name, outcome in runner.outcomes.items()}


def test_all_steps_are_run_and_their_logs_kept(tmp_path):
    code, runner, _ = start(tmp_path, [step("one", "print('hello')"), step("two", "print('there')", needs="one")])
    assert code == DONE
    assert statuses(runner) == {"one": "done", "two": "done"}
    assert "hello" in (tmp_path / "one.log").read_text()
    assert json.loads((tmp_path / "state.json").read_text())["steps"]["two"]["rc"] == 0


def test_a_failure_does_not_stop_the_others(tmp_path):
    steps = [step("bad", "raise SystemExit(3)"), step("good"), step("behind", needs="bad")]
    code, runner, _ = start(tmp_path, steps)
    assert code == FAILED
    assert statuses(runner) == {"bad": "failed", "good": "done", "behind": "skipped"}
    assert runner.outcomes["bad"].reason == "exit code 3, see bad.log"
    assert runner.outcomes["behind"].reason == "bad is failed"


def test_what_is_done_or_failed_is_not_run_again(tmp_path):
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    steps = [step("good", count), step("bad", count + "; raise SystemExit(1)")]
    assert start(tmp_path, steps)[0] == FAILED
    assert start(tmp_path, steps)[0] == FAILED
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_step_longer_than_the_time_left_waits_for_the_next_run(tmp_path):
    steps = [step("one"), step("long", estimate=50), step("short", estimate=5)]
    code, runner, _ = start(tmp_path, steps, budget=60, costs={"one": 20})
    assert code == AGAIN
    assert statuses(runner) == {"one": "done", "long": "unfinished", "short": "done"}
    assert runner.outcomes["long"].reason == "needs about 50 s, 40 s were left"
    code, runner, _ = start(tmp_path, steps, budget=60)
    assert code == DONE


def test_a_step_longer_than_every_run_gets_a_whole_one(tmp_path):
    assert start(tmp_path, [step("long", estimate=1000)], budget=60)[0] == DONE


def test_a_resumable_step_goes_on(tmp_path):
    mark = tmp_path / "mark"
    code = f"import os, sys; p = {str(mark)!r}; known = os.path.exists(p); open(p, 'w'); sys.exit(0 if known else 75)"
    steps = [step("parts", code, resumable=True), step("after", after=("parts",))]
    rc, runner, _ = start(tmp_path, steps)
    assert rc == AGAIN
    assert statuses(runner) == {"parts": "unfinished", "after": "unfinished"}
    rc, runner, _ = start(tmp_path, steps)
    assert rc == DONE
    assert runner.outcomes["parts"].runs == 2
    assert runner.outcomes["parts"].seconds == 2


@pytest.mark.parametrize(("resumable", "second"), [(True, "unfinished"), (False, "failed")])
def test_a_step_is_ended_with_all_that_it_started(tmp_path, resumable, second):
    child = "import time, os; open('{}', 'w').write(str(os.getpid())); time.sleep(600)".format(tmp_path / "pid")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    slow = step("slow", code, estimate=0.1, resumable=resumable)
    runner = Runner(tmp_path, 0.7, say=lambda line: None, reserve=0)  # The real clock: only a limit is waited for.
    assert runner.run([slow], {}) == AGAIN
    assert runner.outcomes["slow"].status == "unfinished"
    if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
        status = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
        assert not status.exists() or status.read_text().split()[2] == "Z"
    again = Runner(tmp_path, 0.7, say=lambda line: None, reserve=0)
    again.load()
    again.run([slow], {})
    assert again.outcomes["slow"].status == second


def test_what_a_machine_lacks_is_skipped_with_its_reason(tmp_path):
    code, runner, _ = start(tmp_path, [step("one"), step("two", skip="ncu not found")])
    assert code == DONE
    assert statuses(runner) == {"one": "done", "two": "skipped"}
    lines = gpu.summary([step("one"), step("two")], runner.outcomes)
    assert lines[1].split()[:2] == ["two", "skipped"]
    assert lines[1].endswith("ncu not found")
    assert lines[-1] == "1 done, 1 skipped"


def test_a_step_may_find_nothing_to_do(tmp_path):
    code, runner, _ = start(tmp_path, [step("tests", "raise SystemExit(5)", nothing=5)])
    assert code == DONE
    assert runner.outcomes["tests"].reason == "nothing to do here, see tests.log"


def test_without_a_gpu_there_is_one_line(tmp_path, capsys):
    code = gpu.main(["--out", str(tmp_path / "out")], look=lambda: "torch 2.13.0 sees no CUDA GPU")
    said = capsys.readouterr()
    assert code == FAILED
    assert said.err == "warpwright: gpu: torch 2.13.0 sees no CUDA GPU\n"
    assert not (tmp_path / "out").exists()


def test_main_runs_a_plan_with_the_package_on_the_path(tmp_path, capsys):
    where = "import sys, pathlib; sys.exit(not any((pathlib.Path(p) / 'warpwright/bench').is_dir() for p in sys.path))"
    plan = lambda out, tune: [step("path", where)]  # noqa: E731
    assert gpu.main(["--out", str(tmp_path), "--budget", "60"], plan=plan, look=lambda: MACHINE) == DONE
    assert "gpu NVIDIA H200, torch 2.13.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "state.json").read_text())["machine"] == MACHINE


def test_a_step_can_be_asked_for_again(tmp_path, capsys):
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    plan = lambda out, tune: [step("one", count), step("two", count)]  # noqa: E731
    arguments = ["--out", str(tmp_path), "--budget", "60"]
    for more in ([], [], ["--again", "two"]):
        assert gpu.main([*arguments, *more], plan=plan, look=lambda: MACHINE) == DONE
    assert (tmp_path / "runs").read_text() == "xxx"
    with pytest.raises(SystemExit):
        gpu.main([*arguments, "--again", "three"], plan=plan, look=lambda: MACHINE)
    assert "no step is called three" in capsys.readouterr().err


def test_the_plan_can_be_listed_anywhere(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out"), "--list", "--tune"]) == DONE
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    expected = {"build", "check-native", "check-triton", "bench-quick", "tests-ops", "sanitize-memcheck", "counters"}
    assert expected | {"tune"} <= set(names)
    assert not (tmp_path / "out").exists()


def test_the_plan_names_steps_that_come_before():
    steps = gpu.plan(Path("out"), tune=True)
    names = [one.name for one in steps]
    assert len(set(names)) == len(names)
    for i, one in enumerate(steps):
        assert {one.needs or names[0], *one.after} <= set(names[: i + 1])


# ---- the steps' own work ----


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert gpu_steps.whole_lines(path) == [{"a": 1}, {"a": 2}]
    gpu_steps.append(path, {"a": 3})
    assert gpu_steps.whole_lines(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


def fake_check(monkeypatch, failures):
    import torch

    from warpwright import _info
    from warpwright.testing import check

    states = [_info.BackendState("native", "cuda", None)]
    monkeypatch.setattr(_info, "backend_states", lambda: states)
    ran = []

    def run(case):
        name = str(case.dtype).removeprefix("torch.")
        ran.append((case.spec.name, name))
        return check.Result(case.spec.name, "native-cuda", "cuda", name, 3, 0, 0.5, 0.1, failures.pop(ran[-1], []))

    monkeypatch.setattr(check, "run", run)
    assert torch.float32 in check.SPECS["swiglu"].dtypes
    return ran


def test_check_goes_on_where_it_stopped(tmp_path, monkeypatch):
    ran = fake_check(monkeypatch, {("swiglu", "float16"): ["wrong"]})
    path = tmp_path / "check.jsonl"
    monkeypatch.setattr(gpu_steps, "time_is_up", lambda: len(ran) == 2)
    assert gpu_steps.check("native", path, ["swiglu"]) == AGAIN
    monkeypatch.setattr(gpu_steps, "time_is_up", lambda: False)
    assert gpu_steps.check("native", path, ["swiglu"]) == FAILED, "the failure of the first part counts"
    assert ran == [("swiglu", "float32"), ("swiglu", "float16"), ("swiglu", "bfloat16")]
    assert gpu_steps.check("native", path, ["rms_norm"]) == FAILED


def test_check_passes(tmp_path, monkeypatch):
    fake_check(monkeypatch, {})
    assert gpu_steps.check("native", tmp_path / "check.jsonl", ["swiglu"], ["float32"]) == DONE


def fake_bench(monkeypatch, status):
    """A suite of two cases, whose rows no machine has measured."""
    from warpwright.bench import runner
    from warpwright.bench.rows import Row

    def run(cases, *, device, providers, seconds, done):
        yield {"time": "now"}
        for case in ("one", "two"):
            for provider in providers:
                ours = provider.startswith("warpwright")
                timed = {"p50": 1e-6, "ratio": 0.5 if case == "one" else 2.0}
                what = {"status": status, "reason": "it is"} if ours and status != "timed" else timed
                row = Row("quick", "rms_norm", case, "float32", "forward", provider, device, **what)
                if row.key not in done:
                    yield row

    monkeypatch.setattr(runner, "run", run)


def test_bench_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from warpwright.bench.rows import read_results

    fake_bench(monkeypatch, "timed")
    path = tmp_path / "bench-quick.jsonl"
    monkeypatch.setattr(gpu_steps, "time_is_up", lambda: True)
    assert gpu_steps.bench("quick", path, device="cpu") == AGAIN
    assert {row.case for row in read_results(path).rows} == {"one"}
    monkeypatch.setattr(gpu_steps, "time_is_up", lambda: False)
    assert gpu_steps.bench("quick", path, device="cpu") == DONE
    rows = read_results(path).rows
    assert {row.case for row in rows} == {"one", "two"}
    assert len({row.key for row in rows}) == len(rows)
    worst = gpu_steps.slowest(tmp_path, count=1)
    assert [(row.case, row.provider) for row in worst] == [("one", "warpwright-cpu")]


def test_bench_fails_when_our_kernels_are_wrong(tmp_path, monkeypatch):
    fake_bench(monkeypatch, "wrong")
    assert gpu_steps.bench("quick", tmp_path / "bench-quick.jsonl", device="cpu") == FAILED
