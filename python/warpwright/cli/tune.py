"""`warpwright tune`: finds the fastest tile configurations for this GPU and saves them where every call looks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from warpwright._backend import triton_missing
from warpwright.cli._output import JsonOption, print_json, progress, stdout

if TYPE_CHECKING:
    from warpwright.bench.case import Case
    from warpwright.tuning.search import Options
    from warpwright.tuning.tables import Config, Entry, Problem, Store

EPILOG = (
    "Examples:\n\n"
    "  warpwright tune\n\n"
    "  warpwright tune --op linear --dtype bfloat16 --suite my_shapes.yaml --budget 3600\n\n"
    "  warpwright tune --list"
)
INTERPRETED_NOTE = "kernels are interpreted on the CPU: these times mean nothing, and are used only where that is so"


def tune(
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    suite: Annotated[str, typer.Option(help="A suite of `warpwright bench`, or a YAML file of your shapes.")] = "quick",
    dtype: Annotated[list[str] | None, typer.Option(help="Only this dtype; may be repeated.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, or cpu with TRITON_INTERPRET=1.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds; the next start goes on from there.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.001, help="For each of the best configurations; a tenth of it for each in the first pass."),
    ] = 0.3,
    show: Annotated[bool, typer.Option("--list", help="Show what is tuned, and what is out of date.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove this GPU's table and unfinished searches.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be tried; time and save nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Search tile configurations for a suite's shapes and save the winners for this GPU.

    A configuration is saved only if its results are right and it beats the default by more than the measured spread.
    Ctrl-C stops at any time without losing what was measured; the next start goes on from there. Tables lie in
    WARPWRIGHT_TUNING_DIR, or the platform's folder for a user's data.
    """
    if show:
        _list(json)
        return
    missing = triton_missing()
    if missing is not None:
        raise RuntimeError(f"warpwright: tune: nothing can be tuned: {missing}")
    from warpwright.tuning.search import gpu_of
    from warpwright.tuning.tables import Store

    where = _device(device)
    store = Store(gpu_of(where))
    if clear:
        _clear(store, json)
        return
    store.entries()  # A damaged table ends the command here, not after hours.
    cases = _cases(suite, where, op, dtype)
    if where.type == "cpu":
        typer.echo(f"warpwright: tune: {INTERPRETED_NOTE}", err=True)
    if dry_run:
        _dry_run(cases, where, store, json)
        return
    report = _search(cases, store, _options(where, seconds, budget))
    _report(report, store, json)
    if report.stopped == "interrupted":
        raise typer.Exit(130)  # What shells expect after Ctrl-C.
    if report.failures:
        raise typer.Exit(1)


