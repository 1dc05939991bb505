"""_files.py: data comes out whole, everything else becomes one line that names the file."""

from __future__ import annotations

import os

import pytest

from warpwright._files import FileError, check_fields, read


def test_reads_json_and_yaml(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": [1, 2.5, null, "x"]}')
    (tmp_path / "a.yaml").write_text("rows: [1, 2.5, null, x]\n")
    assert read(tmp_path / "a.json") == read(tmp_path / "a.yaml") == {"rows": [1, 2.5, None, "x"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"rows": [1, 2', "is not valid JSON: .* line 1 column"),
        ("a.json", b"", "is not valid JSON"),
        ("a.json", b"\xff\xfe", "is not UTF-8: byte 0 is 0xff"),
        ("a.json", b'{"a": NaN}', "NaN is not a JSON number"),
        ("a.json", b'{"a": 1, "a": 2}', "key 'a' is given twice"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.json", b"9" * 10_000, "is not valid JSON"),
        ("a.yaml", b"a: [1, 2", "is not valid YAML: .* line 1"),
        ("a.yaml", b"a: 1\na: 2\n", "key 'a' is given twice"),
        ("a.yaml", b"a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("a.yaml", b"!!python/object/apply:os.system ['touch hacked']", "could not determine a constructor"),
        ("a.yaml", b"when: 2020-99-99\n", "is not valid YAML"),
        ("a.yaml", b"? [1]\n: 2\n", "is not valid YAML"),
        ("a.yaml", b"[" * 5_000, "is not valid YAML"),
        ("a.yaml", b"x" * (1 << 20) + b"x", "is larger than 1 MiB"),
        ("a.pkl", b"", "is neither .json nor .yaml"),
    ],
)
def test_bad_files_get_one_line_and_run_nothing(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as error:
        read(path)
    assert str(error.value).startswith(f"warpwright: {path}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


def test_missing_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        read(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FileError, match="not a regular file"):
        read(tmp_path / "folder.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(FileError, match="not a regular file"):
        read(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "row 3 must be a mapping, got a list"),
        ({"time": 1.0}, "row 3 has no field 'op'"),
        ({"op": "linear", "time": "fast"}, "field 'time' of row 3 must be a number, got text 'fast'"),
        ({"op": "linear", "time": True}, "field 'time' of row 3 must be a number, got true or false True"),
        ({"op": "linear", "time": 1, "tiem": 2}, "row 3 has an unknown field 'tiem'; known: op, time, note"),
        ({"op": "linear", "time": 1, "note": 2}, "field 'note' of row 3 must be text or null, got an integer 2"),
    ],
)
def test_fields_are_checked(value, message):
    fields = {"op": str, "time": float}
    with pytest.raises(FileError, match=message):
        check_fields("x.json", value, fields, {"note": (str, type(None))}, "row 3")


def test_good_fields_pass():
    value = {"op": "linear", "time": 1}
    assert check_fields("x.json", value, {"op": str, "time": float}) is value
