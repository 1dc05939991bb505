"""How sizes become tensors, and what they cost: each op's own PyTorch runs on what is drawn, everywhere and by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from warpwright.bench import suite as suite_module
from warpwright.bench.case import OPERATORS, Case
from warpwright.bench.operators.matmul import group_sizes
from warpwright.bench.operators.optim import MODELS
from warpwright.testing import SPECS, Cost, Expected, evaluate

OPERATOR_FILES = sorted(Path(suite_module.__file__).parent.glob("operators/*.py"))

#: A tiny call of every op, with each of its branches.
TINY = {
    "linear": [
        {"m": 5, "n": 6, "k": 7},
        {"m": 5, "n": 6, "k": 7, "bias": True, "residual": True, "activation": "silu"},
    ],
    "matmul": [{"m": 5, "n": 6, "k": 7, "layout": layout} for layout in ("nn", "nt", "tn", "tt")],
    "bmm": [{"batch": 2, "m": 5, "n": 6, "k": 7, "layout": layout} for layout in ("nn", "nt", "tn", "tt")],
    "addmm": [{"m": 5, "n": 6, "k": 7}, {"m": 5, "n": 6, "k": 7, "activation": "silu"}],
    # The CPU's kernel wants rows of whole 16 bytes.
    "grouped_matmul": [{"groups": 5, "tokens": 24, "n": 8, "k": 16}],
    "prune_24": [{"n": 3, "k": 12}],
    "dense_from_sparse24": [{"n": 3, "k": 12}],
    "linear_sparse24": [
        {"m": 5, "n": 6, "k": 12},
        {"m": 5, "n": 6, "k": 16, "bias": True, "residual": True, "activation": "silu"},
    ],
    "conv2d": [
        {"batch": 2, "channels": 3, "filters": 4, "size": 6, "kernel": 3, "channels_last": True, "bias": True},
        {"batch": 1, "channels": 4, "size": [5, 8], "kernel": [1, 3], "stride": [1, 2], "groups": 2, "residual": True},
        {"batch": 1, "channels": 4, "size": 9, "kernel": 3, "dilation": 2, "depthwise": True, "activation": "relu"},
    ],
    "conv2d_batch_norm": [
        {"batch": 2, "channels": 3, "filters": 4, "size": 6, "kernel": 3, "channels_last": True, "bias": True},
        {"batch": 1, "channels": 4, "size": 7, "kernel": 1, "stride": 2, "groups": 2, "residual": True,
         "activation": "relu"},
    ],
    "conv2d_moments": [
        {"batch": 2, "channels": 3, "filters": 4, "size": 6, "kernel": 3, "stride": 2, "bias": True},
        {"batch": 1, "channels": 4, "size": 7, "kernel": 1, "channels_last": True},
    ],
    "conv1d": [
        {"batch": 2, "channels": 3, "filters": 4, "size": 9, "kernel": 3, "stride": 2, "bias": True},
        {"batch": 1, "channels": 4, "size": 9, "kernel": 2, "padding": 0, "depthwise": True, "activation": "gelu"},
    ],
    "conv3d": [{"batch": 1, "channels": 2, "size": [4, 5, 6], "kernel": 3, "stride": [1, 2, 2], "channels_last": True}],
    "conv_transpose1d": [{"batch": 2, "channels": 3, "filters": 2, "size": 5, "kernel": 4, "stride": 2, "padding": 1}],
    "conv_transpose3d": [{"batch": 1, "channels": 3, "filters": 2, "size": [2, 3, 4], "kernel": 2, "stride": 2}],
    "conv_transpose2d": [
        {"batch": 1, "channels": 3, "filters": 2, "size": 4, "kernel": 3, "stride": 2, "padding": 1,
         "output_padding": 1, "bias": True, "channels_last": True},
    ],
    "causal_conv1d": [
        {"batch": 2, "channels": 3, "length": 9, "kernel": 4, "activation": "silu"},
        {"batch": 2, "channels": 3, "length": 9, "kernel": 5, "bias": False, "channels_last": True},
    ],
    "causal_conv1d_update_": [{"batch": 2, "channels": 5, "kernel": 4, "activation": "silu"}],
    "gelu": [{"rows": 3, "width": 8, "bias": True, "approximate": "tanh"}, {"rows": 3, "width": 8}],
    "silu": [{"rows": 3, "width": 8, "bias": bias} for bias in (False, True)],
    "relu": [{"rows": 3, "width": 8, "bias": bias} for bias in (False, True)],
    "relu_squared": [{"rows": 3, "width": 8, "bias": bias} for bias in (False, True)],
    "l2_normalize": [{"rows": 3, "width": 8}],
    "rms_norm_quantize": [
        {"rows": 3, "width": 40, "block_size": block, "residual": block is None} for block in (None, 32)
    ],
    "layer_norm_quantize": [{"rows": 3, "width": 40, "block_size": None, "residual": True}],
    "qk_norm_rotary": [
        {"batch": 2, "sequence": 3, "heads": 4, "key_heads": 2, "head_dim": 8, "interleaved": turned}
        for turned in (False, True)
    ],
    "swiglu": [{"rows": 3, "width": 8}],
    "reglu": [{"rows": 3, "width": 8}],
    "glu": [{"rows": 3, "width": 8}],
    "dropout": [{"rows": 3, "width": 8}],
    "dropout_add": [{"rows": 3, "width": 8, "p": 0.5}],
    "log_softmax": [{"rows": 3, "width": 40}],
    "geglu": [{"rows": 3, "width": 8, "approximate": approximate} for approximate in ("none", "tanh")],
    "linear_swiglu": [
        {"rows": 3, "hidden": 8, "width": 5, "bias": True}, {"rows": 3, "hidden": 8, "width": 5, "packed": True},
    ],
    "linear_geglu": [
        {"rows": 3, "hidden": 8, "width": 5, "approximate": approximate} for approximate in ("none", "tanh")
    ],
    "linear_glu": [{"rows": 3, "hidden": 8, "width": 5}, {"rows": 3, "hidden": 8, "width": 5, "activation": "relu"}],
    "mlp": [
        {"rows": 3, "hidden": 8, "width": 5, "residual": True},
        {"rows": 3, "hidden": 8, "width": 5, "gated": False, "bias": True, "activation": "gelu"},
    ],
    "cross_entropy": [{"rows": 4, "classes": 9, "label_smoothing": smoothing} for smoothing in (0, 0.1)],
    "linear_cross_entropy": [
        {"rows": 4, "width": 8, "classes": 9, "reduction": reduction} for reduction in ("mean", "none")
    ],
    "linear_kl_div": [
        {"rows": 4, "width": 8, "teacher_width": 6, "classes": 9, "reduction": reduction}
        for reduction in ("batchmean", "none")
    ],
    "embedding": [
        {"vocabulary": 9, "width": 8, "tokens": 20, "distribution": shape} for shape in ("uniform", "zipf")
    ],
    "nll_loss": [{"rows": 4, "classes": 9}],
    "binary_cross_entropy_with_logits": [{"rows": 4, "width": 9}],
    "kl_div": [{"rows": 4, "classes": 9}],
    "rotary_embedding": [
        {"batch": 2, "sequence": 5, "heads": 3, "head_dim": 8, "interleaved": turned} for turned in (False, True)
    ],
    "rotary_embedding_qk": [
        {"batch": 2, "sequence": 5, "heads": 3, "key_heads": 2, "head_dim": 8, "angles": angles}
        for angles in ("table", "positions", "computed")
    ],
    "linear_w4a16": [
        {"m": 5, "n": 6, "k": 70, "group_size": 32, "zero_points": True, "bias": True, "activation": "silu"},
        {"m": 5, "n": 6, "k": 70, "group_size": None},
    ],
    "linear_w8a16": [
        {"m": 5, "n": 6, "k": 70, "group_size": 32, "zero_points": True, "bias": True, "activation": "silu"},
        {"m": 5, "n": 6, "k": 70, "group_size": None},
    ],
    "quantize_packed": [{"n": 6, "k": 70, "bits": bits, "zero_points": bits == 8} for bits in (4, 8)],
    "dequantize_packed": [{"n": 6, "k": 70, "bits": bits, "zero_points": bits == 8} for bits in (4, 8)],
    "quantize_fp8": [{"rows": 3, "width": 40, "block_size": block, "format": "e5m2"} for block in (None, 16)],
    "dequantize_fp8": [{"rows": 3, "width": 40, "block_size": block} for block in (None, 16)],
    "quantize": [
        {"rows": 3, "width": 40, "granularity": kind, "format": "int8", "transposed": kind == "block"}
        for kind in ("tensor", "row", "block", "square")
    ],
    "dequantize": [{"rows": 3, "width": 40, "granularity": kind} for kind in ("tensor", "row", "block", "square")],
    "scaled_matmul": [
        *({"m": 5, "n": 6, "k": 130, "scales": scales, "bias": True} for scales in ("tensor", "row", "block")),
        {"m": 5, "n": 6, "k": 7, "format": "int8", "scales": "row", "activation": "silu"},
    ],
    "scaled_conv1d": [{"batch": 2, "channels": 5, "size": 9, "kernel": 3, "stride": 2, "bias": True}],
    "scaled_conv2d": [
        {"batch": 1, "channels": 6, "size": 5, "kernel": 3, "groups": 6, "format": "e5m2", "activation": "relu"},
        {
            "batch": 1, "channels": 5, "filters": 7, "size": 5, "kernel": 3, "stride": 2, "bias": True,
            "residual": True, "channels_last": True,
        },
        {"batch": 1, "channels": 5, "size": 4, "kernel": 1, "format": "e4m3", "out": "e4m3"},
    ],
    "scaled_conv3d": [{"batch": 1, "channels": 3, "size": [3, 4, 5], "kernel": [1, 2, 3], "padding": 0}],
    "rms_norm": [{"rows": 3, "width": 40, "residual": residual} for residual in (False, True)],
    "layer_norm": [{"rows": 3, "width": 40, "residual": residual} for residual in (False, True)],
    "softmax": [{"rows": 3, "width": 40}, {"rows": 3, "width": 40, "causal": True}],
    "group_norm": [
        {"batch": 2, "channels": 4, "size": 5, "groups": 2, "activation": "silu", "channels_last": last}
        for last in (False, True)
    ],
    "batch_norm": [
        {"batch": 2, "channels": 4, "size": 5, "training": training, "residual": True, "activation": "relu"}
        for training in (False, True)
    ],
    "batch_norm_moments": [{"batch": 2, "channels": 4, "size": 5, "channels_last": last} for last in (False, True)],
    "batch_norm_join": [{"processes": 3, "channels": 4}],
    "batch_norm_sums": [{"batch": 2, "channels": 4, "size": 5, "residual": True, "activation": "relu"}],
    "batch_norm_input_grad": [
        {"batch": 2, "channels": 4, "size": 5, "channels_last": True},
        {"batch": 2, "channels": 4, "size": 5, "residual": True, "activation": "silu"},
    ],
    "instance_norm": [{"batch": 2, "channels": 4, "size": 5, "channels_last": last} for last in (False, True)],
    **{
        name: [{"model": "resnet50", "layers": 1, "divide": 64, "masters": True}]
        for name in ("adamw_", "adam_", "sgd_", "lion_", "lamb_")
    },
    "multi_tensor_norm": [{"model": "gpt2-small", "layers": 1, "divide": 64, "order": order} for order in ("2", "inf")],
    "training_step_": [
        {"model": name, "batch": 2, "size": 32, "width": 64, "layers": 1, "classes": 64, "precision": precision}
        for name, precision in (("gpt2", "masters"), ("llama", "autocast"), ("vit", "fp8"), ("resnet50", "plain"))
    ],
    "multi_tensor_scale_": [{"model": "gpt2-small", "layers": 1, "divide": 64}],
}  # fmt: skip
TINY_CASES = [(name, parameters) for name, found in TINY.items() for parameters in found]
tiny_cases = pytest.mark.parametrize(
    ("name", "parameters"), TINY_CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(TINY_CASES)]
)


def case(name, dtype=torch.float32, **parameters):
    return Case("test", name, dtype, OPERATORS[name].directions, parameters)


def cost_of(found: Case) -> Cost:
    sample = found.sample("meta")
    return found.operator.cost(*sample.args, **sample.kwargs)


def test_every_op_has_a_tiny_call_here():
    assert set(TINY) == set(OPERATORS)
    assert set(SPECS) <= set(OPERATORS)


@tiny_cases
def test_pytorch_runs_every_op_forward_and_backward_in_every_dtype(name, parameters):
    for dtype in (*OPERATORS[name].dtypes, torch.float64):
        if dtype == torch.float64 and parameters.get("masters"):
            continue  # They are of float16 and bfloat16 parameters.
        drawn = case(name, dtype, **parameters)
        sample = drawn.sample("cpu")
        values = evaluate(drawn.operator.torch_op, sample)
        leaves = sum(t.requires_grad for t in sample.tensors())
        assert sum(key.startswith("grad") for key in values) == leaves
        assert (leaves > 0) == ("backward" in drawn.operator.directions)
        for value in values.values():
            assert value.numel() > 0
            assert value.float().isfinite().all()


@tiny_cases
def test_draws_have_one_shape_on_every_device_and_one_value_per_seed(name, parameters):
    found = case(name, torch.bfloat16, **parameters)
    real, again, other, meta = found.sample("cpu"), found.sample("cpu"), found.sample("cpu", 1), found.sample("meta")
    for a, b, c, m in zip(real.tensors(), again.tensors(), other.tensors(), meta.tensors(), strict=True):
        assert (a.shape, a.stride(), a.dtype, a.requires_grad) == (m.shape, m.stride(), m.dtype, m.requires_grad)
        assert a.is_leaf
        assert torch.equal(a.float(), b.float())
        assert a.numel() < 8 or name.endswith("_") or not torch.equal(a.float(), c.float())
    assert real.name == meta.name == found.label
    assert all(t.device.type == "meta" or t.numel() <= 4096 for t in meta.tensors())


@pytest.mark.parametrize("name", sorted(SPECS))
def test_our_ops_take_what_is_drawn(name):
    for parameters in TINY[name]:
        sample = case(name, torch.bfloat16, **parameters).sample("cpu")
        expected = Expected.of(OPERATORS[name].torch_op, sample)
        assert all(c.ok for c in expected.compare(evaluate(SPECS[name].op, sample)))


def test_what_an_op_spec_knows_is_not_said_again():
    """So that an OpSpec wins as soon as there is one: tests and benchmarks must not have two definitions of an op."""
    seen = set()
    for path in OPERATOR_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "operator":
                name = node.args[0].value
                seen.add(name)
                given = {keyword.arg for keyword in node.keywords}
                theirs = {"family", "torch_op", "cost", "dtypes", "gradient"}
                assert not (given & theirs) if name in SPECS else theirs <= given, name
    assert seen == set(OPERATORS)
    for name, spec in SPECS.items():
        found = OPERATORS[name]
        assert (found.torch_op, found.cost, found.family) == (spec.torch_op, spec.cost, spec.family)


def test_every_parameter_has_an_annotation_that_the_loader_checks():
    for name, found in OPERATORS.items():
        for parameter, details in found.parameters.items():
            hint = suite_module._hints(found.sample)[parameter]
            assert details.kind is details.KEYWORD_ONLY, (name, parameter)
            assert "typing" not in suite_module._described(hint), (name, parameter)
            assert not suite_module._fits({}, hint), (name, parameter)
            if details.default is not details.empty:
                assert suite_module._fits(details.default, hint), (name, parameter)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("linear", {"m": 64, "n": 96, "k": 512}),
        ("matmul", {"m": 64, "n": 96, "k": 512, "layout": "tt"}),
        ("linear_w4a16", {"m": 64, "n": 96, "k": 512}),
        ("linear_w8a16", {"m": 64, "n": 96, "k": 512, "zero_points": True}),
        ("grouped_matmul", {"groups": 4, "tokens": 64, "n": 96, "k": 512}),
        ("conv2d", {"batch": 2, "channels": 64, "size": 16, "kernel": 3}),
        ("conv2d", {"batch": 2, "channels": 64, "size": 32, "kernel": 7, "depthwise": True}),
        ("conv3d", {"batch": 1, "channels": 16, "size": 12, "kernel": 3}),
        ("conv_transpose2d", {"batch": 2, "channels": 64, "filters": 32, "size": 8, "kernel": 4, "stride": 2}),
        ("causal_conv1d", {"batch": 2, "channels": 16, "length": 64, "kernel": 4, "bias": False}),
    ],
)
def test_weights_keep_outputs_near_one(name, parameters):
    found = case(name, **parameters)
    sample = found.sample("cpu")
    assert 0.7 < found.operator.torch_op(*sample.args, **sample.kwargs).std() < 1.3


def test_operand_layouts_are_those_of_memory():
    for layout in ("nn", "nt", "tn", "tt"):
        a, b = case("matmul", m=3, n=4, k=5, layout=layout).sample("cpu").args
        assert (a.shape, b.shape) == ((3, 5), (5, 4))
        assert [t.is_contiguous() for t in (a, b)] == [side == "n" for side in layout]
    x, weight = case("conv2d", batch=2, channels=3, size=4, kernel=3, channels_last=True).sample("cpu").args[:2]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_groups_are_uneven_and_some_are_empty():
    first, second = group_sizes(8, 100, 0), group_sizes(8, 100, 1)
    assert sum(first) == sum(second) == 100
    assert first != second
    assert sorted(first) == sorted(second)
    assert first.count(0) == 2
    assert max(first) > 2 * min(size for size in first if size)


def test_models_have_as_many_parameters_as_their_publishers_say():
    counts = {"resnet50": 25_557_032, "gpt2-small": 124_439_808, "llama3-1b": 1_235_814_400}
    tensors = {"resnet50": 161, "gpt2-small": 148, "llama3-1b": 146}
    for name, shapes in MODELS.items():
        assert sum(torch.Size(shape).numel() for shape in shapes()) == counts[name]
        assert len(shapes()) == len(shapes(99)) == tensors[name]
        assert len(shapes(1)) < tensors[name]


@pytest.mark.parametrize(
    "kind",
    [{}, {"masters": True}, {"eight_bit": True}, {"eight_bit": True, "masters": True}],
    ids=lambda kind: "".join(kind) or "plain",
)
@pytest.mark.parametrize("name", ["adamw_", "adam_", "sgd_", "lion_", "lamb_"])
def test_pytorch_s_own_step_in_place_is_the_step(name, kind):
    if name != "adamw_" and "eight_bit" in kind:
        pytest.skip("AdamW stands for the others")
    found = case(name, torch.bfloat16 if "masters" in kind else torch.float32, model="resnet50", layers=1, divide=64,
                 **kind)  # fmt: skip
    sample = found.sample("cpu")
    expected = found.operator.torch_op(*sample.args, **sample.kwargs)
    steps = [step.clone() for step in sample.args[-1]]
    assert found.operator.in_place(*sample.args, **sample.kwargs) is None
    written = found.operator.written(sample)
    assert len(written) == len(expected)
    for ours, theirs in zip(written, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(torch.stack(steps), torch.stack(sample.args[-1]))


@pytest.mark.parametrize(
    ("name", "parameters", "flops", "bytes"),
    [
        ("linear", {"m": 8, "n": 16, "k": 32, "bias": True}, 2 * 8 * 16 * 32, 2 * (8 * 32 + 16 * 32 + 16 + 8 * 16)),
        ("matmul", {"m": 8, "n": 16, "k": 32, "layout": "tt"}, 2 * 8 * 16 * 32, 2 * (8 * 32 + 32 * 16 + 8 * 16)),
        ("bmm", {"batch": 3, "m": 8, "n": 16, "k": 32}, 3 * 2 * 8 * 16 * 32, 3 * 2 * (8 * 32 + 32 * 16 + 8 * 16)),
        # Three groups of four have rows; four int32 offsets.
        ("grouped_matmul", {"groups": 4, "tokens": 10, "n": 8, "k": 16},
         2 * 10 * 8 * 16, 2 * (10 * 16 + 3 * 8 * 16 + 10 * 8) + 4 * 4),
        ("conv2d", {"batch": 2, "channels": 8, "filters": 4, "size": 6, "kernel": 3, "stride": 2, "groups": 4},
         2 * (2 * 4 * 3 * 3) * (2 * 9), 2 * (2 * 8 * 36 + 4 * 2 * 9 + 2 * 4 * 9)),
        ("conv2d_batch_norm",
         {"batch": 2, "channels": 8, "filters": 4, "size": 6, "kernel": 3, "residual": True, "activation": "relu"},
         2 * (2 * 4 * 36) * (8 * 9) + 9 * (2 * 4 * 36), 2 * (2 * 8 * 36 + 4 * 8 * 9 + 2 * 2 * 4 * 36 + 2 * 4)),
        ("conv3d", {"batch": 1, "channels": 2, "filters": 5, "size": 6, "kernel": 3, "padding": 0, "bias": True},
         2 * (5 * 4**3) * (2 * 27), 2 * (2 * 6**3 + 5 * 2 * 27 + 5 + 5 * 4**3)),
        # 4 -> (4 - 1) * 2 - 2 + 4 = 8.
        ("conv_transpose2d",
         {"batch": 2, "channels": 3, "filters": 5, "size": 4, "kernel": 4, "stride": 2, "padding": 1},
         2 * (2 * 3 * 16) * (5 * 16), 2 * (2 * 3 * 16 + 3 * 5 * 16 + 2 * 5 * 64)),
        ("causal_conv1d", {"batch": 2, "channels": 3, "length": 10, "kernel": 4},
         2 * 60 * 4, 2 * (60 + 12 + 3 + 60)),
        # Rows of 96 padded elements, three groups of 32 with a zero point of a byte each.
        ("linear_w4a16", {"m": 4, "n": 8, "k": 70, "group_size": 32, "zero_points": True},
         2 * 4 * 8 * 70, 8 * (48 + 3 * 3) + 2 * (4 * 70 + 4 * 8)),
        ("dequantize_packed", {"n": 8, "k": 70, "bits": 8}, 2 * 8 * 70, 8 * (96 + 2) + 2 * 8 * 70),
        # Three groups of 32, each with a scale and a zero point.
        ("quantize_packed", {"n": 8, "k": 70, "group_size": 32, "zero_points": True},
         4 * 8 * 70, 2 * 8 * 70 + 8 * (48 + 3 * 2 + 3)),
        ("geglu", {"rows": 3, "width": 4}, 6 * 12, 2 * 3 * 12),
        ("linear_cross_entropy", {"rows": 4, "width": 8, "classes": 16},
         2 * 4 * 8 * 16 + 4 * 4 * 16, 2 * (4 * 8 + 16 * 8) + 8 * 4 + 2),
        ("linear_kl_div", {"rows": 4, "width": 8, "teacher_width": 6, "classes": 16},
         2 * 4 * (8 + 6) * 16 + 10 * 4 * 16, 2 * (4 * 8 + 16 * 8 + 4 * 6 + 16 * 6) + 2),
        ("softmax", {"rows": 3, "width": 4}, 5 * 12, 2 * 2 * 12),
        ("group_norm", {"batch": 1, "channels": 4, "size": 3, "groups": 2, "activation": "silu"},
         11 * 36, 2 * (2 * 36 + 8)),
        ("batch_norm", {"batch": 1, "channels": 4, "size": 3, "residual": True, "activation": "relu"},
         9 * 36, 2 * (3 * 36 + 8)),
        ("batch_norm", {"batch": 1, "channels": 4, "size": 3, "training": False}, 2 * 36, 2 * (2 * 36 + 16)),
    ],
)  # fmt: skip
def test_the_least_work_is_what_a_hand_computes(name, parameters, flops, bytes):
    assert cost_of(case(name, torch.bfloat16, **parameters)) == Cost(flops, bytes)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_smaller_cases_end(name):
    for parameters in TINY[name]:
        small, steps = case(name, **parameters), 0
        while (following := small.smaller()) is not None:
            small, steps = following, steps + 1
            assert cost_of(small).flops > 0
            assert steps < 100


def test_products_shrink_on_their_larger_side():
    small = case("linear", m=64, n=1000, k=7).smaller()
    assert small.parameters == {"m": 64, "n": 500, "k": 7}
    assert case("grouped_matmul", groups=4, tokens=48, n=40, k=63).smaller() is None


def test_labels_say_what_convolutions_are():
    label = case("conv2d", batch=32, channels=64, filters=128, size=56, kernel=3, stride=2).label
    assert label == "N32 64->128 3x3 s2 @56"
    label = case("conv2d", batch=1, channels=8, size=[161, 700], kernel=[5, 20], padding=0, depthwise=True,
                 dilation=2, channels_last=True, bias=True, activation="relu").label  # fmt: skip
    assert label == "N1 8->8 5x20 p0 d2 dw @161x700 NHWC + bias, relu"
    assert case("linear", m=1, n=2, k=3).label == "1 x 2 x 3"
    assert case("layer_norm", rows=8192, width=4096, residual=True).label == "8192 x 4096 + residual"
