"""The benchmarks: what is checked before and after it is timed, what a row says, and who takes part."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from warpwright import bench
from warpwright.bench.case import Case, Provider
from warpwright.bench.checks import Calls
from warpwright.bench.runner import sets_of_inputs, work
from warpwright.testing import SPECS

CPU = torch.device("cpu")


def case(op="swiglu", directions=("forward",), dtype=torch.float32, **parameters):
    return Case("test", op, dtype, directions, parameters or {"rows": 33, "width": 40})


def provider(function, name="mine", **fields):
    return Provider(name, "planted", lambda device: None, lambda op, device: function, **fields)


def rows_of(*functions, cases=None, **options):
    """The rows of planted providers beside PyTorch, timed as briefly as can be."""
    providers = ["torch", *(f if isinstance(f, (Provider, str)) else provider(f) for f in functions)]
    options = {"seconds": 0.001, "ceilings": False} | options
    found = bench.collect(bench.run(cases or [case()], providers=providers, **options))
    return found.rows


def torch_swiglu(gate, up):
    return torch.nn.functional.silu(gate) * up


# ---- planted kernels ----


def wrong(gate, up):
    return torch_swiglu(gate, up) * 1.001


class CachesByPointer:
    """Remembers its result for tensors that it has seen."""

    def __init__(self):
        self.seen = {}

    def __call__(self, gate, up):
        key = (gate.data_ptr(), up.data_ptr())
        if key not in self.seen:
            self.seen[key] = torch_swiglu(gate, up)
        return self.seen[key]


class WritesOnce:
    """Computes on its first calls only, into a buffer that it hands out for ever."""

    def __init__(self, calls=1):
        self.calls, self.buffer = calls, None

    def __call__(self, gate, up):
        if self.calls > 0:
            self.calls -= 1
            self.buffer = torch_swiglu(gate, up)
        return self.buffer.view_as(self.buffer)


class LeavesOutputUnwritten:
    """Computes on its first calls only, and afterwards returns memory as it finds it."""

    def __init__(self):
        self.calls = 2

    def __call__(self, gate, up):
        self.calls -= 1
        return torch_swiglu(gate, up) if self.calls >= 0 else torch.empty_like(gate)


@pytest.mark.parametrize(
    "planted",
    [wrong, CachesByPointer(), WritesOnce(), LeavesOutputUnwritten()],
    ids=["wrong", "caches", "writes once", "unwritten"],
)
def test_a_kernel_that_is_wrong_or_cheats_is_not_timed(planted):
    baseline, bad = rows_of(planted)
    assert baseline.status == "timed"
    assert bad.status == "wrong"
    assert bad.p50 is None
    assert bad.ratio is None
    assert ("times the allowed one" if planted is wrong else "did not follow when its inputs changed") in bad.reason


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_kernel_that_stops_working_while_it_is_timed_is_caught_afterwards(direction):
    warm = 12  # Past the checks and the first calls.
    baseline, bad = rows_of(WritesOnce(calls=warm), cases=[case(directions=(direction,))])
    assert baseline.status == "timed"
    assert bad.status in ("wrong", "failed")
    assert bad.p50 is None


def test_a_backward_pass_that_cheats_is_caught():
    class Remembers(torch.autograd.Function):
        grads = None

        @staticmethod
        def forward(ctx, gate, up):
            ctx.save_for_backward(gate, up)
            return torch_swiglu(gate, up)

        @staticmethod
        def backward(ctx, grad):
            if Remembers.grads is None or Remembers.grads[0].shape != grad.shape:
                with torch.enable_grad():
                    gate, up = (t.detach().requires_grad_() for t in ctx.saved_tensors)
                    Remembers.grads = torch.autograd.grad(torch_swiglu(gate, up), (gate, up), grad)
            return Remembers.grads

    for direction in ("backward", "both"):
        Remembers.grads = None
        _, bad = rows_of(Remembers.apply, cases=[case(directions=(direction,))])
        assert bad.status == "wrong", direction


def test_honest_kernels_pass_in_every_direction():
    rows = rows_of(torch_swiglu, "warpwright", cases=[case(directions=("forward", "backward", "both"))])
    assert [r.status for r in rows] == ["timed"] * 9
    assert [r.provider for r in rows] == ["torch", "mine", "warpwright"] * 3
    for row in rows:
        assert 0 < row.p20 <= row.p50 <= row.p80
        assert 0 < row.low <= row.p50 <= row.high
        assert row.clock == "host"
        assert row.host is None
        assert row.repeats >= 3
        assert (row.error is None) == (row.provider == "torch")
    assert {r.ratio for r in rows if r.provider == "torch"} == {1.0}


def test_an_op_that_writes_to_its_arguments_is_checked_and_timed_in_place():
    (params,) = [c for c in bench.load_suite("quick", "cpu") if c.op == "adamw_"][:1]
    rows = rows_of("warpwright", provider(lambda *args, **kwargs: None), cases=[params])
    assert [r.status for r in rows] == ["timed", "timed", "wrong"]


def test_a_kernel_that_raises_fails_alone():
    def raises(gate, up):
        raise ValueError("no\nway")

    baseline, failed, ours = rows_of(raises, "warpwright")
    assert (baseline.status, failed.status, ours.status) == ("timed", "failed", "timed")
    assert failed.reason == "ValueError: no way"


def test_when_the_baseline_fails_there_are_no_ratios(monkeypatch):
    def raises(*args):
        raise ValueError("no")

    first = provider(raises, name="first")
    failed, ours = bench.collect(
        bench.run([case()], providers=[first, "warpwright"], seconds=0.001, ceilings=False)
    ).rows
    assert failed.status == "failed"
    assert (ours.status, ours.ratio) == ("timed", None)


def test_missing_ops_and_refused_arguments_are_named():
    none = provider(None, name="none")
    refuses = provider(torch_swiglu, name="refuses", accepts=lambda op, sample: "widths of 64 only")
    _, first, second = rows_of(none, refuses)
    assert (first.status, first.reason) == ("missing", "none has no swiglu")
    assert (second.status, second.reason) == ("missing", "widths of 64 only")


def test_providers_that_cannot_run_here_are_in_the_environment():
    absent = dataclasses.replace(
        provider(torch_swiglu, name="absent"), missing=lambda device: "absent is not installed"
    )
    found = bench.collect(bench.run([case()], providers=["torch", absent], seconds=0.001, ceilings=False))
    assert [r.provider for r in found.rows] == ["torch"]
    assert found.environments[0]["missing"] == {"absent": "absent is not installed"}
    with pytest.raises(RuntimeError, match="no provider can run on cpu: absent is not installed"):
        bench.collect(bench.run([case()], providers=[absent]))


def test_inference_only_kernels_fail_only_where_gradients_are_asked_for():
    def no_gradient(gate, up):
        return torch_swiglu(gate.detach(), up.detach())

    rows = rows_of(no_gradient, cases=[case(directions=("forward", "both"))])
    assert [r.status for r in rows if r.provider == "mine"] == ["timed", "failed"]


def test_a_scope_is_entered_around_every_call():
    from contextlib import contextmanager

    inside = []

    @contextmanager
    def scope():
        inside.append(True)
        yield
        inside.pop()

    def checked(gate, up):
        assert inside
        return torch_swiglu(gate, up)

    assert [r.status for r in rows_of(provider(checked, scope=scope))] == ["timed", "timed"]


# ---- the numbers of a row ----


def test_inputs_are_rotated_past_the_cache():
    cache = 32 << 20
    assert sets_of_inputs(1 << 10, cache) == 4
    assert sets_of_inputs(8 << 20, cache) * (8 << 20) > 2 * cache
    assert sets_of_inputs(1 << 20, cache) == 64
    assert sets_of_inputs(1 << 30, cache) == 2
    assert sets_of_inputs(8 << 30, cache) == 1
    calls = Calls(case(), "forward", CPU, 3)
    seen = []
    call = calls.of(lambda gate, up: seen.append(gate.data_ptr()))
    for i in range(6):
        call(i)
    assert seen[:3] == seen[3:]
    assert len(set(seen)) == 3
    assert not torch.equal(calls.samples[0].args[0], calls.samples[1].args[0])


def test_the_least_work_of_each_direction():
    linear = case("linear", ("forward", "backward", "both"), torch.bfloat16, m=8, n=16, k=32)
    sample = linear.sample("meta")
    inputs = sum(t.numel() for t in sample.tensors())
    forward, backward, both = (work(linear, d) for d in ("forward", "backward", "both"))
    assert forward.flops == 2 * 8 * 16 * 32
    assert forward.bytes == 2 * (inputs + 8 * 16)
    assert backward.flops == 2 * forward.flops
    assert backward.bytes == 2 * (inputs + 8 * 16 + inputs)
    assert (both.flops, both.bytes) == (3 * forward.flops, forward.bytes + backward.bytes)


def test_a_comparison_too_large_for_float64_is_made_on_a_smaller_case(monkeypatch):
    from warpwright.bench import checks

    monkeypatch.setattr(checks, "_CPU_LIMITS", (1000, 1e6))
    _, ours = rows_of("warpwright", cases=[case(rows=64, width=40)])
    assert ours.case == "64 x 40"
    assert ours.checked == "8 x 40"
    _, bad = rows_of(wrong, cases=[case(rows=64, width=40)])
    assert bad.status == "wrong"


def test_ceilings_are_measured_once_and_give_each_row_its_share(monkeypatch):
    from warpwright.bench import runner

    planted = [
        bench.Ceiling("copy", "", 1e9, "planted", "cpu"),
        bench.Ceiling("matmul", "float32", 1e12, "planted", "cpu"),
    ]
    monkeypatch.setattr(runner, "measure_ceilings", lambda device, dtypes, seconds: planted)
    found = bench.collect(bench.run([case()], providers=["torch"], seconds=0.001))
    (row,) = found.rows
    assert found.ceilings == planted
    assert row.bound == "memory"
    assert row.ceiling == pytest.approx(row.bytes / 1e9 / row.p50)


def test_done_rows_are_left_out():
    first = rows_of("warpwright")
    assert rows_of("warpwright", done={r.key for r in first}) == []
    assert len(rows_of("warpwright", done={first[0].key})) == 2


# ---- your own kernels ----


def test_a_decorator_makes_a_provider(own_providers):
    @bench.kernel("swiglu")
    def mine(gate, up=None):
        return torch_swiglu(gate, up)

    @bench.kernel("rms_norm", name="mine")
    def my_norm(input, normalized_shape, weight=None, eps=None):
        return torch.nn.functional.rms_norm(input, normalized_shape, weight, eps)

    rows = rows_of("mine", cases=[case(), case("rms_norm"), case("layer_norm")])
    assert [r.status for r in rows if r.provider == "mine"] == ["timed", "timed", "missing"]
    with pytest.raises(RuntimeError, match=r"op must be one of .*, got 'fft'"):
        bench.kernel("fft")(mine)
    with pytest.raises(RuntimeError, match="'torch' is the name of a provider already"):
        bench.kernel("swiglu", name="torch")(mine)


def test_kernels_are_found_by_path(own_providers, tmp_path):
    file = tmp_path / "kernels_of_mine.py"
    file.write_text(
        "import torch\nfrom warpwright import bench\n"
        "def plain(gate, up=None):\n    return torch.nn.functional.silu(gate) * up\n"
        "@bench.kernel('swiglu', name='decorated')\ndef f(gate, up=None):\n    return plain(gate, up)\n"
    )
    assert bench.load_kernel(str(file)) == ["decorated"]
    assert bench.load_kernel(f"swiglu={file}:plain") == ["plain"]
    assert [r.status for r in rows_of("plain", "decorated")] == ["timed"] * 3
    for text, message in (
        (f"swiglu={file}:absent", "must be FILE.py:function"),
        (f"swiglu={file}", "must be FILE.py:function"),
        ("no_such_module_of_mine", "No module named"),
        (str(tmp_path / "absent.py"), "No such file"),
        ("json", "no function under @warpwright.bench.kernel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bench.load_kernel(text)


def test_unknown_and_repeated_providers_are_refused():
    for names in (["torch", "cublas"], ["torch", "torch"]):
        with pytest.raises(RuntimeError, match="providers must be different ones of torch, compile, warpwright"):
            bench.collect(bench.run([case()], providers=names))


def test_every_op_of_ours_has_a_provider_of_ours():
    ours = bench.PROVIDERS["warpwright"]
    for name, op in bench.OPERATORS.items():
        assert (ours.function(name, CPU) is not None) == (name in SPECS or "warpwright" in op.functions), name


# ---- compare ----


def test_compare_times_functions_beside_each_other():
    gate, up = torch.randn(2, 64, 8).unbind(0)
    found = bench.compare({"a": torch_swiglu, "b": lambda g, u: torch_swiglu(g, u)}, gate, up, seconds=0.001)
    assert [(r.provider, r.case) for r in found.rows] == [("a", "64 x 8, 64 x 8"), ("b", "64 x 8, 64 x 8")]
    assert found.rows[0].ratio == 1.0
    assert "64 x 8" in str(found)
    with pytest.raises(RuntimeError, match="compare needs at least one tensor"):
        bench.compare({"a": lambda: None})


# ---- files ----


def test_results_survive_a_file(tmp_path):
    found = bench.collect(bench.run([case()], providers=["torch", provider(wrong), "warpwright"], seconds=0.001))
    rows = [*found.rows, dataclasses.replace(found.rows[1], provider="infinite", error=float("inf"))]
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for record in (*found.environments, *found.ceilings, *rows):
            bench.write_record(file, record)
    read = bench.read_results(path)
    assert read.rows == rows
    assert read.ceilings == found.ceilings
    assert read.environments == json.loads(json.dumps(found.environments))
    assert read.environment_of == [0] * len(rows)
    with path.open("a") as file:
        file.write('{"kind": "row", "suite": "te')  # Interrupted in the middle of a line.
    assert bench.read_results(path).rows == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no results"),
        ("{}\n", "line 1 has no kind of row, ceiling or environment"),
        ("[1]\n", "line 1 has no kind"),
        ('{"kind": "row"}\n', "line 1 has no field 'suite'"),
        ('{"kind": "environment"}\n{"kind": "ceiling", "name": 3}\n', "field 'name' of line 2 must be text"),
        ('{"kind": "environment"}\nnonsense\n{"kind": "environment"}\n', "line 2 is not valid JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(RuntimeError, match=message) as error:
        bench.read_results(path)
    assert str(path) in str(error.value)


def row_text(**changes):
    row = {"kind": "row", "suite": "s", "op": "o", "case": "c", "dtype": "float32", "direction": "forward",
           "provider": "p", "device": "cpu", "status": "timed", "p50": 1.0}  # fmt: skip
    return json.dumps(row | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "status of line 2 must be one of timed, wrong, failed, missing, got 'fine'"),
        ({"direction": "up"}, "direction of line 2 must be one of"),
        ({"p50": None}, "line 2 is timed, but has no p50"),
        ({"p50": "fast"}, "field 'p50' of line 2 must be a number"),
        ({"surprise": 1}, "line 2 has an unknown field 'surprise'"),
    ],
)
def test_damaged_rows_are_named(tmp_path, changes, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind": "environment"}\n' + row_text(**changes) + "\n")
    with pytest.raises(RuntimeError, match=message):
        bench.read_results(path)


def test_csv_and_markdown_hold_the_same_cells():
    rows = rows_of(provider(wrong), "warpwright", cases=[case("swiglu"), case("rms_norm", rows=3, width=8)][:1])
    csv_lines = bench.to_csv(rows).splitlines()
    markdown = bench.to_markdown(rows).splitlines()
    assert len(csv_lines) == 1 + len(rows)
    assert len(markdown) == 2 + len(rows)
    assert csv_lines[0].split(",")[:3] == ["suite", "op", "case"]
    assert markdown[0].count("|") == markdown[-1].count("|")
    assert "wrong" in csv_lines[2]


def test_compiled_code_may_round_otherwise_but_not_be_wrong():
    def scaled(error):
        return lambda gate, up: torch_swiglu(gate, up) * (1 + error)

    near, far = (provider(scaled(e), name=f"{e}", limit=8.0) for e in (2e-7, 1e-3))
    strict = provider(scaled(2e-7), name="strict", limit=0.5)
    _, fused, wrong_one, refused = rows_of(near, far, strict)
    assert (fused.status, wrong_one.status, refused.status) == ("timed", "wrong", "wrong")


def test_peers_that_fail_do_not_fail_a_run():
    assert {n for n, p in bench.PROVIDERS.items() if not p.peer} == {
        "warpwright", "warpwright-cpu", "warpwright-cuda", "warpwright-triton"
    }  # fmt: skip


def test_a_compiled_backward_pass_can_be_run_again():
    rows = rows_of("compile", cases=[case("rms_norm", ("backward",), rows=5, width=64)])
    assert [r.status for r in rows] == ["timed", "timed"], rows


class RaisesLater:
    """Is honest for some calls, and then raises in every one."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, gate, up):
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("worn out")
        return torch_swiglu(gate, up)


@pytest.mark.parametrize("calls", [2, 3, 12, 60])
def test_a_kernel_that_raises_later_fails_alone(calls):
    """While its freshness is checked, while it is timed, or after it."""
    baseline, bad, ours = rows_of(RaisesLater(calls), "warpwright")
    assert (baseline.status, bad.status, ours.status) == ("timed", "failed", "timed")
    assert bad.reason == "ValueError: worn out"
    assert ours.ratio is not None


def test_a_baseline_that_cheats_gives_no_ratios():
    cheats = provider(WritesOnce(calls=12), name="cheats")
    found = bench.collect(bench.run([case()], providers=[cheats, "warpwright"], seconds=0.001, ceilings=False))
    bad, ours = found.rows
    assert bad.status == "wrong"
    assert (ours.status, ours.ratio) == ("timed", None)
