"""What the benchmarks measure: the shipped suites, and those that users write."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warpwright._files import FileError
from warpwright.bench.case import OPERATORS, Case, operator
from warpwright.bench.checks import _CPU_LIMITS, _CUDA_LIMITS, _fits
from warpwright.bench.suite import load_suite, select, suites
from warpwright.testing import SPECS, Cost, Sample

NAMES = sorted(suites())


def cost_of(found: Case) -> Cost:
    sample = found.sample("meta")
    return found.operator.cost(*sample.args, **sample.kwargs)


# ---- shipped suites ----


@pytest.mark.parametrize("name", NAMES)
def test_shipped_suites_load_everywhere_and_name_their_cases_apart(name):
    about = suites()[name]
    assert 20 <= len(about) <= 110
    assert not about.endswith(".")
    for device, full in (("cpu", False), ("cuda", False), ("cpu", True)):
        cases = load_suite(name, device, full=full)
        assert cases
        assert {c.suite for c in cases} == {name}
        rows = [(c.op, c.dtype_name, c.label, d) for c in cases for d in c.directions]
        assert len(set(rows)) == len(rows)
        assert max(len(c.label) for c in cases) <= 60
    assert load_suite(name, "cpu", full=True) == load_suite(name, torch.device("cuda"))


@pytest.mark.parametrize("name", NAMES)
def test_suites_fit_a_small_cpu(name):
    cases = load_suite(name, "cpu")
    assert sum(len(c.directions) for c in cases) <= (2 * len(SPECS) if name == "quick" else 30)
    for c in cases:
        cost, passes = cost_of(c), 3 if "both" in c.directions else 1
        assert passes * cost.flops <= 1.3e10, c.label
        assert passes * cost.bytes <= 1 << 30, c.label


@pytest.mark.parametrize("name", NAMES)
def test_every_case_has_a_smaller_one_that_float64_can_hold(name):
    for device, limits in (("cpu", _CPU_LIMITS), ("cuda", _CUDA_LIMITS)):
        for c in load_suite(name, device):
            small = c
            for _ in range(100):
                if _fits(small, limits):
                    break
                before, small = small, small.smaller()
                assert small is not None, c.label
                assert cost_of(small).bytes < cost_of(before).bytes, before.label
            else:
                pytest.fail(f"{c.label}: still too large after 100 steps: {small.label}")


def test_every_op_of_ours_is_in_quick_and_in_a_suite_of_real_sizes():
    full = [c for name in NAMES if name not in ("quick", "host") for c in load_suite(name, "cuda")]
    for device in ("cpu", "cuda"):
        assert {c.op for c in load_suite("quick", device)} == set(SPECS)
    assert {c.op for c in full} == set(OPERATORS)


def distinct(name, *parameters, device="cuda", op=None):
    """The different values of these parameters in a suite."""
    cases = [c for c in load_suite(name, device) if op in (None, c.op)]
    return {tuple(str(c.parameters.get(p)) for p in parameters) for c in cases}


def test_counts_of_the_models_that_suites_are_named_for():
    assert len(distinct("conv-resnet50", "size", "channels", "filters", "kernel", "stride")) == 23
    assert distinct("conv-resnet50", "batch") == {("1",), ("32",), ("256",)}
    assert len(distinct("conv-resnet50-inference", "size", "channels", "filters", "kernel", "stride")) == 23
    assert len(load_suite("conv-resnet50-inference", "cpu")) == 23
    assert len(distinct("matmul-llm", "n", "k") - {("256", "7168")}) == 19
    assert len(distinct("matmul-llm", "m")) == 12
    router = {c.parameters["m"] for c in load_suite("matmul-llm", "cuda") if c.parameters["n"] == 256}
    assert router == {1, 2, 4, 8, 16}
    assert {m for (m,) in distinct("matmul-square", "m")} >= {"512", "1024", "2048", "4096", "8192", "16384"}
    assert {int(m) % 8 for (m,) in distinct("matmul-odd", "m")} == set(range(8))
    assert len(distinct("conv-grouped", "channels", "size", "stride")) == 7
    assert len(distinct("conv-depthwise", "channels", "size", "kernel", "stride")) == 35
    assert len(distinct("conv-causal1d", "batch", "channels", "length", "kernel", op="causal_conv1d")) == 16
    assert len(distinct("conv-transposed", "batch", "channels", "size", op="conv_transpose2d")) == 6
    assert len(distinct("conv-deepbench", "batch", "channels", "filters", "size", "kernel", "stride")) == 35
    assert len(distinct("conv-video", "channels", "size", "kernel", "stride")) == 14
    assert len(distinct("conv-diffusion", "channels", "filters", "size", "kernel", "stride")) == 41
    assert len(distinct("norm", "rows", "width", op="rms_norm")) == 14
    assert distinct("norm", "rows", "width") == distinct("softmax", "rows", "width")
    assert len(distinct("group-norm", "batch", "channels", "size", op="group_norm")) == 8
    assert len(distinct("optimizers", "model", "masters", "eight_bit", op="adamw_")) == 12
    assert len(distinct("optimizers", "model", "masters", op="lamb_")) == 6


def test_batch_norms_are_those_behind_resnet50_s_convolutions():
    outputs = set()
    for c in load_suite("conv-resnet50", "cuda"):
        sample = c.sample("meta")
        _, filters, size, _ = c.operator.torch_op(*sample.args, **sample.kwargs).shape
        outputs.add((str(filters), str(size)))
    assert distinct("batch-norm", "channels", "size") == outputs


def test_convolutions_with_batch_norm_are_resnet50_s():
    """All but the last of a block and those beside the blocks have a ReLU alone; the last has the residual, too."""
    numbers = ("batch", "size", "channels", "filters", "kernel", "stride", "channels_last")
    assert distinct("conv-batch-norm", *numbers) == distinct("conv-resnet50", *numbers)
    inference = [c.parameters for c in load_suite("conv-batch-norm-inference", "cuda")]
    layers = [n for n in numbers if n != "batch"]
    assert distinct("conv-batch-norm-inference", *layers) == distinct("conv-batch-norm", *layers)
    assert not any(p["training"] for p in inference)
    for p in [*inference, *(c.parameters for c in load_suite("conv-batch-norm", "cuda"))]:
        beside = p["kernel"] == 1 and p.get("stride") == 2
        assert (p.get("activation") == "relu") != beside
        assert p.get("residual", False) == (p["filters"] == 4 * p["channels"] and not beside)


# ---- select ----


def test_select_filters_by_op_dtype_and_direction():
    cases = load_suite("quick", "cpu")
    assert select(cases) == cases
    assert select(cases, ops=[], dtypes=None, directions=()) == cases
    assert {c.op for c in select(cases, ops=["swiglu", "linear"])} == {"swiglu", "linear"}
    assert {c.directions for c in select(cases, directions=["both"])} == {("both",)}
    assert not {c.op for c in select(cases, directions=["both"])} & {"quantize_fp8", "adamw_"}
    assert {c.directions for c in select(cases, directions=["backward"])} == {("backward",)}  # No suite lists it.
    norms = load_suite("norm", "cpu")
    assert {c.dtype for c in select(norms, dtypes=["bfloat16"])} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"ops": ["fft"]}, r"op must be one of .*linear.*, got 'fft'"),
        ({"dtypes": ["bf16"]}, r"dtype must be one of float32, float16, bfloat16, got 'bf16'"),
        ({"directions": ["up"]}, "direction must be one of forward, backward, both, got 'up'"),
        ({"ops": ["linear"], "dtypes": ["bfloat16"]}, r"no case is left of \d+ with op linear; dtype bfloat16"),
        ({"ops": ["adamw_"], "directions": ["both"]}, r"no case is left of \d+ with op adamw_; direction both"),
    ],
)
def test_select_names_what_there_is_not(wanted, message):
    with pytest.raises(RuntimeError, match=f"warpwright: bench: {message}"):
        select(load_suite("quick", "cpu"), **wanted)


# ---- suites of users ----


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def parameters_of(cases):
    return [c.parameters for c in cases]


def test_a_suite_of_a_user_needs_little(write):
    cases = load_suite(write("measure: [{op: rms_norm, sweep: {rows: 4, width: [8, 16]}}]"), "cpu")
    assert {c.suite for c in cases} == {"mine"}
    assert {c.directions for c in cases} == {("forward", "both")}
    assert [(c.parameters["width"], c.dtype) for c in cases] == [
        (width, dtype) for width in (8, 16) for dtype in SPECS["rms_norm"].dtypes
    ]
    assert load_suite(str(write("measure: [{op: adamw_, cases: [{model: resnet50}]}]")), "cuda")[0].directions == (
        "forward",
    )


SUITE = """
dtypes: bfloat16
directions: [both, forward]
measure:
  - op: [rms_norm, layer_norm]
    sweep: {rows: [512, 8192], residual: [true, false]}
    cases: [{width: 64}, {width: 4096}]
  - op: conv2d
    directions: forward
    sweep: {batch: 4, size: [[9, 99], 7], kernel: 3}
    cases: [{channels: 2}, {channels: 5}]
    cpu: {cap: {size: 16, batch: 1}, set: {activation: relu}}
  - op: bmm
    dtypes: [float16]
    cases: [{batch: 1, m: 2, n: 3, k: 4}]
    cpu: {skip: true}
