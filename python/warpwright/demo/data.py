"""Real data that is already on the machine: scikit-learn's handwritten digits, and Python's own reference manual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Inputs and targets to learn from, and some held back."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


def digits() -> Dataset:
    """1797 8 x 8 images of handwritten digits (UCI), a fifth of them held back."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held = len(order) // 5
    train, test = order[held:], order[:held]
    return Dataset(images[train], labels[train], images[test], labels[test], 10)


def manual(length: int) -> Dataset:
    """The topics of Python's `help()`, half a million characters of prose and code, cut into windows of `length`.

    The last tenth of the text is held back. A character's number is its place in the sorted alphabet.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    tokens = torch.tensor([number[character] for character in text])
    windows = tokens[: (len(tokens) - 1) // length * length].view(-1, length)
    following = tokens[1 : 1 + windows.numel()].view(-1, length)
    held = len(windows) // 10
    return Dataset(windows[:-held], following[:-held], windows[-held:], following[-held:], len(alphabet))
