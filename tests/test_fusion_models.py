"""warpwright.fuse on models: training steps, evaluation, dtypes, symbols for sizes, and Inductor behind it."""

from __future__ import annotations

import copy
import importlib.metadata
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from fusion_library import check, converted, floats
from torch import nn

import warpwright
from warpwright.fusion import FusionReport, compile_graph, fuse_graph, register_backend


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Residual(nn.Module):
    """A basic block of ResNet, with in-place operations as torchvision writes them."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(3, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, 5)

    def forward(self, t):
        out = self.relu(self.bn1(self.conv1(t)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(t)
        out = self.relu(out)
        return self.head(out.mean((2, 3)))


class Attention(nn.Module):
    """A transformer's block, its attention written out."""

    def __init__(self, width=16, heads=2, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, t):
        batch, length, width = t.shape
        q, k, v = self.qkv(self.norm1(t)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        mask = torch.full((length, length), float("-inf"), dtype=t.dtype).triu(1)
        scores = F.softmax(q @ k.transpose(-2, -1) * 0.25 + mask, dim=-1)
        attended = self.dropout(self.proj((scores @ v).transpose(1, 2).reshape(batch, length, width)))
        t = t + attended.sin()  # Of no product: the norm takes this residual.
        return t + self.mlp(self.norm2(t))


MLP = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
MODELS = {
    "mlp": (MLP, (4, 6), {"linear": 2}),
    "resnet": (Residual(), (2, 3, 8, 8), {"conv2d_batch_norm": 3}),
    "transformer": (Attention(), (2, 5, 16), {"softmax": 1, "layer_norm": 1, "linear": 2}),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_buffers(name, training, dtype):
    model, shape, counts = MODELS[name]
    check(model.train(training), [floats(*shape).requires_grad_()], counts, dtype=dtype)


@pytest.mark.parametrize("name", MODELS)
def test_without_gradients(name):
    model, shape, counts = MODELS[name]
    with torch.no_grad():
        check(model.eval(), [floats(*shape)], counts)
    frozen = copy.deepcopy(model).requires_grad_(False)
    check(frozen, [floats(*shape).requires_grad_()], counts)


class Logits(nn.Module):
    """A causal model's logits, or its loss alone: transformers returns the logits beside it, which keeps them."""

    def __init__(self, model, loss=False):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, tokens):
        if not self.loss:
            return self.model(input_ids=tokens, use_cache=False).logits
        return self.model(input_ids=tokens, labels=tokens, use_cache=False).loss


def llama(layers=2):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # Else it warns, which is a graph break.
    return model


def tokens(*shape):
    return torch.randint(32, shape, generator=torch.Generator().manual_seed(0))


@DTYPES
def test_llama_of_hugging_face(dtype):
    counts = {"rms_norm": 5, "rotary_embedding_qk": 2, "softmax": 2, "linear": 2, "mlp": 2}
    if dtype == torch.bfloat16:
        del counts["softmax"]  # Its scores become float32 after the mask was added.
    check(Logits(llama()).train(), [tokens(2, 6)], counts, dtype=dtype)


@DTYPES
def test_gpt2_of_hugging_face(dtype):
    check(Logits(gpt2()).eval(), [tokens(2, 6)], {"matmul": 6}, dtype=dtype)


def test_resnet_of_hugging_face():
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 2], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    check(Images(model).train(), [floats(2, 3, 32, 32)],
          {"conv2d_batch_norm": 8})  # fmt: skip


