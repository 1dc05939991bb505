"""Rewrites the generated parts of README.md: `make docs`. With --check it only says whether they are up to date."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from warpwright import _registry
from warpwright.testing import SPECS, OpSpec

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
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


def rendered(text: str) -> str:
    """`text` with each generated part replaced by what holds now."""
    for name, make in {"support": support_table}.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no part `generated: {name}`")
        text = pattern.sub(lambda match, make=make: f"{match.group(1)}{make()}\n{match.group(2)}", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when README.md is out of date")
    check = parser.parse_args().check
    old = README.read_text()
    new = rendered(old)
    if check:
        sys.exit(0 if old == new else "README.md is out of date: run `make docs`")
    README.write_text(new)


if __name__ == "__main__":
    main()
