"""What a convolution's arguments come to, in every room: names, memory formats, sizes. As csrc/bindings/conv.cpp."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from warpwright._check import check_float, check_same_device, check_same_dtype, fail, require, shape_text

#: Depth, height and width.
MOST_DIMS = 3


def op_name(weight: Tensor, transposed: bool, suffix: str = "") -> str:
    """ "conv2d", "conv_transpose1d_backward": what the user called, as far as the arguments tell."""
    dims = weight.dim() - 2
    if not 1 <= dims <= MOST_DIMS:
        return f"convolution{suffix}"
    return f"{'conv_transpose' if transposed else 'conv'}{dims}d{suffix}"


# ---- memory formats ----


def _channels_to_end(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _channels_from_end(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def channels_last(*tensors: Tensor) -> bool:
    """Whether one of them lies channels last, (batch, *sizes, channels), and not also channels first."""
    return any(not t.is_contiguous() and t.permute(_channels_to_end(t.dim())).is_contiguous() for t in tensors)


def empty_in_format(like: Tensor, sizes: Sequence[int], last: bool) -> Tensor:
    """Uninitialised, with dtype and device of `like`."""
    if not last:
        return like.new_empty(tuple(sizes))
    batch, channels, *spatial = sizes
    return like.new_empty((batch, *spatial, channels)).permute(_channels_from_end(len(sizes)))


def in_format(tensor: Tensor, last: bool) -> Tensor:
    """`tensor` in the memory format, itself where it is so already."""
    if not last:
        return tensor.contiguous()
    rank = tensor.dim()
    return tensor.permute(_channels_to_end(rank)).contiguous().permute(_channels_from_end(rank))


# ---- sizes ----


def sides(padding: Sequence[int], dims: int) -> tuple[list[int], list[int]]:
    """Elements of padding before and after the input in each dimension."""
    return list(padding[:dims]), list(padding[-dims:])


def _check_list(op: str, name: str, values: Sequence[int], count: int, least: int) -> None:
    plural = "" if count == 1 else "s"
    require(len(values) == count, op, f"{name} must have {count} value{plural}, got {shape_text(values)}")
    for value in values:
        require(value >= least, op, f"{name} must be at least {least}, got {shape_text(values)}")


def check_operands(
    op: str,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> None:
    """Input, weight and numbers fit each other; what sizes they make is checked by `output_sizes`."""
    check_float(op, "input", input)
    check_same_dtype(op, "weight", weight, "input", input)
    check_geometry(op, input, weight, stride, padding, dilation, transposed, output_padding, groups)


def check_geometry(
    op: str,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> None:
    """The same for tensors of any dtypes."""
    rank = weight.dim()
    require(3 <= rank <= MOST_DIMS + 2, op, f"weight must have 3, 4 or 5 dimensions, got {rank}")
    require(input.dim() == rank, op, f"input must have {rank} dimensions, got {input.dim()}")
    check_same_device(op, "weight", weight, "input", input)
    dims = rank - 2
    _check_list(op, "stride", stride, dims, 1)
    both_sides = len(padding) == 2 * dims and not transposed
    _check_list(op, "padding", padding, 2 * dims if both_sides else dims, 0)
    _check_list(op, "dilation", dilation, dims, 1)
    _check_list(op, "output_padding", output_padding, dims if transposed else 0, 0)
    channels, lines = input.shape[1], weight.shape[0]
    if transposed:
        divides = groups >= 1 and channels % groups == 0
        require(divides, op, f"groups must divide {channels} input channels, got {groups}")
        require(lines == channels, op, f"weight has {lines} input channels, input has {channels}")
        return
    divides = groups >= 1 and channels % groups == 0 and lines % groups == 0
    require(divides, op, f"groups must divide {channels} input channels and {lines} filters, got {groups}")
    message = f"weight has {weight.shape[1]} channels a group, input has {channels // groups}"
    require(weight.shape[1] == channels // groups, op, message)


def output_sizes(
    op: str,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> list[int]:
    """Of the whole output; raises where one would not be positive."""
    dims = len(stride)
    before, after = sides(padding, dims)
    found = [input.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]]
    for d in range(dims):
        size, taps = input.shape[2 + d], weight.shape[2 + d]
        if taps < 1:
            fail(op, f"weight must have at least 1 element in each dimension, got {shape_text(weight.shape)}")
        reach = dilation[d] * (taps - 1) + 1
        if not transposed:
            padded = size + before[d] + after[d]
            message = f"weight reaches over {reach} input elements, input with its padding has {padded}"
            require(padded >= reach, op, message)
            found.append((padded - reach) // stride[d] + 1)
            continue
        limit = max(stride[d], dilation[d])
        message = f"output_padding must be less than the larger of stride and dilation, {limit}"
        require(output_padding[d] < limit, op, f"{message}, got {output_padding[d]}")
        result = (size - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d]
        require(result >= 1, op, f"the output would have size {result} in dimension {2 + d}: padding is too large")
        found.append(result)
    return found


def same_padding(op: str, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """For an output as large as the input; where the sides differ, the element more goes to the end, as in torch."""
    require(all(s == 1 for s in stride), op, f"padding 'same' needs stride 1, got {shape_text(stride)}")
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    before = [t // 2 for t in total]
    after = [t - b for t, b in zip(total, before, strict=True)]
    return before if before == after else before + after


def check_output_like(op: str, name: str, tensor: Tensor, input: Tensor, sizes: Sequence[int]) -> None:
    check_same_device(op, name, tensor, "input", input)
    check_same_dtype(op, name, tensor, "input", input)
    message = f"{name} must have the shape of the output {shape_text(sizes)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == tuple(sizes), op, message)
