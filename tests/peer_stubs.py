"""Stand-ins for the peers: their modules and signatures, as their sources have them, over PyTorch's own ops.

A call that the real package would refuse for its arguments' names or order is refused here too.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, dict[str, object]]) -> None:
    """Puts these modules, and the packages that they are in, where an import finds them."""
    for name, content in modules.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            inner = ".".join(parts[:i])
            if inner not in sys.modules:
                module = ModuleType(inner)
                module.__path__ = []  # Only packages have modules in them.
                monkeypatch.setitem(sys.modules, inner, module)
        vars(sys.modules[name]).update(content)


# ---- Liger-Kernel 0.8, liger_kernel/transformers/functional.py ----


def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert in_place is False
    return F.rms_norm(X, X.shape[-1:], W, eps)


def liger_fused_add_rms_norm(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert in_place is False
    return F.rms_norm(X + R, X.shape[-1:], W, eps), X + R


def liger_layer_norm(X, W, B, eps):
    return F.layer_norm(X, X.shape[-1:], W, B, eps)


def liger_group_norm(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
    assert num_channels == X.shape[1]
    return F.group_norm(X, num_groups, affine_scaling_weight, affine_shifting_bias, eps)


def liger_swiglu(a, b):
    return F.silu(a) * b


def liger_geglu(a, b):
    return F.gelu(a, approximate="tanh") * b


def liger_softmax(x):
    return torch.softmax(x, -1)


def liger_cross_entropy(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
    label_smoothing=0.0, lse_square_scale=0.0, softcap=None, return_z_loss=False, return_token_accuracy=False,
    return_predicted_tokens=False,
):  # fmt: skip
    return F.cross_entropy(
        input, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def liger_fused_linear_cross_entropy(
    input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0,
    reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False,
    return_token_accuracy=False, return_predicted_tokens=False, chunk_mem_const=1,
):  # fmt: skip
    return F.cross_entropy(F.linear(input, weight, bias), target, ignore_index=ignore_index, reduction=reduction)


LIGER = {
    "liger_kernel.transformers.functional": {n: f for n, f in list(globals().items()) if n.startswith("liger_")},
}

# ---- QuACK 0.6 ----


def quack_rmsnorm(
    x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6, prenorm=False,
    weight_offset=0.0,
):  # fmt: skip
    total = x if residual is None else x + residual
    out = F.rms_norm(total, x.shape[-1:], weight, eps)
    return (out, total) if prenorm and residual is not None else out


def quack_softmax(x):
    assert x.dim() == 2
    return torch.softmax(x, -1)


def quack_cross_entropy(
    x, target, lse_partial=None, weight=None, ignore_index=-100, reduction="mean", inplace_backward=False
):
    assert not inplace_backward
    return F.cross_entropy(x, target, weight, ignore_index=ignore_index, reduction=reduction)


def quack_linear_func(x, weight, bias=None, fuse_grad_accum=False, tuned=True):
    return F.linear(x, weight, bias)


def quack_chunked_linear_cross_entropy(
    x, weight, target, chunk_size=4096, ignore_index=-100, reduction="mean", tuned=True, use_scaled_exp=None
):
    return F.cross_entropy(x @ weight.T, target, ignore_index=ignore_index, reduction=reduction)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    from warpwright.testing import SPECS

    return SPECS["rotary_embedding"].torch_op(x, cos, sin, interleaved=interleaved)


def quack_apply_rotary_emb(
    x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=None, cu_seqlens=None, max_seqlen=None
):
    assert not inplace
    return rotate(x, cos, sin, interleaved)


QUACK = {
    "quack.rmsnorm": {"rmsnorm": quack_rmsnorm},
    "quack.softmax": {"softmax": quack_softmax},
    "quack.cross_entropy": {"cross_entropy": quack_cross_entropy},
    "quack.linear": {"linear_func": quack_linear_func},
    "quack.linear_cross_entropy": {"chunked_linear_cross_entropy": quack_chunked_linear_cross_entropy},
    "quack.rotary": {"apply_rotary_emb": quack_apply_rotary_emb},
}

# ---- flash-attention 2 ----


def flash_norm(norm):
    def call(
        x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6, dropout_p=0.0, rowscale=None,
        prenorm=False, residual_in_fp32=False, is_rms_norm=False, return_dropout_mask=False, out=None,
        residual_out=None,
    ):  # fmt: skip
        total = x if residual is None else x + residual
        y = norm(total, weight, bias, eps)
        return (y, total) if prenorm else y

    return call


def flash_apply_rotary_emb(
    x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None
):
    assert not inplace
    return rotate(x, cos, sin, interleaved)


class FlashCrossEntropyLoss(torch.nn.Module):
    def __init__(
        self, ignore_index=-100, reduction="mean", label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0,
        inplace_backward=False, process_group=None,
    ):  # fmt: skip
        super().__init__()
        self.more = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}

    def forward(self, input, target):
        return F.cross_entropy(input, target, **self.more)


FLASH_ATTN = {
    "flash_attn.ops.triton.layer_norm": {
        "layer_norm_fn": flash_norm(lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps)),
        "rms_norm_fn": flash_norm(lambda x, w, b, eps: F.rms_norm(x, x.shape[-1:], w, eps)),
    },
    "flash_attn.ops.activations": {"swiglu": lambda x, y: F.silu(x) * y},
    "flash_attn.layers.rotary": {"apply_rotary_emb": flash_apply_rotary_emb},
    "flash_attn.losses.cross_entropy": {"CrossEntropyLoss": FlashCrossEntropyLoss},
}

# ---- NVIDIA Apex ----


def apex_layer_norm(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def apex_rms_norm(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    return F.rms_norm(input, normalized_shape, weight, eps)


class ApexGroupNorm(torch.nn.Module):
    SUPPORTED_CHANNELS = frozenset([128, 256])
    SUPPORTED_GROUPS = frozenset([16, 32])

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None, act=""):
        super().__init__()
        assert affine
        self.groups, self.eps, self.act = num_groups, eps, act.lower()
        self.weight = torch.nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))

    def forward(self, input):
        y = F.group_norm(input, self.groups, self.weight, self.bias, self.eps)
        return F.silu(y) if self.act == "silu" else y


class ApexSoftmaxCrossEntropyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, smoothing=0.0, padding_idx=0, half_to_float=False):
        ctx.save_for_backward(logits, labels)
        ctx.more = {"label_smoothing": smoothing, "ignore_index": padding_idx, "reduction": "none"}
        return F.cross_entropy(logits, labels, **ctx.more)

    @staticmethod
    def backward(ctx, grad_loss):
        logits, labels = ctx.saved_tensors
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = F.cross_entropy(leaf, labels, **ctx.more)
        return torch.autograd.grad(losses, leaf, grad_loss)[0], None, None, None, None


def apex_multi_tensor_adam(
    chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay
):
    assert isinstance(step, int)
    assert (noop_flag.dtype, mode, bias_correction) == (torch.int32, 1, 1)
    grads, params, first, second = tensor_lists
    steps = [torch.tensor(float(step)) for _ in params]
    torch._fused_adamw_(
        params, grads, first, second, [], steps, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay,
        eps=epsilon, amsgrad=False, maximize=False,
    )  # fmt: skip


APEX = {
    "apex.normalization.fused_layer_norm": {
        "fused_layer_norm_affine": apex_layer_norm,
        "fused_rms_norm_affine": apex_rms_norm,
    },
    "apex.contrib.group_norm": {"GroupNorm": ApexGroupNorm},
    "apex.contrib.xentropy": {"SoftmaxCrossEntropyLoss": ApexSoftmaxCrossEntropyLoss},
    "amp_C": {"multi_tensor_adam": apex_multi_tensor_adam},
    "fused_layer_norm_cuda": {},
}

# ---- causal-conv1d ----


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None,
    activation=None,
):  # fmt: skip
    dim, width = weight.shape
    out = F.conv1d(x, weight.unsqueeze(1), bias, padding=width - 1, groups=dim)[..., : x.shape[-1]]
    return out if activation is None else F.silu(out)


CAUSAL_CONV1D = {"causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn}}

ALL = {
    "liger": LIGER,
    "quack": QUACK,
    "flash-attn": FLASH_ATTN,
    "apex": APEX,
    "causal-conv1d": CAUSAL_CONV1D,
}

#: Peer -> its top-level module.
PACKAGES = {
    "liger": "liger_kernel",
    "quack": "quack",
    "flash-attn": "flash_attn",
    "apex": "apex",
    "causal-conv1d": "causal_conv1d",
}
