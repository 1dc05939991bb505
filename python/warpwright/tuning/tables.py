"""Tables of measured winners, a JSON file for each GPU, and what an unfinished search has found so far.

    {"format": 1, "gpu": "NVIDIA H200", "entries": [{"backend": "triton", "kernel": "gemm", ...}, ...]}

The user's own lie in `folder()`, those that come with the package in warpwright/tuning/tables/. A file is read as if a
stranger had written it, and written under another name first, so that no reader meets half of one. `backend` says whose
kernels an entry is for: "triton", or "native" for the C++ ones, whose configurations are plans (see products.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from warpwright._files import FileError, check_fields, check_kind, read_json

FORMAT = 1
SHIPPED = Path(__file__).resolve().parent / "tables"

Config = dict[str, int]


class Problem(NamedTuple):
    """What a configuration is chosen for; `sizes` are bucketed."""

    backend: str
    kernel: str
    dtype: str
    sizes: tuple[tuple[str, int], ...]
    layout: str

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in self.sizes)
        return f"{self.kernel} {self.dtype} {sizes} {self.layout}".rstrip()


@dataclass(frozen=True)
class Entry:
    """What was measured for one problem.

    Attributes:
        problem: what it is for.
        config: the winner, or None where nothing beat the default.
        seconds, default_seconds: medians of a launch, measured in turns.
        spread: the wider of both p80 - p20, in seconds.
        candidates, failed, wrong: configurations tried, of these those that did not compile or launch, and those whose
            results were wrong.
        date: UTC, ISO 8601.
        torch, triton, warpwright, commit: what it was measured with.
        sources: hash of the kernel's source files; an entry with another one is not used.
    """

    problem: Problem
    config: Config | None
    seconds: float
    default_seconds: float
    spread: float
    candidates: int
    failed: int
    wrong: int
    date: str
    torch: str
    triton: str
    warpwright: str
    commit: str | None
    sources: str

    @property
    def gain(self) -> float:
        """The default's time / this time."""
        return self.default_seconds / self.seconds if self.seconds else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = asdict(self)
        problem = values.pop("problem")._asdict()
        return problem | {"sizes": dict(self.problem.sizes)} | values


_PROBLEM: dict[str, Any] = {"backend": str, "kernel": str, "dtype": str, "sizes": dict, "layout": str}
_ENTRY: dict[str, Any] = _PROBLEM | {
    "config": (dict, type(None)), "seconds": float, "default_seconds": float, "spread": float, "candidates": int,
    "failed": int, "wrong": int, "date": str, "torch": str, "triton": str, "warpwright": str,
    "commit": (str, type(None)), "sources": str,
}  # fmt: skip


def folder() -> Path:
    """Where the user's tables lie: WARPWRIGHT_TUNING_DIR, or "tuning" in the platform's folder for a user's data."""
    named = os.environ.get("WARPWRIGHT_TUNING_DIR")
    if named:
        return Path(named).expanduser()
    import platformdirs  # Only here: kernels must run where a bare checkout is used without it.

    return platformdirs.user_data_path("warpwright", appauthor=False) / "tuning"


