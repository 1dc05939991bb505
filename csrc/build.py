"""Compiles the native libraries with ninja; used by setup.py, the Makefile and the tests.

    python csrc/build.py            build both libraries into python/warpwright/lib
    python csrc/build.py --emulated build/emulated/libwarpwright_emulated.so, for the tests only
    python csrc/build.py --sanitized both into build/sanitized, with GCC's sanitizers, for tests/sanitize.py only

Environment:
    WARPWRIGHT_CUDA=0|1     never / always build the CUDA library (default: when nvcc is found)
    WARPWRIGHT_CUDA_ARCHS   e.g. "80;90a;90+PTX" (the default)
    MAX_JOBS                compile jobs at once (default: the number of cores)
    WARPWRIGHT_WERROR=1     warnings are errors (the project's own checks; other compilers may warn of more)
    CXX, NVCC               the compilers (default: g++, nvcc on PATH or in CUDA_HOME/bin)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent
CPU_LIBRARY = "libwarpwright.so"
CUDA_LIBRARY = "libwarpwright_cuda.so"
BUILD_INFO = "build_info.json"
RELEASE_FILES = (CPU_LIBRARY, CUDA_LIBRARY, BUILD_INFO)
# What the times of matrix products and convolutions on a GPU depend on.
GEMM_SOURCES = (
    *("cuda/conv", "cuda/device.h", "cuda/launch.h", "cuda/matmul", "cuda/ptx", "cuda/tile"),
    *("kernels/conv.h", "kernels/gemm_plan.h", "kernels/matmul.h"),
)
DEFAULT_ARCHS = "80;90a;90+PTX"

# Each CPU kernel file is compiled once per instruction set; csrc/cpu/isa.h picks one at run time.
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
}
# -fno-math-errno and -fno-trapping-math let loops vectorise and change no result.
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
]
# libwarpwright.so needs nothing newer than torch 2.10 offers.
TORCH_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]


class BuildError(SystemExit):
    """A build that cannot go on; its message says what to install or change."""


def version() -> str:
    text = (ROOT / "python" / "warpwright" / "_version.py").read_text()
    match = re.search(r'__version__ = "([^"]+)"', text)
    assert match, "python/warpwright/_version.py states no __version__"
    return match.group(1)


def all_sources() -> list[Path]:
    kinds = {".cpp", ".cu", ".cuh", ".h", ".py"}
    return sorted(p for p in CSRC.rglob("*") if p.suffix in kinds and "__pycache__" not in p.parts)


def gemm_sources() -> str:
    """Hash of `GEMM_SOURCES`: what `warpwright tune` measured of other kernels is not used."""
    digest = hashlib.sha256()
    for path in all_sources():
        name = path.relative_to(CSRC).as_posix()
        if any(name == part or name.startswith(f"{part}/") for part in GEMM_SOURCES):
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_nvcc() -> str | None:
    named = os.environ.get("NVCC")
    if named:
        return named
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    found = shutil.which("nvcc")
    if found:
        return found
    usual = Path("/usr/local/cuda/bin/nvcc")
    return str(usual) if usual.exists() else None


def cuda_toolkit(nvcc: str) -> Path:
    """The toolkit's root, asked of nvcc itself because nvcc on PATH may be a wrapper script."""
    dry = subprocess.run([nvcc, "--dryrun", "-v", "x.cu"], capture_output=True, text=True).stderr
    match = re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
    if not match:
        raise BuildError(f"warpwright: {nvcc} does not say where its toolkit is; set CUDA_HOME")
    return Path(match.group(1).strip()).resolve()


