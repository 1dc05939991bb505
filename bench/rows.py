"""What a run leaves behind: its environment, its ceilings and a row for each provider of each case, as JSON Lines.

A file is a list of records, one a line, each with its `kind`:

    {"kind": "environment", ...}   where everything below it was measured, until the next one
    {"kind": "ceiling", ...}       what this machine reached in this run: copy bandwidth, matrix products
    {"kind": "row", ...}           one provider on one case in one direction

Lines are written as soon as they are measured, so that an interrupted run can go on where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from warpwright._files import FileError, check_fields, read_json_lines

#: What can be timed. "backward" keeps the graph of a forward pass made before; "both" is a forward and a backward pass.
DIRECTIONS = ("forward", "backward", "both")

#: timed; wrong (its result is, so it was not timed); failed (it raised); missing (not installed, or has no such op).
STATUSES = ("timed", "wrong", "failed", "missing")


@dataclass(frozen=True)
class Row:
    """One provider on one case in one direction.

    Attributes:
        suite, op, case, dtype, direction, provider, device: what was measured; `case` is its label, such as
            "8192 x 4096"; device is "cpu" or "cuda".
        parameters: the numbers behind the label, such as {"rows": 8192, "width": 4096}.
        status: one of STATUSES; only "timed" rows have times.
        reason: why it was not timed, or None.
        p20, p50, p80: seconds of a call, over `repeats` means of `calls` calls each.
        low, high: 95% confidence interval of p50.
        clock: "host" (CPU), "events" (CUDA events behind a backlog) or "graph" (replays of a CUDA graph).
        settled: whether times stood still after the warm-up and their spread fell to what was asked for; False where
            time ran out first.
        host: seconds of the CPU's work for a call; on the CPU that is the call itself, and None.
        peak_memory: bytes that a call takes at most beside its inputs; None where that was not measured.
        loss: of a training step: the loss after a fixed number of steps from the same parameters, on the same batch;
            peak_memory is then all that training takes. None for ops.
        flops, bytes: the least work of a call: floating-point operations, and bytes with each input read once and each
            output written once.
        bound: "compute" or "memory": which ceiling limits that work.
        ceiling: share of the measured ceiling that was reached: 1 is all of it.
        ratio: the baseline's time / this time, above 1 is faster; the median over repeats, each of which timed both.
        ratio_low, ratio_high: 95% confidence interval of `ratio`.
        error: largest error / allowed error against float64: 1 is the limit. None where PyTorch's own error sets it.
        checked: the case that was compared with float64, where it had to be smaller than the one timed.
        sources: hash of the kernel's source files, or None where they are not ours.
    """

    suite: str
    op: str
    case: str
    dtype: str
    direction: str
    provider: str
    device: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    status: str = "timed"
    reason: str | None = None
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    low: float | None = None
    high: float | None = None
    repeats: int = 0
    calls: int = 0
    clock: str | None = None
    settled: bool | None = None
    host: float | None = None
    peak_memory: int | None = None
    loss: float | None = None
    flops: int | None = None
    bytes: int | None = None
    bound: str | None = None
    ceiling: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    error: float | None = None
    checked: str | None = None
    sources: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What makes rows of two runs the same measurement."""
        return (self.suite, self.op, self.case, self.dtype, self.direction, self.provider, self.device)

    @property
    def group(self) -> tuple[str, ...]:
        """`key` without the provider: the rows that stand beside each other."""
        return (self.suite, self.op, self.case, self.dtype, self.direction, self.device)

    @property
    def tflops(self) -> float | None:
        """TFLOP/s of the least work."""
        return self.flops / self.p50 / 1e12 if self.p50 and self.flops else None

    @property
    def gbytes(self) -> float | None:
        """GB/s of the least work."""
        return self.bytes / self.p50 / 1e9 if self.p50 and self.bytes else None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the derived columns."""
        return asdict(self) | {"tflops": self.tflops, "gbytes": self.gbytes}


@dataclass(frozen=True)
class Ceiling:
    """What this machine reached in this run.

    Attributes:
        name: "copy", or "matmul" for a large matrix product.
        dtype: of the product; the copy's bytes have none ("").
        value: bytes/s, read and written, or FLOP/s.
        what: the size that was measured, in words.
        device: "cpu" or "cuda".
    """

    name: str
    dtype: str
    value: float
    what: str
    device: str


@dataclass
class Results:
    """One run, or several one after the other.

    Attributes:
        rows: in the order in which they were measured.
        ceilings: of all environments.
        environments: see bench/environment.py; at least one in every file.
        environment_of: for each row the index of its environment.
    """

    rows: list[Row] = field(default_factory=list)
    ceilings: list[Ceiling] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    environment_of: list[int] = field(default_factory=list)

    def add(self, record: Row | Ceiling | dict[str, Any]) -> None:
        """Takes what `run` yields: an environment (a dict), a ceiling or a row."""
        if isinstance(record, Row):
            self.rows.append(record)
            self.environment_of.append(len(self.environments) - 1)
        elif isinstance(record, Ceiling):
            self.ceilings.append(record)
        else:
            self.environments.append(record)

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            what = f"{row.op:<18} {row.case:<34} {row.dtype:<9} {row.direction:<9} {row.provider:<18}"
            ratio = "" if row.ratio is None else f" {row.ratio:6.2f}x"
            lines.append(f"{what} {row.reason}" if row.p50 is None else f"{what} {row.p50 * 1e6:10.1f} us{ratio}")
        return "\n".join(lines)


def write_record(file: TextIO, record: Row | Ceiling | dict[str, Any]) -> None:
    """One line of a JSON Lines file."""
    kind = "row" if isinstance(record, Row) else "ceiling" if isinstance(record, Ceiling) else "environment"
    value = record if isinstance(record, dict) else record.as_dict() if isinstance(record, Row) else asdict(record)
    # JSON has no infinities: an infinite error is written as the text "inf".
    plain = {k: str(v) if isinstance(v, float) and (v != v or v in (float("inf"), float("-inf"))) else v
             for k, v in value.items()}  # fmt: skip
    file.write(json.dumps({"kind": kind, **plain}, allow_nan=False) + "\n")
    file.flush()


def read_results(path: str | Path) -> Results:
    """The results in a .jsonl file.

    Raises:
        warpwright._files.FileError: naming the line and what is wrong with it.
    """
    found = Results()
    for number, record in enumerate(read_json_lines(path), start=1):
        where = f"line {number}"
        kind = record.get("kind") if isinstance(record, dict) else None
        body = {k: v for k, v in record.items() if k != "kind"} if isinstance(record, dict) else record
        if kind == "row":
            found.add(_row(path, body, where))
        elif kind == "ceiling":
            known = {"name": str, "dtype": str, "value": float, "what": str, "device": str}
            found.add(Ceiling(**check_fields(path, body, known, where=where)))
        elif kind == "environment":
            found.add(body)
        else:
            raise FileError(f"warpwright: {path}: {where} has no kind of row, ceiling or environment")
        if not found.environments:
            raise FileError(f"warpwright: {path}: {where} comes before the environment that it was measured in")
    if not found.environments:
        raise FileError(f"warpwright: {path}: holds no results")
    return found


_REQUIRED = {name: str for name in ("suite", "op", "case", "dtype", "direction", "provider", "device", "status")}
_NUMBER, _COUNT, _TEXT = (float, type(None)), (int, type(None)), (str, type(None))
_OPTIONAL = {
    "parameters": dict, "reason": _TEXT, "p20": _NUMBER, "p50": _NUMBER, "p80": _NUMBER, "low": _NUMBER,
    "high": _NUMBER, "repeats": int, "calls": int, "clock": _TEXT, "settled": (bool, type(None)), "host": _NUMBER,
    "peak_memory": _COUNT, "loss": _NUMBER, "flops": _COUNT, "bytes": _COUNT,
    "bound": _TEXT, "ceiling": _NUMBER, "ratio": _NUMBER, "ratio_low": _NUMBER, "ratio_high": _NUMBER,
    "error": (float, str, type(None)), "checked": _TEXT, "sources": _TEXT, "tflops": _NUMBER, "gbytes": _NUMBER,
}  # fmt: skip


def _row(path: str | Path, body: Any, where: str) -> Row:
    check_fields(path, body, _REQUIRED, _OPTIONAL, where)
    for name, known in (("status", STATUSES), ("direction", DIRECTIONS)):
        if body[name] not in known:
            raise FileError(
                f"warpwright: {path}: {name} of {where} must be one of {', '.join(known)}, got {body[name]!r}"
            )
    if body["status"] == "timed" and not body.get("p50"):
        raise FileError(f"warpwright: {path}: {where} is timed, but has no p50")
    values = {f.name: body[f.name] for f in fields(Row) if f.name in body}
    if isinstance(values.get("error"), str):
        values["error"] = float(values["error"])
    return Row(**values)


#: Column title -> the row's value as text; for CSV and Markdown.
COLUMNS = {
    "suite": lambda r: r.suite,
    "op": lambda r: r.op,
    "case": lambda r: r.case,
    "dtype": lambda r: r.dtype,
    "direction": lambda r: r.direction,
    "provider": lambda r: r.provider,
    "status": lambda r: r.status,
    "p20 us": lambda r: _text(r.p20, 1e6),
    "p50 us": lambda r: _text(r.p50, 1e6),
    "p80 us": lambda r: _text(r.p80, 1e6),
    "repeats": lambda r: str(r.repeats),
    "host us": lambda r: _text(r.host, 1e6),
    "peak MB": lambda r: _text(r.peak_memory, 1e-6),
    "loss": lambda r: _text(r.loss),
    "TFLOP/s": lambda r: _text(r.tflops),
    "GB/s": lambda r: _text(r.gbytes),
    "% of ceiling": lambda r: _text(r.ceiling, 100, 3),
    "ratio": lambda r: _text(r.ratio, digits=3),
    "error": lambda r: _text(r.error, digits=2),
    "reason": lambda r: r.reason or "",
}


def _text(value: float | None, factor: float = 1.0, digits: int = 4) -> str:
    return "" if value is None else f"{value * factor:.{digits}g}"


def to_csv(rows: Iterable[Row]) -> str:
    """The table that people read, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([value(row) for value in COLUMNS.values()] for row in rows)
    return out.getvalue()


def to_markdown(rows: Iterable[Row]) -> str:
    """The same table as Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[value(row).replace("|", "\\|") for value in COLUMNS.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
