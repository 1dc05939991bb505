"""info, explain, deterministic: they say what is so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import emulated
import pytest
import torch

import warpwright
from warpwright import _library, _peaks
from warpwright._info import backend_states

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

# ---- info ----


def test_info_is_complete_and_plain():
    found = warpwright.info()
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["version"] == warpwright.__version__
    assert plain["torch"] == torch.__version__
    assert plain["threads"] == torch.get_num_threads()
    assert plain["cpu_isa"] in ("baseline", "avx2", "avx512")
    assert plain["libraries"]["libwarpwright.so"] is None
    assert plain["libraries"]["libwarpwright_cuda.so"] == _library.CUDA_MISSING
    assert plain["backends"]["native-cpu"] is None
    assert len(plain["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for value in (found.version, found.torch, found.cpu, found.cpu_isa):
        assert value in str(found)


def test_info_names_the_folder_of_another_build(tmp_path):
    """WARPWRIGHT_LIBRARY_DIR loads it, and `warpwright info` says so."""
    assert "folder" not in warpwright.info().build
    shutil.copy(_library.CPU_LIBRARY, tmp_path)
    code = "import warpwright; print(warpwright.info().build['folder'], torch.ops.warpwright.rms_norm)"
    run = subprocess.run(
        [sys.executable, "-c", f"import torch; {code}"],
        env=os.environ | {"WARPWRIGHT_LIBRARY_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == f"{tmp_path.resolve()} warpwright.rms_norm\n", run.stderr


def test_info_without_the_libraries_of_another_build_says_what_is_missing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", "import warpwright"],
        env=os.environ | {"WARPWRIGHT_LIBRARY_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "warpwright: libwarpwright.so is not built" in run.stderr


def test_info_follows_use_backend():
    with warpwright.use_backend("reference"):
        assert warpwright.info().current_backend == "reference"


def test_every_available_backend_runs_and_the_others_say_why():
    for state in backend_states():
        if state.missing is not None:
            assert len(state.missing) > 10
            continue
        with warpwright.use_backend(state.backend):
            warpwright.ops.rms_norm(torch.ones(2, 3, device=state.device), (3,))


@needs_no_gpu
def test_info_without_triton_interpreted_and_with_a_damaged_build_info(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "LIBRARY_DIR", tmp_path)
    (tmp_path / "build_info.json").write_text("[1, 2")
    monkeypatch.delenv("TRITON_INTERPRET")
    found = warpwright.info()
    assert "cannot be read" in found.build["cuda_reason"]
    assert found.triton_interpreted is False
    assert "TRITON_INTERPRET=1" in found.backends["triton-interpreted"]
    assert found.backends["triton-cuda"] == "torch sees no CUDA GPU"


def test_info_without_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = warpwright.info()
    assert found.triton is None
    assert "triton is not installed" in found.backends["triton-interpreted"]
    assert "not installed" in str(found)


def test_import_stays_light():
    """Nothing of the tests, the command line, Triton or torch's compiler is imported with warpwright."""
    code = (
        "import torch, sys; before = set(sys.modules); import warpwright; new = set(sys.modules) - before;"
        "heavy = ('triton', 'typer', 'rich', 'yaml', 'matplotlib', 'torch._dynamo', 'torch._inductor',"
        " 'warpwright.testing', 'warpwright.cli');"
        "print([m for m in new if m.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- explain ----


def test_explain_names_kernel_backend_tensors_and_work(matrix):
    x = torch.zeros(4, 6, 8, dtype=torch.bfloat16, device=matrix)
    w = torch.zeros(8, dtype=torch.bfloat16, device=matrix)
    found = warpwright.explain(warpwright.ops.rms_norm, x, (8,), w, residual=x.transpose(0, 1).mT.mT.transpose(0, 1))
    assert found.op == "rms_norm"
    assert found.backend == warpwright.current_backend()
    assert found.backend_reason == f"chosen by use_backend('{found.backend}')"
    words = {"reference": "plain PyTorch", "triton": "Triton", "native": "C++", "emulated": "emulated"}
    assert words[found.backend] in found.kernel
    assert [facts.name for facts in found.inputs] == ["input", "weight", "residual"]
    assert [facts.name for facts in found.outputs] == ["output[0]", "output[1]"]
    assert found.inputs[0].shape == found.outputs[0].shape == (4, 6, 8)
    assert found.inputs[0].dtype == "torch.bfloat16"
    assert found.flops == 5 * x.numel()
    assert found.bytes == 4 * x.nbytes + w.nbytes
    if matrix == "cpu":
        assert found.roofline is None
        assert found.roofline_reason == "no datasheet peaks for a cpu device"
    assert json.loads(json.dumps(found.as_dict()))["op"] == "rms_norm"
    assert found.kernel in str(found)


def test_explain_by_name_gives_the_reason_of_auto():
    found = warpwright.explain("rms_norm", torch.zeros(2, 3), (3,))
    assert (found.backend, found.backend_reason) == (
        "native",
        "use_backend is auto and there are C++ kernels for cpu tensors",
    )
    assert found.kernel == f"rms_norm (C++ CPU, {_library.cpu_isa()})"


def test_explain_runs_no_kernel():
    found = warpwright.explain("rms_norm", torch.zeros(8).expand(2**40, 8), (8,))  # 32 TiB of output.
    assert found.outputs[0].shape == (2**40, 8)


def test_explain_tells_of_copies_and_autocast():
    x = torch.zeros(4, 6, 8)

    def copied(tensor, shape, backend="native"):
        with warpwright.use_backend(backend):
            return warpwright.explain("rms_norm", tensor, shape).inputs[0].copied

    assert copied(x, (8,)) is False
    assert copied(x[:, ::2], (8,)) is False
    assert copied(x.transpose(1, 2), (6,)) is False
    assert copied(x.transpose(1, 2), (8, 6)) is True
    assert copied(x.transpose(0, 1), (8,), "triton") is True
    assert copied(x.transpose(0, 1), (8,)) is False
    assert copied(x, (8,), "reference") is None
    with torch.autocast("cpu", torch.bfloat16):
        found = warpwright.explain("rms_norm", x, (8,))
    assert found.autocast == found.outputs[0].dtype == "torch.bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("rows", "inner", "layout"),
    [
        (8, 8, ""),
        (192, 192, ""),
        (192, 192, "bias"),
        (192, 192, "gaps"),
        (192, 192, "input.t"),
        (192, 192, "weight.t"),
        (192, 800, ""),
    ],
)
def test_explain_knows_what_linear_runs_on_the_cpu(dtype, rows, inner, layout):
    x, w = torch.zeros(rows, inner, dtype=dtype), torch.zeros(rows, inner, dtype=dtype)
    if layout == "gaps":
        w = torch.zeros(rows, 2 * inner, dtype=dtype)[:, :inner]
    x = x.t() if layout == "input.t" else x
    w = w.t() if layout == "weight.t" else w
    bias = torch.zeros(rows, dtype=dtype) if layout == "bias" else None
    with torch.profiler.profile() as profile:
        warpwright.ops.linear(x, w, bias)
    # Both are called below the profiler; aten's product is known by its check for conjugated operands.
    aten = "aten::resolve_conj" in {event.key for event in profile.key_averages()}
    kernel = warpwright.explain("linear", x, w, bias).kernel
    assert ("aten" in kernel, "oneDNN" in kernel) == (aten, not aten)
    assert ("in float32" in kernel) is (dtype == torch.float16)


