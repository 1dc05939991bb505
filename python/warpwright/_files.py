"""Reads the files that users hand us (tuning tables, suites, results) as if a stranger had written them.

JSON and YAML only, parsed as data: nothing in a file can run code, fill the memory or hang the reader. Whatever is
wrong with a file becomes one FileError whose message names the file and the fault in one line.
"""

from __future__ import annotations

import importlib.util
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 64 << 20
#: YAML is for files that people type, and its parser is slow.
MAX_YAML_BYTES = 1 << 20

#: What a value may be: one type or several. float accepts integers too; bool is never taken for a number.
Kind = type | tuple[type, ...]


class FileError(RuntimeError):
    """A file that cannot be used. The message names it and says why, in one line."""


def _fail(path: Path, message: object) -> NoReturn:
    line = " ".join(str(message).split())
    raise FileError(f"warpwright: {path}: {line if len(line) <= 300 else line[:300] + '...'}") from None


def read(path: str | Path) -> Any:
    """The data in a .json, .yaml or .yml file.

    Raises:
        FileError: the file is missing, not a regular file, too large, not UTF-8, or not valid JSON or YAML.
    """
    path = Path(path)
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix in (".yaml", ".yml"):
        return read_yaml(path)
    _fail(path, "is neither .json nor .yaml")


def read_json(path: str | Path) -> Any:
    """The data in a JSON file. NaN, Infinity and repeated keys, which JSON does not have, are refused.

    Raises:
        FileError: see `read`.
    """
    path = Path(path)
    text = _read_text(path, MAX_JSON_BYTES)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        _fail(path, "is not valid JSON: nested too deeply")
    except ValueError as error:
        _fail(path, f"is not valid JSON: {error}")


def read_json_lines(path: str | Path) -> list[Any]:
    """The values in a JSON Lines file, one a line; empty lines are skipped.

    A last line without its newline that is not valid is left out: whoever wrote it was interrupted.

    Raises:
        FileError: see `read`; the message names the line.
    """
    path = Path(path)
    text = _read_text(path, MAX_JSON_BYTES)
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant))
        except RecursionError:
            _fail(path, f"line {number} is not valid JSON: nested too deeply")
        except ValueError as error:
            if number < len(lines):
                _fail(path, f"line {number} is not valid JSON: {error}")
    return found


def read_yaml(path: str | Path) -> Any:
    """The data in a YAML file: plain values only; tags that make objects and aliases are refused.

    Raises:
        FileError: see `read`; also when PyYAML is not installed.
    """
    path = Path(path)
    if importlib.util.find_spec("yaml") is None:
        _fail(path, "cannot be read: PyYAML is not installed (pip install 'warpwright[bench]')")
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            # A few lines of aliases to aliases unfold to gigabytes in whoever walks the data.
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [getattr(key, "value", None) for key, _ in node.value]
            for key in keys:
                if isinstance(key, str) and keys.count(key) > 1:
                    raise yaml.YAMLError(f"key {key!r} is given twice")
            return super().construct_mapping(node, deep)

    text = _read_text(path, MAX_YAML_BYTES)
    try:
        return yaml.load(text, Loader)  # A SafeLoader.
    except RecursionError:
        _fail(path, "is not valid YAML: nested too deeply")
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError) as error:
        _fail(path, f"is not valid YAML: {error}")


def check_fields(
    path: str | Path,
    value: Any,
    required: Mapping[str, Kind],
    optional: Mapping[str, Kind] | None = None,
    where: str = "the file",
) -> dict[str, Any]:
    """`value` once it is known to be a mapping with these fields of these types, and no others.

    Raises:
        FileError: naming the field that is missing, unknown or of the wrong type; `where` says which part of the
            file it is in, such as "row 3".
    """
    path = Path(path)
    optional = optional or {}
    if not isinstance(value, dict):
        _fail(path, f"{where} must be a mapping, got {_kind_name(type(value))}")
    for name in value:
        if name not in required and name not in optional:
            _fail(path, f"{where} has an unknown field {name!r}; known: {', '.join([*required, *optional])}")
    for name, kind in required.items():
        if name not in value:
            _fail(path, f"{where} has no field {name!r}")
        check_kind(path, value[name], kind, f"field {name!r} of {where}")
    for name, kind in optional.items():
        if name in value:
            check_kind(path, value[name], kind, f"field {name!r} of {where}")
    return value


def check_kind(path: str | Path, value: Any, kind: Kind, where: str) -> None:
    """Raises FileError unless `value` is a `kind`; `where` names the value in the message."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    allowed = (*kinds, int) if float in kinds else kinds
    fits = isinstance(value, allowed) and (not isinstance(value, bool) or bool in kinds)
    if not fits:
        expected = " or ".join(_kind_name(k) for k in kinds)
        _fail(Path(path), f"{where} must be {expected}, got {_kind_name(type(value))} {value!r}")


def _kind_name(kind: type) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        int: "an integer",
        float: "a number",
        bool: "true or false",
    }
    return names.get(kind, "null" if kind is type(None) else kind.__name__)


def _read_text(path: Path, limit: int) -> str:
    try:
        # A FIFO or a device would hang the reader or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            _fail(path, "is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        _fail(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(data) > limit:
        _fail(path, f"is larger than {limit >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail(path, f"is not UTF-8: byte {error.start} is {data[error.start]:#04x}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is given twice")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
