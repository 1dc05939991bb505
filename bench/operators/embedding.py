"""Embedding: `tokens` rows of a table of `vocabulary` x `width`."""

from __future__ import annotations

from typing import Any, Literal

import torch

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample


def _smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """Half the tokens are half the work, half the rows half the memory."""
    tokens, vocabulary = parameters["tokens"] // 2, max(parameters["vocabulary"] // 2, 1)
    return parameters | {"tokens": tokens, "vocabulary": vocabulary} if tokens else None


@operator("embedding", smaller=_smaller)
def embedding(
    draw: Draw, *, vocabulary: int, width: int, tokens: int, distribution: Literal["uniform", "zipf"] = "uniform"
) -> Sample:
    """Zipf: row r comes up with a probability near 1 / r, as words do; the first one most."""
    if distribution == "zipf":
        # The inverse of the logarithmic distribution function, so that row r has ln((r + 2) / (r + 1)) of the weight.
        place = draw.tensor(tokens, low=0, high=1, grad=False, dtype=torch.float32)
        index = (float(vocabulary + 1) ** place - 1).long().clamp(0, vocabulary - 1)
    else:
        index = draw.integers(tokens, low=0, high=vocabulary)
    label = f"{tokens} of {vocabulary} x {width}"
    return Sample(label + suffix(distribution=distribution), (index, draw.tensor(vocabulary, width)))
