"""The documents say what is true now."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import thinning
import triton_machine_code

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def _triton_kernels_for_hopper() -> str:
    """The table as it is where its numbers for Hopper hold: a third of the compilations."""
    kernels = (ROOT / "docs" / "kernels.md").read_text()
    recorded = re.search(r"<!-- generated: triton_kernels -->\n(.*?)\n<!-- end -->", kernels, re.DOTALL).group(1)
    found = triton_machine_code.table(everywhere=False)
    return recorded if triton_machine_code.of_hopper(recorded) == found else found


@pytest.mark.timeout(1800)  # Compiles every Triton kernel that the tests beside it have not yet compiled.
def test_generated_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    if not thinning.EVERYTHING:
        generate.PARTS["triton_kernels"] = _triton_kernels_for_hopper
    for document in generate.DOCUMENTS:
        text = document.read_text()
        assert "<!-- generated: " in text
        assert generate.rendered(text, by_others=False) == text, f"{document.name}: run `make docs`"
    assert generate.pictures()
    assert not generate.outdated_pictures(), "run `make docs`"


@pytest.mark.parametrize("number", range(3))
def test_examples_run(number, tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 3
    done = subprocess.run([sys.executable, "-c", examples[number]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_point_at_files():
    for document in ROOT.glob("**/*.md"):
        if any(part.startswith(".") for part in document.relative_to(ROOT).parts):
            continue
        for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
