"""ResNet-50 with every convolution, batch norm, residual and ReLU as one op, and what that runs.

    python tests/resnet50.py

lists the kernels of inference, and of a training step forward and backward, beside what PyTorch's operators compute,
each at least a kernel on a GPU. Ours are the emulator's launches. Widths are a sixteenth of the network's, which
changes no list. Of a training step ours that end in `cells` join some numbers for each channel; the others go over
tensors. What both sides leave to PyTorch's pooling and head is not counted.
"""

from __future__ import annotations

from collections import Counter

import emulated
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import warpwright
from warpwright import ops

#: Blocks of each stage (He et al., "Deep Residual Learning for Image Recognition", 2015, table 1).
STAGES = (3, 4, 6, 3)
EXPANSION = 4
#: Of PyTorch's operators, what computes something of a unit. add: residuals, and gradients that meet.
COMPUTES = (
    "convolution", "native_batch_norm", "relu", "add", "native_batch_norm_backward", "threshold_backward",
)  # fmt: skip


class Unit(nn.Module):
    """relu(bn(conv(x)) + residual), by PyTorch's operators or by one of ours."""

    fused = False

    def __init__(self, channels: int, filters: int, kernel: int, stride: int = 1, activation: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(filters)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, bn = self.conv, self.bn
        if not self.fused:
            y = bn(conv(x))
            y = y if residual is None else y + residual
            return F.relu(y) if self.activation else y
        return ops.conv2d_batch_norm(
            x, conv.weight, bn.running_mean, bn.running_var, bn.weight, bn.bias, None, conv.stride, conv.padding,
            training=self.training, residual=residual, activation="relu" if self.activation else None,
        )  # fmt: skip


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            (Unit(channels, width, 1), Unit(width, width, 3, stride), Unit(width, EXPANSION * width, 1))
        )
        same = stride == 1 and channels == EXPANSION * width
        self.shortcut = None if same else Unit(channels, EXPANSION * width, 1, stride, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.units
        residual = x if self.shortcut is None else self.shortcut(x)
        return third(second(first(x)), residual)


class ResNet50(nn.Module):
    """Of images (batch, 3, height, width); `width` is 64 in the paper."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = Unit(3, width, 7, 2)
        blocks, channels = [], width
        for stage, count in enumerate(STAGES):
            for i in range(count):
                blocks.append(Bottleneck(channels, width << stage, 2 if stage and i == 0 else 1))
                channels = EXPANSION * (width << stage)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))

    def fuse(self, fused: bool = True) -> ResNet50:
        for module in self.modules():
            if isinstance(module, Unit):
                module.fused = fused
        return self


class _Operators(TorchDispatchMode):
    """Counts what PyTorch's eager mode computes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if func.namespace != "aten":
            pass
        elif name in COMPUTES:
            self.counts[name] += 1
        elif name == "convolution_backward":  # Its bias has no gradient.
            self.counts["convolution_backward: input"] += args[-1][0]
            self.counts["convolution_backward: weight"] += args[-1][1]
        return func(*args, **(kwargs or {}))


def counted(training: bool) -> tuple[Counter[str], Counter[str]]:
    """What PyTorch computes, and our kernels: of a training step, or of inference."""
    torch.manual_seed(0)
    model = ResNet50(4, 10).to(torch.bfloat16, memory_format=torch.channels_last).train(training)
    x = torch.rand(2, 3, 64, 64, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)

    def step() -> Counter[str]:
        with _Operators() as operators:
            with torch.set_grad_enabled(training):
                loss = model(x).float().square().mean()
            if training:
                loss.backward()
        return operators.counts

    theirs = step()
    emulated.activate()
    model.fuse()
    with warpwright.use_backend("emulated"):
        emulated.module().start_traffic()
        left = step()
        kernels = Counter(name for name, _ in emulated.module().take_traffic())
    return theirs, kernels + Counter({f"PyTorch's {name}": count for name, count in left.items()})


def main() -> None:
    for training in (False, True):
        title = "a training step" if training else "inference"
        table = Table("PyTorch computes", "times", "our kernel", "launches", title=title)
        theirs, ours = (sorted(counts.items()) for counts in counted(training))
        for i in range(max(len(theirs), len(ours))):
            cells = [(*map(str, rows[i]),) if i < len(rows) else ("", "") for rows in (theirs, ours)]
            table.add_row(*cells[0], *cells[1])
        table.add_section()
        table.add_row("together", str(sum(n for _, n in theirs)), "", str(sum(n for _, n in ours)))
        Console().print(table)


if __name__ == "__main__":
    main()
