"""`make sanitize` would see it: what the sanitizers say of code that is wrong in one way, on tensors' own memory."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import sanitize

HERE = Path(__file__).resolve().parent
BUILD = emulated.build_script()
COUNT = 56  # Floats of the tensor that a case gets: 7 rows of 8, and the bytes of no power of two.

pytestmark = pytest.mark.skipif(shutil.which(BUILD.cxx()) is None, reason="no C++ compiler")
needs_headers = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

#: Runs each case in a fork, on a tensor; prints {case: [exit code, what was said]}.
CHILD = """
import ctypes, json, sys
import torch
from forked import report_of
library, function, count, names = ctypes.CDLL(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
call = library[function]
call.restype = ctypes.c_char_p if function == "kernel_case" else ctypes.c_bool
call.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
def run(name):
    if name.startswith("freed "):
        data = torch.zeros(count).data_ptr()  # The tensor is gone when the kernel runs.
    else:
        tensor = torch.zeros(count)
        data = tensor.data_ptr()
    said = call(name.removeprefix("freed ").encode(), data, count)
    print(said.decode() if isinstance(said, bytes) else said, flush=True)
print(json.dumps({name: report_of(lambda: run(name)) for name in names}))
"""


def _reports(library: Path, function: str, names: list[str]) -> dict[str, tuple[int, str]]:
    command = [sys.executable, "-c", CHILD, str(library), function, str(COUNT), *names]
    variables = sanitize.environment() | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: (code, text) for name, (code, text) in json.loads(done.stdout).items()}


def _compile(source: Path, out: Path, *flags: str) -> Path:
    command = " ".join([BUILD.cxx(), *BUILD.CXX_FLAGS, f"-I{BUILD.CSRC}", *flags, "-c", str(source), "-o", str(out)])
    subprocess.run(shlex.split(command), check=True)
    return out


def _link(objects: list[Path], out: Path) -> Path:
    command = [BUILD.cxx(), "-shared", *BUILD.ADDRESS_FLAGS, *map(str, objects), "-o", str(out)]
    subprocess.run(command, check=True)
    return out


#: Compilers differ in the words.
AFTER, BEFORE = "0 bytes (to the right of|after) 224-byte region", "4 bytes (to the left of|before) 224-byte region"
HOST = {
    "read past the end": f"heap-buffer-overflow .*READ of size 4 .* {AFTER}",
    "read before the start": f"heap-buffer-overflow .*READ of size 4 .* {BEFORE}",
    "write past the end": f"heap-buffer-overflow .*WRITE of size 4 .* {AFTER}",
    "vector over the end": f"READ of size 32 .* {AFTER}",
    "use after free": "heap-use-after-free .*READ of size 4 .* inside of 224-byte region .*freed by thread",
    "signed overflow": r"sanitizer_cases\.cpp:\d+:\d+: runtime error: signed integer overflow: ",
    "shift": r"sanitizer_cases\.cpp:\d+:\d+: runtime error: shift exponent 76 is too large",
    "misaligned": r"sanitizer_cases\.cpp:\d+:\d+: runtime error: load of misaligned address",
}


@pytest.fixture(scope="module")
def host_reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitizers")
    made = _compile(HERE / "sanitizer_cases.cpp", folder / "cases.o", *BUILD.ADDRESS_FLAGS)
    return _reports(_link([made], folder / "cases.so"), "sanitizer_case", ["right", *HOST])


@pytest.mark.parametrize("name", HOST)
def test_a_report_ends_the_process_and_names_the_line(host_reports, name):
    code, text = host_reports[name]
    assert code not in (0, 3)
    assert re.search(HOST[name], text, re.DOTALL), text
    assert "sanitizer_cases.cpp:" in text


def test_right_host_code_is_not_reported(host_reports):
    assert host_reports["right"] == (0, "True\n")


#: What the emulator says, after the kernel, the block, the thread and the line.
KERNELS = {
    "read": "read of 4 bytes, to 4 bytes past the end of an allocation of 224 bytes",
    "write": "write of 4 bytes, to 4 bytes past the end of an allocation of 224 bytes",
    "read_before": r"read of 4 bytes, \d+ bytes before an allocation of 224 bytes",
    "pack": "read of 16 bytes, to 16 bytes past the end of an allocation of 224 bytes",
    "atomic": "write of 4 bytes, to 4 bytes past the end of an allocation of 224 bytes",
    "copy": "read of 16 bytes, to 16 bytes past the end of an allocation of 224 bytes",
    "load_box": "TMA: read of 16 bytes, to 16 bytes past the end of an allocation of 224 bytes",
    "store_box": "TMA: write of 16 bytes, to 16 bytes past the end of an allocation of 224 bytes",
    "add_box": "TMA: write of 16 bytes, to 16 bytes past the end of an allocation of 224 bytes",
    "freed right": "read of 4 bytes inside an allocation of 224 bytes that was freed",
}


@pytest.fixture(scope="module")
def kernel_reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitized_kernels")
    flags = [*BUILD.EMULATED_FLAGS, f"-isystem {BUILD.cuda_headers()}"]
    kernels = _compile(
        *(HERE / "sanitizer_kernels.cpp", folder / "kernels.o"),
        *(*flags, *BUILD.INSTRUMENT_FLAGS, *BUILD.KERNEL_UNDEFINED_FLAGS),
    )
    library = _link([*emulated.objects(), kernels], folder / "kernels.so")
    return _reports(library, "kernel_case", ["right", "overflow", *KERNELS])


@needs_headers
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_outside_its_tensor_stops_with_kernel_block_thread_and_line(kernel_reports, name):
    code, text = kernel_reports[name]
    assert code == 0  # No report but an error of the launch.
    kernel = name.removeprefix("freed ")
    lines = (HERE / "sanitizer_kernels.cpp").read_text().splitlines()
    (line,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"// line: {kernel}")]
    place = rf"warpwright emulator: kernel {kernel}, block \(0, 0, 0\), thread \(\d+, 0, 0\): sanitizer_kernels\.cpp:"
    assert re.fullmatch(rf"{place}{line}: {KERNELS[name]}\n", text), text


@needs_headers
def test_a_right_kernel_is_not_stopped(kernel_reports):
    assert kernel_reports["right"] == (0, "\n")


@needs_headers
def test_undefined_arithmetic_of_a_kernel_is_reported(kernel_reports):
    code, text = kernel_reports["overflow"]
    assert code not in (0, 3)
    assert re.search(r"sanitizer_kernels\.cpp:\d+:\d+: runtime error: signed integer overflow", text), text
