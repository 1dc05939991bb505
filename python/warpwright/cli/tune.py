"""`warpwright tune`: finds the fastest configurations of kernels for this GPU and saves them where every call looks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from warpwright.cli._output import JsonOption, print_json, progress, stdout

if TYPE_CHECKING:
    from warpwright.bench.case import Case
    from warpwright.tuning.search import Options
    from warpwright.tuning.tables import Entry, Problem, Store

EPILOG = (
    "Examples:\n\n"
    "  warpwright tune\n\n"
    "  warpwright tune --op linear --dtype bfloat16 --suite my_shapes.yaml --budget 3600\n\n"
    "  warpwright tune --backend native --dry-run\n\n"
    "  warpwright tune --list"
)
INTERPRETED_NOTE = "kernels are interpreted on the CPU: these times mean nothing, and are used only where that is so"


def tune(
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    suite: Annotated[str, typer.Option(help="A suite of `warpwright bench`, or a YAML file of your shapes.")] = "quick",
    dtype: Annotated[list[str] | None, typer.Option(help="Only this dtype; may be repeated.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="native (C++ kernels of products and convolutions) or triton; both where they can run, unless given."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, or cpu with TRITON_INTERPRET=1.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds; the next start goes on from there.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.001, help="For each of the best configurations; a tenth of it for each in the first pass."),
    ] = 0.3,
    show: Annotated[bool, typer.Option("--list", help="Show what is tuned, and what is out of date.")] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove this GPU's table and unfinished searches, or a --backend's part.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be tried; time and save nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Search the kernels' configurations for a suite's shapes and save the winners for this GPU.

    Tiles, warps and stages of Triton kernels; of the C++ kernels' matrix products and convolutions kernel, tile and
    splits of the sum.
    A configuration is saved only if its results are right and it beats the default by more than the measured spread.
    Ctrl-C stops at any time without losing what was measured; the next start goes on from there. Tables lie in
    WARPWRIGHT_TUNING_DIR, or the platform's folder for a user's data.
    """
    if show:
        _list(json)
        return
    from warpwright.tuning.search import gpu_of
    from warpwright.tuning.tables import Store

    where = torch.device("cpu") if backend == "emulated" else _device(device)
    backends = _backends(backend, where)
    store = Store(gpu_of(where, backends[0]))
    if clear:
        _clear(store, backend, json)
        return
    store.entries()  # A damaged table ends the command here, not after hours.
    cases = _cases(suite, where, op, dtype, backends)
    if where.type == "cpu":
        typer.echo(f"warpwright: tune: {INTERPRETED_NOTE}", err=True)
    if dry_run:
        _dry_run(cases, _options(where, seconds, budget), store, json)
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


def _backends(name: str | None, device: torch.device) -> list[str]:
    """Those whose kernels are tuned."""
    from warpwright.tuning.search import missing

    known = ("native", "triton")
    if name not in (None, "emulated", *known):
        raise RuntimeError(f"warpwright: tune: --backend must be one of {', '.join(known)}, got {name!r}")
    wanted = known if name is None else (name,)
    reasons = {backend: missing(backend) for backend in wanted}
    found = [backend for backend, reason in reasons.items() if reason is None]
    if name is None and device.type == "cpu" and len(found) > 1:
        found.remove("native")  # On a machine with a GPU that --device leaves out.
    if not found:
        why = "; triton: ".join(str(reason) for reason in reasons.values())
        raise RuntimeError(f"warpwright: tune: nothing can be tuned: {why}")
    return found


def _cases(
    suite: str, device: torch.device, op: list[str] | None, dtype: list[str] | None, backends: list[str]
) -> list[tuple[str, Case]]:
    """(backend, case) of each case that has tunable kernels there."""
    from warpwright.tuning.search import tunable_ops

    known = ", ".join(names := dict.fromkeys(name for backend in backends for name in tunable_ops(backend)))
    for name in op or []:
        if name not in names:
            raise RuntimeError(f"warpwright: tune: --op must be one of {known}, got {name!r}")
    import warpwright.bench.operators  # noqa: F401  (fills OPERATORS)
    from warpwright.bench.suite import load_suite, select

    selected = select(load_suite(suite, device.type), op, dtype, None)
    cases = [(backend, case) for backend in backends for case in selected if case.op in tunable_ops(backend)]
    if not cases:
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


def _search(cases: list[tuple[str, Case]], store: Store, options: Options) -> _Outcome:
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
            for backend, case in cases:
                name = f"{case.op} {case.label} {case.dtype_name}, {backend}"
                bar.update(overall, description=name)
                try:
                    for entry in search(case, store, replace(options, backend=backend), show):
                        found.tuned.append(entry)
                    found.finished += 1
                except RuntimeError as error:
                    found.failures[name] = " ".join(str(error).split())
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
    for name in ("backend", "kernel", "dtype", "sizes", "layout", "configuration"):
        table.add_column(name)
    for name in ("us", "default us", "gain", "tried", "failed", "wrong"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for entry, state in entries:
        problem = entry.problem
        sizes = " ".join(f"{name}={size}" for name, size in problem.sizes)
        us = [f"{value * 1e6:.2f}" for value in (entry.seconds, entry.default_seconds)]
        counts = [str(count) for count in (entry.candidates, entry.failed, entry.wrong)]
        what = (problem.backend, problem.kernel, problem.dtype, sizes, problem.layout, _config(entry))
        table.add_row(*map(escape, what), *us, f"{entry.gain:.2f}x", *counts, state)
    return table


def _config(entry: Entry) -> str:
    if entry.config is None:
        return "default"
    if entry.problem.backend != "triton":
        from warpwright.tuning.products import text_of

        return text_of(entry.config)
    return " ".join(f"{name}={value}" for name, value in entry.config.items())


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
    from warpwright.tuning.search import unused

    reason = unused(problem, entry)
    return "in use" if reason is None else f"not used: {reason}"


def _clear(store: Store, backend: str | None, json: bool) -> None:
    from warpwright.tuning import reload

    removed = store.clear(backend)
    reload()
    if json:
        print_json({"removed": [str(path) for path in removed]})
        return
    console = stdout()
    for path in removed:
        console.print(f"removed {path}" if backend is None else f"removed {backend} from {path}", soft_wrap=True)
    if not removed:
        console.print(f"nothing to remove for {store.gpu}")


def _dry_run(cases: list[tuple[str, Case]], options: Options, store: Store, json: bool) -> None:
    from warpwright.tuning.search import is_tuned, problems_of, sources_of

    entries = store.entries()
    planned: dict[Problem, tuple[int, bool]] = {}
    for backend, case in cases:
        for problem, configs in problems_of(case, replace(options, backend=backend)).items():
            planned.setdefault(problem, (len(configs), is_tuned(problem, sources_of(problem), entries)))
    if json:
        plan = [
            {"backend": problem.backend, "problem": str(problem), "configurations": count, "tuned": done}
            for problem, (count, done) in planned.items()
        ]
        print_json({"gpu": store.gpu, "table": str(store.table), "problems": plan})
        return
    table = Table(title=f"what would be tried on {escape(store.gpu)}", title_justify="left")
    table.add_column("backend")
    table.add_column("launch")
    table.add_column("configurations", justify="right")
    table.add_column("state")
    for problem, (count, done) in planned.items():
        table.add_row(problem.backend, escape(str(problem)), str(count), "tuned" if done else "open")
    stdout().print(table)


def register(app: typer.Typer) -> None:
    app.command("tune", epilog=EPILOG)(tune)
