"""What the OpSpecs of the causal convolutions do not say: states in a chain, every width, layouts, what may be seen."""

from __future__ import annotations

import pytest
import torch
from thinning import thinned
from torch import Tensor

import warpwright
from warpwright import ops
from warpwright.testing import SPECS, Make, Sample, compare

LAST = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])


def _tensors(make: Make, batch: int, channels: int, length: int, width: int, last: bool) -> tuple[Tensor, ...]:
    """input, weight, bias, initial_state."""
    input = _laid(make.tensor(batch, channels, length), last)
    return input, make.tensor(channels, width), make.tensor(channels), make.tensor(batch, channels, width - 1)


def _laid(tensor: Tensor, last: bool) -> Tensor:
    return tensor.detach().mT.contiguous().mT.requires_grad_() if last else tensor


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


@LAST
@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parts_and_steps_of_a_sequence_have_the_bits_of_the_whole(matrix, dtype, width, last):
    if warpwright.current_backend() == "reference":
        pytest.skip("PyTorch's silu rounds the last elements of a tensor another way")
    if thinned(matrix) and (dtype == torch.float16 or (width == 6) == last):
        pytest.skip("each of dtype, width and layout once where a kernel is slow")
    with torch.no_grad():
        x, weight, bias, state = _tensors(Make(dtype, matrix), 2, 8, 40, width, last)

        def run(part: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return ops.causal_conv1d(
                part, weight, bias, activation="silu", initial_state=state, return_final_state=True
            )

        whole, final = run(x, state)
        outputs = []
        for part in (x[..., :16], x[..., 16:17], x[..., 17:34]):
            output, state = run(part, state)
            outputs.append(output)
        for step in range(34, 37):
            arguments = (state, x[..., step], weight, bias)
            outputs.append(ops.causal_conv1d_update_(*arguments, activation="silu").unsqueeze(-1))
        outputs.append(ops.causal_conv1d_update_(state, x[..., 37:], weight, bias, activation="silu"))
        assert _same_bits(torch.cat(outputs, 2), whole)
        assert _same_bits(state, final)


@LAST
def test_every_width(matrix, last):
    widths = range(1, 33)
    if thinned(matrix):
        widths = widths[10:11] if warpwright.current_backend() == "triton" else widths[::-3]
    wrong = []
    for width in widths:
        *args, state = _tensors(Make(torch.float32, matrix, width), 1, 5, width + 2, width, last)
        sample = Sample(
            f"width {width}", tuple(args), {"activation": "silu", "initial_state": state, "return_final_state": True}
        )
        wrong += [f"{sample.name}: {c}" for c in compare(SPECS["causal_conv1d"], sample) if not c.ok]
    assert not wrong, "\n".join(wrong)


@LAST
def test_results_lie_as_the_input(matrix, last):
    x, weight, bias, _ = _tensors(Make(torch.float32, matrix), 2, 4, 6, 4, last)
    y = ops.causal_conv1d(x, weight, bias, activation="silu")
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert y.stride() == x.stride() == grad.stride()


@pytest.mark.parametrize("width", [4, 6])
def test_layouts_change_no_bit_of_outputs_and_gradients(matrix, width):
    """Also where the gradient lies another way than the input."""
    x, weight, bias, state = _tensors(Make(torch.bfloat16, matrix), 2, 8, 24, width, False)
    cotangent = Make(torch.bfloat16, matrix, 1).tensor(2, 8, 24, grad=False)
    found = []
    for of_input, of_grad in ((False, False), (False, True), (True, False), (True, True)):
        leaf = _laid(x, of_input)
        y = ops.causal_conv1d(leaf, weight, bias, activation="silu", initial_state=state)
        grads = torch.autograd.grad(y, [leaf, state], _laid(cotangent, of_grad).detach())
        found.append((y, *grads))
    for others in found[1:]:
        assert all(map(_same_bits, others, found[0]))


@LAST
def test_lines_that_start_between_packs(matrix, last):
    """The first one is aligned, and their lengths are whole packs."""
    make = Make(torch.float32, matrix)
    weight, room = make.tensor(16, 4), make.tensor(2, 16, 17, grad=False)[..., :16]
    strided = (room.mT if last else room).requires_grad_()
    found = []
    for x in (strided, _laid(strided.detach().clone().requires_grad_(), last)):
        y = ops.causal_conv1d(x, weight, activation="silu")
        found.append((y, *torch.autograd.grad(y, x, torch.ones_like(y))))
    assert all(map(_same_bits, *found))


@LAST
def test_a_sequence_does_not_notice_the_others(matrix, last):
    x, weight, bias, _ = _tensors(Make(torch.bfloat16, matrix), 3, 8, 24, 4, last)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        y = ops.causal_conv1d(x, weight, bias, activation="silu")
        return y, torch.autograd.grad(y.float().square().sum(), x)[0]

    alone = run(_laid(x[1:2].detach().clone().requires_grad_(), last))
    assert all(_same_bits(a[1:2], b) for a, b in zip(run(x), alone, strict=True))


@LAST
@pytest.mark.parametrize("width", [4, 6])
def test_no_output_sees_a_later_input(matrix, width, last):
    """Nor one that lies width inputs before it: a NaN reaches `width` outputs, and their inputs' gradients."""
    x, weight, bias, _ = _tensors(Make(torch.float32, matrix), 1, 8, 24, width, last)
    with torch.no_grad():
        x[0, 3, 10] = torch.nan
    y = ops.causal_conv1d(x, weight, bias, activation="silu")
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y[0].isnan().nonzero().tolist() == [[3, t] for t in range(10, 10 + width)]
    assert grad[0].isnan().nonzero().tolist() == [[3, t] for t in range(11 - width, 10 + width)]


@LAST
@pytest.mark.parametrize("length", [2, 8])
def test_a_gradient_of_the_final_state_alone(matrix, length, last):
    """It goes to the last inputs as it is, and what is left of it to the initial state."""
    x, weight, _, state = _tensors(Make(torch.float32, matrix), 1, 4, length, 5, last)
    _, final = ops.causal_conv1d(x, weight, initial_state=state, return_final_state=True)
    cotangent = Make(torch.float32, matrix, 1).tensor(1, 4, 4, grad=False)
    of_input, of_state = torch.autograd.grad(final, [x, state], cotangent)
    expected = torch.zeros(1, 4, 4 + length, device=matrix)
    expected[..., -4:] = cotangent
    assert torch.equal(torch.cat((of_state, of_input), 2), expected)


@LAST
def test_threads_do_not_change_a_bit(last):
    x, weight, bias, _ = _tensors(Make(torch.float32), 2, 300, 1500, 4, last)

    def run() -> list[Tensor]:
        y = ops.causal_conv1d(x, weight, bias, activation="silu")
        return [y, *torch.autograd.grad(y.square().sum(), [x, weight, bias])]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(map(_same_bits, run(), one))
    finally:
        torch.set_num_threads(threads)


def test_an_update_writes_its_rows_of_the_state_alone(matrix):
    """Of a state that lies channel by channel among others; and autograd counts that it was written to."""
    make = Make(torch.float32, matrix)
    room = make.tensor(5, 3, 7, grad=False)
    state = room.mT[:, :6]  # (slots, channels, width - 1)
    before, version = room.clone(), room._version
    x, weight = make.tensor(2, 6, grad=False), make.tensor(6, 4, grad=False)
    index = torch.tensor([3, 0], device=matrix)
    output = ops.causal_conv1d_update_(state, x, weight, state_indices=index)
    expected = before.clone()
    for n, slot in enumerate((3, 0)):
        expected[slot, :, :6] = torch.cat((before[slot, 1:, :6], x[n : n + 1]))
    assert torch.equal(room, expected)
    assert room._version > version
    assert torch.equal(output, ops.causal_conv1d(x.unsqueeze(-1), weight, initial_state=before.mT[[3, 0], :6])[..., 0])


def test_an_update_under_autocast_takes_the_dtype_of_the_state(matrix):
    make = Make(torch.float32, matrix)
    state = make.tensor(2, 6, 3, grad=False, dtype=torch.bfloat16)
    x, weight = make.tensor(2, 6, grad=False), make.tensor(6, 4, grad=False)
    by_hand = state.clone()
    expected = ops.causal_conv1d_update_(by_hand, x.bfloat16(), weight.bfloat16())
    with torch.autocast(matrix, dtype=torch.float16):
        found = ops.causal_conv1d_update_(state, x, weight)
    assert _same_bits(found, expected)
    assert _same_bits(state, by_hand)


def test_an_update_takes_trained_weights_where_no_gradient_is_wanted():
    x, weight, bias, state = _tensors(Make(torch.float32), 2, 4, 3, 4, False)
    with pytest.raises(RuntimeError, match="causal_conv1d_update_: state has no gradient, got one that requires"):
        ops.causal_conv1d_update_(state, x, weight, bias)
    with torch.no_grad():
        assert not ops.causal_conv1d_update_(state, x, weight, bias).requires_grad
