"""The environment record, NVML through a stand-in; ceilings by a clock of our own; the hashes of sources."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone

import pytest
import torch

from warpwright.bench import ceilings, environment, sources
from warpwright.bench.ceilings import measure_ceilings, product_ceiling, share
from warpwright.bench.rows import Ceiling
from warpwright.bench.timing import Timing
from warpwright.testing import SPECS

# ---- environment ----


def test_the_record_of_this_machine_is_ready_for_json():
    record = environment.environment("cpu", threads={"threads": 2, "pinned": True})
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {"time", "device", "torch", "info", "peers", "load", "threads", "gpu"}
    assert (record["device"], record["gpu"], record["threads"]["threads"]) == ("cpu", None, 2)
    assert record["torch"] == record["info"]["torch"] == torch.__version__
    assert datetime.fromisoformat(record["time"]).tzinfo == timezone.utc


@pytest.mark.parametrize(
    ("gpu", "cpu", "slug"),
    [
        ("NVIDIA H200", "Xeon, 32 cores", "nvidia-h200"),
        ("NVIDIA H100 80GB HBM3", "Xeon, 32 cores", "nvidia-h100-80gb-hbm3"),
        (None, "AMD EPYC, 2 cores", "amd-epyc-2-cores"),
        (None, "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz, 28 cores", "intel-xeon-e5-2680-v4-28-cores"),
        (None, "AMD Ryzen 9 7950X 16-Core Processor, 32 cores", "amd-ryzen-9-7950x-16-core-32-cores"),
        (None, "../..", "unknown"),
    ],
)
def test_a_machine_has_a_folder(gpu, cpu, slug):
    assert environment.machine_slug({"info": {"cpu": cpu}, "gpu": gpu and {"name": gpu}}) == slug


UUID = "6f0c2a5e-1111-2222-3333-444455556666"


class FakeNvml:
    """NVML of `count` GPUs, of which one is torch's.

    `lacks` names functions that an old driver does not have, `refuses` such as need a right.
    """

    NUMBERS = {  # noqa: RUF012
        "nvmlDeviceGetClockInfo": {1: 1755, 2: 3201},
        "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 3201},
        "nvmlDeviceGetTemperature": {0: 41},
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetPowerUsage": 123_456,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x20,
    }
    MODES = {"nvmlDeviceGetEccMode": (1, 0), "nvmlDeviceGetMigMode": (0, 1)}  # noqa: RUF012

    def __init__(self, lacks=(), refuses=(), count=2):
        self.lacks, self.refuses, self.count, self.called, self.open = lacks, refuses, count, [], 0

    def __getattr__(self, name):
        if name in self.lacks:
            raise AttributeError(name)

        def function(*arguments):
            self.called.append(name)
            return 3 if name in self.refuses else self._answer(name, *arguments)

        return function

    def _answer(self, name, *arguments):
        if name in ("nvmlInit_v2", "nvmlShutdown"):
            self.open += 1 if name == "nvmlInit_v2" else -1
        elif name == "nvmlSystemGetDriverVersion":
            arguments[0].value = b"580.65.06"
        elif name == "nvmlSystemGetCudaDriverVersion_v2":
            self._put(arguments[0], 13010)
        elif name == "nvmlDeviceGetCount_v2":
            self._put(arguments[0], self.count)
        elif name == "nvmlDeviceGetHandleByUUID":
            if arguments[0] != f"GPU-{UUID}".encode():
                return 6
            self._put(arguments[1], 77)
        elif name == "nvmlDeviceGetHandleByIndex_v2":
            self._put(arguments[1], 77)
        elif name in self.MODES:
            assert arguments[0].value == 77
            self._put(arguments[1], self.MODES[name][0])
            self._put(arguments[2], self.MODES[name][1])
        else:
            assert arguments[0].value == 77
            known = self.NUMBERS[name]
            self._put(arguments[-1], known[arguments[1].value] if isinstance(known, dict) else known)
        return 0

    @staticmethod
    def _put(pointer, value):
        pointer._obj.value = value


def test_nvml_is_read():
    nvml = FakeNvml()
    assert environment.read_nvml(UUID, load=lambda name: nvml) == {
        "driver": "580.65.06",
        "cuda_driver": "13.1",
        "max_clocks": {"sm": 1980, "memory": 3201},
        "power_limit": 700.0,
        "ecc": True,
        "mig": False,
        "load": {
            "clocks": {"sm": 1755, "memory": 3201},
            "throttled": ["software power cap", "software thermal slowdown"],
            "temperature": 41,
            "power": 123.456,
        },
    }
    assert nvml.open == 0
    assert not [name for name in nvml.called if "Set" in name]


@pytest.mark.parametrize(
    "name", ["nvmlDeviceGetMigMode", "nvmlDeviceGetEnforcedPowerLimit", "nvmlSystemGetDriverVersion"]
)
@pytest.mark.parametrize("how", ["lacks", "refuses"])
def test_what_nvml_does_not_tell_is_none(name, how):
    full = environment.read_nvml(UUID, load=lambda _: FakeNvml())
    part = environment.read_nvml(UUID, load=lambda _: FakeNvml(**{how: (name,)}))
    key = {"nvmlDeviceGetMigMode": "mig", "nvmlDeviceGetEnforcedPowerLimit": "power_limit"}.get(name, "driver")
    assert part == full | {key: None}


def flat(value):
    return [x for v in value.values() for x in flat(v)] if isinstance(value, dict) else [value]


def test_without_nvml_everything_is_none():
    def nothing(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert set(flat(environment.read_nvml(UUID, load=nothing))) == {None}
    broken = FakeNvml(refuses=("nvmlInit_v2",))
    assert set(flat(environment.read_nvml(UUID, load=lambda _: broken))) == {None}
    assert broken.called == ["nvmlInit_v2"]


def test_another_gpu_is_not_read():
    found = environment.read_nvml("another", load=lambda _: FakeNvml())
    assert set(flat(found)) == {None, "580.65.06", "13.1"}


def test_a_part_of_the_only_gpu_is_read_as_that_gpu():
    found = environment.read_nvml("of a MIG instance", load=lambda _: FakeNvml(count=1))
    assert found["power_limit"] == 700.0


# ---- ceilings ----


def timed(seconds: float) -> Timing:
    return Timing(seconds, 2 * seconds, 3 * seconds, seconds, seconds, 9, 1, "host", True, None, 1.0, 1.0, 1.0)


def test_the_best_of_what_was_tried_is_the_ceiling(monkeypatch):
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(ceilings._PRODUCTS, "cpu", ((16, 16, 16), (32, 32, 32), (64, 64, 64)))
    asked = []
    products = iter([1e-6, 4e-6, 8e-5])  # 8192, 65536 and 524288 operations.

    def measure(candidates, device, *, seconds):
        asked.append(seconds)
        for candidate in candidates.values():
            candidate.call(0)
        if "copy" in candidates:
            return {"copy": timed(1e-3), "triad": timed(1.2e-3)}
        return {"product": timed(next(products))}

    found = measure_ceilings("cpu", [torch.float32], seconds=0.6, measure=measure)
    assert found == [
        Ceiling("copy", "", 3 * (1 << 20) / 1.2e-3, "triad of 1 MiB", "cpu"),
        Ceiling("matmul", "float32", 65536 / 4e-6, "32 x 32 x 32", "cpu"),
    ]
    assert asked == [0.3, *[pytest.approx(0.2)] * 3]


def test_slow_products_end_early_and_missing_ones_are_left_out(monkeypatch):
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 1 << 10)
    monkeypatch.setitem(ceilings._PRODUCTS, "cpu", ((16, 16, 16), (32, 32, 32)))
    sizes = []

    def measure(candidates, device, *, seconds):
        results = {name: candidate.call(0) for name, candidate in candidates.items()}
        if "product" in results:
            sizes.append(tuple(results["product"].shape))
        return {name: timed(0.01) for name in candidates}

    # 8 * 0.01 s * 20 calls are more than a second.
    found = measure_ceilings("cpu", [torch.float16, torch.bool], seconds=1.0, measure=measure)
    assert [(c.name, c.dtype) for c in found] == [("copy", ""), ("matmul", "float16")]
    assert sizes == [(16, 16)]


COPY, HALF = Ceiling("copy", "", 1e12, "", "cuda"), Ceiling("matmul", "bfloat16", 1e14, "", "cuda")
SINGLE = Ceiling("matmul", "float32", 1e13, "", "cuda")


def test_a_share_is_the_time_that_the_ceiling_allows():
    # 1e12 operations take 10 ms, 1e9 bytes 1 ms.
    assert share(10**12, 10**9, 0.02, "bfloat16", [COPY, HALF]) == (pytest.approx(0.5), "compute")
    assert share(10**12, 10**11, 0.2, "bfloat16", [COPY, HALF]) == (pytest.approx(0.5), "memory")


@pytest.mark.parametrize(
    ("dtype", "whose"),
    [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float8_e4m3fn", "bfloat16"), ("float32", "float32")],
)
def test_a_dtype_without_a_product_has_the_nearest(dtype, whose):
    assert product_ceiling(dtype, [SINGLE, COPY, HALF]).dtype == whose


def test_without_ceilings_there_is_no_share():
    assert share(10, 10, 1.0, "float32", []) is None
    assert share(10**13, 10**9, 1.0, "int64", [COPY, HALF]) == (pytest.approx(1e-3), "memory")
    assert share(0, 0, 1.0, "float32", [COPY, SINGLE]) is None


# ---- sources ----

OURS = ("warpwright-cpu", "warpwright-cuda", "warpwright-triton", "warpwright")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the kernels that may be changed; hashes are kept for each folder, so each change needs a copy."""
    count = 0

    def copy():
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        for name in ("csrc", "triton_kernels"):
            shutil.copytree(sources.ROOT / name, folder / name, ignore=shutil.ignore_patterns("build", "__pycache__"))
        return folder

    return copy


