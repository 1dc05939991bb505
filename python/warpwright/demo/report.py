"""The demo's report: one HTML page that needs nothing else, and the same facts as JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

from warpwright.bench.report.style import DIRECTIONS, FOLDER, looks


def _picture(figure: Any) -> str:
    """A figure as a data: address."""
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _curves(training: dict[str, Any]) -> str:
    """Both loss curves of one task."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    styles = looks(("torch", "warpwright"))
    for name, style in (("torch", "-"), ("warpwright", "--")):
        axes.plot(training["losses"][name], style, color=styles[name].colour, label=name, linewidth=1.4)
    axes.set(xlabel="step", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _picture(figure)


def _speed_ups(rows: list[dict[str, Any]], direction: str) -> str | None:
    """Bars: the baseline's time over each provider's, one group a case; None without rows."""
    import matplotlib.pyplot as plt

    chosen = [r for r in rows if r["direction"] == direction and r["ratio"] and r["provider"] != "torch"]
    if not chosen:
        return None
    cases = list(dict.fromkeys((r["op"], r["dtype"], r["case"]) for r in chosen))
    providers = list(dict.fromkeys(r["provider"] for r in chosen))
    styles = looks(providers)
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.42 * len(cases)))
    height = 0.8 / len(providers)
    for k, provider in enumerate(providers):
        found = {(r["op"], r["dtype"], r["case"]): r["ratio"] for r in chosen if r["provider"] == provider}
        places = [i + (k - (len(providers) - 1) / 2) * height for i in range(len(cases))]
        values = [found.get(case, 0.0) for case in cases]
        bars = axes.barh(places, values, height, color=styles[provider].colour, label=f"{provider} vs torch")
        axes.bar_label(bars, [f"{v:.2f}" if v else "" for v in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(cases)), [f"{op} {dtype}" for op, dtype, _ in cases], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=1)
    axes.set(xlabel="times as fast as eager PyTorch", title=DIRECTIONS[direction])
    axes.legend(frameon=False, fontsize=8)
    return _picture(figure)


def _plain(value: Any) -> Any:
    """NaN and infinities, which JSON lacks, as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_report(summary: dict[str, Any], folder: Path) -> Path:
    """Writes index.html and summary.json into `folder`, and returns the page's path.

    `summary` is what `warpwright demo --json` prints: info, check, training, bench, host, ok, seconds.
    """
    import jinja2
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(_plain(summary), indent=1, allow_nan=False) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader((Path(__file__).parent, FOLDER)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    bars = [_speed_ups(summary["bench"], direction) for direction in DIRECTIONS]
    page = environment.get_template("report.html.j2").render(
        s=summary,
        curves={training["task"]: _curves(training) for training in summary["training"]},
        bars=[bar for bar in bars if bar is not None],
    )
    path = folder / "index.html"
    path.write_text(page)
    return path
