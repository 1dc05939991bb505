"""What stands around a model in training: checkpointing, symbols for sizes, GradScaler under autocast, CUDA graphs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from fusion_library import floats
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint

import warpwright
from warpwright.nn import replace_modules


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    assert not warpwright.fallbacks()


class Block(nn.Module):
    """An MLP with everything that a checkpoint must bring back: dropout's mask, what norms keep."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act, self.dropout = nn.GELU(), nn.Dropout(dropout)

    def forward(self, t):
        return t + self.dropout(self.down(self.act(self.up(self.norm(t)))))


def replaced(model):
    replace_modules(model)
    return model


def gradients(call, model, x):
    """Of a call with a fixed seed: what PyTorch draws for the dropout is the same each time."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    output = call(x)
    model.zero_grad()
    output.pow(2).sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_drops_the_same_elements_again(reentrant):
    torch.manual_seed(0)
    model, x = replaced(Block()), floats(4, 8)
    plain = gradients(model, model, x)
    again = gradients(lambda t: checkpoint(model, t, use_reentrant=reentrant), model, x)
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))
    other = gradients(lambda t: model(t) + 0 * torch.rand(1), model, x)
    assert torch.equal(other[0], plain[0])


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "replaced"])
def test_what_a_checkpoint_holds_is_fused_too(ours):
    torch.manual_seed(0)
    model, x = Block(0.0), floats(4, 8)
    expected = gradients(model, model, x)
    if ours:
        replace_modules(model, fuse=False)  # Else there is nothing left to fuse.
    fused = warpwright.fuse(lambda t: checkpoint(model, t, use_reentrant=False), inductor=False, fullgraph=True)
    found = gradients(fused, model, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert fused.report.counts() == {"linear": 1 if ours else 2} | ({"dropout_add": 1} if ours else {})
    assert fused.report.graphs == 1


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_training_step_of_symbols_is_compiled_once(norm):
    """Shapes that a check or a fake binds to numbers would compile a step again for each batch."""
    compiled = []

    def backend(module, inputs):
        def count(graph, inputs):
            compiled.append(graph)
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=count, bw_compiler=count)(module, inputs)

    def step(x, r, w):
        ops = warpwright.ops
        normal, total = getattr(ops, norm)(x, (8,), residual=r)
        product = ops.matmul(normal.view(-1, 4, 8), w, activation="gelu")
        return ops.linear_swiglu(ops.softmax(product, causal=True), w, w).sum() + total.sum() + normal.sum()

    call = torch.compile(step, backend=backend, fullgraph=True, dynamic=True)
    for batch in (2, 3, 5):
        tensors = [
            floats(batch, 4, 8).requires_grad_(),
            floats(batch, 4, 8, seed=1),
            floats(8, 8, seed=2).requires_grad_(),
        ]
        loss = call(*tensors)
        torch.testing.assert_close(loss, step(*tensors))
        loss.backward()
    assert len(compiled) == 2, "the forward graph and the backward graph"


def test_a_scaler_under_autocast_trains_as_torchs_does():
    """float16 autocast with warpwright's layers, optimizer and scaler against torch's of everything."""

    def train(ours):
        torch.manual_seed(0)
        model = nn.Sequential(Block(0.0), nn.Linear(8, 3))
        if ours:
            replace_modules(model)
        optimizer = (warpwright.optim.AdamW if ours else torch.optim.AdamW)(model.parameters(), lr=1e-2)
        scaler = warpwright.amp.GradScaler("cpu") if ours else torch.amp.GradScaler("cpu")
        x, target = floats(16, 8), torch.arange(16) % 3
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(x), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses, scaler.get_scale()

    (ours, scale), (theirs, expected) = train(True), train(False)
    assert ours == pytest.approx(theirs, rel=5e-3)
    assert ours[-1] < ours[0]
    assert scale == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_training_step_is_captured_in_a_cuda_graph():
    model = replaced(Block(0.5).cuda())
    twin = copy.deepcopy(model)
    x = floats(16, 8).cuda()

    def step(net):
        net.zero_grad(set_to_none=False)
        loss = net(x).pow(2).mean()
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(model)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(model)
    graph.replay()
    first = loss.item()
    graph.replay()
    assert loss.item() != first, "each replay drops other elements"
    # Without dropout the replay is the eager step.
    twin.eval(), model.eval()
    with torch.cuda.graph(captured := torch.cuda.CUDAGraph()):
        loss = step(model)
    captured.replay()
    torch.testing.assert_close(loss, step(twin))
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