def wants_cuda() -> tuple[bool, str]:
    """(build the CUDA library?, the reason in words)."""
    setting = os.environ.get("WARPWRIGHT_CUDA", "")
    nvcc = find_nvcc()
    if setting not in ("", "0", "1"):
        raise BuildError(f"warpwright: WARPWRIGHT_CUDA must be 0 or 1, got {setting!r}")
    if setting == "0":
        return False, "WARPWRIGHT_CUDA=0"
    if nvcc is None:
        if setting == "1":
            raise BuildError(
                "warpwright: WARPWRIGHT_CUDA=1 but no nvcc was found. Install the CUDA toolkit (12.8 or newer) and put "
                "nvcc on PATH, or set CUDA_HOME; unset WARPWRIGHT_CUDA to build for the CPU only."
            )
        return False, "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
    return True, nvcc


def gencode_flags(archs: str) -> list[str]:
    flags = []
    for arch in filter(None, re.split(r"[;, ]+", archs)):
        match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX)?", arch)
        if not match:
            raise BuildError(
                f"warpwright: WARPWRIGHT_CUDA_ARCHS: {arch!r} is not an architecture such as 80, 90a or 90+PTX"
            )
        number = match.group(1) + match.group(2) + match.group(3)
        code = "compute" if match.group(4) else "sm"
        flags.append(f"-gencode=arch=compute_{number},code={code}_{number}")
    if not flags:
        raise BuildError("warpwright: WARPWRIGHT_CUDA_ARCHS names no architecture")
    return flags


def torch_paths() -> tuple[list[str], Path]:
    """(torch's include folders, its library folder)."""
    try:
        import torch
    except ImportError:
        raise BuildError(
            "warpwright: building needs torch. Install it first, or let pip do so by leaving out --no-build-isolation."
        ) from None
    base = Path(torch.__file__).resolve().parent
    return [str(base / "include"), str(base / "include" / "torch" / "csrc" / "api" / "include")], base / "lib"


class Ninja:
    """One build.ninja: compile edges with depfiles, then links."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lines = ["ninja_required_version = 1.3"]
        self.targets: list[str] = []

    def rule(self, name: str, command: str, depfile: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def edge(self, rule: str, output: Path, inputs: list[Path], implicit: list[Path] = [], **variables: str) -> Path:  # noqa: B006
        escaped = " ".join(str(p).replace(" ", "$ ") for p in inputs)
        extra = " | " + " ".join(str(p).replace(" ", "$ ") for p in implicit) if implicit else ""
        self.lines.append(f"build {str(output).replace(' ', '$ ')}: {rule} {escaped}{extra}")
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        return output

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "build.ninja"
        text = "\n".join(self.lines) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if ninja is None:
            raise BuildError("warpwright: building needs ninja (pip install ninja)")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        result = subprocess.run([ninja, "-C", str(self.folder), "-j", jobs])
        if result.returncode != 0:
            raise BuildError(
                f"warpwright: the native build failed (ninja exit code {result.returncode}); see the lines above"
            )


def werror() -> bool:
    return os.environ.get("WARPWRIGHT_WERROR") == "1"


def compiler(name: str) -> str:
    """The compiler's command, behind ccache where that is installed."""
    ccache = shutil.which("ccache")
    return f"{ccache} {name}" if ccache else name


def cxx() -> str:
    return os.environ.get("CXX", "g++")


def cxx_rule(ninja: Ninja) -> None:
    includes, _ = torch_paths()
    strict = ["-Werror"] if werror() else []
    flags = CXX_FLAGS + strict + TORCH_FLAGS + [f"-I{CSRC}"] + [f"-isystem {i}" for i in includes]
    command = compiler(cxx())
    ninja.rule("cxx", f"{command} {' '.join(flags)} $flags -MMD -MF $out.d -c $in -o $out")


def torch_link_flags() -> str:
    _, lib = torch_paths()
    # By name only: torch has loaded the library before ours is opened, so no rpath is needed.
    return f"-L{lib} -Wl,--no-as-needed -ltorch_cpu -Wl,--as-needed"


