"""`warpwright bench`: how fast the ops are, beside PyTorch, peers and kernels of your own."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from warpwright.cli._output import JsonOption, print_json, progress, stdout

if TYPE_CHECKING:
    from warpwright.bench import Case, Results, Row

SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        "-s",
        help="A suite's name, a pattern such as 'conv-*', a YAML file of your own, or all; may be repeated.",
    ),
]
OpOption = Annotated[list[str] | None, typer.Option("--op", help="Only this op; may be repeated.")]
DtypeOption = Annotated[list[str] | None, typer.Option("--dtype", help="Only this dtype; may be repeated.")]
DirectionOption = Annotated[
    list[str] | None, typer.Option("--direction", help="Only forward, backward or both; may be repeated.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is a GPU.")]
FullOption = Annotated[bool, typer.Option("--full", help="The suites' full sizes on the CPU too.")]
KernelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--kernel", help="Kernels of your own: FILE.py or module with @bench.kernel(op), or op=FILE.py:function."
    ),
]


def _device(name: str | None) -> str:
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise RuntimeError(f"warpwright: bench: --device must be one of cpu, cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("warpwright: bench: --device cuda: torch sees no CUDA GPU")
    return device


def _cases(
    names: list[str] | None,
    device: str,
    full: bool,
    op: list[str] | None = None,
    dtype: list[str] | None = None,
    direction: list[str] | None = None,
) -> list[Case]:
    from warpwright.bench import load_suite, select, suites

    patterns = list(suites()) if names == ["all"] else names or ["quick"]
    wanted = dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(suites(), pattern) or [pattern])
    cases = [case for name in wanted for case in load_suite(name, device, full=full)]
    return select(cases, ops=op, dtypes=dtype, directions=direction)


def _names(texts: list[str] | None) -> list[str]:
    """Names that were given one at a time, or with commas between them."""
    return [name for text in texts or [] for name in text.split(",") if name]


# ---- list ----


def list_suites(
    suite: SuiteOption = None,
    device: DeviceOption = None,
    full: FullOption = False,
    kernel: KernelOption = None,
    json: JsonOption = False,
) -> None:
    """List the suites, the ops and the providers, or the cases of the suites that are named."""
    from warpwright.bench import OPERATORS, PROVIDERS, load_kernel, load_suite, suites
    from warpwright.testing import SPECS

    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for text in kernel or []:
        load_kernel(text)
    if suite:
        cases = _cases(suite, target, full)
        if json:
            keys = ("suite", "op", "case", "dtype", "directions", "parameters")
            print_json({"cases": [dict(zip(keys, _case_fields(case), strict=True)) for case in cases]})
            return
        table = _table("suite", "op", "case", "dtype", "directions")
        for case in cases:
            name, op, label, dtype, directions, _ = _case_fields(case)
            table.add_row(name, op, label, dtype, " ".join(directions))
        stdout().print(table)
        return
    counts = {name: len(load_suite(name, target, full=full)) for name in suites()}
    states = {name: provider.missing(torch.device(target)) for name, provider in PROVIDERS.items()}
    if json:
        print_json(
            {
                "suites": {name: {"about": about, "cases": counts[name]} for name, about in suites().items()},
                "ops": sorted(OPERATORS),
                "providers": {n: {"about": p.about, "missing": states[n]} for n, p in PROVIDERS.items()},
            }
        )
        return
    table = _table("suite", "cases", "about", title=f"suites, on {target}")
    for name, about in suites().items():
        table.add_row(name, str(counts[name]), about)
    stdout().print(table)
    table = _table("provider", "about", "here")
    for name, provider in PROVIDERS.items():
        reason = states[name]
        table.add_row(name, provider.about, "[green]found[/]" if reason is None else f"[dim]{reason}[/]")
    stdout().print(table)
    ours = [name for name, op in OPERATORS.items() if name in SPECS or "warpwright" in op.functions]
    stdout().print(
        f"ops: {' '.join(ours)}\nPyTorch's and peers' only: {' '.join(n for n in OPERATORS if n not in ours)}"
    )


def _case_fields(case: Case) -> tuple[str, str, str, str, list[str], dict[str, Any]]:
    return case.suite, case.op, case.label, case.dtype_name, list(case.directions), case.parameters


# ---- run ----


def run_suites(
    suite: SuiteOption = None,
    op: OpOption = None,
    dtype: DtypeOption = None,
    direction: DirectionOption = None,
    providers: Annotated[
        list[str] | None,
        typer.Option(
            "--providers",
            "-p",
            help="Names with commas between them; `warpwright bench list` knows them. First: baseline.",
        ),
    ] = None,
    kernel: KernelOption = None,
    device: DeviceOption = None,
    seconds: Annotated[float, typer.Option(min=0.001, help="At most this long for each provider of each case.")] = 0.4,
    spread: Annotated[float, typer.Option(min=1e-4, help="Enough once confidence intervals are this narrow.")] = 0.03,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU's kernels, each bound to a core.")
    ] = None,
    full: FullOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Append each row to this .jsonl file as soon as it is measured.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what --out holds already.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file as Markdown.")] = None,
    json: JsonOption = False,
) -> None:
    """Time the cases of suites side by side with PyTorch and others; wrong results are not timed, and exit with 1."""
    from warpwright import bench
    from warpwright.bench.threads import keep_freed_memory

    keep_freed_memory()
    device = _device(device)
    own = [name for text in kernel or [] for name in bench.load_kernel(text)]
    chosen = _names(providers) or [*bench.DEFAULT_PROVIDERS, *own]
    cases = _cases(suite, device, full, op, _names(dtype), direction)
    done = _done(out, resume)
    results = bench.Results()
    with progress() as bar, _appending(out) as write:
        task = bar.add_task("bench", total=bench.steps(cases))
        finished = iter([0])

        def step(what: str) -> None:
            # Told when a case begins, so that the one before it has ended.
            bar.update(task, description=what, advance=next(finished, 1))

        options = {"seconds": seconds, "spread": spread, "threads": threads, "done": done, "on_step": step}
        for record in bench.run(cases, device=device, providers=chosen, **options):
            results.add(record)
            write(record)
    for path, text in ((csv, bench.to_csv), (markdown, bench.to_markdown)):
        if path is not None:
            path.write_text(text(results.rows))
    bad = [row for row in results.rows if not bench.PROVIDERS[row.provider].peer and row.status in ("wrong", "failed")]
    if json:
        print_json({"ok": not bad, "environment": results.environments[0], "rows": [r.as_dict() for r in results.rows]})
    else:
        show(results)
    if bad:
        raise typer.Exit(1)


def _done(out: Path | None, resume: bool) -> set[tuple[str, ...]]:
    if resume and out is None:
        raise RuntimeError("warpwright: bench: --resume needs --out FILE.jsonl, which says what is done")
    if out is None or not out.exists():
        return set()
    if not resume:
        raise RuntimeError(f"warpwright: bench: --out {out} exists: give --resume to go on with it, or another name")
    from warpwright.bench import read_results

    return {row.key for row in read_results(out).rows} if out.stat().st_size else set()


@contextmanager
def _appending(out: Path | None) -> Iterator[Any]:
    """write(record), which appends to the file, if there is to be one."""
    if out is None:
        yield lambda record: None
        return
    from warpwright.bench import write_record

    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+") as file:
        _end_line(file)
        yield lambda record: write_record(file, record)


def _end_line(file: Any) -> None:
    """Whoever was interrupted in the middle of a line left half of it: what follows must not continue it."""
    file.seek(0)
    text = file.read()
    if text and not text.endswith("\n"):
        file.seek(0)
        file.truncate(len(text[: text.rfind("\n") + 1].encode()))


#: Column title -> a row's value as text.
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "us": lambda r: ("~" if r.settled is False else "") + _text(r.p50, 1e6, ".1f"),
    "p20-p80": lambda r: f"{_text(r.p20, 1e6, '.1f')}-{_text(r.p80, 1e6, '.1f')}" if r.p50 else "",
    "host us": lambda r: _text(r.host, 1e6, ".1f"),
    "TFLOP/s": lambda r: _text(r.tflops, 1, ".3g"),
    "GB/s": lambda r: _text(r.gbytes, 1, ".1f"),
    "% ceiling": lambda r: _text(r.ceiling, 100, ".0f"),
    "MB": lambda r: _text(r.peak_memory, 1e-6, ".1f"),
    "loss": lambda r: _text(r.loss, 1, ".4g"),
    "x": lambda r: _text(r.ratio, 1, ".2f"),
    "error": lambda r: _text(r.error, 1, ".2f"),
}


def _text(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else f"{value * factor:{form}}"


def show(results: Results) -> None:
    """The results as a table, and below it what could not take part."""
    columns = [name for name, value in _COLUMNS.items() if any(value(row) for row in results.rows)]
    table = _table("case, provider", title="us: median of a call; x: the baseline's time / this one's")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    last: tuple[str, ...] | None = None
    reasons: list[str] = []
    for row in results.rows:
        if row.group != last:
            table.add_section()
            table.add_row(f"[bold]{row.op}[/] {escape(row.case)}, {row.dtype}, {row.direction}")
            last = row.group
        if row.status == "timed":
            table.add_row(f"  {row.provider}", *(_COLUMNS[name](row) for name in columns))
        else:
            table.add_row(f"  {row.provider}", f"[{'dim' if row.status == 'missing' else 'red'}]{row.status}[/]")
            what = f"{row.op} {row.case}, {row.dtype}, {row.direction}, {row.provider}: "
            # What is missing is missing in every case.
            reasons.append(f"{row.status}: {'' if row.status == 'missing' else what}{row.reason}")
    console = stdout()
    console.print(table)
    for reason in dict.fromkeys(reasons):
        console.print(reason, markup=False, highlight=False)
    for name, reason in results.environments[0].get("missing", {}).items():
        console.print(f"not here: {name}: {reason}", style="dim", markup=False, highlight=False)
    for ceiling in results.ceilings:
        unit = f"{ceiling.value / 1e9:.1f} GB/s" if ceiling.name == "copy" else f"{ceiling.value / 1e12:.3g} TFLOP/s"
        what = f"{ceiling.name} {ceiling.dtype}".strip()
        console.print(f"ceiling: {what}: {unit} ({ceiling.what})", style="dim", markup=False, highlight=False)
    if unsettled := sum(row.settled is False for row in results.rows):
        console.print(
            f"{unsettled} rows are marked ~: their spread was still large when their time was up", style="dim"
        )


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


# ---- compare ----


def compare_runs(
    before: Annotated[Path, typer.Argument(help="A .jsonl file of `warpwright bench run --out`.")],
    after: Annotated[Path, typer.Argument(help="Another, of the same cases.")],
    tolerance: Annotated[float, typer.Option(min=0.0, help="Changes below this share are SAME.")] = 0.01,
    by: Annotated[
        str, typer.Option(help="time, ratio to the baseline, or auto: ratio where both runs have one.")
    ] = "auto",
    everything: Annotated[bool, typer.Option("--all", help="Show SAME and UNCLEAR rows too.")] = False,
    fail_on_regression: Annotated[bool, typer.Option("--fail-on-regression", help="Exit with 1 on SLOWER.")] = False,
    json: JsonOption = False,
) -> None:
    """Say of each row that two runs share whether it became FASTER or SLOWER, stayed the SAME, or is UNCLEAR."""
    from warpwright.bench import read_results
    from warpwright.bench.verdict import compare_results

    comparison = compare_results(read_results(before), read_results(after), tolerance=tolerance, by=by)
    if json:
        print_json(comparison.as_dict())
    else:
        _show_comparison(comparison, everything)
    if fail_on_regression and comparison.regressions:
        raise typer.Exit(1)


def _show_comparison(comparison: Any, everything: bool) -> None:
    colours = {"FASTER": "green", "SLOWER": "red", "SAME": "dim", "UNCLEAR": "yellow"}
    table = _table("suite", "op", "case", "dtype", "direction", "provider")
    for name in ("before us", "after us", "change", "95%", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for v in comparison.verdicts:
        if not everything and v.verdict in ("SAME", "UNCLEAR"):
            continue
        row = v.after
        times = (f"{v.before.p50 * 1e6:.4g}", f"{v.after.p50 * 1e6:.4g}")
        change = (f"{v.change:+.1%}", f"{v.low:+.1%} {v.high:+.1%}")
        what = (row.suite, row.op, row.case, row.dtype, row.direction, row.provider)
        table.add_row(*what, *times, *change, f"[{colours[v.verdict]}]{v.verdict}[/]")
    if table.row_count:
        stdout().print(table)
    for line in comparison.lines():
        stdout().print(line, highlight=False)


# ---- report ----


def write_page(
    results: Annotated[list[Path] | None, typer.Argument(help=".jsonl files, or folders of them.")] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("warpwright-bench.html"),
    png: Annotated[Path | None, typer.Option(help="Write the summary charts as PNGs into this folder too.")] = None,
    title: Annotated[str | None, typer.Option(help="The page's heading.")] = None,
    json: JsonOption = False,
) -> None:
    """Write one HTML page, which needs nothing else, of what runs have measured."""
    from warpwright.bench import read_results
    from warpwright.bench.report import write_pngs, write_report
    from warpwright.bench.runner import sources_now

    files = _result_files(results or [])
    found = [read_results(path) for path in files]
    page = write_report(found, out, title=title, now_sources=sources_now)
    pngs = [] if png is None else write_pngs(found, png)
    if json:
        print_json({"page": str(page), "pngs": [str(p) for p in pngs], "files": [str(f) for f in files],
                    "rows": sum(len(r.rows) for r in found)})  # fmt: skip
        return
    for path in (page, *pngs):
        typer.echo(path)


def _result_files(paths: list[Path]) -> list[Path]:
    files = [f for p in paths for f in (sorted(p.rglob("*.jsonl")) if p.is_dir() else [p])]
    if not files:
        where = ", ".join(map(str, paths)) or "nothing"
        raise RuntimeError(f"warpwright: bench: report needs .jsonl files of `warpwright bench run --out`, got {where}")
    return files


# ---- selftest ----


def self_test(
    device: DeviceOption = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="At most this long for each planted kernel.")] = 1.0,
    json: JsonOption = False,
) -> None:
    """Plant kernels that are 2% and 10% slower, wrong, or cheat, and see that this tool notices on this machine."""
    from warpwright.bench.selftest import run_selftest

    findings = run_selftest(torch.device(_device(device)), seconds=seconds)
    ok = all(finding.ok for finding in findings)
    if json:
        fields = ("name", "expected", "found", "ok")
        print_json({"ok": ok, "findings": [{name: getattr(f, name) for name in fields} for f in findings]})
    else:
        table = _table("planted", "expected", "found", "")
        for finding in findings:
            table.add_row(
                finding.name, finding.expected, finding.found, "[green]ok[/]" if finding.ok else "[red]MISSED[/]"
            )
        stdout().print(table)
    if not ok:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True,
        help="Time the ops beside PyTorch, peers and kernels of your own; compare runs; write a report.",
        epilog="Examples:\n\n  warpwright bench run\n\n  warpwright bench list",
    )
    commands: dict[str, tuple[Callable[..., None], str]] = {
        "list": (list_suites, "warpwright bench list --suite norm"),
        "run": (
            run_suites,
            "warpwright bench run --suite norm --suite mine.yaml --providers torch,warpwright --out rows.jsonl\n\n"
            "  warpwright bench run --suite norm --kernel rms_norm=mine.py:my_rms_norm",
        ),
        "compare": (compare_runs, "warpwright bench compare before.jsonl after.jsonl --fail-on-regression"),
        "report": (write_page, "warpwright bench report rows.jsonl --out report.html"),
        "selftest": (self_test, "warpwright bench selftest"),
    }
    for name, (function, example) in commands.items():
        group.command(name, epilog=f"Examples:\n\n  {example}")(function)
    app.add_typer(group, name="bench")