def file_name(gpu: str) -> str:
    """Such as "nvidia-h200.json"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def read_table(path: Path) -> dict[Problem, Entry]:
    """The entries of a table, none where there is no file.

    Raises:
        FileError: naming the file and what is wrong with it.
    """
    entries = (_entry(path, value, number) for number, value in enumerate(_read(path, "entries"), start=1))
    return {entry.problem: entry for entry in entries}


def _read(path: Path, what: str) -> list[Any]:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:  # Whatever keeps it from being looked at, reading says it better.
        pass
    value = check_fields(path, read_json(path), {"format": int, "gpu": str, what: list})
    if value["format"] != FORMAT:
        raise FileError(f"warpwright: {path}: field 'format' must be {FORMAT}, got {value['format']}")
    return list(value[what])


def _integers(path: Path, value: Mapping[str, Any], where: str) -> None:
    for name, number in value.items():
        check_kind(path, number, int, f"{name!r} of {where}")


def _problem(path: Path, value: dict[str, Any], where: str) -> Problem:
    _integers(path, value["sizes"], f"the sizes of {where}")
    fields = {name: value[name] for name in _PROBLEM}
    return Problem(**fields | {"sizes": tuple(value["sizes"].items())})


def _entry(path: Path, value: Any, number: int) -> Entry:
    where = f"entry {number}"
    check_fields(path, value, _ENTRY, where=where)
    if value["config"] is not None:
        _integers(path, value["config"], f"the config of {where}")
    return Entry(_problem(path, value, where), **{name: value[name] for name in _ENTRY if name not in _PROBLEM})


def write_table(path: Path, gpu: str, entries: Mapping[Problem, Entry]) -> None:
    """Replaces the table in one step."""
    _write(path, gpu, "entries", [entry.as_dict() for entry in entries.values()])


def _write(path: Path, gpu: str, what: str, values: list[dict[str, Any]]) -> None:
    text = json.dumps({"format": FORMAT, "gpu": gpu, what: values}, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- a search that goes on ----


@dataclass
class Unfinished:
    """The quick pass over one problem as far as it came.

    Attributes:
        sources: hash of the kernel's source files.
        ratios: configuration as text -> its time / the default's, or "failed", or "wrong".
    """

    sources: str
    ratios: dict[str, float | str] = field(default_factory=dict)


class Store:
    """The user's table of one GPU, and its unfinished searches beside it. Other processes may write to them as well.

    Args:
        gpu: the name of the GPU, or "interpreted".
    """

    def __init__(self, gpu: str):
        self.gpu = gpu
        self.table = folder() / file_name(gpu)
        self.rest = self.table.with_suffix(".unfinished.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with open(self.table.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def entries(self) -> dict[Problem, Entry]:
        """The table. Raises FileError where it is damaged: measured work is not overwritten without a word."""
        return read_table(self.table)

    def unfinished(self, problem: Problem, sources: str) -> Unfinished:
        """What is known of a problem with these sources."""
        found = self._searches().get(problem)
        return found if found is not None and found.sources == sources else Unfinished(sources)

    def _searches(self) -> dict[Problem, Unfinished]:
        found = {}
        for number, value in enumerate(_read(self.rest, "searches"), start=1):
            where = f"search {number}"
            check_fields(self.rest, value, _PROBLEM | {"sources": str, "ratios": dict}, where=where)
            for config, ratio in value["ratios"].items():
                check_kind(self.rest, ratio, (float, str), f"{config!r} of {where}")
            found[_problem(self.rest, value, where)] = Unfinished(value["sources"], value["ratios"])
        return found

    def keep(self, problem: Problem, search: Unfinished | None) -> None:
        """Saves what an unfinished search has found; None once it is finished."""
        with self._locked():
            searches = {p: s for p, s in self._searches().items() if p != problem}
            if search is not None:
                searches[problem] = search
            if not searches:
                self.rest.unlink(missing_ok=True)
                return
            values = [p._asdict() | {"sizes": dict(p.sizes)} | asdict(s) for p, s in searches.items()]
            _write(self.rest, self.gpu, "searches", values)

    def add(self, entry: Entry) -> None:
        """Saves the outcome of a search, in the place of an earlier one."""
        with self._locked():
            write_table(self.table, self.gpu, self.entries() | {entry.problem: entry})
        self.keep(entry.problem, None)

    def clear(self, backend: str | None = None) -> list[Path]:
        """Removes the table and the unfinished searches, or what they have of one backend; the files that had any."""
        found = [path for path in (self.table, self.rest) if path.exists()]
        if backend is None:
            for path in found:
                path.unlink()
            return found
        entries, searches = self.entries(), self._searches()
        with self._locked():
            left = {problem: entry for problem, entry in entries.items() if problem.backend != backend}
            if left != entries:
                write_table(self.table, self.gpu, left)
        for problem in (gone := [problem for problem in searches if problem.backend == backend]):
            self.keep(problem, None)
        return [path for path, had in ((self.table, left != entries), (self.rest, bool(gone))) if had]


def tables_of_user() -> list[Path]:
    """Every table in `folder()`."""
    return sorted(path for path in folder().glob("*.json") if not path.name.endswith(".unfinished.json"))