def cpu_library(ninja: Ninja, out: Path, sanitize: list[str] = []) -> None:  # noqa: B006
    """`sanitize`: further flags of every object and of the link."""
    objects = ninja.folder / "cpu"
    made = []
    glue = [
        CSRC / "schema.cpp",
        *sorted((CSRC / "bindings").glob("*.cpp")),
        *sorted((CSRC / "bindings" / "onednn").glob("*.cpp")),
    ]
    for source in glue:
        name = "_".join(source.relative_to(CSRC).with_suffix("").parts)
        made.append(
            ninja.edge("cxx", objects / f"{name}.o", [source], flags=" ".join(["-DWARPWRIGHT_BACKEND_CPU", *sanitize]))
        )
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        for isa, flags in ISAS.items():
            if isa != "baseline" and not sys_is_x86():
                continue
            all_flags = " ".join([f"-DWARPWRIGHT_ISA={isa}", f"-DWARPWRIGHT_ISA_{isa.upper()}", *flags, *sanitize])
            made.append(ninja.edge("cxx", objects / isa / f"{source.stem}.o", [source], flags=all_flags))
    command = f"{cxx()} -shared {' '.join(sanitize)} -Wl,-z,defs -o $out $in {torch_link_flags()} -ldl"
    ninja.rule("link_cpu", command, depfile=False)
    ninja.edge("link_cpu", out, made)


def sys_is_x86() -> bool:
    return os.uname().machine in ("x86_64", "amd64")


def cuda_library(ninja: Ninja, out: Path, nvcc: str) -> None:
    toolkit = cuda_toolkit(nvcc)
    objects = ninja.folder / "cuda"
    made = []
    cuda_include = f"-isystem {toolkit / 'include'}"
    for source in sorted((CSRC / "bindings").glob("*.cpp")):
        flags = f"-DWARPWRIGHT_BACKEND_CUDA -DUSE_CUDA {cuda_include}"
        made.append(ninja.edge("cxx", objects / f"{source.stem}.o", [source], flags=flags))
    archs = os.environ.get("WARPWRIGHT_CUDA_ARCHS") or DEFAULT_ARCHS
    flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-lineinfo"]
    flags += gencode_flags(archs)
    if werror():
        flags.append("-Werror=all-warnings")
    ninja.rule("nvcc", f"{compiler(nvcc)} -ccbin {cxx()} {' '.join(flags)} -I{CSRC} -MD -MF $out.d -c $in -o $out")
    for source in sorted((CSRC / "cuda").rglob("*.cu")):
        name = "_".join(source.relative_to(CSRC / "cuda").with_suffix("").parts)
        made.append(ninja.edge("nvcc", objects / "kernels" / f"{name}.o", [source]))
    # torch's CUDA half may be absent where we build. An empty library of its name records the
    # dependency, so that the loader binds the one symbol we need to the real one at run time.
    stub = ninja.folder / "stub" / "libtorch_cuda.so"
    empty = ninja.folder / "stub" / "empty.cpp"
    empty.parent.mkdir(parents=True, exist_ok=True)
    if not empty.exists():
        empty.write_text("// Nothing: see csrc/build.py.\n")
    ninja.rule("stub", f"{cxx()} -shared -fPIC -Wl,-soname,libtorch_cuda.so -o $out $in", depfile=False)
    ninja.edge("stub", stub, [empty])
    link = f"{torch_link_flags()} -Wl,--no-as-needed {stub} -Wl,--as-needed"
    libs = f"-L{toolkit / 'lib64'} -L{toolkit / 'targets' / 'x86_64-linux' / 'lib'} -lcudart_static -ldl -lrt -lpthread"
    ninja.rule("link_cuda", f"{cxx()} -shared -o $out $in {link} {libs}", depfile=False)
    ninja.edge("link_cuda", out, made, implicit=[stub])