def _device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise RuntimeError(f"warpwright: tune: --device must be one of cpu, cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("warpwright: tune: --device cuda: torch sees no CUDA GPU")
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu")


def _cases(suite: str, device: torch.device, op: list[str] | None, dtype: list[str] | None) -> list[Case]:
    from warpwright.tuning.launches import TUNABLE_OPS

    for name in op or []:
        if name not in TUNABLE_OPS:
            raise RuntimeError(f"warpwright: tune: --op must be one of {', '.join(TUNABLE_OPS)}, got {name!r}")
    import warpwright.bench.operators  # noqa: F401  (fills OPERATORS)
    from warpwright.bench.suite import load_suite, select
    from warpwright.tuning.search import tunable_cases

    cases = tunable_cases(select(load_suite(suite, device.type), op, dtype, None))
    if not cases:
        known = ", ".join(TUNABLE_OPS)
        raise RuntimeError(
            f"warpwright: tune: suite {suite} has no case of {known} with this combination of --op and --dtype"
        )
    return cases


def _options(device: torch.device, seconds: float, budget: float | None) -> Options:
    from warpwright.tuning.search import Options

    deadline = float("inf") if budget is None else time.monotonic() + budget
    return Options(device, seconds=seconds, deadline=deadline)


# ---- searching ----


class _Outcome:
    """What a run of the command came to."""

    def __init__(self, cases: int) -> None:
        self.cases = cases
        self.finished = 0
        self.tuned: list[Entry] = []
        self.failures: dict[str, str] = {}
        self.stopped: str | None = None


def _search(cases: list[Case], store: Store, options: Options) -> _Outcome:
    from warpwright.tuning.search import OutOfTime, Step
    from warpwright.tuning.search import tune as search

    found = _Outcome(len(cases))
    with progress() as bar:
        overall = bar.add_task("cases", total=len(cases))
        current = bar.add_task("", total=None)

        def show(step: Step) -> None:
            best = "" if step.best is None else f", best {1 / step.best:.2f}x"
            bar.update(current, description=f"{step.problem}{best}", completed=step.done, total=step.total)

        try:
            for case in cases:
                bar.update(overall, description=f"{case.op} {case.label} {case.dtype_name}")
                try:
                    for entry in search(case, store, options, show):
                        found.tuned.append(entry)
                    found.finished += 1
                except RuntimeError as error:
                    found.failures[f"{case.op} {case.label} {case.dtype_name}"] = " ".join(str(error).split())
                bar.advance(overall)
        except KeyboardInterrupt:
            found.stopped = "interrupted"
        except OutOfTime:
            found.stopped = "budget"
    return found


def _report(found: _Outcome, store: Store, json: bool) -> None:
    if json:
        print_json(
            {
                "ok": not found.failures,
                "gpu": store.gpu,
                "table": str(store.table),
                "cases": found.cases,
                "finished": found.finished,
                "stopped": found.stopped,
                "tuned": [entry.as_dict() | {"gain": entry.gain} for entry in found.tuned],
                "failures": found.failures,
            }
        )
        return
    console = stdout()
    if found.tuned:
        console.print(_table(f"tuned for {store.gpu}", [(entry, "new") for entry in found.tuned]))
    for case, reason in found.failures.items():
        console.print(f"[red]FAILED[/] {escape(case)}: {escape(reason)}")
    stopped = {None: "", "interrupted": "; stopped", "budget": "; the budget is spent"}[found.stopped]
    more = "" if found.stopped is None else ": start again to go on"
    faster = sum(entry.config is not None for entry in found.tuned)
    console.print(
        f"{found.finished} of {found.cases} cases finished{stopped}{more}; {len(found.tuned)} launches tuned now, "
        f"{faster} of them faster than the default; saved in {store.table}",
        soft_wrap=True,
    )


def _table(title: str, entries: list[tuple[Entry, str]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for name in ("kernel", "dtype", "sizes", "layout", "configuration"):
        table.add_column(name)
    for name in ("us", "default us", "gain", "tried", "failed", "wrong"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for entry, state in entries:
        problem = entry.problem
        sizes = " ".join(f"{name}={size}" for name, size in problem.sizes)
        us = [f"{value * 1e6:.2f}" for value in (entry.seconds, entry.default_seconds)]
        counts = [str(count) for count in (entry.candidates, entry.failed, entry.wrong)]
        what = (problem.kernel, problem.dtype, sizes, problem.layout, _config(entry.config))
        table.add_row(*map(escape, what), *us, f"{entry.gain:.2f}x", *counts, state)
    return table


def _config(config: Config | None) -> str:
    return "default" if config is None else " ".join(f"{name}={value}" for name, value in config.items())


# ---- showing and clearing ----


def _list(json: bool) -> None:
    from warpwright.tuning import tables

    groups: dict[Path, list[tuple[Entry, str]]] = {}
    for path in [*tables.tables_of_user(), *sorted(tables.SHIPPED.glob("*.json"))]:
        groups[path] = [(entry, _state(problem, entry)) for problem, entry in tables.read_table(path).items()]
    if json:
        listed: dict[str, Any] = {
            str(path): [entry.as_dict() | {"gain": entry.gain, "state": state} for entry, state in entries]
            for path, entries in groups.items()
        }
        print_json({"folder": str(tables.folder()), "tables": listed})
        return
    console = stdout()
    for path, entries in groups.items():
        console.print(_table(str(path), entries))
    if not groups:
        console.print(f"nothing is tuned: there is no table in {tables.folder()}", soft_wrap=True)


def _state(problem: Problem, entry: Entry) -> str:
    from warpwright.tuning.launches import load_kernels

    tunable = load_kernels().get(problem.kernel)
    if tunable is None or tunable.backend != problem.backend:
        return "not used: no such kernel"
    return "in use" if entry.sources == tunable.sources else "not used: the kernel's source has changed"


def _clear(store: Store, json: bool) -> None:
    from warpwright.tuning import reload

    removed = store.clear()
    reload()
    if json:
        print_json({"removed": [str(path) for path in removed]})
        return
    console = stdout()
    for path in removed:
        console.print(f"removed {path}", soft_wrap=True)
    if not removed:
        console.print(f"nothing to remove for {store.gpu}")


def _dry_run(cases: list[Case], device: torch.device, store: Store, json: bool) -> None:
    from warpwright.tuning.launches import load_kernels
    from warpwright.tuning.search import is_tuned, problems_of

    entries, kernels = store.entries(), load_kernels()
    planned: dict[Problem, tuple[int, bool]] = {}
    for case in cases:
        for problem, configs in problems_of(case, device).items():
            planned.setdefault(problem, (len(configs), is_tuned(problem, kernels[problem.kernel].sources, entries)))
    rows = [(str(problem), count, done) for problem, (count, done) in planned.items()]
    if json:
        plan = [{"problem": text, "configurations": count, "tuned": done} for text, count, done in rows]
        print_json({"gpu": store.gpu, "table": str(store.table), "problems": plan})
        return
    table = Table(title=f"what would be tried on {escape(store.gpu)}", title_justify="left")
    table.add_column("launch")
    table.add_column("configurations", justify="right")
    table.add_column("state")
    for text, count, done in rows:
        table.add_row(escape(text), str(count), "tuned" if done else "open")
    stdout().print(table)


def register(app: typer.Typer) -> None:
    app.command("tune", epilog=EPILOG)(tune)
