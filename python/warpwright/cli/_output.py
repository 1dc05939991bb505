"""What the commands print with: one JSON object on stdout, tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import math
import os
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: The option that every command has.
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout; infinities and NaN, which JSON lacks, become the strings "inf", "-inf" and "nan"."""
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def stdout() -> Console:
    """For tables. Wide enough to keep rows whole when the output is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def progress() -> Progress:
    """A progress bar with the time left on stderr, silent when that is a file.

    `with progress() as bar: bar.add_task(name, total=n)`.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def interpret_triton_without_gpu() -> None:
    """Lets Triton kernels run on the CPU where there is no GPU; Triton reads the variable when it is imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
