"""`warpwright bench`: how fast the ops are, beside PyTorch eager and compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.table import Table

import warpwright
from warpwright.cli._output import JsonOption, print_json, progress, stdout

if TYPE_CHECKING:
    from warpwright.bench import Rows

EPILOG = (
    "Examples:\n\n"
    "  warpwright bench\n\n"
    "  warpwright bench --suite host --provider eager --provider warpwright\n\n"
    "  warpwright bench --op swiglu --dtype bfloat16 --json > rows.json"
)


def bench(
    suite: Annotated[str, typer.Option(help="quick (every op, about a minute) or host (tiny tensors).")] = "quick",
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only this dtype; may be repeated.")] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="Only this provider (eager, compile, warpwright); the first is the baseline."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is a GPU.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each provider of each case.")] = 0.3,
    json: JsonOption = False,
) -> None:
    """Time the ops side by side with PyTorch, eager and compiled; wrong results are not timed, and exit with 1."""
    from warpwright.bench import PROVIDERS, run
    from warpwright.bench import suite as cases_of

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise RuntimeError(f"warpwright: bench: --device must be one of cpu, cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("warpwright: bench: --device cuda: torch sees no CUDA GPU")
    cases = [
        case
        for case in cases_of(suite, device)
        if (not op or case.op in op) and (not dtype or str(case.dtype).removeprefix("torch.") in dtype)
    ]
    if not cases:
        raise RuntimeError(f"warpwright: bench: suite {suite} has no case with this combination of --op and --dtype")
    with progress() as bar:
        task = bar.add_task("bench", total=sum(2 if case.backward else 1 for case in cases))

        def step(what: str) -> None:
            bar.update(task, description=what)
            bar.advance(task)

        rows = run(cases, device=device, providers=provider or PROVIDERS, seconds=seconds, on_step=step)
    failures = [row for row in rows if row.provider == "warpwright" and row.failure is not None]
    if json:
        info = warpwright.info().as_dict()
        print_json({"ok": not failures, "suite": suite, "info": info, "rows": [row.as_dict() for row in rows]})
    else:
        show(rows)
    if failures:
        raise typer.Exit(1)


def show(rows: Rows) -> None:
    """The rows as a table."""
    table = Table(title="seconds are medians; x is the baseline's time / this time", title_justify="left")
    for name in ("op", "case", "dtype", "direction", "provider"):
        table.add_column(name)
    for name in ("us", "p20-p80", "GB/s", "TFLOP/s", "x", "error"):
        table.add_column(name, justify="right")
    for row in rows:
        what = (row.op, row.case, row.dtype, row.direction, row.provider)
        if row.p50 is None or row.p20 is None or row.p80 is None:
            table.add_row(*what, "-", "-", "-", "-", "-", f"[red]{row.failure}[/]")
            continue
        spread = f"{row.p20 * 1e6:.1f}-{row.p80 * 1e6:.1f}"
        numbers = [f"{v:{f}}" if v is not None else "" for v, f in (
            (row.gbytes, ".1f"), (row.tflops, ".3f"), (row.ratio, ".2f"), (row.error, ".2f"))]  # fmt: skip
        table.add_row(*what, f"{row.p50 * 1e6:.1f}", spread, *numbers)
    stdout().print(table)


def register(app: typer.Typer) -> None:
    app.command("bench", epilog=EPILOG)(bench)
