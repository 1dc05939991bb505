"""What the compilers made of the kernels: registers, stack, shared memory and instructions, read from the machine code.

The tools are the CUDA toolkit's cuobjdump and nvdisasm, else those in Triton's package. What was read is kept under
build/machine_code by the hash of the code, so that only what has changed is disassembled again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import emulated

from warpwright import _library

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "machine_code"
INSTRUCTION_BYTES = 16

#: What the tables name: tensor cores, asynchronous and matrix copies, and 16-byte accesses to global memory.
NOTABLE = ("HMMA", "HGMMA", "QGMMA", "IMMA", "IGMMA", "DMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA")
NOTABLE += ("LDGSTS", "LDSM", "STSM", "UTMALDG", "UTMASTG", "UTMAREDG", "LDTM", "LDG.128", "STG.128")

#: Names in a declaration that stand for several instructions, or for the lack of them.
SHORTHANDS = {"16-byte": ("LDG.128", "STG.128"), "plain": ()}
EMPTY = {"MOV", "IMAD", "LDC", "EXIT", "BRA", "NOP"}  # Stack pointer, end, padding.


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel in the code of one architecture.

    Attributes:
        name: without its parameters, e.g. "warpwright::cuda::gemm_kernel<float>".
        arch: e.g. "sm_90a".
        registers: of a thread.
        stack: bytes of a thread's stack frame, which is local memory.
        shared: bytes of static shared memory.
        instructions: how often each opcode stands in the code, with its modifiers: {"LDG.E.128": 2}.
    """

    name: str
    arch: str
    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]

    @property
    def function(self) -> str:
        """The name of the function, or of the template."""
        return self.name.partition("<")[0].rpartition("::")[2]

    @property
    def arguments(self) -> str:
        """The template's arguments: "<float, 4>", or nothing."""
        return "".join(self.name.partition("<")[1:])

    @property
    def code_bytes(self) -> int:
        return INSTRUCTION_BYTES * sum(self.instructions.values())

    def count(self, pattern: str) -> int:
        """How many instructions are `pattern`: an opcode, and modifiers that it must have ("LDG.128")."""
        opcode, *modifiers = pattern.split(".")
        total = 0
        for instruction, number in self.instructions.items():
            found, *rest = instruction.split(".")
            total += number * (found == opcode and set(modifiers) <= set(rest))
        return total

    def local_bytes(self, opcode: str) -> int:
        """Bytes that the code's loads (LDL) or stores (STL) move: spills, and arrays that are indexed at run time."""
        widths = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
        total = 0
        for instruction, number in self.instructions.items():
            found, *rest = instruction.split(".")
            if found == opcode:
                total += number * next((widths[part] for part in rest if part in widths), 4)
        return total

    @property
    def uses_local_memory(self) -> bool:
        return bool(self.stack or self.count("LDL") or self.count("STL"))

    @property
    def notable(self) -> list[str]:
        return [pattern for pattern in NOTABLE if self.count(pattern)]


# ---- tools ----


@functools.cache
def tool(name: str) -> str | None:
    """The path of cuobjdump, nvdisasm, ..."""
    nvcc = emulated.build_script().find_nvcc()
    places = [] if nvcc is None else [emulated.build_script().cuda_toolkit(nvcc) / "bin" / name]
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        places.append(Path(folder) / "backends" / "nvidia" / "bin" / name)
    found = next((str(place) for place in places if place.exists()), None)
    return found or shutil.which(name)


def tools_missing() -> str | None:
    """Why no machine code can be read here, or None when it can."""
    absent = [name for name in ("cuobjdump", "nvdisasm") if tool(name) is None]
    if shutil.which("c++filt") is None:
        absent.append("c++filt")
    return f"no {' and no '.join(absent)}" if absent else None


def missing() -> str | None:
    """Why the CUDA library's machine code cannot be read here, or None when it can."""
    if not _library.CUDA_LIBRARY.exists():
        return f"{_library.CUDA_LIBRARY.name} is not built: no nvcc"
    return tools_missing()