def test_explain_tells_which_epilogues_are_fused():
    x = torch.zeros(192, 192)

    def kernel(**kwargs):
        return warpwright.explain("linear", x, x, **kwargs).kernel

    fused, separate = "oneDNN with fused post-ops", f"one pass for the epilogue in C++, {_library.cpu_isa()}"
    assert kernel() == "linear (oneDNN)"
    assert fused in kernel(activation="gelu")
    assert fused in kernel(residual=x)
    assert separate in kernel(residual=x, activation="relu")
    x = torch.zeros(192, 192, requires_grad=True)
    assert fused in kernel(activation="relu")
    assert separate in kernel(activation="gelu")  # Its gradient needs the pre-activation.


def test_explain_tells_what_linear_copies():
    x, w = torch.zeros(4, 6, 8), torch.zeros(5, 8)

    def copied(backend, *args):
        with warpwright.use_backend(backend):
            return [facts.copied for facts in warpwright.explain("linear", *args).inputs]

    assert copied("native", x, w) == copied("triton", x, w) == [False, False]
    assert copied("native", x.transpose(0, 1), w) == [True, False]
    assert copied("native", x[:, ::2], w, torch.zeros(10)[::2]) == [None, False, None]
    assert copied("triton", x[:, ::2], w, torch.zeros(10)[::2]) == [False, False, True]
    assert copied("native", x[0], w.T.contiguous().T) == [False, None]
    assert copied("triton", x[0], w.T.contiguous().T) == [False, False]
    assert copied("native", x.half(), w.half()) == [True, True]


