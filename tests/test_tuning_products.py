"""Tuning of the C++ kernels' matrix products, on the emulated kernels: which plans are tried, which one wins, and that
it is the one that runs, here and in a new process. No time is real."""

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
from warpwright import _gemm_plans, _library, tuning
from warpwright.bench.case import Case
from warpwright.cli import main
from warpwright.tuning import products, search, tables
from warpwright.tuning.tables import Entry, Store

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

CPU = torch.device("cpu")
GPU = "emulated sm_90"
CASE = Case("", "linear", torch.bfloat16, ("forward", "both"), {"m": 40, "n": 72, "k": 520})
FORWARD = dataclasses.replace(CASE, directions=("forward",))
#: The model takes a tile of wgmma for the product of `CASE`.
WINNER = products.config_of(_gemm_plans.GemmPlan("mma", 64, 64, 2))
KERNELS = {"mma": "gemm_mma", "wgmma": "gemm_wgmma", "gemv": "gemv_along_k"}


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


def forward(case: Case = CASE) -> products.Product:
    return made(case)[0]


def taken(product: products.Product | None = None, **changes: object) -> _gemm_plans.GemmPlan:
    """What the library takes for a product, or for one with other sizes."""
    question = dataclasses.replace((product or forward()).question, **changes)  # type: ignore[arg-type]
    return _gemm_plans.chosen(emulated.library(), question)


def launched() -> set[str]:
    """The kernels that CASE's op launches now."""
    sample = CASE.sample("cpu")
    before = {name: emulated.launches(name) for name in (*KERNELS.values(), "reduce_splits")}
    with torch.no_grad():
        warpwright.ops.linear(*sample.args, **sample.kwargs)
    return {name for name, count in before.items() if emulated.launches(name) > count}


def entry(**changes: object) -> Entry:
    found = Entry(
        forward().problem, WINNER, 1e-6, 2e-6, 1e-8, 10, 1, 0, "2026-01-01T00:00:00+00:00", "2.13", "3.7", "0.1", None,
        str(products.sources_of("emulated")),
    )  # fmt: skip
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def save(folder: Path, *entries: Entry) -> None:
    tables.write_table(folder / tables.file_name(GPU), GPU, {e.problem: e for e in entries})
    tuning.reload()


# ---- what is tried ----


def test_the_products_of_a_forward_and_a_backward_pass():
    before = {name: emulated.launches(name) for name in KERNELS.values()}
    found = [(p.problem.backend, p.problem.layout, tuple(dict(p.problem.sizes).values())) for p in made()]
    assert found == [
        ("emulated", "kk", (1, 64, 72, 520)),
        ("emulated", "kn", (1, 64, 520, 72)),
        ("emulated", "mn", (1, 72, 520, 64)),  # The batch is what is summed over.
    ]
    assert before == {name: emulated.launches(name) for name in KERNELS.values()}, "nothing runs"
    assert [p.question for p in made(run=True)] == [p.question for p in made()]


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        Case("", "linear", torch.float16, ("both",), {"m": 24, "n": 72, "k": 72, "bias": True, "activation": "gelu"}),
        Case("", "linear", torch.bfloat16, ("forward",), {"m": 1, "n": 72, "k": 520, "residual": True}),
        Case("", "matmul", torch.float16, ("both",), {"m": 24, "n": 72, "k": 136, "layout": "tt"}),
        Case("", "bmm", torch.bfloat16, ("both",), {"batch": 3, "m": 16, "n": 40, "k": 72}),
        Case("", "addmm", torch.float16, ("forward",), {"m": 8, "n": 72, "k": 64, "activation": "relu"}),
    ],
    ids=lambda case: f"{case.op}-{case.parameters['m']}",
)
def test_every_candidate_is_what_runs_and_is_right(case):
    for product in made(case, run=True):
        product.run(product.default)
        expected = [t.clone() for t in product.written]
        for config in [product.default, *product.candidates]:
            plan = products.plan_of(config)
            kernel = KERNELS[plan.kernel]
            before, reduced = emulated.launches(kernel), emulated.launches("reduce_splits")
            product.run(config)
            assert emulated.launches(kernel) == before + 1, (product.problem, plan.text)
            assert (emulated.launches("reduce_splits") > reduced) == (plan.splits > 1 and plan.kernel != "gemv")
            assert taken(product).text == plan.text
            for ours, theirs in zip(product.written, expected, strict=True):
                assert search._agree(ours, theirs, product.terms), (product.problem, plan.text)


