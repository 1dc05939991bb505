"""The kernels of the fused ops read and write what they must, once."""

from __future__ import annotations

import emulated
import pytest
import torch
import traffic

import warpwright
from warpwright import ops

#: A row may look at one of its elements again: the logit of its target.
NEARLY_ONCE = 1.01

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))


@pytest.mark.parametrize("op", traffic.CASES)
def test_large_tensors_cross_the_memory_bus_once(op):
    for row in traffic.measure(op):
        if (op, row.direction) in traffic.MORE:
            assert row.moved > NEARLY_ONCE * row.least, (
                f"{op} {row.direction} no longer moves more than it must: traffic.MORE"
            )
        else:
            assert row.moved <= NEARLY_ONCE * row.least, row


def test_the_meter_counts_bytes_and_tells_tensors_apart():
    emulated.activate()
    gate, up = torch.randn(3, 40), torch.randn(3, 40)
    with warpwright.use_backend("emulated"):
        emulated.module().start_traffic()
        output = ops.swiglu(gate, up)
        launches = emulated.module().take_traffic()
        ops.swiglu(gate, up)
        assert emulated.module().take_traffic() == [], "the meter runs on after it was read"
    ((kernel, tensors),) = launches
    assert kernel == "glu"
    counted = {address: (size, read, written) for address, size, read, written in tensors}
    assert counted[gate.data_ptr()] == counted[up.data_ptr()] == (480, 480, 0)
    assert counted[output.data_ptr()] == (480, 0, 480)
