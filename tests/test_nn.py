"""warpwright.nn: layers that stand in for torch.nn's."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import warpwright

# PyTorch's own remarks about what the layers below ask of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Complex modules",
    "ignore:Mismatch dtype",
    "ignore:The PyTorch API of nested",
    "ignore:Using padding",
    "ignore:.torch.jit.script. is deprecated",
)


def floats(*shape, **kwargs):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), **kwargs) * 2 - 1


def classes_of(count, *shape):
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1))


#: name -> (constructor arguments, keyword arguments, inputs of one call)
CASES = {
    "Linear": [
        ((8, 5), {}, lambda: (floats(3, 8),)),
        ((8, 5), {"bias": False}, lambda: (floats(2, 3, 8),)),
        ((7, 1), {}, lambda: (floats(7),)),
    ],
    "Conv2d": [
        ((3, 4, 3), {}, lambda: (floats(2, 3, 9, 8),)),
        ((4, 6, (3, 2), 2, (1, 0)), {"dilation": 2, "groups": 2, "bias": False}, lambda: (floats(2, 4, 9, 8),)),
        ((4, 4, 3), {"padding": "same", "dilation": 2, "groups": 4}, lambda: (floats(1, 4, 6, 5),)),
        ((3, 2, (2, 3)), {"padding": "same"}, lambda: (floats(1, 3, 5, 5),)),
        ((2, 3, 2), {"padding": "valid"}, lambda: (floats(2, 6, 5),)),
        ((3, 4, 3), {"padding": 1}, lambda: (floats(2, 3, 8, 8).to(memory_format=torch.channels_last),)),
        ((3, 4, 3, 1, 1), {"padding_mode": "circular"}, lambda: (floats(1, 3, 5, 5),)),
    ],
    "Conv1d": [
        ((3, 4, 3), {"padding": 1, "padding_mode": "reflect"}, lambda: (floats(2, 3, 9),)),
        ((4, 6, 4, 2), {"dilation": 2, "groups": 2, "bias": False}, lambda: (floats(4, 9),)),
        ((4, 4, 4), {"padding": "same", "padding_mode": "circular"}, lambda: (floats(2, 4, 7),)),
    ],
    "Conv3d": [
        ((3, 4, (1, 2, 3)), {"padding": (0, 1, 1)}, lambda: (floats(2, 3, 4, 5, 6),)),
        ((3, 4, 3), {"padding": 1, "padding_mode": "replicate"}, lambda: (floats(1, 3, 4, 5, 6),)),
    ],
    "ConvTranspose1d": [((3, 4, 4, 2, 1), {}, lambda: (floats(2, 3, 7),))],
    "ConvTranspose2d": [
        ((3, 4, 3, 2, 1, 1), {}, lambda: (floats(2, 3, 5, 4),)),
        ((4, 6, (3, 2), (1, 3)), {"groups": 2, "dilation": (2, 1), "bias": False}, lambda: (floats(4, 5, 4),)),
    ],
    "ConvTranspose3d": [((3, 4, (1, 2, 3), (1, 2, 2)), {}, lambda: (floats(1, 3, 3, 4, 5),))],
    "Embedding": [
        ((6, 8), {}, lambda: (classes_of(6, 3, 4),)),
        ((6, 7, 2), {}, lambda: (classes_of(6, 5).int(),)),
        ((6, 8, -1), {"scale_grad_by_freq": True}, lambda: (classes_of(6, 2, 9),)),
    ],
    "LayerNorm": [
        ((8,), {}, lambda: (floats(3, 8),)),
        (((4, 8), 1e-3), {"elementwise_affine": False}, lambda: (floats(3, 4, 8),)),
        ((8,), {"bias": False}, lambda: (floats(2, 3, 8),)),
    ],
    "RMSNorm": [
        ((8,), {}, lambda: (floats(3, 8),)),
        (((4, 8), 1e-3, False), {}, lambda: (floats(3, 4, 8),)),
    ],
    "GroupNorm": [
        ((2, 6), {}, lambda: (floats(2, 6, 3, 4),)),
        ((3, 6, 1e-3), {"affine": False}, lambda: (floats(2, 6, 5),)),
        ((2, 8), {}, lambda: (floats(2, 8, 3, 4).to(memory_format=torch.channels_last),)),
    ],
    "BatchNorm1d": [
        ((6,), {}, lambda: (floats(5, 6),)),
        ((6, 1e-3, 0.3), {"affine": False}, lambda: (floats(5, 6, 3),)),
    ],
    "BatchNorm2d": [
        ((6,), {}, lambda: (floats(2, 6, 3, 4).to(memory_format=torch.channels_last),)),
        ((6,), {"track_running_stats": False}, lambda: (floats(2, 6, 3, 4),)),
    ],
    "BatchNorm3d": [((4,), {}, lambda: (floats(2, 4, 3, 2, 3),))],
    "InstanceNorm1d": [
        ((6,), {"affine": True, "track_running_stats": True}, lambda: (floats(2, 6, 7),)),
        ((6,), {}, lambda: (floats(6, 7),)),
    ],
    "InstanceNorm2d": [((6,), {"affine": True}, lambda: (floats(2, 6, 3, 4),))],
    "InstanceNorm3d": [((4,), {}, lambda: (floats(2, 4, 3, 2, 3),))],
    "CrossEntropyLoss": [
        ((), {}, lambda: (floats(6, 5), classes_of(5, 6))),
        ((), {"label_smoothing": 0.1, "ignore_index": 2, "reduction": "sum"}, lambda: (floats(6, 5), classes_of(5, 6))),
        ((), {"reduction": "none"}, lambda: (floats(2, 5, 3, 4), classes_of(5, 2, 3, 4))),
        ((), {}, lambda: (floats(5), classes_of(5))),
        ((floats(5).abs(),), {"label_smoothing": 0.1}, lambda: (floats(6, 5), classes_of(5, 6))),
        ((), {}, lambda: (floats(6, 5), floats(6, 5).detach().softmax(1))),
    ],
    "GELU": [((), {}, lambda: (floats(3, 8),)), (("tanh",), {}, lambda: (floats(2, 3, 5),))],
    "SiLU": [((), {}, lambda: (floats(3, 8),))],
    "ReLU": [((), {}, lambda: (floats(3, 8),))],
    "GLU": [((), {}, lambda: (floats(3, 8),)), ((1,), {}, lambda: (floats(2, 4, 3),))],
    "Softmax": [((-1,), {}, lambda: (floats(3, 8),)), ((1,), {}, lambda: (floats(2, 5, 4),))],
    "LogSoftmax": [((-1,), {}, lambda: (floats(3, 8),)), ((0,), {}, lambda: (floats(6, 4),))],
    # With other probabilities the masks are not torch's.
    "Dropout": [((0.0,), {}, lambda: (floats(3, 8),)), ((1.0,), {}, lambda: (floats(3, 8),))],
    "NLLLoss": [
        ((), {"reduction": "none"}, lambda: (floats(2, 5, 3), classes_of(5, 2, 3))),
        ((floats(5).abs(),), {"ignore_index": 2}, lambda: (floats(6, 5), classes_of(5, 6))),
    ],
    "BCEWithLogitsLoss": [
        ((), {"pos_weight": floats(5).abs()}, lambda: (floats(6, 5), floats(6, 5).detach().sigmoid()))
    ],
    "KLDivLoss": [((), {"reduction": "batchmean"}, lambda: (floats(6, 5), floats(6, 5).detach().softmax(1)))],
}
LANDED = set(warpwright.nn.__all__)
PARAMS = [
    pytest.param(name, *case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
    if name in LANDED
]


def pair(name, arguments, keywords=None):
    """torch's layer and ours with the same weights, none of them at its plain initial value."""
    keywords = keywords or {}
    torch.manual_seed(0)
    theirs = getattr(nn, name)(*arguments, **keywords)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(floats(*p.shape) * 0.5)
    ours = getattr(warpwright.nn, name)(*arguments, **keywords)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def gradients(layer, inputs):
    inputs = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    output = layer(*inputs)
    leaves = [t for t in inputs if t.requires_grad] + list(layer.parameters())
    return [output.detach(), *torch.autograd.grad((output * floats(*output.shape)).sum(), leaves)]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


