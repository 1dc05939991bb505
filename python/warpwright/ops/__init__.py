"""The public operators, one module a family. `__all__` lists them, without what only prepares their arguments."""

from warpwright.ops.activation import geglu, gelu, glu, reglu, relu, relu_squared, silu, swiglu
from warpwright.ops.causal_conv import causal_conv1d, causal_conv1d_update_
from warpwright.ops.channel_norm import batch_norm, group_norm, instance_norm
from warpwright.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from warpwright.ops.conv_batch_norm import conv2d_batch_norm, conv2d_moments
from warpwright.ops.distillation import linear_kl_div
from warpwright.ops.dropout import dropout, dropout_add
from warpwright.ops.embedding import embedding
from warpwright.ops.gated import linear_geglu, linear_glu, linear_swiglu, mlp
from warpwright.ops.grouped import grouped_matmul
from warpwright.ops.linear_loss import linear_cross_entropy
from warpwright.ops.loss import cross_entropy, nll_loss
from warpwright.ops.matmul import addmm, bmm, linear, matmul
from warpwright.ops.multi_tensor import multi_tensor_norm, multi_tensor_scale_
from warpwright.ops.norm import l2_normalize, layer_norm, rms_norm
from warpwright.ops.norm_quantize import layer_norm_quantize, rms_norm_quantize
from warpwright.ops.optim import adam_, adamw_, lamb_, lion_, sgd_
from warpwright.ops.packed import PackedWeight as PackedWeight
from warpwright.ops.packed import dequantize_packed, linear_w4a16, linear_w8a16
from warpwright.ops.packed import pack_quantized as pack_quantized
from warpwright.ops.packed import pack_weights as pack_weights
from warpwright.ops.packed import unpack_weights as unpack_weights
from warpwright.ops.packed_quantize import quantize_packed
from warpwright.ops.pointwise_loss import binary_cross_entropy_with_logits, kl_div
from warpwright.ops.qk_norm import qk_norm_rotary
from warpwright.ops.quantize import dequantize, dequantize_fp8, quantize, quantize_fp8
from warpwright.ops.rotary import rotary_embedding, rotary_embedding_qk
from warpwright.ops.scaled import scaled_matmul
from warpwright.ops.scaled_conv import scaled_conv1d, scaled_conv2d, scaled_conv3d
from warpwright.ops.softmax import log_softmax, softmax
from warpwright.ops.sparse import Sparse24Weight, dense_from_sparse24, linear_sparse24, prune_24
from warpwright.ops.sync_batch_norm import batch_norm_input_grad, batch_norm_join, batch_norm_moments, batch_norm_sums

__all__ = [
    "Sparse24Weight",
    "adam_",
    "adamw_",
    "addmm",
    "batch_norm",
    "batch_norm_input_grad",
    "batch_norm_join",
    "batch_norm_moments",
    "batch_norm_sums",
    "binary_cross_entropy_with_logits",
    "bmm",
    "causal_conv1d",
    "causal_conv1d_update_",
    "conv1d",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_moments",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "dense_from_sparse24",
    "dequantize",
    "dequantize_fp8",
    "dequantize_packed",
    "dropout",
    "dropout_add",
    "embedding",
    "geglu",
    "gelu",
    "glu",
    "group_norm",
    "grouped_matmul",
    "instance_norm",
    "kl_div",
    "l2_normalize",
    "lamb_",
    "layer_norm",
    "layer_norm_quantize",
    "linear",
    "linear_cross_entropy",
    "linear_geglu",
    "linear_glu",
    "linear_kl_div",
    "linear_sparse24",
    "linear_swiglu",
    "linear_w4a16",
    "linear_w8a16",
    "lion_",
    "log_softmax",
    "matmul",
    "mlp",
    "multi_tensor_norm",
    "multi_tensor_scale_",
    "nll_loss",
    "prune_24",
    "qk_norm_rotary",
    "quantize",
    "quantize_fp8",
    "quantize_packed",
    "reglu",
    "relu",
    "relu_squared",
    "rms_norm",
    "rms_norm_quantize",
    "rotary_embedding",
    "rotary_embedding_qk",
    "scaled_conv1d",
    "scaled_conv2d",
    "scaled_conv3d",
    "scaled_matmul",
    "sgd_",
    "silu",
    "softmax",
    "swiglu",
]
