"""Around torch.export: symbolic sizes, AOTInductor, ONNX, and every operator as PyTorch's own functions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from fusion_library import converted, floats, nudged
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import warpwright
from warpwright import _registry, ops
from warpwright.testing import SPECS, Expected, Make, evaluate

FEW = 4


# ---- decompositions ----


class Decomposed(TorchDispatchMode):
    """Runs the decompositions in the place of the operators, and keeps what they were called with."""

    def __init__(self):
        super().__init__()
        self.table = warpwright.export.decompositions()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in self.table:
            return func(*args, **(kwargs or {}))
        self.calls.append((func, args))
        return self.table[func](*args)


def _is_forward(name):
    return not name.endswith("_") and _registry.OPS.get(name, _registry.OPS["linear"]).family != "multi_tensor"


@pytest.mark.parametrize("name", [name for name in SPECS if _is_forward(name)])
def test_an_operator_computes_what_its_decomposition_does(name):
    """Within the error rule, and traceable: no writes to tensors, no constants, nothing that depends on data."""
    spec = SPECS[name]
    for dtype in (torch.float32, torch.bfloat16):
        for sample in list(spec.samples(Make(dtype)))[:FEW]:
            plain = sample.map(torch.Tensor.detach)
            with torch.no_grad(), Decomposed() as mode:
                ours = evaluate(spec.op, plain)
            assert mode.calls, sample.name
            for comparison in Expected.of(spec.torch_op, plain).compare_inference(ours):
                assert comparison.ok, (sample.name, comparison)
    func, args = mode.calls[0]
    assert not any(op.startswith("warpwright") for op in traced(mode.table[func], args))


def traced(function, args):
    """The names of the operators that a function calls."""
    tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]

    def call(*given):
        full = list(args)
        for i, tensor in zip(tensors, given, strict=True):
            full[i] = tensor
        return function(*full)

    graph = make_fx(call, tracing_mode="fake")(*(args[i] for i in tensors)).graph
    assert not graph.find_nodes(op="get_attr", target="_tensor_constant0")
    names = []
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            # Writing to what was made a moment ago is no part of a functional program either.
            assert not node.target._schema.is_mutable, node.target
            names.append(str(node.target))
    return names


class Images(nn.Module):
    """Layers of a convolutional network: warpwright's, with epilogues."""

    def __init__(self):
        super().__init__()
        self.stem = warpwright.nn.ConvBnAct2d(3, 8, 3, 2, 1, activation="relu")
        self.up = warpwright.nn.ConvTranspose2d(8, 6, 2, 2, activation="silu")
        self.groups = warpwright.nn.GroupNorm(2, 6, activation="silu")
        self.bn = warpwright.nn.BatchNorm2d(6)
        self.head = warpwright.nn.Linear(6, 5, activation="gelu")

    def forward(self, images):
        hidden = self.bn(self.groups(self.up(self.stem(images))))
        return ops.log_softmax(self.head(hidden.mean((2, 3))))


class Text(nn.Module):
    """A transformer's ops."""

    def __init__(self):
        super().__init__()
        self.tokens = warpwright.nn.Embedding(20, 16)
        self.norm1, self.norm2 = warpwright.nn.LayerNorm(16), warpwright.nn.RMSNorm(16, 1e-5)
        self.proj = warpwright.nn.Linear(16, 16)
        self.gate, self.up, self.down = (nn.Parameter(floats(*s)) for s in ((24, 16), (24, 16), (16, 24)))
        self.dropout = warpwright.nn.Dropout(0.1)

    def forward(self, tokens):
        hidden = self.tokens(tokens)
        heads = self.norm1(hidden).unflatten(-1, (2, 8))
        q, k = ops.rotary_embedding_qk(heads, heads, base=10000.0)
        scores = ops.softmax(q.transpose(1, 2) @ k.transpose(1, 2).mT, scale=0.3, causal=True)
        mixed = self.proj((scores @ heads.transpose(1, 2)).transpose(1, 2).flatten(2))
        normal, hidden = ops.rms_norm(mixed, (16,), self.norm2.weight, 1e-5, residual=hidden)
        return self.dropout(ops.mlp(normal, self.up, self.down, gate_weight=self.gate, residual=hidden))


MODELS = {
    "images": (Images, lambda batch: (floats(batch, 3, 8, 8, seed=batch),)),
    "text": (Text, lambda batch: (torch.randint(20, (batch, 6), generator=torch.Generator().manual_seed(batch)),)),
}


def model_of(name):
    torch.manual_seed(0)
    kind, inputs = MODELS[name]
    return kind().eval(), inputs


def exported(name):
    """A program with a symbol for the batch."""
    model, inputs = model_of(name)
    with torch.no_grad():
        return torch.export.export(model, inputs(3), dynamic_shapes=({0: torch.export.Dim("batch")},))


