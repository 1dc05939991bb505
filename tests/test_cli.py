"""The `warpwright` command: what it prints, on which stream, and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

import warpwright
from warpwright.cli import COMMANDS, main
from warpwright.testing import SPECS, Make


@pytest.fixture
def cli(capsys):
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_and_json(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"warpwright {command}" in out
    # A group's commands have it: tests/test_cli_bench.py.
    assert command == "bench" or "--json" in out


def test_version_and_no_arguments(cli):
    assert cli("--version")[:2] == (0, f"warpwright {warpwright.__version__}\n")
    code, out, err = cli()
    assert code == 2
    assert "check" in out + err


@pytest.mark.parametrize("arguments", [["nonsense"], ["info", "--nonsense"], ["check", "--op"]])
def test_a_wrong_command_line_exits_with_2(cli, arguments):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


def test_info(cli):
    code, out, err = cli("info")
    assert (code, err) == (0, "")
    assert warpwright.__version__ in out
    assert torch.__version__ in out
    code, out, err = cli("info", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(warpwright.info().as_dict()))


def test_check_prints_a_table(cli):
    code, out, err = cli("check", "--op", "rms_norm", "--backend", "native", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "rms_norm" in out
    assert "native-cpu" in out
    assert out.rstrip().endswith("no failures")


def test_check_json_lists_what_was_run(cli):
    code, out, _ = cli("check", "--op", "rms_norm", "--dtype", "float32", "--device", "cpu", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"] is True
    assert report["failures"] == 0
    by_backend = {result["backend"]: result for result in report["results"]}
    assert set(by_backend) == {"native-cpu", "triton-interpreted", "reference-cpu"}
    samples = len(list(SPECS["rms_norm"].samples(Make(torch.float32))))
    for result in by_backend.values():
        assert (result["op"], result["dtype"]) == ("rms_norm", "float32")
        assert result["samples"] == samples
        assert result["bad_inputs"] > 0
        assert 0 < result["worst_ratio"] <= 1
        assert result["failures"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": lambda *a, **k: SPECS["swapped"].torch_op(*a, **k) * 1.001}, "output0: error"),
        ({"op": lambda *a, **k: 1 / 0}, "ZeroDivisionError: division by zero"),
        ({"op": lambda *a, **k: torch.zeros(3)}, "AssertionError"),
    ],
)
def test_check_exits_with_1_and_names_what_failed(cli, monkeypatch, change, message):
    broken = dataclasses.replace(SPECS["rms_norm"], name="swapped", bad_inputs=lambda make: iter(()), **change)
    monkeypatch.setitem(SPECS, "swapped", broken)
    code, out, _ = cli("check", "--op", "swapped", "--backend", "reference", "--device", "cpu")
    assert code == 1
    assert "FAILED swapped reference-cpu float32: plain: " in out
    assert message in out
    code, out, _ = cli("check", "--op", "swapped", "--backend", "reference", "--device", "cpu", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert report["failures"] == sum(len(result["failures"]) for result in report["results"]) > 0


def test_check_fails_when_a_bad_input_is_accepted(cli, monkeypatch):
    spec = SPECS["rms_norm"]
    silent = dataclasses.replace(spec, name="silent", samples=lambda make: iter(()), op=lambda *a, **k: None)
    wrong = dataclasses.replace(spec, name="wrong", samples=lambda make: iter(()))
    monkeypatch.setitem(SPECS, "silent", silent)
    monkeypatch.setitem(SPECS, "wrong", wrong)
    code, out, _ = cli("check", "--op", "silent", "--backend", "reference", "--device", "cpu")
    assert code == 1
    assert "bad input 'weight shape': no error was raised" in out
    code, out, _ = cli("check", "--op", "wrong", "--backend", "reference", "--device", "cpu")
    assert code == 1
    assert "bad input 'weight shape': expected an error matching" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--op", "nonsense"], "--op must be one of"),
        (["check", "--dtype", "int4"], "--dtype must be one of"),
        (["check", "--backend", "opencl"], "--backend must be one of native, triton, reference, got 'opencl'"),
        (["check", "--device", "tpu"], "--device must be one of cpu, cuda, got 'tpu'"),
    ],
)
def test_errors_take_one_line_unless_verbose(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("warpwright: check: ")
    assert err.count("\n") == 1
    assert message in err
    for verbose in (["--verbose", *arguments], [*arguments, "--verbose"]):
        with pytest.raises(RuntimeError, match="must be one of"):
            main(verbose)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_backend_that_cannot_run_says_why(cli):
    code, _, err = cli("check", "--backend", "native", "--device", "cuda")
    assert code == 1
    assert "native cannot run here: native-cuda: " in err


def test_the_command_sets_up_triton_by_itself():
    """In a fresh process, without TRITON_INTERPRET and without the tests' conftest."""
    command = [sys.executable, "-m", "warpwright.cli", "check", "--op", "rms_norm", "--backend", "triton", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    expected = "triton-cuda" if torch.cuda.is_available() else "triton-interpreted"
    assert {result["backend"] for result in report["results"]} == {expected}


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m warpwright.cli info | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_demo_trains_both_ways_and_writes_a_report(cli, tmp_path, monkeypatch):
    """A short one: few steps, one op checked and measured. Interpreted, there are few samples."""
    from warpwright import bench
    from warpwright.testing import check

    everything = check.plan
    checked = "native-cpu", "triton-interpreted"
    monkeypatch.setattr(check, "plan", lambda states: everything([s for s in states if s.name in checked], ["swiglu"]))
    tiny = [case for case in bench.load_suite("host", "cpu") if case.op == "swiglu"]
    monkeypatch.setattr(bench, "load_suite", lambda name, device: tiny)
    arguments = ["demo", "--steps", "10", "--bench-seconds", "0.01", "--no-compile", "--device", "cpu", "--json"]
    code, out, _ = cli(*arguments, "--out", str(tmp_path / "report"))
    summary = json.loads(out)
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'src="http' not in page
    assert page.count("data:image/svg+xml") == 3
    resnet, gpt = summary["training"]
    for training in (resnet, gpt):
        assert training["losses"]["torch"][0] == pytest.approx(training["losses"]["warpwright"][0], rel=1e-5)
        assert training["skipped"] == training["fallbacks"] == {}
    assert set(gpt["replaced"]) > {"norm", "head", "loss", "blocks.0.norm1", "blocks.2.down"}
    assert gpt["losses"]["torch"] == pytest.approx(gpt["losses"]["warpwright"], rel=1e-4)
    assert summary["check"]["failures"] == 0
    samples = Counter(result["samples"] for result in summary["check"]["results"])
    native = sum(1 for _ in SPECS["swiglu"].samples(Make(torch.float32)))
    assert native > 4
    assert samples == {native: 3, 4: 1}
    assert (code, summary["ok"]) == (0, True), (resnet["accuracy"], gpt["accuracy"])
