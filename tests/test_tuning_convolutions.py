"""Tuning of the C++ kernels' convolutions, on the emulated kernels: which plans are tried, which one wins, and that it
is the one that runs. tests/test_tuning_products.py has what they share with matrix products. No time is real."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
from simulated_clock import Measure

import warpwright
import warpwright.bench.operators
from warpwright import _gemm_plans, tuning
from warpwright.bench.case import Case
from warpwright.cli import main
from warpwright.tuning import products, search, tables
from warpwright.tuning.tables import Store

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

CPU = torch.device("cpu")
GPU = "emulated sm_90"
SIZES = {"batch": 3, "channels": 40, "filters": 72, "size": 9, "kernel": 3, "channels_last": True}
CASE = Case("", "conv2d", torch.bfloat16, ("forward", "both"), SIZES)
#: The model takes Hopper's kernel for all of `CASE`.
WINNER = products.config_of(_gemm_plans.GemmPlan("mma", 64, 64))
KERNELS = [f"conv_{role}_{kind}" for role in ("fprop", "dgrad", "wgrad") for kind in ("mma", "wgmma")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder for the user's tables, and none of the package's."""
    monkeypatch.setenv("WARPWRIGHT_TUNING_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "shipped")
    emulated.activate()
    tuning.reload()
    with warpwright.use_backend("emulated"):
        yield tmp_path / "own"
    tuning.reload()


def made(case: Case = CASE, *, run: bool = False) -> list[products.Product]:
    return products.record(case, CPU, "emulated", run=run)


def taken(product: products.Product, **changes: object) -> _gemm_plans.GemmPlan:
    return _gemm_plans.chosen(emulated.library(), dataclasses.replace(product.question, **changes))  # type: ignore


def launched(case: Case = CASE) -> set[str]:
    """The kernels that a call and its backward pass launch now."""
    before = {name: emulated.launches(name) for name in KERNELS}
    sample = case.sample("cpu")
    output = getattr(warpwright.ops, case.op)(*sample.args, **sample.kwargs)
    torch.autograd.grad(output, sample.args[:2], torch.ones_like(output))
    return {name for name, count in before.items() if emulated.launches(name) > count}


# ---- what is tried ----


def test_the_products_of_a_forward_and_a_backward_pass():
    before = {name: emulated.launches(name) for name in KERNELS}
    found = [(p.problem.kernel, p.problem.layout, dict(p.problem.sizes)) for p in made()]
    assert found == [
        ("conv_fprop", "kk", {"matrices": 1, "m": 256, "n": 72, "k": 360, "channels": 40}),
        ("conv_dgrad", "kn", {"matrices": 1, "m": 256, "n": 40, "k": 648, "channels": 72}),
        # The pixels are what is summed over.
        ("conv_wgrad", "mn", {"matrices": 1, "m": 72, "n": 360, "k": 256, "channels": 40}),
    ]
    assert before == {name: emulated.launches(name) for name in KERNELS}, "nothing runs"
    assert [p.question for p in made(run=True)] == [p.question for p in made()]


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        Case("", "conv1d", torch.float16, ("both",), {"batch": 2, "channels": 24, "filters": 40, "size": 130,
             "kernel": 3, "bias": True, "activation": "gelu"}),
        Case("", "conv2d", torch.float16, ("both",), SIZES | {"stride": 2, "residual": True, "activation": "relu"}),
        Case("", "conv2d", torch.bfloat16, ("both",), SIZES | {"groups": 2, "batch": 1}),
        Case("", "conv2d", torch.float16, ("both",), SIZES | {"size": 41, "kernel": 1, "batch": 1}),
        Case("", "conv_transpose2d", torch.bfloat16, ("both",), {"batch": 2, "channels": 40, "filters": 72, "size": 7,
             "kernel": 4, "stride": 2, "padding": 1, "channels_last": True}),
        Case("", "conv3d", torch.bfloat16, ("both",), {"batch": 1, "channels": 40, "size": [3, 4, 5], "kernel": 3,
             "channels_last": True}),
    ],
    ids=["plain", "1d", "stride 2", "groups", "parts", "transposed", "3d"],
)  # fmt: skip
def test_every_candidate_is_what_runs_and_is_right(case):
    found = made(case, run=True)
    # A transposed convolution is a gradient of the input, and its own is a convolution.
    roles = [p.question.role for p in found]
    first = "input gradient" if "transpose" in case.op else "forward"
    assert roles == [first, "forward" if first == "input gradient" else "input gradient", "weight gradient"]
    for product in found:
        product.run(product.default)
        expected = [t.clone() for t in product.written]
        for config in [product.default, *product.candidates]:
            plan = products.plan_of(config)
            role = {"forward": "fprop", "input gradient": "dgrad", "weight gradient": "wgrad"}[product.question.role]
            kernel = f"conv_{role}_{plan.kernel}"
            before, added = emulated.launches(kernel), emulated.launches("conv_wgrad_reduce")
            product.run(config)
            assert emulated.launches(kernel) == before + 1, (product.problem, plan.text)
            assert (emulated.launches("conv_wgrad_reduce") > added) == (plan.splits > 1)
            assert taken(product).text == plan.text
            for ours, theirs in zip(product.written, expected, strict=True):
                assert search._agree(ours, theirs, product.terms), (product.problem, plan.text)