# ---- layers ----


@pytest.mark.parametrize(("name", "arguments", "keywords", "inputs"), PARAMS)
def test_outputs_and_gradients_are_torchs(matrix, name, arguments, keywords, inputs):
    theirs, ours = pair(name, arguments, keywords)
    theirs, ours = theirs.to(matrix), ours.to(matrix)
    values = [t.to(matrix) for t in inputs()]
    close(gradients(ours, values), gradients(theirs, values))
    assert not warpwright.fallbacks()


@pytest.mark.parametrize(("name", "arguments", "keywords", "inputs"), PARAMS)
def test_a_layer_looks_like_torchs(name, arguments, keywords, inputs):
    theirs, ours = pair(name, arguments, keywords)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert set(vars(ours)) == set(vars(theirs))
    theirs.load_state_dict(ours.state_dict())
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        close(twin(*inputs()), ours(*inputs()))


@pytest.mark.parametrize(("name", "arguments", "keywords", "inputs"), PARAMS)
def test_a_layer_runs_on_the_meta_device(name, arguments, keywords, inputs):
    theirs, ours = (layer.to("meta") for layer in pair(name, arguments, keywords))
    values = [t.to("meta") for t in inputs()]
    assert ours(*values).shape == theirs(*values).shape
    assert not warpwright.fallbacks()


