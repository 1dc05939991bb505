"""How the sizes of a case become tensors: one file a family, one function an op."""

from warpwright.bench.operators import (  # noqa: F401  (each fills OPERATORS)
    activation,
    causal_conv,
    conv,
    conv_batch_norm,
    dropout,
    embedding,
    gated,
    loss,
    matmul,
    multi_tensor,
    norm,
    norm_quantize,
    optim,
    packed,
    qk_norm,
    quantize,
    rotary,
    scaled,
    softmax,
    sparse,
)