cpu:
  dtypes: float32
  cap: {rows: 512}
  only: {width: 64, channels: [5], residual: false}
"""


def test_sweeps_are_products_with_each_case(write):
    cases = load_suite(write(SUITE), "cuda")
    norms = [c for c in cases if c.op == "layer_norm"]
    assert len(norms) == 8
    assert norms == sorted(norms, key=lambda c: c.parameters["width"])
    assert {c.directions for c in norms} == {("forward", "both")}
    assert {c.dtype for c in norms} == {torch.bfloat16}
    convs = [c for c in cases if c.op == "conv2d"]
    assert [c.parameters["size"] for c in convs] == [[9, 99], 7, [9, 99], 7]
    assert {c.directions for c in convs} == {("forward",)}
    assert [c.dtype for c in cases if c.op == "bmm"] == [torch.float16]
    assert load_suite(write(SUITE), "cpu", full=True) == cases


def test_a_cpu_gets_what_its_section_says(write):
    cases = load_suite(write(SUITE), "cpu")
    assert {c.dtype for c in cases} == {torch.float32}
    # Both of `rows` became 512.
    norms = [c for c in cases if c.op != "conv2d"]
    assert [c.op for c in norms] == ["rms_norm", "layer_norm"]
    assert parameters_of(norms) == [{"width": 64, "rows": 512, "residual": False}] * 2
    # An entry's own `only` would replace the file's; its cap does, and reaches into lists.
    convs = [c.parameters for c in cases if c.op == "conv2d"]
    assert [c["size"] for c in convs] == [[9, 16], 7]
    assert all((c["channels"], c["batch"], c["activation"]) == (5, 1, "relu") for c in convs)
    assert not [c for c in cases if c.op == "bmm"]


def test_only_knows_values_that_were_not_given(write):
    text = """
