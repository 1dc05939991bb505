"""`warpwright check`: every op's samples on every backend of this machine, against float64."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

import warpwright
from warpwright._info import BackendState, backend_states
from warpwright.cli._output import JsonOption, interpret_triton_without_gpu, print_json, progress, stdout

if TYPE_CHECKING:
    from warpwright.testing.check import Result

EPILOG = (
    "Examples:\n\n"
    "  warpwright check\n\n"
    "  warpwright check --backend native --op linear --op conv2d\n\n"
    "  warpwright check --device cuda --dtype bfloat16 --json > check.json"
)
BACKENDS = ("native", "triton", "reference")
DEVICES = ("cpu", "cuda")


def check(
    backend: Annotated[
        list[str] | None, typer.Option(help=f"Only this backend ({', '.join(BACKENDS)}); may be repeated.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Only this dtype (float32, float16, ...); may be repeated.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help=f"Only this device ({', '.join(DEVICES)}); may be repeated.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run every op on every backend of this machine, forward and backward, and compare with float64.

    Errors are at most twice those of PyTorch's own op in the same dtype, and bad inputs meet the promised errors, or
    the exit code is 1. Without a GPU, Triton kernels are interpreted on the CPU.
    """
    interpret_triton_without_gpu()
    from warpwright.testing import SPECS  # After the line above: Triton reads its setting when it is imported.
    from warpwright.testing.check import plan, run

    _known("op", op, sorted(SPECS))
    names = sorted({str(d).removeprefix("torch.") for spec in SPECS.values() for d in spec.dtypes})
    _known("dtype", dtype, names)
    states, unavailable = _states(backend, device)
    cases = plan(states, op, None if dtype is None else [getattr(torch, name) for name in dtype])
    if not cases:
        raise RuntimeError("warpwright: check: no op takes this combination of --op and --dtype")
    results = []
    with progress() as bar:
        task = bar.add_task("check", total=len(cases))
        for case in cases:
            bar.update(task, description=f"{case.spec.name} {case.state.name}")
            results.append(run(case))
            bar.advance(task)
    failures = sum(len(result.failures) for result in results)
    if json:
        print_json(_report(results, unavailable, failures))
    else:
        _show(results, unavailable, failures)
    if failures:
        raise typer.Exit(1)


def _known(option: str, values: list[str] | None, known: list[str] | tuple[str, ...]) -> None:
    for value in values or []:
        if value not in known:
            raise RuntimeError(f"warpwright: check: --{option} must be one of {', '.join(known)}, got {value!r}")


def _states(backend: list[str] | None, device: list[str] | None) -> tuple[list[BackendState], dict[str, str]]:
    """What to run, and what was left out: name -> reason. Raises when nothing that was asked for can run."""
    _known("backend", backend, BACKENDS)
    _known("device", device, DEVICES)
    wanted = [
        state
        for state in backend_states()
        if (not backend or state.backend in backend) and (not device or state.device in device)
    ]
    unavailable = {state.name: state.missing for state in wanted if state.missing is not None}
    found = [state for state in wanted if state.missing is None]
    for name in backend or []:
        if not any(state.backend == name for state in found):
            reasons = "; ".join(f"{state.name}: {state.missing}" for state in wanted if state.backend == name)
            raise RuntimeError(f"warpwright: check: {name} cannot run here: {reasons}")
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
        raise RuntimeError(f"warpwright: check: nothing to run: {reasons}")
    return found, unavailable


def _report(results: list[Result], unavailable: dict[str, str], failures: int) -> dict[str, object]:
    info = warpwright.info()
    return {
        "ok": failures == 0,
        "failures": failures,
        "samples": sum(result.samples for result in results),
        "warpwright": info.version,
        "torch": info.torch,
        "triton": info.triton,
        "gpus": [gpu["name"] for gpu in info.gpus],
        "cpu": info.cpu,
        "results": [asdict(result) for result in results],
        "unavailable": unavailable,
    }


def _show(results: list[Result], unavailable: dict[str, str], failures: int) -> None:
    console = stdout()
    backends = list(dict.fromkeys(result.backend for result in results))
    table = Table(title="largest error / allowed error (1 is the limit)", title_justify="left")
    table.add_column("op")
    table.add_column("dtype")
    for name in backends:
        table.add_column(name, justify="right")
    cells = {(result.op, result.dtype, result.backend): result for result in results}
    previous = None
    for op, dtype in dict.fromkeys((result.op, result.dtype) for result in results):
        row = [_cell(cells.get((op, dtype, name))) for name in backends]
        table.add_row("" if op == previous else op, dtype, *row)
        previous = op
    console.print(table)
    for result in results:
        for failure in result.failures:
            console.print(f"[red]FAILED[/] {result.op} {result.backend} {result.dtype}: {escape(failure)}")
    for name, reason in unavailable.items():
        console.print(f"not run: {name}: {escape(reason)}")
    samples = sum(result.samples for result in results)
    bad = sum(result.bad_inputs for result in results)
    ops = len({result.op for result in results})
    verdict = f"[red]{failures} failures[/]" if failures else "[green]no failures[/]"
    console.print(f"{samples} samples and {bad} bad inputs of {ops} ops on {len(backends)} backends: {verdict}")


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    text = f"{result.worst_ratio:.2f}"
    return f"[red]FAILED {text}[/]" if result.failures else text


def register(app: typer.Typer) -> None:
    app.command("check", epilog=EPILOG)(check)