def run(command: list[str], **options: Any) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def cached(key: str, make: Callable[[], Any]) -> Any:
    """make()'s value, from JSON where it is known; test processes wait for each other rather than make it twice."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{key}.json"
    with open(CACHE / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(make()))
            fresh.rename(path)
        return json.loads(path.read_text())


# ---- reading ----


def opcodes(assembly: str) -> dict[str, Counter[str]]:
    """nvdisasm's output as section -> opcode with modifiers -> count."""
    found: dict[str, Counter[str]] = {}
    for line in assembly.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line)
        if section:
            current = found.setdefault(section.group(1), Counter())
            continue
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)", line)
        if instruction:
            current[instruction.group(1)] += 1
    return found


def resources(report: str) -> dict[str, dict[str, int]]:
    """cuobjdump -res-usage as function -> {"REG": 32, "STACK": 0, "SHARED": 0, ...}."""
    found = re.findall(r"Function (\S+?):\s*\n\s*(REG:.*)", report)
    return {name: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)} for name, line in found}


def without_parameters(name: str) -> str:
    """`void a::(anonymous namespace)::f<int>(P)` as the emulator lists it: `a::f<int>`."""
    name = name.replace("(anonymous namespace)::", "")
    return re.sub(r"^void ", "", re.sub(r"\([^()]*\)$", "", name))


def read_cubin(code: bytes, arch: str) -> list[Kernel]:
    """The kernels of one file of machine code."""
    nvdisasm, cuobjdump = tool("nvdisasm"), tool("cuobjdump")
    assert nvdisasm is not None
    assert cuobjdump is not None

    def read() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "code.cubin"
            path.write_bytes(code)
            counted = opcodes(run([nvdisasm, "-ndf", "-c", str(path)]))
            used = resources(run([cuobjdump, "-res-usage", str(path)]))
        assert set(counted) == set(used), "nvdisasm and cuobjdump list the same kernels"
        plain = run(["c++filt"], input="\n".join(counted)).splitlines()
        return [
            {
                "name": without_parameters(name),
                "registers": used[symbol]["REG"],
                "stack": used[symbol]["STACK"] + used[symbol]["LOCAL"],
                "shared": used[symbol]["SHARED"],
                "instructions": dict(counts),
            }
            for (symbol, counts), name in zip(counted.items(), plain, strict=True)
        ]

    key = "cubin-" + digest(code, READER, run([nvdisasm, "--version"]).encode())
    return [Kernel(arch=arch, **fields) for fields in cached(key, read)]


#: What turns code into numbers, for the keys of what is kept.
READER = "".join(map(inspect.getsource, (opcodes, resources, without_parameters, read_cubin))).encode()


@functools.cache
def cubins() -> dict[str, bytes]:
    """The machine code in the CUDA library: "gemm.sm_90a" -> what cuobjdump extracts."""
    cuobjdump = tool("cuobjdump")
    assert cuobjdump is not None
    with tempfile.TemporaryDirectory() as folder:
        run([cuobjdump, "-xelf", "all", str(_library.CUDA_LIBRARY)], cwd=folder)
        return {path.stem: path.read_bytes() for path in sorted(Path(folder).glob("*.cubin"))}


def kernels_of(cubin: str) -> list[Kernel]:
    return read_cubin(cubins()[cubin], cubin.rpartition(".")[2])


def kernels() -> list[Kernel]:
    """Every kernel of the CUDA library, for every architecture whose machine code it holds."""
    return [kernel for name in cubins() for kernel in kernels_of(name)]


# ---- declarations ----


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What the line `// machine code: ...` above a kernel promises."""

    text: str

    def clause(self, kernel: Kernel) -> str:
        """The first clause whose condition the kernel meets, "" where there is none."""
        return next((c for c in self.text.split("; ") if ": " not in c or _holds(c.partition(": ")[0], kernel)), "")

    def broken(self, kernel: Kernel) -> list[str]:
        """Each promise that the kernel's code does not keep, in words."""
        wrong = []
        items = self.clause(kernel).rpartition(": ")[2]
        for item in filter(None, items.split(", ")):
            if item == "empty":
                rest = {name for name in kernel.instructions if name.partition(".")[0] not in EMPTY}
                wrong += [f"not empty: {' '.join(sorted(rest))}"] if rest else []
                continue
            match = re.fullmatch(r"(?:(\d+) x )?([A-Z][\w.]+|16-byte|plain)", item)
            assert match, f"not a machine code declaration: {item!r}"
            times, pattern = match.groups()
            for instruction in SHORTHANDS.get(pattern, (pattern,)):
                found = kernel.count(instruction)
                if found < int(times or 1):
                    wrong.append(f"{found} {instruction}, declared {item}")
        return wrong


