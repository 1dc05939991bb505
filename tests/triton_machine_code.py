"""Triton's kernels compiled without a GPU, as they are launched on one, and what the machine code holds.

    python tests/triton_machine_code.py record     the launches, as JSON
    python tests/triton_machine_code.py compile    the machine code of what is on stdin: [[launch, [80, 90]], ...]

The tests run Triton's interpreter, which replaces the kernels for a whole process, so both run in their own processes.

Which launches: every sample of every op and the benchmark suite for GPUs are called with a launch that only notes its
arguments. Of what is noted, a kernel's launches are chosen one after the other, that which adds most first, until every
combination of dtypes and every value of every constant (tile, flag, activation, number of warps, a stride that is 1) is
among them; of two that add as much, the one with more arguments that are multiples of 16 comes first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import machine_code
from machine_code import ROOT, Kernel

FOLDER = ROOT / "triton_kernels"
#: Compute capabilities: Ampere, Hopper, Blackwell.
CAPABILITIES = (80, 90, 100)
HOPPER = (90,)
WARP = 32

Launch = dict[str, Any]


def missing() -> str | None:
    """Why Triton's kernels cannot be compiled and read here, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return machine_code.tools_missing()


def kernel_names() -> list[str]:
    """Every kernel of triton_kernels, as module:function: what is compiled just in time and launched with a grid."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        source = path.read_text()
        jitted = re.findall(r"@triton\.jit\ndef (\w+)\(", source)
        found += [f"{path.stem}:{name}" for name in jitted if re.search(rf"\b{name}\[", source)]
    return found


# ---- in a process of its own: noting launches, compiling them ----


def record() -> list[Launch]:
    """Every distinct launch, and nothing runs: the outputs of the ops stay what memory held."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    import warpwright
    from warpwright import _backend
    from warpwright.bench import Draw, load_suite
    from warpwright.testing import SPECS, Make, Sample, evaluate

    backend = make_backend(GPUTarget("cuda", CAPABILITIES[0], WARP))
    seen: dict[str, Launch] = {}

    @functools.cache
    def binder(function: JITFunction) -> Any:
        return create_function_from_signature(function.signature, function.params, backend)

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound, specialization, _ = binder(self)(*args, **kwargs)
        options, signature, constants, attrs = self._pack_args(backend, kwargs, bound, specialization, None)
        launch = {
            "kernel": f"{self.__module__.rpartition('.')[2]}:{self.__name__}",
            "signature": signature,
            "constants": [[path, _encoded(value)] for path, value in constants.items()],
            "attrs": [[path, value] for path, value in attrs.items()],
            "options": {"num_warps": options.num_warps, "num_stages": options.num_stages},
        }
        seen.setdefault(json.dumps(launch), launch)

    class Unset(Draw):
        """Tensors of any values: those of a benchmark's size would take long to draw."""

        def tensor(self, *shape: int, grad: bool = True, dtype: torch.dtype | None = None, **_: float) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype or self.dtype).requires_grad_(grad)

    def calls() -> Iterable[tuple[Any, Sample]]:
        for spec in SPECS.values():
            for dtype in spec.dtypes:
                yield from ((spec.op, sample) for sample in spec.samples(Make(dtype)))
        for case in load_suite("quick", "cuda"):
            # A whole model's parameters are no other launches than those of the samples.
            for dtype in () if case.operator.written else SPECS[case.op].dtypes:
                yield SPECS[case.op].op, case.operator.sample(Unset(dtype), **case.parameters)

    JITFunction.run = note
    _backend.triton_missing = lambda: None
    _backend.triton_interpreted = lambda: True  # CPU tensors pass; the kernels' own question is asked of Triton.
    with warpwright.use_backend("triton"):
        for op, sample in calls():
            evaluate(op, sample)
    return list(seen.values())


def _encoded(value: Any) -> Any:
    return {"dtype": str(value)} if type(value).__name__ == "dtype" else value


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    import triton.language as tl

    return tl.dtype(value["dtype"])


def _tuples(kind: Any) -> Any:
    """An argument's type; JSON has lists for the tuples of one that is a tuple."""
    return tuple(map(_tuples, kind)) if isinstance(kind, list) else kind


