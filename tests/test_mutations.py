"""The list of planted bugs stays whole: tests/mutate.py, which takes long, runs it."""

from __future__ import annotations

from pathlib import Path

import mutations
import pytest

from warpwright.testing import SPECS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.name)
def test_a_planted_bug_has_its_place(mutation):
    assert mutation.op in SPECS
    assert (ROOT / mutation.path).read_text().count(mutation.old) == 1


def test_every_op_has_a_bug_in_each_room():
    """Ops that stand on one operator share its rooms: a convolution of any dimensions, say."""
    rooms = {(SPECS[m.op].kernels[0], m.backend) for m in mutations.MUTATIONS}
    exempt = {("rms_norm", "reference-cpu"), ("dequantize_fp8", "reference-cpu")}
    wanted = {(s.kernels[0], backend) for s in SPECS.values() for backend in set(mutations.BACKENDS.values())}
    assert wanted - rooms == exempt  # They share the definitions of their families.
