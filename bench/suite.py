"""Suites of cases, shipped and of users, as YAML.

    about: RMS norm of a small and a large model          # shown by `warpwright bench list`
    dtypes: [bfloat16, float32]                           # all that the op takes, unless given
    directions: [forward, both]                           # and backward; forward and both unless given
    measure:
      - op: rms_norm                                      # or a list; its parameters are in bench/operators/
        sweep: {rows: [512, 8192], residual: false}       # every combination of these
        cases:                                            # times each of these
          - {width: 1024}
          - {width: 4096}
    cpu:                                                  # what is different on a CPU, unless --full is given
      cap: {rows: 512}                                    # no larger than this; cases that become equal are one
      dtypes: [float32]

`cpu` also knows `directions`, `set` (parameters with other values) and `only` (for some parameters the values, before
`set` and `cap`, with which a case stays). An entry of `measure` may have `dtypes`, `directions` and `cpu` of its own,
whose fields replace the file's; `cpu: {skip: true}` leaves it out. In `sweep` a list is a list of alternatives: sizes
that are lists themselves, one for each of a convolution's dimensions, are lists in a list there.

A file is read as data from a stranger: whatever is wrong with it is a FileError of one line that names file and place.
"""

from __future__ import annotations

import functools
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from warpwright._files import FileError, check_fields, check_kind, read_yaml
from warpwright.bench.case import OPERATORS, Case, Operator
from warpwright.bench.rows import DIRECTIONS

_SHIPPED = Path(__file__).parent / "suites"

#: A suite of more would run for hours.
_MAX_CASES = 10_000
#: What a call moves at most; no GPU has more memory.
_MAX_BYTES = 256 << 30

_NAMES = (str, list)
_FILE = {"about": str, "dtypes": _NAMES, "directions": _NAMES, "cpu": dict}
_ENTRY = {"dtypes": _NAMES, "directions": _NAMES, "sweep": dict, "cases": list, "cpu": dict}
_CPU = {"dtypes": _NAMES, "directions": _NAMES, "set": dict, "cap": dict, "only": dict, "skip": bool}


# ---- the interface ----


@functools.cache
def _shipped() -> dict[str, str]:
    return {path.stem: read_yaml(path)["about"] for path in sorted(_SHIPPED.glob("*.yaml"))}


def suites() -> dict[str, str]:
    """The shipped suites: name -> what it is about."""
    return dict(_shipped())


def load_suite(name_or_path: str | Path, device: str | torch.device, *, full: bool = False) -> list[Case]:
    """The cases of a suite.

    Args:
        name_or_path: of a shipped suite, or of a YAML file.
        device: "cpu" or "cuda"; decides the sizes, and need not be there.
        full: the sizes of a GPU on the CPU too.

    Raises:
        RuntimeError: an unknown name or device.
        warpwright._files.FileError: the file cannot be used; see above.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise RuntimeError(f"warpwright: bench: device must be cpu or cuda, got {kind!r}")
    text = str(name_or_path)
    path = _SHIPPED / f"{text}.yaml" if text in suites() else Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join(suites())
        raise RuntimeError(f"warpwright: bench: suite must be one of {known}, or a .yaml file, got {text!r}")
    return _File(path).cases(on_cpu=kind == "cpu" and not full)


def select(
    cases: Sequence[Case],
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    directions: Sequence[str] | None = None,
) -> list[Case]:
    """Those of the cases that have one of these ops and dtypes, in these directions; None or () is what the suite has.

    A direction that is asked for is had wherever the op has it, whatever the suite lists.

    Raises:
        RuntimeError: naming an op, dtype or direction that there is not, or when nothing is left.
    """
    known = {
        "op": (ops, OPERATORS),
        "dtype": (dtypes, _dtype_names()),
        "direction": (directions, DIRECTIONS),
    }
    for what, (wanted, names) in known.items():
        for name in wanted or ():
            if name not in names:
                raise RuntimeError(f"warpwright: bench: {what} must be one of {', '.join(names)}, got {name!r}")
    found = []
    for case in cases:
        kept = tuple(d for d in case.operator.directions if d in directions) if directions else case.directions
        if kept and (not ops or case.op in ops) and (not dtypes or case.dtype_name in dtypes):
            found.append(replace(case, directions=kept))
    if not found:
        asked = "; ".join(f"{what} {', '.join(wanted)}" for what, (wanted, _) in known.items() if wanted)
        raise RuntimeError(f"warpwright: bench: no case is left of {len(cases)} with {asked or 'no filter'}")
    return found


def _dtype_names() -> dict[str, torch.dtype]:
    return {str(t).removeprefix("torch."): t for operator in OPERATORS.values() for t in operator.dtypes}


# ---- a file ----


@dataclass(frozen=True)
class _Entry:
    """One of `measure`: the cases that it stands for, before a CPU's differences."""

    where: str
    ops: list[Operator]
    parameters: list[dict[str, Any]]
    fields: dict[str, Any]