def hashes(root):
    return {(op, provider): sources.source_hash(op, provider, root) for op in SPECS for provider in OURS}


def test_hashes_do_not_depend_on_where_the_checkout_lies(checkout):
    assert hashes(checkout()) == hashes(sources.ROOT)


#: Families that end in, or fall back to, the same products.
PROJECT = {"distillation", "gated", "grouped", "linear_loss", "matmul", "packed", "sparse"}
#: Convolutions.
CONVS = {"conv", "conv_batch_norm"}
#: Those whose CPU kernels sum columns in two stages.
PARTIALS = {"activation", "causal_conv", "channel_norm", "norm", "qk_norm", "sync_batch_norm", *CONVS, *PROJECT}
NATIVE_CPU = {"warpwright-cpu", "warpwright"}
NATIVE_CUDA = {"warpwright-cuda", "warpwright"}


@pytest.mark.parametrize(
    ("file", "families", "providers"),
    [
        ("csrc/cpu/norm.cpp", {"norm"}, NATIVE_CPU),
        ("csrc/kernels/norm.h", {"norm"}, NATIVE_CPU | NATIVE_CUDA),
        ("csrc/bindings/norm.cpp", {"norm"}, NATIVE_CPU | NATIVE_CUDA),
        ("csrc/bindings/onednn/conv.cpp", CONVS, NATIVE_CPU),
        ("csrc/bindings/onednn/matmul.cpp", PROJECT, NATIVE_CPU),
        ("csrc/cuda/grouped/epilogue.cuh", {"grouped"}, NATIVE_CUDA),
        ("csrc/bindings/gemm.h", {"scaled_conv", *CONVS, *PROJECT}, NATIVE_CPU | NATIVE_CUDA),
        ("csrc/cpu/epilogue.cpp", {*CONVS, *PROJECT}, NATIVE_CPU),
        ("csrc/cpu/partials.h", PARTIALS, NATIVE_CPU),
        ("csrc/cuda/channel_norm/units.cuh", {"channel_norm", "conv_batch_norm", "sync_batch_norm"}, NATIVE_CUDA),
        ("csrc/cuda/rotary/rotary.cu", {"rotary"}, NATIVE_CUDA),
        ("csrc/cuda/ptx/mma.cuh", {"scaled", "scaled_conv", *CONVS, *PROJECT}, NATIVE_CUDA),
        (
            "csrc/cuda/tile/float8.cuh",
            {"norm_quantize", "quantize", "scaled", "scaled_conv", *CONVS, *PROJECT},
            NATIVE_CUDA,
        ),
        ("csrc/bindings/conv.cpp", {"scaled_conv", *CONVS}, NATIVE_CPU | NATIVE_CUDA),
        ("csrc/cpu/quantize_matrix.cpp", {"quantize"}, NATIVE_CPU),
        ("triton_kernels/_gemm.py", {*CONVS, *PROJECT} - {"grouped"}, {"warpwright-triton", "warpwright"}),
        ("triton_kernels/loss.py", {"linear_loss", "loss"}, {"warpwright-triton", "warpwright"}),
        ("csrc/bindings/linear_loss.h", {"distillation", "linear_loss"}, NATIVE_CPU | NATIVE_CUDA),
        ("csrc/emulator/memory.cpp", set(), set()),
    ],
)
def test_a_change_reaches_the_kernels_that_are_made_of_it(checkout, file, families, providers):
    root = checkout()
    with open(root / file, "a") as target:
        target.write("\n# changed\n" if file.endswith(".py") else "\n// changed\n")
    before, after = hashes(sources.ROOT), hashes(root)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {(op, p) for op, spec in SPECS.items() if spec.family in families for p in providers}