measure: [{op: matmul, cases: [{m: 1, n: 2, k: 3}, {m: 1, n: 2, k: 3, layout: tt}]}]
cpu: {only: {layout: nn}}
"""
    assert {c.label for c in load_suite(write(text), "cpu")} == {"1 x 2 x 3 nn"}


def test_equal_cases_are_one_with_the_directions_of_both(write):
    text = """
dtypes: float32
measure:
  - {op: rms_norm, directions: both, cases: [{rows: 2, width: 3}]}
  - {op: rms_norm, directions: forward, cases: [{rows: 2, width: 3, residual: false}]}
"""
    (found,) = load_suite(write(text), "cpu")
    assert found.directions == ("forward", "both")


def one(parameters, op="rms_norm", **fields):
    return {"measure": [{"op": op, "cases": [parameters], **fields}]}


def conv(**changes):
    return one({"batch": 1, "channels": 3, "size": 4, "kernel": 3} | changes, op="conv2d")


NORM = {"rows": 4, "width": 8}
GOOD = one(NORM)
MANY_GROUPS = {"groups": 1 << 40, "tokens": 1, "n": 8, "k": 8}
SMOOTHED = {"rows": 1, "classes": 2, "label_smoothing": float("nan")}
TWICE = {"measure": [{"op": "rms_norm", "cases": [NORM]}, {"op": "rms_norm"}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "the file must be a mapping, got a list"),
        ({}, "the file has no field 'measure'"),
        ({"measure": []}, "measure: must name at least one op"),
        ({"measure": {}}, "field 'measure' of the file must be a list, got a mapping"),
        (GOOD | {"dtype": "float32"}, "the file has an unknown field 'dtype'; known: measure, about, dtypes"),
        (GOOD | {"about": 3}, "field 'about' of the file must be text, got an integer 3"),
        (GOOD | {"dtypes": ["float33"]}, "dtypes of the file: must be among float32, .*, got 'float33'"),
        (GOOD | {"dtypes": []}, r"dtypes of the file: must be different names, got \[\]"),
        (GOOD | {"directions": "forwards"}, "directions of the file: must be among .*, got 'forwards'"),
        (GOOD | {"directions": [["forward"]]}, r"directions of the file: must be among .*, got \['forward'\]"),
        ({"measure": ["rms_norm"]}, "measure 1 must be a mapping, got text"),
        ({"measure": [{"sweep": NORM}]}, "measure 1 has no field 'op'"),
        (one(NORM, op="fft"), "op of measure 1: must be among .*conv2d, .*, got 'fft'"),
        (one(NORM, op=["rms_norm", "rms_norm"]), "op of measure 1: must be different names"),
        (one(NORM, ops="x"), "measure 1 has an unknown field 'ops'"),
        (one({"rows": 4}), "case 1 of measure 1: rms_norm needs width, which neither it nor the sweep gives"),
        (one(3), "case 1 of measure 1 must be a mapping, got an integer 3"),
        (one(NORM | {"heigth": 3}), "case 1 of measure 1: rms_norm has no parameter 'heigth'; it has rows, width, res"),
        (one({"rows": 4}, sweep={"widht": 3}), "sweep of measure 1: rms_norm has no parameter 'widht'"),
        (one(NORM, sweep={"rows": [1, 2]}), "case 1 of measure 1: rows is in the sweep already"),
        (one(NORM | {"rows": "many"}), "rows in case 1 of measure 1: must be an integer, got 'many'"),
        (one(NORM | {"rows": 4.0}), "rows in case 1 of measure 1: must be an integer, got 4.0"),
        (one(NORM | {"rows": True}), "rows in case 1 of measure 1: must be an integer, got True"),
        (one(NORM | {"rows": [4, 8]}), r"rows in case 1 of measure 1: must be an integer, got \[4, 8\]"),
        (one({"rows": 4}, sweep={"width": [8, "x"]}), "width in sweep of measure 1: must be an integer, got 'x'"),
        (one(NORM | {"residual": 1}), "residual in case 1 of measure 1: must be true or false, got 1"),
        (one(NORM | {"rows": -4}), "rows in case 1 of measure 1: must not be negative, got -4"),
        (one(NORM | {"rows": 0}), r"measure 1: rms_norm \{'rows': 0, 'width': 8\}: has an empty tensor"),
        (one({"rows": 4}, sweep={"width": []}), "measure 1: stands for 0 cases; a suite has from 1 to 10000"),
        ({"measure": [{"op": "rms_norm", "cases": []}]}, "measure 1: stands for 0 cases"),
        (one({"residual": True}, sweep={"rows": [*range(1000)], "width": [*range(1000)]}), "stands for 1000000 cases"),
        (one(NORM | {"rows": 1 << 40}), "moves 6.554e.04 GiB; a case moves at most 256"),
        (one(NORM | {"rows": 1 << 62}), "rms_norm .*: .*(overflow|too large|too big)"),
        (one(NORM | {"rows": 1 << 70}), "the file: has an integer of more than 64 bits"),
        (one(MANY_GROUPS, op="grouped_matmul"), "groups must be between 1 and 4096"),
        (one({"m": 1, "n": 2, "k": 3, "layout": "nx"}, op="matmul"), "must be nn or nt or tn or tt, got 'nx'"),
        (one(SMOOTHED, op="cross_entropy"), "must be a number, got nan"),
        (conv(groups=2), "groups must divide 3 channels"),
        (conv(size=[4, 4, 4]), "a 2d convolution takes 1 or 2 num"),
        (conv(size=[]), r"integer or a list of integers, got \[\]"),
        (conv(kernel=9, padding=0), "measure 1: conv2d .*: .*[Kk]ernel"),
        (one({"rows": 4, "width": 8}, op="quantize_fp8", directions="both"), "quantize_fp8 can be timed forward only"),
        (GOOD | {"cpu": {"caps": {}}}, "cpu has an unknown field 'caps'"),
        (GOOD | {"cpu": {"skip": True}}, "cpu has an unknown field 'skip'"),
        (GOOD | {"cpu": {"cap": {"row": 3}}}, "cpu: cap names 'row', which is no parameter of rms_norm"),
        (GOOD | {"cpu": {"cap": {"rows": "x"}}}, "rows in cap of cpu must be an integer, got text 'x'"),
        (GOOD | {"cpu": {"set": {"rows": "x"}}}, "rows in set of cpu: must be an integer, got 'x'"),
        (GOOD | {"cpu": {"only": {"rows": [4, "x"]}}}, "rows in only of cpu: must be an integer, got 'x'"),
        (GOOD | {"cpu": {"only": {"rows": 5}}}, "measure: leaves no case on a CPU"),
        (one(NORM, cpu={"skip": True}), "measure: leaves no case on a CPU"),
        (one(NORM, cpu={"cap": {"m": 1}}), "cpu of measure 1: cap names 'm'"),
        (one(NORM, cpu=[]), "field 'cpu' of measure 1 must be a mapping"),
        (TWICE, "case 1 of measure 2: rms_norm needs rows"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_gets_one_line_that_names_the_place(write, data, message):
    path = write(json.dumps(data).replace("NaN", ".nan"))
    with pytest.raises(FileError, match=message) as error:
        load_suite(path, "cpu")
    text = str(error.value)
    assert text.startswith(f"warpwright: {path}: ")
    assert "\n" not in text
    assert len(text) < 600


def test_an_integer_too_long_to_print_is_refused(write):
    for text in (f"measure: [{{op: rms_norm, cases: [{{rows: 0x{'f' * 5000}}}]}}]", f"? 0x{'f' * 5000}\n: 1"):
        with pytest.raises(FileError, match="the file: has an integer of more than 64 bits"):
            load_suite(write(text), "cpu")


def test_dtypes_that_an_op_does_not_take_are_refused(write, monkeypatch):
    import dataclasses

    only_float = dataclasses.replace(OPERATORS["softmax"], dtypes=(torch.float32,))
    monkeypatch.setitem(OPERATORS, "softmax", only_float)
    path = write(json.dumps(one(NORM, op="softmax", dtypes="float16")))
    with pytest.raises(FileError, match="dtypes of measure 1 for softmax: must be among float32, got 'float16'"):
        load_suite(path, "cpu")


def test_cases_that_share_a_label_are_refused(write, monkeypatch):
    monkeypatch.setattr("warpwright.bench.case.OPERATORS", OPERATORS)

    def sample(draw, *, rows: int, seed: int = 0):
        return Sample(f"{rows} rows", (draw.tensor(rows, 8), -1))

    details = {"family": "norm", "torch_op": torch.softmax, "cost": OPERATORS["softmax"].cost,
               "dtypes": (torch.float32,), "gradient": True, "smaller": lambda parameters: None}  # fmt: skip
    operator("vague", **details)(sample)
    try:
        path = write(json.dumps(one({"rows": 4}, op="vague", sweep={"seed": [1, 2]})))
        with pytest.raises(FileError, match=r"two cases of vague are called '4 rows': .*1.* and .*2"):
            load_suite(path, "cpu")
    finally:
        del OPERATORS["vague"]


def test_unknown_suites_and_devices_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"suite must be one of activation, .*, or a \.yaml file, got 'norms'"):
        load_suite("norms", "cpu")
    with pytest.raises(FileError, match=re.escape(f"{tmp_path}/none.yaml: cannot be read: No such file")):
        load_suite(tmp_path / "none.yaml", "cpu")
    with pytest.raises(RuntimeError, match="device must be cpu or cuda, got 'meta'"):
        load_suite("quick", "meta")


_WORDS = ["measure", "op", "cases", "sweep", "cpu", "cap", "only", "set", "skip", "dtypes", "directions", "float32",
          "forward", "rms_norm", "conv2d", "grouped_matmul", "rows", "width", "size", "groups", "é"]  # fmt: skip
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 1 << 64), st.floats(), st.sampled_from(_WORDS))
_DATA = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(_WORDS) | st.just(7), inner, max_size=4)
    ),
    max_leaves=12,
)
_ENTRIES = st.fixed_dictionaries(
    {"op": st.sampled_from(sorted(OPERATORS)) | _DATA},
    optional={"sweep": _DATA, "cases": _DATA, "cpu": _DATA, "dtypes": _DATA, "directions": _DATA},
)
_FILES = st.fixed_dictionaries({"measure": st.lists(_ENTRIES, max_size=3) | _DATA}, optional={"cpu": _DATA}) | _DATA


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_FILES)
def test_a_file_of_anything_is_a_suite_or_a_file_error(write, data):
    import yaml

    path = write(yaml.safe_dump(data, allow_unicode=True))
    try:
        found = load_suite(path, "cpu")
    except FileError as error:
        found = str(error).splitlines()[:1] == [str(error)]
    assert found
