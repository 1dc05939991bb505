"""`warpwright bench`: what each of its commands prints and writes, and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from warpwright import bench
from warpwright.cli import main
from warpwright.testing import SPECS

FAST = ("--device", "cpu", "--seconds", "0.001")


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs `warpwright bench ...` in this process: (exit code, stdout, stderr). Ceilings are planted."""
    from warpwright.bench import runner

    planted = [bench.Ceiling("copy", "", 1e10, "planted", "cpu"), bench.Ceiling("matmul", "float32", 1e11, "p", "cpu")]
    monkeypatch.setattr(runner, "measure_ceilings", lambda device, dtypes, seconds: planted)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["bench", *map(str, arguments)])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def suite(tmp_path):
    """A user's own suite of two small cases."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "about: two small ones\ndtypes: [float32]\ndirections: [forward, both]\n"
        "measure:\n  - op: swiglu\n    sweep: {rows: [3, 5], width: 16}\n"
    )
    return path


def run_to(cli, suite, path, *more):
    code, out, err = cli("run", "--suite", suite, "-p", "torch,warpwright", "--out", path, *FAST, *more)
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("command", ["list", "run", "compare", "report", "selftest"])
def test_every_command_has_help_with_examples_and_json(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"warpwright bench {command}" in out
    assert "--json" in out


# ---- list ----


def test_list(cli, suite):
    code, out, err = cli("list", "--device", "cuda")
    assert (code, err) == (0, "")
    assert "matmul-llm" in out
    assert "warpwright-triton" in out
    found = json.loads(cli("list", "--device", "cpu", "--json")[1])
    assert set(found["suites"]) == set(bench.suites())
    assert found["providers"]["torch"]["missing"] is None
    assert "runs on cuda, not on cpu" in found["providers"]["warpwright-cuda"]["missing"]
    assert set(SPECS) <= set(found["ops"])
    code, out, _ = cli("list", "--suite", suite)
    assert code == 0
    assert "5 x 16" in out
    cases = json.loads(cli("list", "--suite", suite, "--json")[1])["cases"]
    assert [c["parameters"] for c in cases] == [{"rows": 3, "width": 16}, {"rows": 5, "width": 16}]


def test_full_sizes_can_be_listed_without_a_gpu(cli):
    small = json.loads(cli("list", "--suite", "norm", "--device", "cpu", "--json")[1])["cases"]
    full = json.loads(cli("list", "--suite", "norm", "--device", "cpu", "--full", "--json")[1])["cases"]
    assert max(c["parameters"]["rows"] for c in full) == 32768
    assert max(c["parameters"]["rows"] for c in small) < 32768


def test_a_pattern_is_all_suites_that_it_matches(cli):
    found = json.loads(cli("list", "--suite", "norm-*", "--suite", "*orm", "--device", "cpu", "--json")[1])["cases"]
    expected = {name for name in bench.suites() if name.startswith("norm-") or name.endswith("orm")}
    assert len(expected) > 3
    assert {c["suite"] for c in found} == expected
    code, _, err = cli("list", "--suite", "nothing-*")
    assert code != 0
    assert "suite must be one of" in err


# ---- run ----


def test_run_prints_a_table_and_json(cli, suite):
    code, out, err = cli("run", "--suite", suite, "--providers", "torch,warpwright", *FAST)
    assert (code, err) == (0, "")
    assert "swiglu 5 x 16, float32, both" in out
    assert "ceiling: copy: 10.0 GB/s (planted)" in out
    code, out, _ = cli(
        "run", "--suite", suite, "-p", "torch", "-p", "warpwright", "--direction", "both", *FAST, "--json"
    )
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert [(r["case"], r["direction"], r["provider"]) for r in report["rows"]] == [
        ("3 x 16", "both", "torch"), ("3 x 16", "both", "warpwright"),
        ("5 x 16", "both", "torch"), ("5 x 16", "both", "warpwright"),
    ]  # fmt: skip
    assert report["environment"]["info"]["torch"] == torch.__version__
    ours = report["rows"][1]
    assert ours["error"] <= 1
    assert ours["tflops"] > 0
    assert ours["ceiling"] > 0


def test_a_wrong_result_is_not_timed_and_exits_with_1(cli, suite, monkeypatch):
    spec = SPECS["swiglu"]
    monkeypatch.setitem(SPECS, "swiglu", dataclasses.replace(spec, op=lambda gate, up: spec.torch_op(gate, up) * 1.001))
    code, out, _ = cli("run", "--suite", suite, "-p", "torch,warpwright", *FAST)
    assert code == 1
    assert "wrong: swiglu 3 x 16, float32, forward, warpwright: its error is" in out
    code, out, _ = cli("run", "--suite", suite, "-p", "torch,warpwright", *FAST, "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert [r["p50"] for r in report["rows"] if r["provider"] == "warpwright"] == [None] * 4


def test_missing_ops_are_named_once_and_are_no_failure(cli, suite, monkeypatch):
    """An operator that warpwright has no op for yet is timed by the others."""
    from warpwright.bench import providers

    monkeypatch.setattr(providers, "SPECS", {})
    code, out, _ = cli("run", "--suite", suite, "-p", "torch,warpwright", *FAST)
    assert code == 0
    assert out.count("warpwright has no swiglu") == 1


def test_rows_are_appended_and_a_run_goes_on_where_it_stopped(cli, suite, tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    run_to(cli, suite, path)
    whole = path.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in whole] == ["environment", "ceiling", "ceiling"] + ["row"] * 8
    code, _, err = cli("run", "--suite", suite, "--out", path, *FAST)
    assert (code, "exists: give --resume" in err) == (1, True)
    # Interrupted in the middle of the sixth row.
    path.write_text("\n".join(whole[:8]) + "\n" + whole[8][:40])
    run_to(cli, suite, path, "--resume")
    rows = bench.read_results(path).rows
    assert [r.key for r in rows[-4:]] == [bench.Row(**_fields(line)).key for line in whole[7:]]
    assert len({r.key for r in rows}) == 8
    run_to(cli, suite, path, "--resume")
    assert bench.read_results(path).rows == rows
    assert cli("run", "--resume")[0] == 1


def _fields(line):
    record = json.loads(line)
    return {f.name: record[f.name] for f in dataclasses.fields(bench.Row)}


def test_csv_and_markdown(cli, suite, tmp_path):
    csv, markdown = tmp_path / "t.csv", tmp_path / "t.md"
    run_to(cli, suite, tmp_path / "rows.jsonl", "--csv", csv, "--markdown", markdown)
    assert csv.read_text().count("\n") == 9
    assert "| 5 x 16 | float32 | both | warpwright | timed |" in markdown.read_text()


def test_a_kernel_of_ones_own(cli, suite, tmp_path, own_providers):
    file = tmp_path / "own_kernel.py"
    file.write_text(
        "import torch\ndef quick_swiglu(gate, up=None):\n    return torch.nn.functional.silu(gate) * up\n"
        "def bad(gate, up=None):\n    return gate\n"
    )
    arguments = ("run", "--suite", suite, "--direction", "forward", "-p", "torch,quick_swiglu", *FAST, "--json")
    code, out, _ = cli(*arguments, "--kernel", f"swiglu={file}:quick_swiglu")
    assert code == 0
    assert [r["status"] for r in json.loads(out)["rows"]] == ["timed"] * 4
    code, out, _ = cli(*arguments, "-p", "bad", "--kernel", f"swiglu={file}:bad")
    assert code == 1


def test_the_documents_kernel_runs(cli, tmp_path, own_providers):
    text = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    (code,) = re.findall(r"```python\n# mine.py\n(.*?)```", text, re.DOTALL)
    file, suite = tmp_path / "mine_of_the_documents.py", tmp_path / "suite.yaml"
    file.write_text(code)
    suite.write_text("about: x\ndtypes: [float32]\nmeasure:\n  - op: rms_norm\n    sweep: {rows: 3, width: 64}\n")
    status, out, _ = cli("run", "--suite", suite, "--kernel", file, "-p", "torch,my_rms_norm", *FAST, "--json")
    assert status == 0
    assert [r["status"] for r in json.loads(out)["rows"]] == ["timed"] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "none"], "none"),
        (["--providers", "cublas"], "providers must be different ones of torch, compile, warpwright"),
        (["--op", "fft"], "fft"),
        (["--dtype", "int3"], "int3"),
        (["--direction", "up"], "up"),
        (["--device", "tpu"], "--device must be one of cpu, cuda, got 'tpu'"),
        (["--kernel", "absent_module_of_mine"], "--kernel absent_module_of_mine: "),
        (["--suite", "absent.yaml"], "absent.yaml"),
    ],
)
def test_errors_take_one_line(cli, arguments, message):
    code, out, err = cli("run", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("warpwright: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(cli):
    code, _, err = cli("run", "--device", "cuda")
    assert code == 1
    assert "torch sees no CUDA GPU" in err


# ---- compare and report ----


@pytest.fixture
def two_runs(tmp_path):
    """Rows with intervals of 1%: ours becomes 10% slower in one case, 10% faster in another, and stays in a third."""

    def write(name, factors):
        path = tmp_path / name
        with path.open("w") as file:
            environment = {"info": {"torch": "x", "cpu": "y", "gpus": []}, "device": "cpu", "torch": "x",
                           "options": {"baseline": "torch"}}  # fmt: skip
            bench.write_record(file, environment)
            for number, factor in enumerate(factors):
                for provider, time in (("torch", 1e-3), ("warpwright", 1e-3 * factor)):
                    ratio = 1e-3 / time
                    bench.write_record(
                        file,
                        bench.Row("s", "swiglu", f"case {number}", "float32", "forward", provider, "cpu",
                                  p20=time * 0.99, p50=time, p80=time * 1.01, low=time * 0.995, high=time * 1.005,
                                  repeats=50, calls=1, clock="host", settled=True, ratio=ratio,
                                  ratio_low=ratio * 0.995, ratio_high=ratio * 1.005),
                    )  # fmt: skip
        return path

    return write("before.jsonl", (1, 1, 1)), write("after.jsonl", (1.1, 0.9, 1))


def test_compare(cli, two_runs):
    before, after = two_runs
    code, out, err = cli("compare", before, after)
    assert (code, err) == (0, "")
    assert "SLOWER" in out
    assert "FASTER" in out
    assert "case 2" not in out
    assert "case 2" in cli("compare", before, after, "--all")[1]
    report = json.loads(cli("compare", before, after, "--json")[1])
    verdicts = {(r["case"], r["provider"]): r["verdict"] for r in report["rows"]}
    assert verdicts["case 0", "warpwright"] == "SLOWER"
    assert verdicts["case 1", "warpwright"] == "FASTER"
    assert cli("compare", before, after, "--fail-on-regression")[0] == 1
    assert cli("compare", before, before, "--fail-on-regression")[0] == 0
    assert cli("compare", before, after, "--by", "nonsense")[0] == 1
    assert cli("compare", before, "absent.jsonl")[0] == 1


def test_report(cli, two_runs, tmp_path):
    before, _ = two_runs
    page = tmp_path / "page.html"
    code, out, err = cli("report", before, "--out", page, "--title", "A <title>")
    assert (code, err, out) == (0, "", f"{page}\n")
    assert "A &lt;title&gt;" in page.read_text()
    report = json.loads(cli("report", tmp_path, "--out", page, "--png", tmp_path / "png", "--json")[1])
    assert report["rows"] == 12
    assert report["pngs"]
    code, _, err = cli("report", tmp_path / "png")
    assert code == 1
    assert "report needs .jsonl files" in err


def test_selftest_exits_with_1_when_something_planted_is_missed(cli, monkeypatch):
    from warpwright.bench import selftest

    good = selftest.Finding("2% slower", "SLOWER", "SLOWER", True)
    monkeypatch.setattr(selftest, "run_selftest", lambda device, seconds: [good])
    code, out, _ = cli("selftest", "--device", "cpu")
    assert (code, "2% slower" in out) == (0, True)
    bad = dataclasses.replace(good, found="SAME", ok=False)
    monkeypatch.setattr(selftest, "run_selftest", lambda device, seconds: [good, bad])
    code, out, _ = cli("selftest", "--device", "cpu", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
