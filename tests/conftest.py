"""The matrix: every test of an op runs on each backend that this machine can run.

cpu, triton (interpreted) and the emulated CUDA kernels need no GPU; cuda and triton on CUDA run where there is one.
"""

from __future__ import annotations

import gc
import os
import tempfile

# Before torch is imported: several processes of tests share the cores, and threads that spin while they wait take them
# from those that work (five times as long where four processes had two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# Before Triton is imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What a developer has tuned here is none of the tests' business.
os.environ["WARPWRIGHT_TUNING_DIR"] = tempfile.mkdtemp(prefix="warpwright-tuning-")

import conformance_library
import emulated
import interpreter_speed
import pytest

import warpwright
from warpwright._backend import triton_missing

if triton_missing() is None and not torch.cuda.is_available():
    interpreter_speed.speed_up()


def backends() -> list[tuple[str, str]]:
    """(backend, device) pairs to test."""
    found = [("native", "cpu"), ("reference", "cpu")]
    if torch.cuda.is_available():
        found.append(("native", "cuda"))
    if triton_missing() is None:
        found.append(("triton", "cuda" if torch.cuda.is_available() else "cpu"))
    # Where there is a GPU the same kernels run on it; here they need the toolkit's headers, not its compiler.
    if emulated.missing() is None:
        found.append(("emulated", "cpu"))
    return found


def pytest_collection_finish() -> None:
    """What has been imported is millions of objects, which the garbage collector would walk all the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def _no_fallbacks_left_over() -> None:
    """Layers that ran torch's forward in the tests before are not counted in this one."""
    warpwright.fallbacks().clear()


@pytest.fixture
def own_providers(monkeypatch):
    """Benchmark kernels that a test registers are forgotten after it."""
    from warpwright.bench import PROVIDERS, providers

    monkeypatch.setattr(providers, "_FUNCTIONS", {})
    before = dict(PROVIDERS)
    yield
    PROVIDERS.clear()
    PROVIDERS.update(before)


def pytest_report_header() -> str:
    absent = [f"triton: {reason}"] if (reason := triton_missing()) else []
    absent += [f"emulated: {reason}"] if (reason := emulated.missing()) else []
    names = ", ".join(f"{backend}-{device}" for backend, device in backends())
    return f"warpwright backends: {names}" + "".join(f"; without {reason}" for reason in absent)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "matrix" in metafunc.fixturenames:
        pairs = backends()
        names = [f"{backend}-{device}" for backend, device in pairs]
        metafunc.parametrize("matrix", pairs, ids=names, indirect=True)


@pytest.fixture
def matrix(request: pytest.FixtureRequest):
    """Switches to one backend of the matrix for one test; its value is the device."""
    backend, device = request.param
    if backend == "emulated":
        emulated.activate()
    with warpwright.use_backend(backend):
        yield device


@pytest.fixture(scope="session", params=conformance_library.TARGETS)
def conformance(request: pytest.FixtureRequest) -> conformance_library.Library:
    """The library of tests/conformance, on each target that this machine has."""
    return conformance_library.library(request.param)


@pytest.fixture(scope="session")
def hopper(conformance: conformance_library.Library) -> conformance_library.Library:
    """The same, where it has the instructions of sm_90 and sm_90a."""
    if not conformance.hopper:
        pytest.skip("the instruction needs a GPU of compute capability 9.0")
    return conformance


@pytest.fixture(params=range(3))
def emulator_seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A seed for a test's data, and the emulator's."""
    monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(request.param))
    return request.param