class _File:
    """A suite's file, checked as far as that goes without making its cases."""

    def __init__(self, path: Path):
        self.path = path
        data = read_yaml(path)
        if _has_huge_number(data):
            self._fail("the file", "has an integer of more than 64 bits")
        self.fields = check_fields(path, data, {"measure": list}, _FILE)
        self._check_options(data, "the file")
        self._check_cpu(data.get("cpu", {}), "cpu", skip=False)
        if not data["measure"]:
            self._fail("measure", "must name at least one op")
        self.entries: list[_Entry] = []
        room = _MAX_CASES
        for number, entry in enumerate(data["measure"], start=1):
            self.entries.append(self._entry(entry, f"measure {number}", room))
            room -= len(self.entries[-1].ops) * len(self.entries[-1].parameters)
        for entry in self.entries:
            self._check_cpu_parameters(entry.fields["cpu"], entry.ops, f"cpu of {entry.where}")
        self._check_cpu_parameters(data.get("cpu", {}), [op for entry in self.entries for op in entry.ops], "cpu")

    def _fail(self, where: str, message: str) -> NoReturn:
        line = " ".join(f"{where}: {message}".split())
        line = line if len(line) <= 400 else line[:400] + "..."
        raise FileError(f"warpwright: {self.path}: {line}") from None

    def _names(self, value: Any, where: str, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """One or several of the known names."""
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or name not in known:
                self._fail(where, f"must be among {_listed(known)}, got {name!r}")
        if not names or len(set(names)) != len(names):
            self._fail(where, f"must be different names, got {names}")
        return names

    def _check_options(self, fields: Mapping[str, Any], where: str) -> None:
        for name, known in (("dtypes", _dtype_names()), ("directions", DIRECTIONS)):
            if name in fields:
                self._names(fields[name], f"{name} of {where}", known)

    def _check_cpu(self, fields: Any, where: str, *, skip: bool) -> None:
        known = {name: kind for name, kind in _CPU.items() if skip or name != "skip"}
        check_fields(self.path, fields, {}, known, where)
        self._check_options(fields, where)
        for name, value in fields.get("cap", {}).items():
            check_kind(self.path, value, int, f"{name} in cap of {where}")

    def _check_cpu_parameters(self, fields: Mapping[str, Any], ops: Sequence[Operator], where: str) -> None:
        """Its parameters must be of one of the ops, and its values of their kind."""
        for field in ("set", "cap", "only"):
            for name, value in fields.get(field, {}).items():
                having = [op for op in ops if name in op.parameters]
                if not having:
                    self._fail(
                        where, f"{field} names {name!r}, which is no parameter of {', '.join(op.name for op in ops)}"
                    )
                values = value if field == "only" and isinstance(value, list) else [value]
                for op in having if field != "cap" else ():
                    for one in values:
                        self._check_value(op, name, one, f"{name} in {field} of {where}")

    def _check_value(self, op: Operator, name: str, value: Any, where: str) -> None:
        hint = _hints(op.sample).get(name, Any)
        if not _fits(value, hint):
            self._fail(where, f"must be {_described(hint)}, got {value!r}")
        if any(v < 0 for v in (value if isinstance(value, list) else [value]) if isinstance(v, (int, float))):
            self._fail(where, f"must not be negative, got {value!r}")

    def _entry(self, fields: Any, where: str, room: int) -> _Entry:
        check_fields(self.path, fields, {"op": _NAMES}, _ENTRY, where)
        ops = [OPERATORS[name] for name in self._names(fields["op"], f"op of {where}", OPERATORS)]
        self._check_options(fields, where)
        cpu = fields.get("cpu", {})
        self._check_cpu(cpu, f"cpu of {where}", skip=True)
        sweep = {name: value if isinstance(value, list) else [value] for name, value in fields.get("sweep", {}).items()}
        cases = fields.get("cases", [{}])
        count = len(ops) * len(cases) * math.prod(len(values) for values in sweep.values())
        if not 1 <= count <= room:
            self._fail(where, f"stands for {count} cases; a suite has from 1 to {_MAX_CASES}")
        for op in ops:
            for name, values in sweep.items():
                self._check_parameter(op, name, values, f"sweep of {where}")
            for number, case in enumerate(cases, start=1):
                place = f"case {number} of {where}"
                check_kind(self.path, case, dict, place)
                for name, value in case.items():
                    self._check_parameter(op, name, [value], place)
                    if name in sweep:
                        self._fail(place, f"{name} is in the sweep already")
                missing = [n for n in _required(op) if n not in sweep and n not in case]
                if missing:
                    self._fail(place, f"{op.name} needs {', '.join(missing)}, which neither it nor the sweep gives")
        combinations = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
        return _Entry(where, ops, [case | c for case in cases for c in combinations], {"cpu": cpu, **fields})

    def _check_parameter(self, op: Operator, name: Any, values: list[Any], where: str) -> None:
        if name not in op.parameters:
            self._fail(where, f"{op.name} has no parameter {name!r}; it has {', '.join(op.parameters)}")
        for value in values:
            self._check_value(op, name, value, f"{name} in {where}")

    # ---- its cases ----

    def cases(self, on_cpu: bool) -> list[Case]:
        found: dict[tuple[str, str, str], Case] = {}
        for entry in self.entries:
            for case in self._cases_of(entry, on_cpu):
                self._add(found, case, entry.where)
        if not found:
            self._fail("measure", "leaves no case on a CPU")
        return list(found.values())

    def _cases_of(self, entry: _Entry, on_cpu: bool) -> Iterator[Case]:
        cpu = {**self.fields.get("cpu", {}), **entry.fields["cpu"]} if on_cpu else {}
        if cpu.get("skip"):
            return
        fields = {**self.fields, **entry.fields, **cpu}
        for op in entry.ops:
            names = self._names(
                fields.get("dtypes", [str(t).removeprefix("torch.") for t in op.dtypes]),
                f"dtypes of {entry.where} for {op.name}",
                [str(t).removeprefix("torch.") for t in op.dtypes],
            )
            wanted = self._names(fields.get("directions", ["forward", "both"]), entry.where, DIRECTIONS)
            directions = tuple(d for d in DIRECTIONS if d in wanted and d in op.directions)
            if not directions:
                self._fail(f"directions of {entry.where}", f"{op.name} can be timed {', '.join(op.directions)} only")
            for parameters in entry.parameters:
                if _stays(op, parameters, cpu.get("only", {})):
                    changed = _changed(op, parameters, cpu.get("set", {}), cpu.get("cap", {}))
                    for name in names:
                        yield Case(self.path.stem, op.name, getattr(torch, name), directions, changed)

    def _add(self, found: dict[tuple[str, str, str], Case], case: Case, where: str) -> None:
        """Equal cases are one, with the directions of both; whoever reads a table must be able to tell others apart."""
        label = self._checked_label(case, where)
        key = (case.op, case.dtype_name, label)
        before = found.get(key)
        if before is None:
            found[key] = case
        elif _complete(before) != _complete(case):
            self._fail(where, f"two cases of {case.op} are called {label!r}: {before.parameters} and {case.parameters}")
        else:
            both = tuple(d for d in DIRECTIONS if d in before.directions + case.directions)
            found[key] = replace(before, directions=both)

    def _checked_label(self, case: Case, where: str) -> str:
        """Draws the case without memory, and counts what it costs."""
        place = f"{where}: {case.op} {case.parameters}"
        try:
            sample = case.sample("meta")
            cost = case.operator.cost(*sample.args, **sample.kwargs)
        except Exception as error:
            self._fail(place, str(error).removeprefix("warpwright: bench: "))
        if any(tensor.numel() == 0 for tensor in sample.tensors()):
            self._fail(place, "has an empty tensor")
        if cost.bytes > _MAX_BYTES:
            self._fail(place, f"moves {cost.bytes / 2**30:.4g} GiB; a case moves at most {_MAX_BYTES >> 30}")
        return sample.name


def _listed(names: Iterable[str]) -> str:
    """The names, or as many of them as a line has room for."""
    text = ", ".join(names)
    return text if len(text) <= 300 else f"{text[:300].rpartition(', ')[0]}, ..."


def _has_huge_number(data: Any) -> bool:
    """Python refuses to print integers of thousands of digits, which hexadecimal ones can have."""
    if isinstance(data, (dict, list)):
        return any(map(_has_huge_number, itertools.chain(data, data.values() if isinstance(data, dict) else ())))
    return isinstance(data, int) and data.bit_length() > 64


def _stays(op: Operator, parameters: Mapping[str, Any], only: Mapping[str, Any]) -> bool:
    values = _defaults(op) | parameters
    return all(
        values[name] in (allowed if isinstance(allowed, list) else [allowed])
        for name, allowed in only.items()
        if name in op.parameters
    )


def _changed(
    op: Operator, parameters: Mapping[str, Any], other: Mapping[str, Any], cap: Mapping[str, int]
) -> dict[str, Any]:
    changed = {**parameters, **{name: value for name, value in other.items() if name in op.parameters}}
    for name, most in cap.items():
        value = changed.get(name)
        if isinstance(value, list):
            changed[name] = [min(v, most) for v in value]
        elif isinstance(value, int):
            changed[name] = min(value, most)
    return changed


def _complete(case: Case) -> dict[str, Any]:
    return _defaults(case.operator) | case.parameters


# ---- what an op's parameters may be, by their annotations ----


def _defaults(op: Operator) -> dict[str, Any]:
    return {name: p.default for name, p in op.parameters.items() if p.default is not p.empty}


def _required(op: Operator) -> list[str]:
    return [name for name, p in op.parameters.items() if p.default is p.empty]


@functools.cache
def _hints(sample: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(sample)
    except Exception:  # The function is a user's, and its annotations may be names that only a type checker sees.
        return {}


_DESCRIBED = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null",
              list[int]: "a list of integers", Any: "a number, text or a list of integers"}  # fmt: skip


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of YAML is what the annotation says; `Any` is every value that a case may have."""
    if hint is Any:
        return _fits(value, int | float | str | bool | None | list[int])
    for one in _alternatives(hint):
        if typing.get_origin(one) is Literal:
            fits = any(type(value) is type(known) and value == known for known in typing.get_args(one))
        elif one == list[int]:
            fits = isinstance(value, list) and bool(value) and all(type(v) is int for v in value)
        elif one is float:
            fits = type(value) is int or (type(value) is float and math.isfinite(value))
        else:
            fits = type(value) is one
        if fits:
            return True
    return False


def _described(hint: Any) -> str:
    texts = []
    for one in _alternatives(hint):
        if typing.get_origin(one) is Literal:
            texts += [str(known) for known in typing.get_args(one)]
        else:
            texts.append(_DESCRIBED.get(one, str(one)))
    return " or ".join(texts)
