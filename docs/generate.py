"""Rewrites the generated parts of README.md and docs/: `make docs`. --check only says whether they are up to date."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from warpwright import _registry
from warpwright.bench.report import png_hash, rows_hash, write_pngs
from warpwright.bench.rows import Results, Row, read_results
from warpwright.bench.statistics import geometric_mean
from warpwright.testing import SPECS, OpSpec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import machine_code  # noqa: E402
import traffic  # noqa: E402
import triton_machine_code  # noqa: E402

DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("performance", "results", "kernels", "traffic")),
)
RECORDED = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"
SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def cuda_operators() -> set[str]:
    """What the CUDA library registers, read from the bindings because a CPU torch cannot load it."""
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "bindings").glob("*.cpp")))
    return set(re.findall(r'm\.impl\("(\w+)"', text))


def python_operators(package: str, family: str) -> set[str]:
    folder = {"triton": ROOT / "triton_kernels", "reference": ROOT / "python" / "warpwright" / "reference"}[package]
    return set(re.findall(r"^def (\w+)\(", (folder / f"{family}.py").read_text(), re.MULTILINE))


def in_python(package: str, spec: OpSpec) -> bool:
    """Whether the package has all operators of an op, of which some may be another family's."""
    return all(kernel in python_operators(package, _registry.OPS[kernel].family) for kernel in spec.kernels)


def support_row(spec: OpSpec) -> str:
    dtypes = " ".join(SHORT[d] for d in spec.dtypes)
    native = all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"warpwright::{kernel}", "CPU") for kernel in spec.kernels
    )
    cells = [
        f"{dtypes} fp64" if native else "-",
        dtypes if set(spec.kernels) <= cuda_operators() else "-",
        dtypes if in_python("triton", spec) else "-",
        f"{dtypes} fp64" if in_python("reference", spec) else "-",
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


def _results() -> dict[str, list[Results]]:
    """Machine -> the results of its suites."""
    found: dict[str, list[Results]] = {}
    for path in sorted(RECORDED.glob("*/*.jsonl")):
        found.setdefault(path.parent.name, []).append(read_results(path))
    return found


def _machine(results: Sequence[Results]) -> str:
    """What was measured on what; several runs of one machine may differ in their commit."""
    infos = [environment["info"] for r in results for environment in r.environments]
    info = infos[0]
    cuda = any(row.device == "cuda" for r in results for row in r.rows)
    name = ", ".join(gpu["name"] for gpu in info["gpus"]) if cuda else f"{info['cpu']}, {info['threads']} threads"
    driver = f", driver {info['driver']}" if cuda else f", {info['cpu_isa']}"
    commits = ", ".join(dict.fromkeys(i["commit"] or "unknown" for i in infos))
    return f"{name}{driver}; torch {info['torch']}; warpwright {info['version']}, commit {commits}"


def _groups(results: Results) -> list[dict[str, Row]]:
    """For each case and direction, provider -> row."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in results.rows:
        found.setdefault(row.group, {})[row.provider] = row
    return list(found.values())


def _against(other: str, groups: Sequence[dict[str, Row]], direction: str | None = None) -> list[tuple[float, Row]]:
    """(other's time / ours, our row) wherever both were timed."""
    pairs = [(g["warpwright"], g[other]) for g in groups if "warpwright" in g and other in g]
    return [
        (theirs.p50 / ours.p50, ours)
        for ours, theirs in pairs
        if ours.p50 and theirs.p50 and direction in (None, ours.direction)
    ]


def _mean(other: str, groups: Sequence[dict[str, Row]], direction: str) -> str:
    ratios = [ratio for ratio, _ in _against(other, groups, direction)]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def _worst(groups: Sequence[dict[str, Row]]) -> str:
    ratios = _against("torch", groups)
    if not ratios:
        return "-"
    ratio, row = min(ratios, key=lambda pair: pair[0])
    return f"{ratio:.2f}: `{row.op}` {row.case}, {row.dtype}, {row.direction}"


def _header(*titles: str) -> str:
    return f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}"


def summary_tables() -> str:
    """For each machine, a line for each suite."""
    parts = []
    for machine, results in _results().items():
        lines = [
            f"`bench/results/{machine}/`: {_machine(results)}.",
            "",
            _header(
                "suite",
                "timed",
                "vs torch, forward",
                "vs torch, both",
                "vs compile, forward",
                "vs compile, both",
                "worst vs torch",
            ),
        ]
        without: list[str] = []
        for result in results:
            groups = _groups(result)
            timed = sum("warpwright" in g and g["warpwright"].status == "timed" for g in groups)
            if not timed:
                without.append(result.rows[0].suite)
                continue
            means = [_mean(o, groups, d) for o in ("torch", "compile") for d in ("forward", "both")]
            cells = (result.rows[0].suite, f"{timed} of {len(groups)}", *means, _worst(groups))
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"PyTorch alone, as there is no kernel of ours yet: {', '.join(without)}."] if without else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _time(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.p50 * 1e6:.4g}" if row.p50 else row.status