def test_candidates_are_the_best_predicted():
    question = dataclasses.replace(forward().question, m=16, n=4096, k=14336, multiprocessors=132)
    found = [products.plan_of(c).text for c in products.Product("emulated", question, "linear", ()).candidates]
    first, *others = question.plans()
    assert len(found) == 24 < len(others)
    assert found == [plan.text for plan in others[:24]]
    slow = dataclasses.replace(forward().question, m=64, n=64, k=100000, capability=80, tma=False, multiprocessors=132)
    found = [products.plan_of(c).text for c in products.Product("emulated", slow, "linear", ()).candidates]
    first, *others = slow.plans()
    assert found == [plan.text for plan in others if plan.seconds <= 3 * first.seconds]
    assert len(found) < min(24, len(others))


def test_what_can_be_computed_in_one_way_is_not_tuned():
    assert made(Case("", "linear", torch.float32, ("both",), {"m": 24, "n": 24, "k": 24})) == []


# ---- the search ----


def fastest(config: dict[str, int]) -> float:
    return 0.5 if config == WINNER else 0.9


def tune(measure: Measure, case: Case = CASE) -> list[Entry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure", measure)
        options = search.Options(CPU, backend="emulated")
        return list(search.tune(case, Store(GPU), options, lambda step: None))


def test_the_winner_is_saved_and_runs_here_and_in_a_new_process(folder):
    assert launched() == {"gemm_wgmma"}
    found = tune(Measure(fastest))
    assert [e.problem for e in found] == [p.problem for p in made()]
    assert (found[0].config, found[0].seconds, found[0].gain) == (WINNER, 0.5, 2.0)
    assert found[0].candidates == len(forward().candidates)
    assert found[0].sources == products.sources_of("emulated")
    (file,) = folder.glob("*.json")
    assert file.name == "emulated-sm-90.json"
    assert {e["backend"] for e in json.loads(file.read_text())["entries"]} == {"emulated"}
    assert (taken().text, taken().measured) == (products.plan_of(WINNER).text, 0.5)
    assert launched() == {"gemm_mma", "reduce_splits"}

    script = """if True:
        import sys, torch, warpwright, emulated
        emulated.activate()
        assert not any(name.startswith("warpwright.tuning") for name in sys.modules), "import reads no table"
        x, w = torch.ones(33, 520, dtype=torch.bfloat16), torch.ones(72, 520, dtype=torch.bfloat16)
        with warpwright.use_backend("emulated"), torch.no_grad():
            warpwright.ops.linear(x, w)  # Of the same bucket.
        print(emulated.launches("gemm_mma"), emulated.launches("gemm_wgmma"))
    """
    command = [sys.executable, "-c", script]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=True)
    assert run.stdout.split("\n")[-2] == "1 0", run.stdout


def test_what_is_not_faster_leaves_the_model_its_choice_also_to_a_shipped_table(folder):
    save(tables.SHIPPED, entry())
    assert taken().measured == 1e-6
    (found,) = tune(Measure(lambda config: 1.1), FORWARD)
    assert found.config is None
    assert (taken().measured, taken()) == (None, forward().question.plans()[0])


def test_tables_have_no_say_while_a_search_measures(folder):
    save(folder, entry())
    assert taken().measured == 1e-6
    seen = []

    def seconds(config: dict[str, int]) -> float:
        seen.append(taken().measured)
        return 1.1

    found = tune(Measure(seconds))
    assert [e.problem.layout for e in found] == ["kn", "mn"], "the other is tuned"
    assert set(seen) == {None}
    assert taken().measured == 1e-6, "and then they have again"


def test_what_is_wrong_never_wins(monkeypatch):
    run = products.Product.run

    def broken(self: products.Product, config: dict[str, int]) -> None:
        run(self, config)
        if config["tile_m"] == 64:
            self.written[0][-1, -1] += 1

    monkeypatch.setattr(products.Product, "run", broken)
    (found,) = tune(Measure(lambda config: 0.1 if config["tile_m"] == 64 else 0.8), FORWARD)
    assert found.config is not None
    assert found.config["tile_m"] != 64
    assert found.wrong == sum(config["tile_m"] == 64 for config in forward().candidates) > 0


def test_what_agrees_with_the_default_is_still_held_against_float64(monkeypatch):
    """With the plan forced on the op itself, where all that is wrong with it shows."""
    forced, seen = products.Product.forced, []

    def note(self, config):
        seen.append(config)
        return forced(self, config)

    monkeypatch.setattr(products.Product, "forced", note)
    monkeypatch.setattr(search, "evaluate", lambda op, sample: {"output0": torch.full((40, 72), torch.nan)})
    (found,) = tune(Measure(fastest), FORWARD)
    assert found.config is None
    assert seen[0] == WINNER
    assert found.wrong == len(seen) == 6, "as many as may win"


# ---- what holds for which product ----