@pytest.mark.parametrize(("name", "arguments", "keywords", "inputs"), PARAMS)
def test_compile_and_export_give_the_same(name, arguments, keywords, inputs):
    _, ours = pair(name, arguments, keywords)
    expected = gradients(ours, inputs())
    torch._dynamo.reset()
    close(gradients(torch.compile(ours, fullgraph=True, backend="aot_eager"), inputs()), expected)
    exported = torch.export.export(ours, inputs()).module()
    close(exported(*inputs()), expected[0])
    assert not warpwright.fallbacks()


@pytest.mark.parametrize(("name", "arguments", "keywords", "inputs"), PARAMS)
@pytest.mark.parametrize("grad", [True, False])
def test_autocast_is_followed(name, arguments, keywords, inputs, grad):
    theirs, ours = pair(name, arguments, keywords)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        output, expected = ours(*inputs()), theirs(*inputs())
    kept = "Loss" in name or name in ("Embedding", "Softmax", "LogSoftmax")  # As torch's.
    assert output.dtype == (torch.float32 if kept else torch.bfloat16)
    torch.testing.assert_close(output.float(), expected.float(), rtol=2e-2, atol=2e-2)
    assert not warpwright.fallbacks()


# ---- fallbacks ----


class Wrapped(torch.Tensor):
    """A subclass with its own dispatch around a plain tensor."""

    @staticmethod
    def __new__(cls, data):
        self = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)
        self.data_inside = data
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map_only(cls, lambda t: t.data_inside, args)
        return func(*plain, **(kwargs or {}))


def nested():
    return (torch.nested.nested_tensor([floats(2, 8), floats(3, 8)]),)


def to(dtype):
    return lambda value: value.to(dtype)


MIXED = "torch.bfloat16 input, torch.float32 parameter"
FALLBACKS = {
    "mixed dtypes": ("RMSNorm", (8,), {}, None, (floats(3, 8).to(torch.bfloat16),), MIXED),
    "mixed dtypes in LayerNorm": ("LayerNorm", (8,), {}, None, (floats(3, 8).to(torch.bfloat16),), MIXED),
    "complex": ("Linear", (8, 5), {}, to(torch.complex64), (floats(3, 8).to(torch.complex64),),
                "torch.complex64 input on cpu"),
    "sparse": ("Linear", (8, 5), {"bias": False}, None, (floats(3, 8).to_sparse(),), "torch.sparse_coo tensor"),
    "nested": ("Linear", (8, 5), {}, None, nested,
               "nested tensor"),
    "subclass": ("RMSNorm", (8,), {}, None, (Wrapped(floats(3, 8)),), "tensor subclass Wrapped"),
    "max_norm": ("Embedding", (6, 8), {"max_norm": 1.0}, None, (classes_of(6, 4),), "max_norm"),
    "sparse gradients": ("Embedding", (6, 8), {"sparse": True}, None, (classes_of(6, 4),), "sparse gradients"),
    "in place": ("ReLU", (True,), {}, None, (floats(3, 8),), "inplace=True"),
    "no dimension": ("Softmax", (), {}, None, (floats(3, 8),), "dim=None"),
    "integers": ("ReLU", (), {}, None, (classes_of(5, 6),), "torch.int64 input on cpu"),
    "uint8 target": ("CrossEntropyLoss", (), {}, None, (floats(6, 5), classes_of(5, 6).to(torch.uint8)),
                     "torch.uint8 target"),
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case, row in FALLBACKS.items() if row[0] in LANDED])
def test_what_the_op_cannot_run_falls_back_and_is_named(case):
    name, arguments, keywords, change, inputs, reason = FALLBACKS[case]
    theirs, ours = pair(name, arguments, keywords)
    if change is not None:
        theirs, ours = change(theirs), change(ours)
    inputs = inputs() if callable(inputs) else inputs
    expected = theirs(*inputs)
    for count in (1, 2):
        torch.testing.assert_close(plain(ours(*inputs)), plain(expected))
        assert dict(warpwright.fallbacks()) == {(name, reason): count}
    line = str(warpwright.fallbacks()).splitlines()[1]
    assert line.split(maxsplit=2) == [name, "2", reason]
    warpwright.fallbacks().clear()
    assert str(warpwright.fallbacks()) == "no fallbacks"


