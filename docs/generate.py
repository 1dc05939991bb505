"""Rewrites the generated parts of README.md and docs/: `make docs`. --check only says whether they are up to date."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from warpwright import _registry
from warpwright.testing import SPECS, OpSpec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import machine_code  # noqa: E402
import triton_machine_code  # noqa: E402

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "kernels.md")
RESULTS = ROOT / "bench" / "results"
SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def cuda_operators() -> set[str]:
    """What the CUDA library registers, read from the bindings because a CPU torch cannot load it."""
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "bindings").glob("*.cpp")))
    return set(re.findall(r'm\.impl\("(\w+)"', text))


def python_operators(package: str, family: str) -> set[str]:
    folder = {"triton": ROOT / "triton_kernels", "reference": ROOT / "python" / "warpwright" / "reference"}[package]
    return set(re.findall(r"^def (\w+)\(", (folder / f"{family}.py").read_text(), re.MULTILINE))


def support_row(spec: OpSpec) -> str:
    dtypes = " ".join(SHORT[d] for d in spec.dtypes)
    native = all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"warpwright::{kernel}", "CPU") for kernel in spec.kernels
    )
    cells = [
        f"{dtypes} fp64" if native else "-",
        dtypes if set(spec.kernels) <= cuda_operators() else "-",
        dtypes if set(spec.kernels) <= python_operators("triton", spec.family) else "-",
        f"{dtypes} fp64" if set(spec.kernels) <= python_operators("reference", spec.family) else "-",
        "yes" if spec.gradcheck else "not differentiable",
        "yes" if _registry.OPS[spec.kernels[0]].autocast is not None else "-",
    ]
    return f"| `{spec.name}` | {spec.family} | " + " | ".join(cells) + " |"


def support_table() -> str:
    lines = [
        "| op | family | C++ CPU | C++ CUDA | Triton | reference | backward | autocast |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [support_row(spec) for _, spec in sorted(SPECS.items(), key=lambda item: (item[1].family, item[0]))]
    return "\n".join(lines)


def _microseconds(row: dict[str, Any] | None) -> str:
    return "-" if row is None or row["p50"] is None else f"{row['p50'] * 1e6:.4g}"


def _ratio(ours: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if ours is None or other is None or not ours["p50"] or not other["p50"]:
        return "-"
    return f"{other['p50'] / ours['p50']:.2f}"


def results_table(path: Path) -> str:
    """One recorded run of a suite: what was measured on what, then a line for each case and direction."""
    report = json.loads(path.read_text())
    info = report["info"]
    devices = sorted({row["device"] for row in report["rows"]})
    machine = ", ".join(gpu["name"] for gpu in info["gpus"]) if "cuda" in devices else info["cpu"]
    lines = [
        f"`{path.relative_to(ROOT)}`: {machine}, {info['threads']} threads, {info['cpu_isa']}; torch {info['torch']}, "
        f"warpwright {info['version']}, commit {info['commit']}.",
        "",
        "| op | case | dtype | direction | eager us | compile us | warpwright us | x eager | x compile |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cases: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in report["rows"]:
        case = tuple(row[key] for key in ("op", "case", "dtype", "direction"))
        cases.setdefault(case, {})[row["provider"]] = row
    for (op, case, dtype, direction), rows in cases.items():
        ours, eager, compiled = (rows.get(name) for name in ("warpwright", "eager", "compile"))
        times = " | ".join(map(_microseconds, (eager, compiled, ours)))
        lines.append(
            f"| `{op}` | {case} | {dtype} | {direction} | {times} | {_ratio(ours, eager)} | {_ratio(ours, compiled)} |"
        )
    return "\n".join(lines)


def performance_tables() -> str:
    return "\n\n".join(results_table(path) for path in sorted(RESULTS.glob("*/*.json")))


PARTS: dict[str, Callable[[], str]] = {
    "support": support_table,
    "performance": performance_tables,
    "cuda_kernels": machine_code.table,
    "triton_kernels": triton_machine_code.table,
}
#: What a part depends on beside the sources: None where it cannot be made.
MADE_WITH: dict[str, Callable[[], str | None]] = {
    "cuda_kernels": machine_code.made_with,
    "triton_kernels": triton_machine_code.made_with,
}


def rendered(text: str, by_others: bool = True) -> str:
    """`text` with each generated part replaced by what holds now.

    A part stays as it is where its tools are missing and, unless `by_others`, where another version of them made it:
    compilers differ in every number, so that only the same one can say whether a number is out of date.
    """

    def replace(match: re.Match[str]) -> str:
        begin, name, old, end = match.groups()
        if name in MADE_WITH:
            tools = MADE_WITH[name]()
            if tools is None or not (by_others or f"Made with {tools} " in old):
                return match.group()
        return f"{begin}{PARTS[name]()}\n{end}"

    return re.sub(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", replace, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a document is out of date")
    check = parser.parse_args().check
    for document in DOCUMENTS:
        old = document.read_text()
        new = rendered(old, by_others=not check)
        if not check:
            document.write_text(new)
        elif old != new:
            sys.exit(f"{document.name} is out of date: run `make docs`")


if __name__ == "__main__":
    main()
