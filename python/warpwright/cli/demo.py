"""`warpwright demo`: checks, trains and measures here, and writes a report."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import warpwright
from warpwright._info import backend_states
from warpwright.cli._output import JsonOption, interpret_triton_without_gpu, print_json, progress

EPILOG = (
    "Examples:\n\n  warpwright demo\n\n  warpwright demo --out /tmp/report --device cpu\n\n"
    "  warpwright demo --steps 20 --bench-seconds 0.05 --json"
)
#: Triton's interpreter would take most of the time: here so many samples in one dtype of each op, in `warpwright check`
#: all of them.
INTERPRETED, INTERPRETED_SAMPLES = "triton-interpreted", 4
_NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html and summary.json.")] = Path("warpwright-report"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is a GPU.")] = None,
    steps: Annotated[int | None, typer.Option(min=10, help="Training steps of each task.")] = None,
    bench_seconds: Annotated[float, typer.Option(min=0.01, help="Time for each provider of each case.")] = 0.15,
    compile: Annotated[bool, typer.Option(help="Measure torch.compile too.")] = True,
    json: JsonOption = False,
) -> None:
    """Check every op, train a ResNet and a GPT with torch's layers and with warpwright's, measure, write a report.

    The exit code is 1 when an op is wrong or the two trainings do not agree.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RuntimeError(f"warpwright: demo: needs {', '.join(missing)} (pip install 'warpwright[bench]')")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"warpwright: demo: --device must be cpu, or cuda where torch sees a GPU, got {device!r}")
    start = time.perf_counter()
    say = (lambda text: None) if json else typer.echo
    info = warpwright.info()
    say(f"{info}\n")
    summary: dict[str, Any] = {"device": device, "info": info.as_dict(), "info_text": str(info)}
    summary["check"] = _check()
    say(f"check: {summary['check']['samples']} calls against float64, {summary['check']['failures']} wrong")
    summary["training"] = _train(torch.device(device), steps)
    for t in summary["training"]:
        a, s = t["accuracy"], t["seconds"]
        say(
            f"{t['task']}: accuracy {a['torch']:.3f} with torch, {a['warpwright']:.3f} with warpwright; "
            f"step {s['torch'] * 1e3:.1f} ms and {s['warpwright'] * 1e3:.1f} ms; "
            f"largest gap of the loss curves {t['largest_gap']:.2%} of the first loss: "
            f"{'they agree' if t['agree'] else 'THEY DIFFER'}"
        )
    summary["bench"], summary["host"] = _bench(device, bench_seconds, compile)
    wrong = [r for r in summary["bench"] + summary["host"] if r["provider"] == "warpwright" and r["status"] != "timed"]
    agree = all(t["agree"] and not t["fallbacks"] for t in summary["training"])
    summary["ok"] = agree and not wrong and not summary["check"]["failures"]
    summary["seconds"] = time.perf_counter() - start
    from warpwright.demo import write_report

    page = write_report(summary, out)
    if json:
        print_json(summary)
    else:
        _say_speed(summary["bench"])
        say(f"report: {page} ({summary['seconds']:.0f} s)")
    if not summary["ok"]:
        raise typer.Exit(1)


def _check() -> dict[str, Any]:
    interpret_triton_without_gpu()
    from warpwright.testing.check import plan, run

    planned = plan([state for state in backend_states() if state.missing is None])
    cases = [c for c in planned if c.state.name != INTERPRETED or c.dtype == c.spec.dtypes[0]]
    results = []
    with progress() as bar:
        task = bar.add_task("check", total=len(cases))
        for case in cases:
            bar.update(task, description=f"check {case.spec.name} {case.state.name}")
            results.append(run(case, INTERPRETED_SAMPLES if case.state.name == INTERPRETED else None))
            bar.advance(task)
    return {
        "samples": sum(r.samples for r in results),
        "failures": sum(len(r.failures) for r in results),
        "results": [asdict(r) for r in results],
    }


def _train(device: torch.device, steps: int | None) -> list[dict[str, Any]]:
    from warpwright.demo import TASKS, train_both

    found = []
    with progress() as bar:
        for task in TASKS:
            line = bar.add_task(f"train {task.name}", total=task.steps if steps is None else steps)
            found.append(asdict(train_both(task, device, steps, lambda line=line: bar.advance(line))))  # type: ignore[misc]
    return found


def _bench(device: str, seconds: float, compile: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from warpwright.bench import collect, load_suite, run, steps

    quick, host = load_suite("quick", device), load_suite("host", device)
    providers = ("torch", "compile", "warpwright") if compile else ("torch", "warpwright")
    with progress() as bar:
        task = bar.add_task("bench", total=steps(quick) + steps(host, ceilings=False))

        def step(what: str) -> None:
            bar.update(task, description=f"bench {what}")
            bar.advance(task)

        rows = collect(run(quick, device=device, providers=providers, seconds=seconds, on_step=step)).rows
        tiny = collect(
            run(host, device=device, providers=("torch", "warpwright"), seconds=seconds, ceilings=False, on_step=step)
        ).rows
    return [row.as_dict() for row in rows], [row.as_dict() for row in tiny]


def _say_speed(rows: list[dict[str, Any]]) -> None:
    """Geometric means over the quick suite, the only figure that one line can hold."""
    for direction in ("forward", "both"):
        ratios = [
            r["ratio"] for r in rows if r["direction"] == direction and r["provider"] == "warpwright" and r["ratio"]
        ]
        if ratios:
            mean = torch.tensor(ratios, dtype=torch.float64).log().mean().exp().item()
            typer.echo(f"bench: {direction}: {mean:.2f} times eager PyTorch (geometric mean of {len(ratios)} cases)")


def register(app: typer.Typer) -> None:
    app.command("demo", epilog=EPILOG)(demo)