class Images(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "replaced"])
def test_training_is_the_same_step_by_step(ours):
    """Losses of ten steps with an optimizer, against the model that was not fused."""

    def train(fused):
        torch.manual_seed(0)
        model = Residual()
        if ours:
            warpwright.nn.replace_modules(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        step = warpwright.fuse(model, inductor=False) if fused else model
        images, labels = floats(8, 3, 8, 8), torch.arange(8) % 5
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(step(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict()

    (losses, state), (expected, theirs) = train(True), train(False)
    assert expected[-1] < expected[0] - 0.4
    assert losses == pytest.approx(expected, rel=1e-4)
    assert state["bn1.num_batches_tracked"] == theirs["bn1.num_batches_tracked"] == 10
    torch.testing.assert_close(state["bn2.running_var"], theirs["bn2.running_var"], rtol=1e-4, atol=1e-5)


def test_a_whole_training_step_in_one_graph():
    """The loss of a causal model whose logits nobody reads: they need not exist."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = llama(1).model
            self.head = nn.Linear(16, 32, bias=False)

        def forward(self, ids):
            hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state
            return F.cross_entropy(self.head(hidden).float().view(-1, 32), ids.view(-1))

    report = check(Loss().train(), [tokens(2, 6)])
    assert report.counts()["linear_cross_entropy"] == 1


def test_sizes_may_be_symbols():
    model, _, counts = MODELS["transformer"]
    fused = warpwright.fuse(model.train(), inductor=False, fullgraph=True, dynamic=True)
    for batch, length in ((2, 5), (3, 7), (4, 9)):
        x = floats(batch, length, 16)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.report.graphs == 1
    assert fused.report.counts() == counts


def test_graph_breaks_are_several_graphs():
    def broken(t, w):
        t = F.relu(F.linear(t, w))
        torch._dynamo.graph_break()
        return F.gelu(F.linear(t, w))

    fused = warpwright.fuse(broken, inductor=False)
    t, w = floats(3, 4), floats(4, 4)
    torch.testing.assert_close(fused(t, w), broken(t, w))
    assert fused.report.graphs == 2
    assert [fusion.pattern for fusion in fused.report.fused] == ["linear + relu", "linear + gelu"]


# ---- the graph, and the kernels ----


def test_the_graph_has_the_ops_and_nothing_else():
    kept = []

    def backend(module, inputs):
        fuse_graph(module)
        kept.append([node.target for node in module.graph.nodes if node.op.startswith("call")])
        return module.forward

    model, shape, _ = MODELS["resnet"]
    torch.compile(model.eval(), backend=backend, fullgraph=True)(floats(*shape))
    ops = warpwright.ops
    assert kept == [[ops.conv2d_batch_norm, ops.conv2d_batch_norm, ops.conv2d_batch_norm, "mean", torch._C._nn.linear]]


def test_fewer_operators_run_than_before():
    def count(call, x):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            call(x)

        def is_op(event):
            return event is not None and event.name.startswith(("aten::", "warpwright::"))

        return sum(is_op(event) and not is_op(event.cpu_parent) for event in found.events())

    model, shape, _ = MODELS["resnet"]
    fused = warpwright.fuse(model.eval(), inductor=False)
    x = floats(*shape)
    with torch.no_grad():
        fused(x)
        assert count(fused, x) == 5
        assert count(model, x) == 11


class Mixed(nn.Module):
    """An epilogue, a norm that takes a residual, and something between them that is left to Inductor."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, t):
        return self.norm(t.sin() + F.silu(self.linear(t)))


def test_inductor_compiles_what_is_left():
    """By the name that torch.compile knows, in training."""
    register_backend()
    warpwright.fuse_report().clear()
    model = Mixed()
    expected, inputs = converted(model, [floats(3, 8).requires_grad_()], torch.float32)
    compiled = torch.compile(model, backend="warpwright", fullgraph=True, options={"epilogue_fusion": False})
    x = floats(3, 8).requires_grad_()
    output, theirs = compiled(x), expected(*inputs)
    output.pow(3).sum().backward()
    theirs.pow(3).sum().backward()
    torch.testing.assert_close(output, theirs)
    torch.testing.assert_close(x.grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
    for ours, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert warpwright.fuse_report().counts() == {"linear": 1, "layer_norm": 1}


def test_a_compiled_batch_norm_moves_its_statistics_once():
    model, shape, counts = MODELS["resnet"]
    model, expected = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    fused = warpwright.fuse(model, fullgraph=True, mode="max-autotune-no-cudagraphs")
    x = floats(*shape)
    for _ in range(2):
        torch.testing.assert_close(fused(x), expected(x))
    for (name, ours), theirs in zip(model.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert fused.report.counts() == counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_fused_graphs_are_captured():
    model, shape, _ = MODELS["transformer"]
    model = copy.deepcopy(model).cuda().eval()
    fused = warpwright.fuse(model, fullgraph=True, mode="reduce-overhead")
    x = floats(*shape).cuda()
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(fused(x).clone(), model(x), rtol=1e-3, atol=1e-3)


# ---- how it is asked for ----


def test_the_name_is_an_entry_point():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    group = "torch_dynamo_backends"
    found = re.search(rf'^\[project.entry-points.{group}\]\nwarpwright = "(.+)"$', project, re.MULTILINE)
    assert importlib.metadata.EntryPoint("warpwright", found[1], group).load() is compile_graph


def test_a_fused_model_is_the_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    fused = warpwright.fuse(model, inductor=False)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("hook"))
    assert str(fused.report).startswith("nothing was compiled yet")
    fused(torch.zeros(2, 4))
    assert seen == ["hook"]
    assert list(fused.parameters()) == list(model.parameters())
    assert not hasattr(model, "report")
    assert fused.report.counts() == {"linear": 1}


def test_the_report_is_a_table():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))

        def forward(self, t):
            for layer in self.layers:
                t = layer(t)
            return F.leaky_relu(self.layers[0][0](t), 0.3)

    fused = warpwright.fuse(Net(), inductor=False)
    fused(torch.zeros(2, 4))
    lines = str(fused.report).splitlines()
    assert lines[0].split() == ["pattern", "count", "result", "where"]
    assert lines[1].split()[:5] == ["linear", "+", "relu", "3", "linear"]
    assert "layers.*.* (test_fusion_models.py:" in lines[1]
    assert "skipped: a slope of 0.3; the op's is 0.01" in lines[2]
    assert "(test_fusion_models.py:" in lines[2]
    assert lines[3] == "3 fused, 1 skipped in 1 graph"
    total = FusionReport()
    total.add(fused.report)
    total.add(fused.report)
    assert total.counts() == {"linear": 6}
    total.clear()
    assert (total.fused, total.graphs) == ([], 0)


MISUSE = {
    "a number": (lambda: warpwright.fuse(3), "must be a module or a function, got a int"),
    "a class": (lambda: warpwright.fuse(nn.Linear), "must be a module or a function, got a type"),
    "scripted": (lambda: warpwright.fuse(torch.jit.script(nn.ReLU())), "got a scripted one"),
    "fused": (lambda: warpwright.fuse(warpwright.fuse(nn.ReLU())), "must not be compiled yet"),
    "compiled": (lambda: warpwright.fuse(torch.compile(F.relu)), "must not be compiled yet"),
    "options": (lambda: warpwright.fuse(nn.ReLU(), inductor=False, mode="max-autotune"), "mode and options"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_answered(case):
    call, message = MISUSE[case]
    with pytest.raises(RuntimeError, match=f"warpwright: fuse: .*{message}"):
        call()
