"""The bugs that tests/mutate.py plants: for every op and every room at least one, of the kinds that happen.

One file a family; what is planted in a piece that several families use stands in shared.py.
"""

from mutations import (
    activation,
    causal_conv,
    channel_norm,
    conv,
    conv_batch_norm,
    distillation,
    dropout,
    embedding,
    gated,
    grouped,
    linear_loss,
    loss,
    matmul,
    multi_tensor,
    norm,
    norm_quantize,
    optim,
    packed,
    pointwise_loss,
    qk_norm,
    quantize,
    rotary,
    scaled,
    scaled_conv,
    shared,
    softmax,
    sparse,
    sync_batch_norm,
)
from mutations._mutation import BACKENDS, Mutation

__all__ = ["BACKENDS", "MUTATIONS", "Mutation"]

_FILES = (
    shared,
    norm,
    channel_norm,
    sync_batch_norm,
    norm_quantize,
    qk_norm,
    activation,
    softmax,
    dropout,
    rotary,
    matmul,
    gated,
    grouped,
    sparse,
    conv,
    conv_batch_norm,
    causal_conv,
    embedding,
    loss,
    linear_loss,
    distillation,
    pointwise_loss,
    quantize,
    scaled,
    scaled_conv,
    packed,
    multi_tensor,
    optim,
)
MUTATIONS = [mutation for file in _FILES for mutation in file.MUTATIONS]