def test_explain_raises_what_the_call_would():
    with pytest.raises(RuntimeError, match=r"warpwright: rms_norm: normalized_shape \(7,\)"):
        warpwright.explain("rms_norm", torch.zeros(2, 3), (7,))
    for fn in ("nonsense", torch.relu, print):
        with pytest.raises(RuntimeError, match=r"warpwright: explain: fn must be one of warpwright\.ops"):
            warpwright.explain(fn, torch.zeros(2))


def test_roofline_takes_the_larger_of_compute_and_memory(monkeypatch):
    from warpwright._explain import _roofline

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    device = torch.device("cuda")
    peaks = _peaks.PEAKS["H200"]
    time, reason = _roofline(10**15, 10, torch.bfloat16, device, True)
    assert time == 10**15 / peaks.half
    assert reason == "compute-bound, by the NVIDIA H200 Tensor Core GPU datasheet"
    time, reason = _roofline(10, 10**12, torch.bfloat16, device, True)
    assert time == 10**12 / peaks.memory
    assert reason.startswith("memory-bound")
    assert _roofline(10**15, 10, torch.float32, device, True)[0] == 10**15 / peaks.fp32
    for dtype in (torch.int8, torch.float8_e4m3fn):
        assert _roofline(10**15, 10, dtype, device, True)[0] == 10**15 / (2 * peaks.half)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 MIG 1g.18gb")
    assert _roofline(1, 1, torch.float32, device, True) == (
        None,
        "no datasheet peaks are known for 'H200 MIG 1g.18gb'",
    )


# ---- deterministic ----


def test_deterministic_tells_and_sets_and_restores():
    assert not torch.are_deterministic_algorithms_enabled()
    found = warpwright.deterministic()
    assert found.ops is True
    assert bool(found) is found.fallbacks is False
    assert str(found).startswith("not deterministic: warpwright's operators always repeat bitwise")
    with warpwright.deterministic(True) as inside:
        assert inside
        assert torch.are_deterministic_algorithms_enabled()
        assert warpwright.deterministic()
        with warpwright.deterministic(False) as off:
            assert not off
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_is_not_fooled_by_warn_only():
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert not warpwright.deterministic()
        assert "warn_only" in warpwright.deterministic().reason
    finally:
        torch.use_deterministic_algorithms(False)


def _convolution(channels, filters, kernel=3, groups=1, dtype=torch.bfloat16, last=True, transposed=False):
    """An operation and its arguments."""
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.ones(1, channels, 8, 70, dtype=dtype).contiguous(memory_format=layout)
    shape = (channels, filters // groups) if transposed else (filters, channels // groups)
    w = torch.ones(*shape, *((kernel, kernel) if isinstance(kernel, int) else kernel), dtype=dtype)
    args = (x, w.contiguous(memory_format=layout), None, 1, 0)
    return (warpwright.ops.conv_transpose2d, (*args, 0, groups)) if transposed else (
        warpwright.ops.conv2d, (*args, 1, groups))  # fmt: skip


@pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))
@pytest.mark.parametrize(
    ("call", "words", "kernel"),
    [
        (_convolution(16, 24), "products on the tensor cores, 8 channels at a time", "conv_fprop_mma"),
        (_convolution(16, 24, last=False), "products on the tensor cores, one channel at a time", "conv_fprop_mma"),
        (_convolution(12, 24), "products on the tensor cores, one channel at a time", "conv_fprop_mma"),
        (_convolution(16, 24, transposed=True), "products on the tensor cores, 8 channels", "conv_dgrad_mma"),
        (_convolution(16, 16, groups=16), "depthwise strips", "conv_depthwise_fprop"),
        (_convolution(16, 16, groups=16, transposed=True), "depthwise strips", "conv_depthwise_dgrad"),
        (_convolution(4, 4, (1, 65), groups=4), "depthwise strips", "conv_depthwise_fprop"),
        (_convolution(8, 16, groups=8), "products without tensor cores", "conv_fprop"),
        (_convolution(16, 24, dtype=torch.float32), "products without tensor cores", "conv_fprop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_explain_knows_a_gpus_convolution(call, words, kernel):
    """The launch says which kernel it was."""
    emulated.activate()
    function, args = call
    with warpwright.use_backend("emulated"), torch.no_grad():
        found = warpwright.explain(function, *args).kernel
        before = emulated.launches(kernel)
        function(*args)
    assert words in found
    assert emulated.launches(kernel) == before + 1


def test_explain_follows_the_precision_of_float32():
    emulated.activate()
    function, args = _convolution(16, 24, dtype=torch.float32)
    with warpwright.use_backend("emulated"), warpwright.float32_precision("tf32x3"):
        found = warpwright.explain(function, *args).kernel
    assert "tensor cores as tf32x3, 4 channels at a time" in found