def _number(value: float | None, factor: float = 1.0, form: str = ".2f") -> str:
    return "-" if value is None else f"{value * factor:{form}}"


def _ratio(ours: Row | None, other: Row | None) -> float | None:
    return other.p50 / ours.p50 if ours and other and ours.p50 and other.p50 else None


def detail_tables() -> str:
    """For each machine and suite, a line for each case and direction."""
    parts = []
    for machine, results in _results().items():
        parts.append(f"## {machine}\n\n{_machine(results)}.")
        for result in results:
            lines = [
                f"### {machine}: {result.rows[0].suite}",
                "",
                _header(
                    "op",
                    "case",
                    "dtype",
                    "direction",
                    "torch us",
                    "compile us",
                    "warpwright us",
                    "x torch",
                    "x compile",
                    "% ceiling",
                ),
            ]
            for group in _groups(result):
                ours, eager, compiled = (group.get(name) for name in ("warpwright", "torch", "compile"))
                row = next(iter(group.values()))
                cells = (
                    f"`{row.op}`", row.case, row.dtype, row.direction, *map(_time, (eager, compiled, ours)),
                    _number(_ratio(ours, eager)), _number(_ratio(ours, compiled)),
                    _number(ours.ceiling if ours else None, 100, ".0f"),
                )  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "support": support_table,
    "performance": summary_tables,
    "results": detail_tables,
    "cuda_kernels": machine_code.table,
    "triton_kernels": triton_machine_code.table,
    "traffic": traffic.table,
}
#: What a part depends on beside the sources: None where it cannot be made.
MADE_WITH: dict[str, Callable[[], str | None]] = {
    "cuda_kernels": machine_code.made_with,
    "triton_kernels": triton_machine_code.made_with,
    "traffic": traffic.made_with,
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


def pictures() -> dict[Path, Results]:
    """The README's charts, and the results that each is drawn from: the quick suite of every machine."""
    found = {}
    for path in sorted(RECORDED.glob("*/quick.jsonl")):
        for chart in ("speedup", "roofline"):
            found[IMAGES / f"{chart}-{path.parent.name}.png"] = read_results(path)
    return found


def draw_pictures() -> None:
    """Only those whose rows have changed: other versions of Matplotlib draw other pixels."""
    for path, results in pictures().items():
        if path.exists() and png_hash(path) == rows_hash([results]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = write_pngs([results], Path(folder))
            IMAGES.mkdir(exist_ok=True)
            shutil.copyfile(next(p for p in made if p.name.startswith(path.name.split("-")[0])), path)


def outdated_pictures() -> list[str]:
    """Those that show other rows than the recorded ones."""
    return [p.name for p, r in pictures().items() if not p.exists() or png_hash(p) != rows_hash([r])]


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
    if not check:
        draw_pictures()
    elif found := outdated_pictures():
        sys.exit(f"{', '.join(found)}: out of date: run `make docs`")


if __name__ == "__main__":
    main()