def test_a_winner_holds_for_its_bucket_layout_and_kind_of_device(folder):
    save(folder, entry())
    assert [taken(m=m).measured for m in (33, 64, 65, 32)] == [1e-6, 1e-6, None, None]
    for changes in ({"n": 80}, {"k": 528}, {"matrices": 2}, {"dtype": torch.float16}, {"b_along_k": False}):
        assert taken(**changes).measured is None, changes
    assert taken(multiprocessors=132).measured == 1e-6, "the first use of a kind of device reads its own table"


def test_a_preference_belongs_to_its_kind_of_device():
    library, plan = emulated.library(), products.plan_of(WINNER, 1e-6)
    _gemm_plans.suspend("emulated")
    _gemm_plans.prefer(library, plan, dataclasses.replace(forward().question, multiprocessors=132))
    assert (taken().measured, taken(multiprocessors=132).measured) == (None, 1e-6)
    assert taken(multiprocessors=132, capability=80, tma=False).measured is None


def test_the_sum_of_a_weights_gradient_is_bucketed(folder):
    product = made()[2]
    save(folder, entry(problem=product.problem, config=product.candidates[0]))
    assert [taken(product, k=k).measured for k in (33, 64, 65)] == [1e-6, 1e-6, None]
    assert taken(product, m=71).measured is None


def test_a_winner_whose_sum_is_split_does_not_break_batch_invariance(folder):
    save(folder, entry())
    assert taken().splits == 2
    alone = taken(batch_invariant=True)
    assert (alone.splits, alone.kernel, alone.measured) == (1, "wgmma", None)


def test_a_later_preference_replaces_an_earlier_one():
    library = emulated.library()
    for seconds in (1e-6, 2e-6):
        _gemm_plans.prefer(library, products.plan_of(WINNER, seconds), forward().question)
    assert taken().measured == 2e-6
    _gemm_plans.forget(library)
    assert taken().measured is None


# ---- entries that are not used ----


def test_stale_and_damaged_entries_are_not_used_and_listed_with_the_reason(folder, capsys):
    good = entry().problem
    faults = {
        "the kernel's source has changed": entry(sources="0123456789abcdef"),
        "no such configuration": entry(problem=good._replace(sizes=(*good.sizes[:3], ("k", 528))), config={"tile": 1}),
        "no such kernel": entry(problem=good._replace(kernel="gone")),
    }
    unlikely = [
        entry(problem=good._replace(layout=layout, dtype=dtype), config=config)
        for layout, dtype, config in (
            ("kk", "float16", WINNER | {"tile_m": 63}),
            ("kn", "float16", WINNER | {"kernel": -3}),
            ("mk", "float16", WINNER | {"splits": 64}),
            ("", "float16", WINNER),
            ("kk", "int8", WINNER),
        )
    ]
    save(folder, *faults.values(), *unlikely)
    with pytest.warns(RuntimeWarning, match=r"emulated-sm-90\.json: config of gemm .* cannot be launched") as caught:
        assert taken().measured is None
    assert len(caught) == 1 + len(unlikely)
    with pytest.raises(SystemExit):
        main(["tune", "--list", "--json"])
    (listed,) = json.loads(capsys.readouterr().out)["tables"].values()
    states = [e["state"] for e in listed]
    assert states == [f"not used: {reason}" for reason in (*faults, *["no such configuration"] * len(unlikely))]
    assert launched() == {"gemm_wgmma"}


def test_a_damaged_table_warns_and_leaves_the_model_its_choice(folder):
    folder.mkdir()
    (folder / tables.file_name(GPU)).write_text("{")
    tuning.reload()
    with pytest.warns(RuntimeWarning, match=r"emulated-sm-90\.json: is not valid JSON"):
        assert taken().measured is None


