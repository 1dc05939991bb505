"""How the sizes of a case become tensors: one file a family, one function an op."""

from warpwright.bench.operators import (  # noqa: F401  (each fills OPERATORS)
    activation,
    conv,
    gated,
    loss,
    matmul,
    multi_tensor,
    norm,
    optim,
    packed,
    quantize,
    rotary,
    scaled,
    sparse,
)