EMULATED_LIBRARY = "libwarpwright_emulated.so"
# `-x c++` makes a C++ file of a .cu; #pragma unroll means something to nvcc alone.
EMULATED_FLAGS = ["-DWARPWRIGHT_BACKEND_EMULATED", "-O2", "-g1", "-Wno-unknown-pragmas", "-x c++"]
# Kernels take tensor maps by value, at 128 bytes; GCC 4.6 is nobody's caller.
EMULATED_FLAGS += ["-Wno-psabi"]
# A tail call would hide the line that an error should name.
EMULATED_FLAGS += ["-fno-optimize-sibling-calls"]
# csrc/emulator/bindings/tensors.cpp stands between the bindings and these.
TENSOR_ADDRESSES = ["torch_get_const_data_ptr", "torch_get_mutable_data_ptr"]
# A call before each access to memory, which csrc/emulator/memory.cpp answers in the place of the sanitizers' runtimes.
INSTRUMENT_FLAGS = ["-fsanitize=thread", "--param tsan-instrument-func-entry-exit=0", "-fsanitize=alignment"]

# Any report ends the process. -w: the ordinary build has shown the warnings, and GCC has false ones beside sanitizers.
# Virtual tables are left out, because torch has those of its classes without type information.
SANITIZE_FLAGS = ["-O1", "-g1", "-w", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
UNDEFINED_FLAGS = [*SANITIZE_FLAGS, "-fsanitize=undefined", "-fno-sanitize=vptr"]
ADDRESS_FLAGS = [*UNDEFINED_FLAGS, "-fsanitize=address"]
# Kernels of CUDA: their accesses are the emulator's to check, which asks AddressSanitizer about them, and a misaligned
# one must come back to it. Their arithmetic is UndefinedBehaviorSanitizer's.
KERNEL_UNDEFINED_FLAGS = [
    *["-fsanitize=undefined", "-fno-sanitize=vptr,null,object-size"],
    *["-fno-sanitize-recover=all", "-fsanitize-recover=alignment", "-w"],
]


def cuda_headers() -> Path | None:
    """The toolkit's include folder: nvcc's own, or that of NVIDIA's header packages for Python."""
    nvcc = find_nvcc()
    if nvcc is not None:
        return cuda_toolkit(nvcc) / "include"
    for folder in map(Path, sys.path):
        for found in sorted(folder.glob("nvidia/*/include")):
            if (found / "cuda_fp16.h").exists() and (found / "vector_types.h").exists():
                return found
    return None


def python_module_flags() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise BuildError("warpwright: the emulator is a pybind11 module: pip install 'warpwright[test]'") from None
    import sysconfig

    return [f"-isystem {pybind11.get_include()}", f"-isystem {sysconfig.get_path('include')}"]


def needed_cuda_headers() -> Path:
    headers = cuda_headers()
    if headers is None:
        raise BuildError("warpwright: the emulator needs the CUDA toolkit's headers: install nvcc, or set CUDA_HOME")
    return headers


def emulated_link(runtimes: str = "") -> str:
    """The command that makes the emulated library of its objects."""
    wrapped = " ".join(f"-Wl,--wrap={name}" for name in TENSOR_ADDRESSES)
    # Python's own symbols come from the interpreter.
    return f"{cxx()} -shared {runtimes} {wrapped} -o $out $in {torch_link_flags()}"


def emulated_library(ninja: Ninja, out: Path, headers: Path, sanitize: bool = False) -> None:
    objects = ninja.folder / "emulated"
    kernels = INSTRUMENT_FLAGS + (KERNEL_UNDEFINED_FLAGS if sanitize else [])
    # AddressSanitizer knows one stack for each thread of the host; the emulator runs on many. The kernels come last: of
    # an inline function that the emulator and a kernel share, such as std::string's, the linker takes the first copy,
    # and what the emulator does must not be watched.
    glue = [*sorted((CSRC / "bindings").glob("*.cpp")), *sorted((CSRC / "emulator" / "bindings").glob("*.cpp"))]
    parts = [
        (glue, ADDRESS_FLAGS if sanitize else []),
        (sorted((CSRC / "emulator").glob("*.cpp")), UNDEFINED_FLAGS if sanitize else []),
        (sorted((CSRC / "cuda").rglob("*.cu")), kernels),
    ]
    made = []
    for sources, further in parts:
        for source in sources:
            name = "_".join(source.relative_to(CSRC).with_suffix("").parts)
            flags = [*EMULATED_FLAGS, f"-isystem {headers}", *further]
            flags += python_module_flags() if source.name == "module.cpp" else []
            made.append(ninja.edge("cxx", objects / f"{name}.o", [source], flags=" ".join(flags)))
    runtimes = " ".join(ADDRESS_FLAGS) if sanitize else ""
    ninja.rule("link_emulated", emulated_link(runtimes), depfile=False)
    ninja.edge("link_emulated", out, made)


def write_info(folder: Path, info: dict[str, object]) -> None:
    """What is known of the libraries in a folder: `info`, the version and the hash of the products' kernels."""
    text = json.dumps({"version": version()} | info | {"gemm_sources": gemm_sources()}, indent=2) + "\n"
    (folder / BUILD_INFO).write_text(text)


def build_emulated() -> Path:
    """The CUDA kernels as CPU code, for the tests; never part of the wheel."""
    ninja = Ninja(ROOT / "build" / "emulated")
    cxx_rule(ninja)
    out = ninja.folder / EMULATED_LIBRARY
    emulated_library(ninja, out, needed_cuda_headers())
    ninja.run()
    write_info(ninja.folder, {})
    return out


def build_sanitized(cpu_only: bool = False) -> Path:
    """A folder of the libraries with GCC's sanitizers; without the headers of CUDA, of the CPU library alone."""
    ninja = Ninja(ROOT / "build" / "sanitized")
    cxx_rule(ninja)
    cpu_library(ninja, ninja.folder / CPU_LIBRARY, ADDRESS_FLAGS)
    headers = cuda_headers()
    if headers is not None and not cpu_only:
        emulated_library(ninja, ninja.folder / EMULATED_LIBRARY, headers, sanitize=True)
    ninja.run()
    write_info(ninja.folder, {"cuda": False, "cuda_reason": "a build for the sanitizers"})
    return ninja.folder


def build_release(out: Path) -> None:
    """Builds the shipped libraries into `out`, with a build_info.json that `warpwright info` shows."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for stale in RELEASE_FILES:
        (out / stale).unlink(missing_ok=True)
    cuda, reason = wants_cuda()
    ninja = Ninja(ROOT / "build" / "native")
    cxx_rule(ninja)
    cpu_library(ninja, ninja.folder / CPU_LIBRARY)
    info = {"cuda": cuda, "cuda_reason": reason if not cuda else "nvcc found", "cuda_archs": None}
    if cuda:
        print(f"warpwright: building {CPU_LIBRARY} and {CUDA_LIBRARY} with {reason}", flush=True)
        info["cuda_archs"] = os.environ.get("WARPWRIGHT_CUDA_ARCHS") or DEFAULT_ARCHS
        cuda_library(ninja, ninja.folder / CUDA_LIBRARY, reason)
    else:
        print(f"warpwright: building {CPU_LIBRARY} only; {CUDA_LIBRARY} is left out: {reason}", flush=True)
    ninja.run()
    shutil.copy2(ninja.folder / CPU_LIBRARY, out / CPU_LIBRARY)
    if cuda:
        shutil.copy2(ninja.folder / CUDA_LIBRARY, out / CUDA_LIBRARY)
    import torch

    write_info(out, info | {"torch": torch.__version__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulated", action="store_true", help="build the emulated CUDA kernels, for the tests")
    parser.add_argument("--sanitized", action="store_true", help="build for tests/sanitize.py")
    parser.add_argument("--cpu-only", action="store_true", help="with --sanitized: without the emulated kernels")
    arguments = parser.parse_args()
    if arguments.emulated or arguments.sanitized:
        print(build_sanitized(arguments.cpu_only) if arguments.sanitized else build_emulated())
        return
    build_release(ROOT / "python" / "warpwright" / "lib")


if __name__ == "__main__":
    main()