def test_whatever_goes_wrong_with_tables_products_are_computed(monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(products, "load", fail)
    tuning.reload()
    with pytest.warns(RuntimeWarning, match="tables are not used: no such device"):
        assert launched() == {"gemm_wgmma"}


def test_the_hash_is_of_what_products_depend_on(monkeypatch, tmp_path):
    build = emulated.build_script()
    changed = {"cuda/norm/norm.cu": False, "cuda/matmul/gemm.cu": True, "cuda/conv/conv.cu": True}
    changed |= {"kernels/norm.h": False, "kernels/gemm_plan.h": True}
    for name in changed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(build, "CSRC", tmp_path)
    before = build.gemm_sources()
    for name, changes in changed.items():
        (tmp_path / name).write_text("two")
        assert (build.gemm_sources() != before) == changes, name
        before = build.gemm_sources()


def test_without_a_hash_nothing_is_tuned_or_used(folder, monkeypatch, tmp_path):
    found = entry()
    monkeypatch.setattr(_gemm_plans, "LIBRARIES", {"emulated": tmp_path / "libwarpwright_emulated.so"})
    for text in (None, "{", "[]", '{"version": "0.1"}', '{"gemm_sources": 1}'):
        if text is not None:
            (tmp_path / "build_info.json").write_text(text)
        assert products.unused(found.problem, found) == "the kernel's source has changed"
        with pytest.raises(RuntimeError, match=r"has no gemm_sources: build the libraries again"):
            products.needed_sources("emulated")
    monkeypatch.undo()


def test_a_gpu_has_a_table_of_its_own(folder, monkeypatch):
    """What the CUDA library does on a GPU, with the emulated one in its place."""
    library = emulated.library()
    monkeypatch.setitem(_gemm_plans.LIBRARIES, "native", library)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    problem = entry().problem._replace(backend="native")
    found = entry(problem=problem)
    tables.write_table(
        folder / "nvidia-h200.json", "NVIDIA H200", {problem: found, entry().problem: entry(seconds=5e-6)}
    )
    products.load("native", 90, 132)
    assert taken(multiprocessors=132).measured == 1e-6
    assert taken().measured is None
    assert products.unused(problem, found) is None
    monkeypatch.delitem(_gemm_plans.LIBRARIES, "native")
    monkeypatch.setattr(_library, "CUDA_MISSING", "built without it")
    assert products.unused(problem, found) == "built without it"


# ---- the command, explain ----


@pytest.fixture
def cli(capsys, monkeypatch):
    """`warpwright tune --backend emulated` on one case and a simulated clock: (exit code, stdout)."""
    monkeypatch.setattr(search, "measure", Measure(fastest))
    suite = Path(os.environ["WARPWRIGHT_TUNING_DIR"]).with_name("shapes.yaml")
    suite.write_text(
        "dtypes: [bfloat16]\ndirections: [forward]\nmeasure:\n"
        "  - {op: linear, sweep: {m: 40, n: 72, k: 520}}\n  - {op: rms_norm, sweep: {rows: 4, width: 64}}\n"
    )

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["tune", *arguments])
        return int(end.value.code or 0), capsys.readouterr().out

    run.suite = ("--backend", "emulated", "--suite", str(suite))  # type: ignore[attr-defined]
    return run


def test_the_command_tunes_lists_and_clears(cli, folder):
    code, out = cli(*cli.suite, "--dry-run", "--json")
    count = len(forward().candidates)
    problems = [{"backend": "emulated", "problem": str(forward().problem), "configurations": count, "tuned": False}]
    assert (code, json.loads(out)["problems"]) == (0, problems)
    assert not folder.exists(), "a dry run saves nothing"
    code, out = cli(*cli.suite, "--json")
    report = json.loads(out)
    assert (code, report["gpu"], report["finished"]) == (0, GPU, 1)
    assert [(e["backend"], e["config"]) for e in report["tuned"]] == [("emulated", WINNER)]
    (listed,) = json.loads(cli("--list", "--json")[1])["tables"].values()
    assert [(e["backend"], e["state"]) for e in listed] == [("emulated", "in use")]
    assert taken().measured == 0.5
    assert "0 launches tuned now" in cli(*cli.suite)[1]
    assert "emulated" in cli("--list")[1]
    other = dataclasses.replace(entry(), problem=entry().problem._replace(backend="triton", kernel="conv_fprop"))
    Store(GPU).add(other)
    assert "removed emulated from" in cli("--clear", "--backend", "emulated")[1]
    assert Store(GPU).entries() == {other.problem: other}
    assert "nothing to remove" in cli("--clear", "--backend", "emulated")[1]
    assert taken().measured is None


def test_an_op_without_a_product_is_no_op_of_this_backend(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--backend", "emulated", "--op", "rms_norm"])
    known = ", ".join(products.PRODUCT_OPS)
    assert f"--op must be one of {known}, got 'rms_norm'" in capsys.readouterr().err
    assert known.startswith("linear, matmul, bmm, addmm, conv1d, conv2d, ")


def test_explain_says_what_was_measured(folder):
    sample = CASE.sample("cpu")
    before = warpwright.explain("linear", *sample.args)
    assert before.plans == forward().question.plans()
    assert "measured" not in str(before)
    save(folder, entry())
    found = warpwright.explain("linear", *sample.args)
    assert found.plans[0].measured == found.as_dict()["plans"][0]["measured"] == 1e-6
    assert "  tile      mma 64 x 64, 2 splits: 1 us measured by warpwright tune, " in str(found)
    assert sorted(plan.text for plan in found.plans) == sorted(plan.text for plan in before.plans)
