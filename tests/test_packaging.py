"""The wheel: its tag and contents, and that it runs where there is no compiler, no source tree and no test tool."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TRAIN = """
import torch, warpwright
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4))
report = warpwright.nn.replace_modules(model)
assert len(report.replaced) == 3, report
data, target = torch.randn(64, 20), torch.randint(0, 4, (64,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for _ in range(20):
    loss = warpwright.ops.cross_entropy(model(data), target)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.8 * losses[0], losses
assert "/site-packages/warpwright/" in warpwright.__file__, warpwright.__file__
assert not warpwright.fallbacks(), warpwright.fallbacks()
print("trained")
"""


# The first of them that needs the wheel waits for a build of everything: ten minutes on two busy cores.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree; WARPWRIGHT_TEST_WHEEL names one that is already built."""
    named = os.environ.get("WARPWRIGHT_TEST_WHEEL")
    if named:
        return Path(named)
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # That of all workers: the first one builds, in a build folder that has room for one.
    out = shared / "wheel"
    with open(shared / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(out.glob("*.whl")):
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "."]
            subprocess.run([*command, "--wheel-dir", str(out)], cwd=ROOT, check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it. torch and what else it needs are lent by this one, which is searched
    after the new environment's own packages and whose editable install is out of sight there."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    torch_home = Path(importlib.util.find_spec("torch").origin).parents[1]
    lent = dict.fromkeys([str(torch_home), sysconfig.get_path("purelib")])
    Path(packages, "lent.pth").write_text("\n".join(lent) + "\n")
    return python


def _run_clean(python: Path, *arguments: str) -> str:
    """Runs with an empty PATH: no compiler, no nvcc, no git."""
    environment = {"PATH": "/nowhere", "HOME": "/tmp", "TRITON_INTERPRET": "1"}
    done = subprocess.run([python, *arguments], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_is_for_every_python(wheel):
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/WHEEL")]
        assert "Root-Is-Purelib: false" in archive.read(metadata).decode()


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    roots = {n.split("/")[0] for n in names}
    assert [r for r in roots if not r.endswith(".dist-info")] == ["warpwright"]
    needed = ["lib/libwarpwright.so", "lib/build_info.json", "py.typed", "triton_kernels/norm.py", "bench/__init__.py"]
    needed += ["bench/suites/quick.yaml", "bench/report/page.html.j2", "bench/report/style.css", "demo/report.html.j2"]
    assert {f"warpwright/{n}" for n in needed} <= set(names)
    assert not [n for n in names if n.endswith((".cpp", ".cu", ".o"))]
    shipped = {Path(n).name for n in names if n.endswith(".so")}
    assert shipped <= {"libwarpwright.so", "libwarpwright_cuda.so"}


def test_clean_environment_checks(clean_python):
    report = json.loads(_run_clean(clean_python, "-m", "warpwright.cli", "check", "--json", "--backend", "native"))
    assert not report["failures"], report["failures"]


def test_clean_environment_trains(clean_python):
    assert _run_clean(clean_python, "-c", TRAIN).strip().endswith("trained")


def test_clean_environment_measures(clean_python, tmp_path):
    run = ("bench", "run", "--suite", "host", "--op", "swiglu", "--providers", "torch,warpwright", "--seconds", "0.001")
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    report = json.loads(_run_clean(clean_python, "-m", "warpwright.cli", *run, "--out", str(rows), "--json"))
    assert [row["status"] for row in report["rows"]] == ["timed", "timed"]
    assert report["rows"][1]["sources"] is None  # They are not in a wheel.
    _run_clean(clean_python, "-m", "warpwright.cli", "bench", "report", str(rows), "--out", str(page))
    assert "swiglu" in page.read_text()


def test_import_without_a_gpu_says_why(clean_python):
    info = json.loads(_run_clean(clean_python, "-m", "warpwright.cli", "info", "--json"))
    assert info["version"]


# ---- the build's own errors ----


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("warpwright_build", ROOT / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("WARPWRIGHT_CUDA", "WARPWRIGHT_CUDA_ARCHS", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_cuda_wanted_without_nvcc_says_what_to_install(build, monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_CUDA", "1")
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    with pytest.raises(SystemExit, match=r"no nvcc was found\. Install the CUDA toolkit"):
        build.wants_cuda()


def test_no_nvcc_builds_for_the_cpu_and_says_so(build, monkeypatch):
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert build.wants_cuda() == (False, "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")


def test_cuda_can_be_switched_off(build, monkeypatch):
    monkeypatch.setenv("WARPWRIGHT_CUDA", "0")
    assert build.wants_cuda() == (False, "WARPWRIGHT_CUDA=0")
    monkeypatch.setenv("WARPWRIGHT_CUDA", "yes")
    with pytest.raises(SystemExit, match=r"WARPWRIGHT_CUDA must be 0 or 1, got 'yes'"):
        build.wants_cuda()


def test_architectures(build):
    assert build.gencode_flags("80;90a;90+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert build.gencode_flags("8.6 10.0") == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_100,code=sm_100",
    ]
    for bad in ("hopper", "", "90b"):
        with pytest.raises(SystemExit, match="WARPWRIGHT_CUDA_ARCHS"):
            build.gencode_flags(bad)