def within(output, model, inputs):
    """As near to the model in float64 as the error rule asks."""
    exact, moved = converted(model, inputs, torch.float64), nudged(model, inputs)
    truth, near, theirs = (m(*i) for m, i in (exact, moved, (model, inputs)))
    found = Expected({"output": truth}, {"output": near}, {"output": theirs}).compare({"output": output})
    assert all(comparison.ok for comparison in found), found


@pytest.mark.parametrize("name", MODELS)
def test_programs_take_any_batch_and_come_apart(name):
    model, inputs = model_of(name)
    program = exported(name)
    assert any(str(node.target).startswith("warpwright.") for node in program.graph.nodes)
    apart = warpwright.export.decompose(program)
    with torch.no_grad():
        for batch in (2, 3, 7):
            expected = model(*inputs(batch))
            assert torch.equal(program.module()(*inputs(batch)), expected)
            within(apart.module()(*inputs(batch)), model, inputs(batch))


#: Ops whose kernels count in 32 bits: name -> (call, tensors), with a symbol for the first size of the first.
COUNTED = {
    "grouped_matmul": (ops.grouped_matmul, (floats(6, 4), floats(2, 3, 4), torch.tensor([2, 6], dtype=torch.int32))),
    "softmax": (lambda x: ops.softmax(x, causal=True), (floats(3, 4, 4),)),
    "qk_norm_rotary": (
        lambda q, k, w, c, s: ops.qk_norm_rotary(q, k, w, w, c, s),
        (floats(3, 4, 2, 8), floats(3, 4, 1, 8), floats(8), floats(4, 4), floats(4, 4)),
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_most_that_a_kernel_can_count_is_no_limit_of_a_program(name):
    function, tensors = COUNTED[name]

    class Model(nn.Module):
        def forward(self, *args):
            return function(*args)

    batch = torch.export.Dim("batch")
    symbols = tuple({0: batch} if t.dim() == 4 or i == 0 else None for i, t in enumerate(tensors))
    program = torch.export.export(Model(), tensors, dynamic_shapes=(symbols,))
    doubled = [torch.cat([t, t]) if symbol else t for t, symbol in zip(tensors, symbols, strict=True)]
    torch.testing.assert_close(program.module()(*doubled), function(*doubled), rtol=0, atol=0)


def test_a_program_that_writes_to_its_arguments_has_no_other_form():
    class Update(nn.Module):
        def forward(self, state, x, w):
            return ops.causal_conv1d_update_(state, x, w)

    program = torch.export.export(Update(), (floats(2, 4, 2), floats(2, 4), floats(4, 3)))
    with pytest.raises(RuntimeError, match=r"warpwright: export.decompose: no other form of warpwright.causal_conv1d"):
        warpwright.export.decompose(program)


# ---- ONNX ----

#: What an operator of each kind must become for other runtimes to have a kernel for it.
STANDARD = {
    "images": {"Conv", "ConvTranspose", "BatchNormalization", "LogSoftmax", "Gemm"},
    "text": {"Gather", "LayerNormalization", "MatMul", "Softmax"},
}


@pytest.mark.filterwarnings("ignore")  # Of torch's exporter about itself.
@pytest.mark.parametrize("name", MODELS)
def test_onnx_has_standard_operators_and_gives_the_same(name, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, inputs = model_of(name)
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(warpwright.export.decompose(exported(name)), inputs(3), dynamo=True, verbose=False)
    program.save(path)
    kinds = {node.op_type for node in program.model.graph}
    assert {node.domain for node in program.model.graph} == {""}
    assert STANDARD[name] <= kinds, kinds
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (3, 5):
        given = {entry.name: t.numpy() for entry, t in zip(session.get_inputs(), inputs(batch), strict=True)}
        (output,) = session.run(None, given)
        with torch.no_grad():
            within(torch.from_numpy(output), model, inputs(batch))


# ---- AOTInductor ----

LOADER = """
import sys, torch
for library in {libraries}:
    torch.ops.load_library(library)
runner = torch._inductor.aoti_load_package({package!r})
for inputs, expected in torch.load({data!r}):
    torch.testing.assert_close(runner(*inputs), expected, rtol=1e-5, atol=1e-6)
assert "warpwright" not in sys.modules
print("the same")
"""


class Packaged(nn.Module):
    """One op after another: what Inductor would compile beside them is not what is tested."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = warpwright.nn.Linear(8, 8, activation="gelu"), warpwright.nn.LayerNorm(8)

    def forward(self, t):
        return self.norm(self.linear(t))


def test_a_package_of_aotinductor_needs_the_library_alone(tmp_path):
    """Compiled here, loaded by a process that never imports warpwright."""
    model, inputs = Packaged().eval(), lambda batch: (floats(batch, 8, seed=batch),)
    package, data = str(tmp_path / "model.pt2"), str(tmp_path / "data.pt")
    with torch.no_grad():
        program = torch.export.export(model, inputs(3), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.save([(inputs(batch), model(*inputs(batch))) for batch in (3, 5)], data)
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=quick)
    code = LOADER.format(libraries=warpwright.export.libraries(), package=package, data=data)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]