def _holds(condition: str, kernel: Kernel) -> bool:
    """`else`, an architecture or every other, or the end of the template's arguments ("kCount = 1" is written `1>`)."""
    if condition == "else":
        return True
    if arch := re.fullmatch(r"(not )?(sm_\d+[af]?)", condition):
        return (arch[2] == kernel.arch) != bool(arch[1])
    assert re.fullmatch(r"[^;]+>", condition), f"not a condition of a machine code declaration: {condition!r}"
    return kernel.arguments.endswith(condition)


GLOBAL = re.compile(r"__global__\s+void\s+(?:__\w+__\([^()]*(?:\([^()]*\)[^()]*)*\)\s+)*(\w+)\(")
LINES = re.compile(r"// machine code: (\S.*(?:\n// .*)*)")


def declarations(source: str) -> dict[str, Declaration | None]:
    """Every kernel of a CUDA file, with the line above it (and above its `template <...>`), or None without one."""
    found: dict[str, Declaration | None] = {}
    for match in GLOBAL.finditer(source):
        above = source[: match.start()].rstrip()
        above = re.sub(r"\n?template <[^\n]*>$", "", above)
        start = above.rfind("// machine code: ")  # It may go on over more lines of comment.
        lines = LINES.fullmatch(above, start) if start >= 0 else None
        found[match.group(1)] = Declaration(lines.group(1).replace("\n// ", " ")) if lines else None
    return found


def all_declarations(sources: Iterable[Path] | None = None) -> dict[str, Declaration | None]:
    """Those of csrc/cuda, by the name of the function: no two kernels may share one."""
    found: dict[str, Declaration | None] = {}
    for path in sorted((ROOT / "csrc" / "cuda").rglob("*.cu*")) if sources is None else sources:
        for name, declaration in declarations(path.read_text()).items():
            assert name not in found, f"two kernels are called {name}"
            found[name] = declaration
    return found


# ---- the table ----


def made_with() -> str | None:
    """What the numbers depend on beside the sources, or None where there is nothing to read."""
    if missing() is not None:
        return None
    nvcc = emulated.build_script().find_nvcc()
    version = re.search(r"release \S+, (V\S+)", run([nvcc, "--version"])) if nvcc else None
    return f"nvcc {version.group(1)} with WARPWRIGHT_CUDA_ARCHS={_archs()}" if version else None


def _archs() -> str:
    return json.loads((_library.CUDA_LIBRARY.parent / "build_info.json").read_text())["cuda_archs"]


def default_archs() -> bool:
    """Whether the CUDA library is there, with code for the architectures that ship."""
    return missing() is None and _archs() == emulated.build_script().DEFAULT_ARCHS


def by_arch(kernels: Iterable[Kernel], value: Callable[[Kernel], object]) -> str:
    """A cell: the value, or the values of the architectures with a slash between them where they differ."""
    values = [str(value(kernel)) for kernel in kernels]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def row(name: str, kernels: list[Kernel], shared: Callable[[Kernel], object]) -> str:
    cells = [
        by_arch(kernels, lambda k: k.registers),
        by_arch(kernels, lambda k: k.stack),
        by_arch(kernels, lambda k: k.local_bytes("STL")),
        by_arch(kernels, lambda k: k.local_bytes("LDL")),
        by_arch(kernels, shared),
        by_arch(kernels, lambda k: f"{k.code_bytes / 1024:.1f}"),
        by_arch(kernels, lambda k: ", ".join(k.notable) or "-"),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


HEAD = ["registers", "stack", "stored to it", "loaded from it", "shared memory", "code KiB", "instructions"]


def head(first: str) -> list[str]:
    return [f"| {first} | {' | '.join(HEAD)} |", "| --- " * (len(HEAD) + 1) + "|"]


def table() -> str:
    """The CUDA kernels, a line for each with a number for each architecture."""
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels():
        found.setdefault(kernel.name.removeprefix("warpwright::cuda::"), []).append(kernel)
    archs = " / ".join(dict.fromkeys(k.arch for ks in found.values() for k in ks))
    lines = [f"Made with {made_with()} for {archs}, in this order where the numbers differ.", ""]
    lines += head("kernel")
    lines += [row(f"`{name}`", same, lambda k: k.shared) for name, same in sorted(found.items())]
    return "\n".join(lines)
