"""Tuning: which configuration is selected, that it is the one that runs, and that every one of them is right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from tuned_linear import CPU, TILE, Spy, chosen, entry, linear, problem, save, tables_in

import warpwright
from warpwright import tuning
from warpwright._files import FileError
from warpwright.bench.case import Case
from warpwright.testing import SPECS, Sample, compare
from warpwright.triton_kernels import _gemm, conv, norm
from warpwright.tuning import TUNABLES, Limits, search, selector, tables
from warpwright.tuning.launches import TUNABLE_OPS, foreseen, load_kernels, record
from warpwright.tuning.tables import Store


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


# ---- the selector ----


def test_the_users_table_comes_before_the_packages_and_that_before_the_default(folder):
    assert (chosen().source, chosen().config["BLOCK_M"]) == ("default", 32)
    save(tables.SHIPPED, entry(TILE | {"BLOCK_M": 64}))
    assert (chosen().source, chosen().config["BLOCK_M"]) == ("shipped table", 64)
    save(folder, entry())
    assert (chosen().source, chosen().config) == ("tuned here", TILE)
    save(folder, entry(None))  # Measured: nothing beats the default here, whatever the package's table says.
    assert (chosen().source, chosen().config["BLOCK_M"]) == ("default, which nothing beat: tuned here", 32)


def test_what_is_selected_reaches_the_kernel_and_is_right(folder, spy):
    kernel = spy()
    assert compare(SPECS["linear"], linear())[0].ok
    save(folder, entry())
    assert compare(SPECS["linear"], linear())[0].ok
    assert kernel.launched == [_gemm.GEMM.default(64, 16, 40), TILE]


@pytest.mark.parametrize(
    ("op", "kernel", "module", "config"),
    [
        (
            "conv2d",
            "conv_fprop",
            conv,
            {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 3},
        ),
        ("rms_norm", "norm_forward", norm, {"BLOCK": 256, "num_warps": 1}),
        ("layer_norm", "norm_forward", norm, {"BLOCK": 256, "num_warps": 1}),
    ],
)
def test_other_kernels_follow_their_tables_too(folder, monkeypatch, op, kernel, module, config):
    attribute = {"conv_fprop": "_fprop_kernel", "norm_forward": "_norm_forward_kernel"}[kernel]
    launched = []

    class Constants(Spy):
        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                launched.append({name: kwargs[name] for name in config})
                self.kernel[grid](*args, **kwargs)

            return launch

    monkeypatch.setattr(module, attribute, Constants(getattr(module, attribute)))
    args = {
        "conv2d": (torch.rand(1, 20, 9, 9), torch.rand(20, 20, 3, 3)),
        "rms_norm": (torch.rand(3, 500), (500,)),
        "layer_norm": (torch.rand(3, 500), (500,)),
    }[op]
    sample = Sample(op, args)
    (launch,) = foreseen(getattr(warpwright.ops, op), args, {})
    save(folder, entry(config, problem=launch.problem, sources=TUNABLES[kernel].sources))
    assert compare(SPECS[op], sample)[0].ok
    assert launched == [config]


def test_buckets():
    assert [tuning.power_of_two(size) for size in (0, 1, 2, 3, 64, 65, 1000)] == [1, 1, 2, 4, 64, 128, 1024]
    assert _gemm.GEMM.problem(torch.float32, (33, 16, 40), "kk") == problem()
    assert _gemm.GEMM_WEIGHT_GRAD.problem(torch.float32, (33, 16, 40), "mn").sizes == (("m", 33), ("n", 16), ("k", 64))


def test_a_choice_holds_for_its_bucket_dtype_and_layout_only(folder):
    save(folder, entry())
    assert [chosen(m).source for m in (33, 64, 65)] == ["tuned here", "tuned here", "default"]
    assert chosen(n=15).source == chosen(k=41).source == "default"
    x, w = linear().args
    assert [launch.choice.source for launch in foreseen(warpwright.ops.linear, (x.half(), w.half()), {})] == ["default"]
    assert foreseen(warpwright.ops.linear, (x, w.T.contiguous().T), {})[0].choice.source == "default"


def test_the_products_of_a_backward_pass_are_told_apart():
    case = Case("", "linear", torch.float32, ("forward", "both"), {})
    sample = linear().map(lambda t: t.requires_grad_())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "sample", lambda self, device, seed=0: sample)
        found = [launch.problem for launch in record(case, CPU)]
    assert [(p.kernel, p.layout, tuple(dict(p.sizes).values())) for p in found] == [
        ("gemm", "kk", (64, 16, 40)),
        ("gemm", "kn", (64, 40, 16)),
        ("gemm_weight_grad", "mn", (16, 40, 64)),
    ]


def test_stale_entries_are_not_used(folder):
    save(folder, entry(sources="0123456789abcdef"))
    assert chosen().source == "default"


_opened: list[str] | None = None


def _note_open(event: str, arguments: tuple) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note_open)


def test_files_are_read_once(folder, monkeypatch):
    save(folder, entry())
    warpwright.ops.linear(*linear().args)
    monkeypatch.setattr(sys.modules[__name__], "_opened", [])
    monkeypatch.setattr(tables, "read_table", None)  # Also for sizes that no call had before.
    for m in (64, 65, 1):
        warpwright.ops.linear(*linear(m).args)
    assert _opened == []


GOOD = entry().as_dict()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not valid JSON"),
        ("[]", "the file must be a mapping"),
        ('{"format": 2, "gpu": "", "entries": []}', "field 'format' must be 1, got 2"),
        ('{"format": 1, "gpu": ""}', "has no field 'entries'"),
        (json.dumps({"format": 1, "gpu": "", "entries": [GOOD, 3]}), "entry 2 must be a mapping"),
        (json.dumps({"format": 1, "gpu": "", "entries": [GOOD | {"more": 1}]}), "entry 1 has an unknown field 'more'"),
        (json.dumps({"format": 1, "gpu": "", "entries": [GOOD | {"config": {"BLOCK_M": 1.5}}]}), "'BLOCK_M'"),
        (json.dumps({"format": 1, "gpu": "", "entries": [GOOD | {"config": TILE | {"BLOCK_M": 48}}]}), "cannot be"),
        (json.dumps({"format": 1, "gpu": "", "entries": [GOOD | {"config": {"BLOCK_M": 16}}]}), "cannot be launched"),
        (json.dumps({"format": 1, "gpu": "", "entries": [GOOD | {"config": TILE | {"BLOCK_M": 256}}]}), "cannot be"),
    ],
)
def test_a_damaged_table_warns_and_leaves_the_default(folder, text, fault):
    folder.mkdir()
    (folder / "interpreted.json").write_text(text)
    x, w = linear().args
    with pytest.warns(RuntimeWarning, match=r"warpwright: .*interpreted\.json: ") as caught:
        result = warpwright.ops.linear(x, w)
    assert fault in str(caught[0].message)
    assert "the default configuration is used" in str(caught[0].message)
    torch.testing.assert_close(result, x @ w.T)
    warpwright.ops.linear(x, w)
    assert len(caught) == 1  # Once is enough.


def test_a_folder_in_the_place_of_a_table_warns(folder):
    (folder / "interpreted.json").mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="is not a regular file"):
        assert chosen().source == "default"


def test_without_a_folder_variable_tables_lie_among_the_users_data(monkeypatch, tmp_path):
    monkeypatch.delenv("WARPWRIGHT_TUNING_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert tables.folder() == tmp_path / "warpwright" / "tuning"
    assert tables.file_name("NVIDIA H200 MIG 1g.18gb") == "nvidia-h200-mig-1g-18gb.json"


def test_a_gpu_has_a_table_of_its_own_and_its_own_limits(folder, monkeypatch):
    device, sizes = torch.device("cuda", 0), (4096, 4096, 4096)
    properties = SimpleNamespace(shared_memory_per_block=48 << 10, shared_memory_per_block_optin=99 << 10)
    monkeypatch.setattr("warpwright.triton_kernels._common.interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    wide = TILE | {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8}
    where = _gemm.GEMM.problem(torch.bfloat16, sizes, "kk")

    def choice(config: dict[str, int]):
        found = {where: entry(config, problem=where)}
        tables.write_table(folder / "nvidia-l40s.json", "NVIDIA L40S", found)
        tuning.reload()
        return selector.choose(_gemm.GEMM, device, torch.bfloat16, sizes, "kk")

    assert choice(wide) == tuning.Choice(wide, "tuned here")
    with pytest.warns(RuntimeWarning, match=r"nvidia-l40s\.json: config of gemm .* cannot be launched"):
        assert choice(wide | {"num_stages": 4}).source == "default"  # 128 KiB.


# ---- files ----


def test_a_save_that_fails_leaves_the_table_as_it_was(folder, monkeypatch):
    store = Store("interpreted")
    store.add(entry())

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        store.add(entry(None))
    monkeypatch.undo()
    monkeypatch.setenv("WARPWRIGHT_TUNING_DIR", str(folder))
    assert store.entries() == {problem(): entry()}
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_what_is_saved_is_what_is_read_and_others_entries_stay():
    first, second = entry(commit="abc"), entry(None, problem=problem(m=128))
    Store("interpreted").add(first)
    Store("interpreted").add(second)
    Store("interpreted").add(replaced := dataclasses.replace(first, seconds=5e-7))
    assert Store("interpreted").entries() == {first.problem: replaced, second.problem: second}
    assert replaced.gain == 4.0


def test_a_damaged_table_is_not_overwritten(folder):
    folder.mkdir()
    (folder / "interpreted.json").write_text("{")
    with pytest.raises(FileError, match="is not valid JSON"):
        Store("interpreted").add(entry())
    assert (folder / "interpreted.json").read_text() == "{"


# ---- configurations ----


def all_of(tunable) -> list[dict[str, int]]:
    """Every tile of a space, whether it fits or not; the interpreter has neither warps nor stages."""
    space = {n: v[:1] if n in ("num_warps", "num_stages") else v for n, v in tunable.space.items()}
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


@pytest.mark.parametrize(
    ("op", "rest", "args"),
    [
        # Its gradients' products run the same kernel: for them a fifth of the configurations will do.
        ("linear", 5, (torch.rand(140, 17), torch.rand(20, 17))),
        ("conv2d", 1, (torch.rand(1, 4, 5, 3), torch.rand(4, 2, 2, 1), None, 1, 1, 1, 2)),
        ("layer_norm", 1, (torch.rand(5, 700), (700,), torch.rand(700), torch.rand(700))),
    ],
)
def test_every_configuration_gives_right_results(monkeypatch, op, rest, args):
    sample = Sample(op, args).map(lambda t: (t - 0.5).requires_grad_())
    monkeypatch.setattr(Case, "sample", lambda self, device, seed=0: sample)
    launches = record(Case("", op, torch.float32, ("both",), {}), CPU)
    assert len(launches) == 3
    for launch in launches:
        expected = [t.detach().clone() for t in launch.written]
        for config in all_of(launch.tunable)[:: 1 if launch is launches[0] else rest]:
            for tensor in launch.written:
                tensor.fill_(math.nan)
            launch.run(config)
            for ours, theirs in zip(launch.written, expected, strict=True):
                assert search._agree(ours.detach(), theirs, 1000), (launch.problem, config)


def test_configurations_keep_within_a_blocks_limits():
    big = _gemm.GEMM.problem(torch.float32, (4096, 4096, 4096), "kk")
    plenty, little = (_gemm.GEMM.configs(big, torch.float32, Limits(limit)) for limit in (227 << 10, 99 << 10))
    assert 0 < len(little) < len(plenty)
    for config in little:
        assert config["num_stages"] * (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * 4 <= 99 << 10
        assert config["BLOCK_M"] * config["BLOCK_N"] <= 128 * 32 * config["num_warps"]
    assert all(_gemm.GEMM.allows(config, big, torch.float32, Limits(227 << 10)) for config in plenty)
    narrow = _gemm.GEMM.problem(torch.float32, (1, 4096, 4096), "kk")
    assert {c["BLOCK_M"] for c in _gemm.GEMM.configs(narrow, torch.float32, Limits(227 << 10))} == {16, 32}


def test_every_tunable_is_declared_and_its_default_is_complete():
    assert set(load_kernels()) == {
        "gemm", "gemm_weight_grad", "conv_fprop", "conv_dgrad", "conv_wgrad",
        "conv_depthwise", "conv_depthwise_input_grad", "conv_depthwise_weight_grad",
        "norm_forward", "norm_input_grad", "norm_weight_grad", "gated",
    }  # fmt: skip
    for tunable in TUNABLES.values():
        assert set(tunable.summed) <= set(tunable.buckets)
        blocks = {name for name in tunable.space if name.startswith("BLOCK")}
        assert blocks <= set(tunable.default(*[100] * len(tunable.buckets)))
        assert len(tunable.sources) == 16


# ---- explain ----


def test_explain_says_which_configuration_and_whence(folder):
    (found,) = warpwright.explain("linear", *linear().args).configurations
    assert (found.kernel, found.sizes, found.source) == ("gemm", {"m": 64, "n": 16, "k": 40}, "default")
    save(folder, entry())
    explanation = warpwright.explain("linear", *linear().args)
    assert explanation.as_dict()["configurations"][0]["config"] == TILE
    assert "gemm m=64 n=16 k=40: BLOCK_M=16 BLOCK_N=32" in str(explanation)
    assert "(tuned here)" in str(explanation)


@pytest.mark.parametrize("op", TUNABLE_OPS)
def test_explain_foresees_what_is_launched(op):
    """Of every sample: the launches of the forward pass, with their problems and choices."""
    from warpwright.testing import Make

    for sample in SPECS[op].samples(Make(torch.float32)):
        launched = []

        def note(launch, launched=launched):
            launched.append((launch.problem, launch.choice))
            launch.run(launch.choice.config)

        with tuning.intercept(note):
            SPECS[op].op(*sample.args, **sample.kwargs)
        foretold = foreseen(SPECS[op].op, sample.args, sample.kwargs)
        assert [(launch.problem, launch.choice) for launch in foretold] == launched


def test_explain_has_no_configurations_for_other_kernels():
    assert warpwright.explain("swiglu", torch.zeros(2), torch.zeros(2)).configurations == []
    with warpwright.use_backend("auto"):
        assert warpwright.explain("linear", *linear().args).configurations == []