def compiled(launch: Launch, capabilities: Iterable[int]) -> list[dict[str, Any]]:
    """The machine code of one launch, read, for each architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = launch["kernel"].partition(":")
    function = getattr(importlib.import_module(f"warpwright.triton_kernels.{module}"), name)
    constants = {tuple(path): _decoded(value) for path, value in launch["constants"]}
    attrs = {tuple(path): [tuple(attr) for attr in value] for path, value in launch["attrs"]}
    signature = {key: _tuples(kind) for key, kind in launch["signature"].items()}
    found = []
    for capability in capabilities:
        if "CAPABILITY" in function.arg_names:  # Of the GPU that the launch is meant for.
            constants[(function.arg_names.index("CAPABILITY"),)] = capability
        source = ASTSource(function, signature, constants, attrs)
        made = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=launch["options"])
        (kernel,) = machine_code.read_cubin(made.asm["cubin"], f"sm_{capability}")
        found.append({**kernel.__dict__, "shared": kernel.shared + made.metadata.shared})
    return found


# ---- in the tests ----


def chosen(launches: list[Launch]) -> list[Launch]:
    """As the docstring of this file says; launches of one kernel."""

    def covers(launch: Launch) -> set[str]:
        return {dtypes(launch), *(f"{path}={value}" for path, value in launch["constants"]), str(launch["options"])}

    def aligned(launch: Launch) -> int:
        return sum(bool(value) for _, value in launch["attrs"])

    left = set().union(*map(covers, launches))
    found = []
    while left:
        best = max(launches, key=lambda launch: (len(covers(launch) & left), aligned(launch)))
        left -= covers(best)
        found.append(best)
    return found


def dtypes(launch: Launch) -> str:
    """Those of the pointers, each once, in the order of the arguments."""
    kinds = (kind for kind in launch["signature"].values() if isinstance(kind, str))  # A tuple's is a list.
    return " ".join(dict.fromkeys(kind[1:] for kind in kinds if kind.startswith("*")))


def _key(function: Callable[..., Any], *more: str) -> str:
    import triton

    parts = [path.read_bytes() for path in sorted(FOLDER.glob("*.py"))]
    parts += [inspect.getsource(function).encode(), machine_code.READER, triton.__version__.encode()]
    return machine_code.digest(*parts, *map(str.encode, more))


def _run(*arguments: str, given: str = "") -> Any:
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    clean |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_CACHE_DIR": str(machine_code.CACHE / "triton")}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], input=given, capture_output=True, text=True, env=clean
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def launches() -> dict[str, list[Launch]]:
    """The chosen launches of each kernel that is launched."""
    folders = [ROOT / "python" / "warpwright" / name for name in ("ops", "testing")] + [ROOT / "bench"]
    sources = "".join(path.read_text() for folder in folders for path in sorted(folder.rglob("*.py")))
    found: dict[str, list[Launch]] = {}
    for launch in machine_code.cached("launches-" + _key(record, sources), lambda: _run("record")):
        found.setdefault(launch["kernel"], []).append(launch)
    return {name: chosen(same) for name, same in sorted(found.items())}


Made = list[tuple[Launch, list[Kernel]]]


@functools.cache
def _compiled_file(module: str, everywhere: bool) -> dict[str, Made]:
    """compile_all() of each kernel of a file, by one process: it takes seconds to start."""
    mine = {name: same for name, same in launches().items() if name.partition(":")[0] == module}
    wanted = [
        (launch, CAPABILITIES if everywhere or i == 0 else HOPPER)
        for same in mine.values()
        for i, launch in enumerate(same)
    ]
    given = json.dumps(wanted)
    kinds = iter(machine_code.cached("triton-" + _key(compiled, given), lambda: _run("compile", given=given)))
    return {
        name: [(launch, [Kernel(**fields) for fields in next(kinds)]) for launch in same] for name, same in mine.items()
    }


def compile_all(name: str, everywhere: bool) -> Made:
    """Each chosen launch of a kernel with its machine code for each architecture; if not `everywhere`, the first one,
    and the others for Hopper."""
    return _compiled_file(name.partition(":")[0], everywhere)[name]


# ---- the table ----


def made_with() -> str | None:
    """What the numbers depend on beside the sources, or None where nothing can be compiled."""
    if missing() is not None:
        return None
    import triton

    return f"Triton {triton.__version__}"


def label(launch: Launch, others: list[Launch]) -> str:
    """What tells a launch from the kernel's others: dtypes, constants that vary, warps."""
    names = list(launch["signature"])

    def constants(of: Launch) -> dict[str, Any]:
        # Capitals are the kernel's own constants; the rest are arguments that were 1.
        return {names[path[0]]: value for path, value in of["constants"] if names[path[0]].isupper()}

    mine = constants(launch)
    varying = [name for name in mine if len({str(constants(other).get(name)) for other in others}) > 1]
    parts = [dtypes(launch), *(f"{name}={mine[name]}" for name in varying), f"{launch['options']['num_warps']} warps"]
    return ", ".join(parts)


def table(everywhere: bool = True) -> str:
    """The Triton kernels, a line for each launch with a number for each architecture, or for Hopper alone."""
    capabilities = CAPABILITIES if everywhere else HOPPER
    wanted = [f"sm_{capability}" for capability in capabilities]
    archs = " / ".join(wanted)
    lines = [f"Made with {made_with()} for {archs}, in this order where the numbers differ."]
    for name, same in launches().items():
        lines += ["", f"### {name.replace(':', '.')}", "", *machine_code.head("launch")]
        lines += [
            machine_code.row(label(launch, same), [k for k in kernels if k.arch in wanted], lambda k: k.shared)
            for launch, kernels in compile_all(name, everywhere)
        ]
    return "\n".join(lines)


def of_hopper(table: str) -> str:
    """The table of all architectures as it is for HOPPER alone."""
    place, number = CAPABILITIES.index(*HOPPER), len(CAPABILITIES)

    def reduced(line: str) -> str:
        if not line.startswith("|"):
            return line.replace(" / ".join(f"sm_{c}" for c in CAPABILITIES), f"sm_{CAPABILITIES[place]}")
        cells = (cell.split(" / ") for cell in line.removesuffix(" |").split(" | "))
        return " | ".join(cell[place] if len(cell) == number else " / ".join(cell) for cell in cells) + " |"

    return "\n".join(map(reduced, table.split("\n")))


def main() -> None:
    result = record() if sys.argv[1] == "record" else [compiled(*each) for each in json.load(sys.stdin)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