def test_others_and_installed_wheels_have_no_hash(tmp_path):
    assert sources.source_hash("rms_norm", "torch") is None
    assert sources.source_hash("fft", "warpwright-cpu") is None
    assert sources.source_hash("rms_norm", "warpwright-cpu", tmp_path) is None


def test_every_op_of_ours_has_sources():
    assert None not in hashes(sources.ROOT).values()
    for op, spec in SPECS.items():
        for backend, suffix in (("cuda", ".cu"), ("triton", ".py"), ("cpu", ".cpp")):
            files = sources.source_files(spec.family, (backend,))
            assert any(path.suffix == suffix for path in files), (op, backend)


def test_every_source_is_of_some_op():
    """A file that no family names would change without a row noticing."""
    families = {spec.family for spec in SPECS.values()}
    found = {path for family in families for path in sources.source_files(family, ("cpu", "cuda", "triton"))}
    csrc = sources.ROOT / "csrc"
    every = {*csrc.glob("cpu/*.cpp"), *csrc.glob("cuda/**/*.cu"), *sources.ROOT.glob("triton_kernels/*.py")}
    assert {path.relative_to(sources.ROOT).as_posix() for path in every - found} == {"triton_kernels/__init__.py"}


def test_every_include_is_found():
    """A header that is not found would be left out of the hash without a word."""
    for family in {spec.family for spec in SPECS.values()}:
        for path in sources.source_files(family, ("cpu", "cuda")):
            for header in sources._included(path, sources.ROOT / "csrc"):
                assert header.is_file(), f"{path} includes {header}"