def plain(tensor):
    return list(tensor.unbind()) if tensor.is_nested else tensor


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize(
    ("name", "arguments", "x"),
    [
        ("Linear", (8, 5), floats(3, 8)),
        ("Conv2d", (3, 4, 3), floats(2, 3, 6, 6)),
        ("ConvTranspose1d", (3, 4, 3), floats(2, 3, 6)),
    ],
)
def test_an_activation_is_applied_by_the_kernel_and_by_the_fallback(name, arguments, x, activation):
    function = {
        "relu": nn.ReLU(),
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "silu": nn.SiLU(),
    }[activation]
    theirs = getattr(nn, name)(*arguments)
    ours = getattr(warpwright.nn, name)(*arguments, activation=activation)
    ours.load_state_dict(theirs.state_dict())
    close(gradients(ours, (x,)), gradients(nn.Sequential(theirs, function), (x,)))
    assert not warpwright.fallbacks()
    close(torch.func.vmap(ours)(x[None]), function(theirs(x))[None])
    assert len(warpwright.fallbacks()) == 1
    assert repr(ours) == repr(theirs)[:-1] + f", activation='{activation}')"


def test_an_unknown_activation_raises():
    with pytest.raises(RuntimeError, match=r"warpwright: nn\.Linear: activation must be one of .* got 'mish'"):
        warpwright.nn.Linear(2, 3, activation="mish")


def test_a_compiled_fallback_counts_once_a_compilation():
    layer = warpwright.nn.RMSNorm(8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = floats(3, 8).to(torch.bfloat16)
    close(compiled(x), nn.RMSNorm(8)(x))
    compiled(x)
    assert list(warpwright.fallbacks().values()) == [1]


def test_forward_mode_and_torch_func_fall_back():
    theirs, ours = pair("RMSNorm", (8,))
    x, t = floats(3, 8), floats(3, 8)
    close(torch.func.jvp(ours, (x,), (t,)), torch.func.jvp(theirs, (x,), (t,)))
    close(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))

    def loss(layer):
        return lambda parameters: torch.func.functional_call(layer, parameters, (x,)).square().sum()

    weights = {name: p.detach() for name, p in ours.named_parameters()}
    close(torch.func.grad(loss(ours))(weights), torch.func.grad(loss(theirs))(weights))
    assert dict(warpwright.fallbacks()) == {("RMSNorm", "forward-mode AD or a torch.func transform"): 3}


def test_fx_tracing_records_torchs_function():
    theirs, ours = pair("RMSNorm", (8,))
    close(torch.fx.symbolic_trace(ours)(floats(3, 8)), theirs(floats(3, 8)))


def test_wrong_shapes_raise_the_ops_error():
    with pytest.raises(RuntimeError, match="warpwright: rms_norm: normalized_shape"):
        warpwright.nn.RMSNorm(8)(floats(3, 9))


def test_threads_count_every_fallback():
    layer = warpwright.nn.RMSNorm(8)
    x = floats(3, 8).to(torch.bfloat16)
    threads = [threading.Thread(target=lambda: [layer(x) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(warpwright.fallbacks().values()) == 400
