"""What the tests of parallel training train: one small network, by one process or by several."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from warpwright import nn

VOCABULARY, WIDTH, HIDDEN, LENGTH, BATCH = 24, 8, 16, 6, 4
STEPS = 3


class Block(torch.nn.Module):
    """A transformer's MLP block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN, activation="gelu")
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)))


class Network(torch.nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def network(dtype: torch.dtype = torch.float64) -> Network:
    """The same parameters every time, also before rounding to a dtype; norms' are no ones and zeros."""
    torch.manual_seed(0)
    made = Network().double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter) - 0.5)
    return made.to(dtype)


def batches(steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and the tokens to predict, each (BATCH, LENGTH)."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        drawn = torch.randint(0, VOCABULARY, (2, BATCH, LENGTH), generator=generator)
        yield drawn[0], drawn[1]


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.CrossEntropyLoss()(logits.flatten(0, 1), targets.flatten())


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: slice = slice(None),
    between: Callable[[], Any] = lambda: None,
    steps: Any = None,
) -> None:
    """Some steps on these rows of each batch; `between` stands between the backward pass and the step."""
    for tokens, targets in itertools.islice(batches(), *([steps] if isinstance(steps, int) else steps or [None])):
        optimizer.zero_grad()
        loss_of(model(tokens[rows]), targets[rows]).backward()
        between()
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    """Of a DTensor all of it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state_dict without wrappers, in one process's tensors."""
    return {name.removeprefix("module."): whole(value).clone() for name, value in model.state_dict().items()}