def test_what_is_no_product_or_has_one_way_is_not_tuned():
    depthwise = SIZES | {"filters": 40, "depthwise": True}
    assert made(Case("", "conv2d", torch.bfloat16, ("both",), depthwise)) == []
    assert made(Case("", "conv2d", torch.float32, ("both",), SIZES)) == []


# ---- the search ----


def tune(measure: Measure, case: Case = CASE) -> list[tables.Entry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure", measure)
        options = search.Options(CPU, backend="emulated")
        return list(search.tune(case, Store(GPU), options, lambda step: None))


def fastest(config: dict[str, int]) -> float:
    return 0.5 if config == WINNER else 0.9


def test_the_winners_are_saved_and_run_here_and_in_a_new_process(folder):
    assert launched() == {"conv_fprop_wgmma", "conv_dgrad_wgmma", "conv_wgrad_wgmma"}
    found = tune(Measure(fastest))
    assert [e.problem for e in found] == [p.problem for p in made()]
    assert [e.config for e in found] == [WINNER] * 3
    assert [e.candidates for e in found] == [len(p.candidates) for p in made()]
    for product in made():
        assert (taken(product).text, taken(product).measured) == (products.plan_of(WINNER).text, 0.5)
    assert launched() == {"conv_fprop_mma", "conv_dgrad_mma", "conv_wgrad_mma"}
    (file,) = folder.glob("*.json")
    assert {e["kernel"] for e in json.loads(file.read_text())["entries"]} == {"conv_fprop", "conv_dgrad", "conv_wgrad"}

    script = """if True:
        import emulated, warpwright
        from test_tuning_convolutions import CASE, launched
        emulated.activate()
        with warpwright.use_backend("emulated"):
            print(sorted(launched()))
    """
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=True)
    assert run.stdout.splitlines()[-1] == "['conv_dgrad_mma', 'conv_fprop_mma', 'conv_wgrad_mma']", run.stdout


def test_other_parts_of_a_weights_gradient_may_win(folder):
    case = dataclasses.replace(CASE, parameters=SIZES | {"size": 41, "kernel": 1, "batch": 1})
    product = made(case)[2]
    other = next(c for c in product.candidates if c["splits"] > 1 and c["splits"] != product.default["splits"])
    found = tune(Measure(lambda config: 0.5 if config == other else 0.9), case)
    assert found[2].config == other
    assert taken(product).text == products.plan_of(other).text


def test_a_winner_holds_for_its_bucket_channels_role_and_kind_of_device(folder):
    tune(Measure(fastest))
    forward, input_gradient, weight_gradient = made()
    for product in (forward, input_gradient):
        assert [taken(product, m=m).measured for m in (129, 256, 257, 128)] == [0.5, 0.5, None, None]
    assert [taken(weight_gradient, k=k).measured for k in (129, 256, 257, 128)] == [0.5, 0.5, None, None]
    for changes in ({"n": 80}, {"k": 368}, {"channels": 360}, {"role": "input gradient"}, {"dtype": torch.float16}):
        assert taken(forward, **changes).measured is None, changes
    assert taken(forward, role="matrices", channels=0).measured is None, "a matrix product is another problem"
    assert taken(forward, measured=True).measured == 0.5, "with statistics too"


def test_what_no_kernel_is_compiled_for_is_not_used(folder):
    (entry, *_) = tune(Measure(fastest))
    unlikely = [{"tile_m": 16, "tile_n": 128}, {"splits": 2}, {"kernel": 4}, {"kernel": 9}, {"splits": 0}]
    for changes in unlikely:
        found = dataclasses.replace(entry, config=WINNER | changes)
        assert products.unused(found.problem, found) == "no such configuration", changes
    for problem in (entry.problem._replace(kernel="conv"), entry.problem._replace(sizes=entry.problem.sizes[:4])):
        assert products.unused(problem, entry) == "no such kernel"
    assert products.unused(entry.problem, entry) is None


# ---- the command ----


def test_the_command_tunes_convolutions(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(search, "measure", Measure(fastest))
    suite = tmp_path / "shapes.yaml"
    sizes = ", ".join(f"{name}: {str(value).lower()}" for name, value in SIZES.items())
    suite.write_text(
        f"dtypes: [bfloat16]\ndirections: [forward, both]\nmeasure:\n  - {{op: conv2d, sweep: {{{sizes}}}}}\n"
        "  - {op: linear, sweep: {m: 40, n: 72, k: 520}}\n"
    )

    def run(*arguments: str) -> dict:
        with pytest.raises(SystemExit) as end:
            main(["tune", *arguments, "--json"])
        assert not end.value.code
        return json.loads(capsys.readouterr().out)

    command = ("--backend", "emulated", "--suite", str(suite), "--op", "conv2d")
    planned = run(*command, "--dry-run")["problems"]
    assert [(p["problem"], p["configurations"]) for p in planned] == [
        (str(p.problem), len(p.candidates)) for p in made()
    ]
    report = run(*command)
    assert (report["finished"], [e["config"] for e in report["tuned"]]) == (1, [WINNER] * 3)
    assert run(*command)["tuned"] == []
    (listed,) = run("--list")["tables"].values()
    assert [(e["kernel"], e["state"]) for e in listed] == [
        (kernel, "in use") for kernel in ("conv_fprop", "conv_dgrad", "conv_wgrad")
    ]
