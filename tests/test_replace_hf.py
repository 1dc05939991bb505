"""replace_modules and Hugging Face's models: their own classes, logits left to the loss, generation, saving."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import hf_models
import transformers
import whole_models

import warpwright
from warpwright.nn import replace_modules
from warpwright.nn._replace._deferred import Logits


def pair(name, training=True):
    theirs, inputs = hf_models.build(name)
    whole_models.without_dropout(theirs).train(training)
    ours = copy.deepcopy(theirs)
    replace_modules(ours)
    return theirs, ours, inputs


class Operators(TorchDispatchMode):
    """The operators of warpwright that run, by name, and the shapes of their first outputs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.namespace == "warpwright":
            first = output[0] if isinstance(output, (tuple, list)) else output
            self.calls.append((func.__name__.split(".")[0], tuple(getattr(first, "shape", ()))))
        return output

    def names(self):
        return [name for name, _ in self.calls]


# ---- logits that nobody computes ----


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_a_training_step_computes_no_logits(name):
    theirs, ours, inputs = pair(name)
    with Operators() as operators:
        output = ours(**inputs)
    assert "linear_cross_entropy" in operators.names()
    classes = ours.config.vocab_size
    assert not [call for call in operators.calls if call[1][-1:] == (classes,)]
    assert type(output.logits) is Logits
    assert output.logits.shape == theirs(**inputs).logits.shape
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, theirs(**inputs).logits, rtol=1e-4, atol=1e-5)  # Computed now.


def test_logits_are_a_tensor_for_everything_else():
    theirs, ours, inputs = pair("llama")
    reference = theirs(**inputs).logits
    for read in (
        lambda x: x.argmax(-1),
        lambda x: x.detach(),
        lambda x: x[:, -1],
        lambda x: x[..., :-1, :],
        lambda x: x[0, 3, 5],
        lambda x: x[..., 2:5],
        lambda x: x[:, :, :3],
        lambda x: x[1],
        lambda x: x.view(-1, 128).softmax(-1),
        lambda x: x.reshape(2, -1),
        lambda x: x.double() * 2 + 1,
        lambda x: torch.cat([x, x]),
        lambda x: x / 3,
        lambda x: torch.tanh(x / 3) * 2,
        lambda x: x.to(torch.bfloat16).float(),
        lambda x: F.cross_entropy((x / 3).view(-1, 128), hf_models.text().view(-1)),
        lambda x: F.cross_entropy(torch.tanh(x / 3).view(-1, 128), hf_models.text().view(-1)),
        lambda x: torch.tensor(x.tolist()),
        lambda x: copy.deepcopy(x.detach()),
        lambda x: torch.from_numpy(x.detach().numpy().copy()),
        lambda x: F.cross_entropy(x.transpose(1, 2), hf_models.text(), label_smoothing=0.1),
        lambda x: F.kl_div(x.log_softmax(-1), reference.detach().softmax(-1), reduction="batchmean"),
    ):
        uncomputed = ours(**inputs).logits
        torch.testing.assert_close(read(uncomputed), read(reference), rtol=1e-4, atol=1e-5)
    fresh = ours(**inputs).logits
    assert fresh.requires_grad
    assert "tensor(" in repr(fresh)
    gradient = torch.autograd.grad(ours(**inputs).logits.square().mean(), ours.lm_head.weight)[0]
    expected = torch.autograd.grad(theirs(**inputs).logits.square().mean(), theirs.lm_head.weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_loss_of_the_users_own_is_fused_too():
    theirs, ours, inputs = pair("gpt2")
    x, target = inputs["input_ids"], inputs["input_ids"][:, 1:].reshape(-1)

    def loss(model):
        logits = model(input_ids=x).logits[:, :-1]
        return F.cross_entropy(logits.reshape(-1, logits.size(-1)), target, label_smoothing=0.1, reduction="sum")

    with Operators() as operators:
        mine = loss(ours)
    assert "linear_cross_entropy" in operators.names()
    torch.testing.assert_close(mine, loss(theirs), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cap", [5.0, None])
def test_a_softcap_goes_into_the_loss(cap):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        head_dim=8, final_logit_softcapping=cap, attn_logit_softcapping=None, **hf_models._LLAMA
    )
    theirs = transformers.Gemma2ForCausalLM(config).train()
    with torch.no_grad():
        theirs.lm_head.weight.mul_(40)
    ours = copy.deepcopy(theirs)
    replace_modules(ours)
    inputs = {"input_ids": hf_models.text(), "labels": hf_models.text()}
    with Operators() as operators:
        output = ours(**inputs)
    assert "linear_cross_entropy" in operators.names()
    expected = theirs(**inputs)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert (cap is None) == (expected.logits.abs().max() > 5)


def test_logits_of_weights_that_have_changed_raise():
    _, ours, inputs = pair("llama")
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    output = ours(**inputs)
    read = ours(**inputs)
    kept = read.logits.detach()
    output.loss.backward()
    optimizer.step()
    torch.testing.assert_close(read.logits.detach(), kept)  # Computed before the step.
    with pytest.raises(RuntimeError, match="read them before the optimizer's step"):
        output.logits.argmax(-1)


@pytest.mark.parametrize("change", ["eval", "no_grad", "hook", "exclude", "fuse", "restore"])
def test_what_keeps_the_logits_as_they_were(change):
    theirs, inputs = hf_models.build("llama")
    theirs.train(change != "eval")
    report = replace_modules(theirs, exclude="lm_head" if change == "exclude" else None, fuse=change != "fuse")
    if change == "hook":
        theirs.lm_head.register_forward_hook(lambda _, args, output: None)
    if change == "restore":
        report.restore()
    with torch.set_grad_enabled(change != "no_grad"):
        assert type(theirs(**inputs).logits) is torch.Tensor


def test_autocast_and_bfloat16_models_train():
    for half in (False, True):
        theirs, ours, inputs = pair("llama")
        if half:
            theirs, ours = theirs.bfloat16(), ours.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=not half):
            mine, reference = ours(**inputs), theirs(**inputs)
        mine.loss.backward()
        reference.loss.backward()
        torch.testing.assert_close(mine.loss.float(), reference.loss.float(), rtol=1e-2, atol=1e-2)
        assert mine.logits.dtype == reference.logits.dtype
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            scale = q.grad.float().abs().max()
            assert (p.grad.float() - q.grad.float()).abs().max() <= 0.1 * scale + 1e-3
        assert not warpwright.fallbacks()


# ---- classes of their own ----


def test_norms_keep_the_error_rule_in_bfloat16_and_fall_back_by_name():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs = LlamaRMSNorm(32).bfloat16()
    with torch.no_grad():
        theirs.weight.uniform_(0.5, 1.5)
    ours = copy.deepcopy(theirs)
    replace_modules(ours)
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    truth = F.rms_norm(x.double(), (32,), theirs.weight.double(), 1e-6)
    mine, reference = (abs(module(x).double() - truth).max() for module in (ours, theirs))
    assert mine <= 2 * reference
    assert type(ours).__name__ == "LlamaRMSNorm"
    assert isinstance(ours, LlamaRMSNorm)
    torch.testing.assert_close(ours(x.float()), theirs(x.float()))
    assert dict(warpwright.fallbacks()) == {("LlamaRMSNorm", "torch.float32 input, torch.bfloat16 parameter"): 1}


def test_a_class_with_another_forward_is_not_taken_for_a_known_one():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class Centred(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))

    class Copied(torch.nn.Module):
        """Llama's norm under another name, as people copy it."""

        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            """Normalises."""
            kind = x.dtype
            x = x.to(torch.float32)
            square = x.pow(2).mean(-1, keepdim=True)
            x = x * torch.rsqrt(square + self.variance_epsilon)
            return self.weight * x.to(kind)

    report = replace_modules(torch.nn.ModuleDict({"centred": Centred(8), "copied": Copied()}))
    assert list(report.replaced) == ["copied"]
    assert "no layer for" in report.skipped["centred"]


def test_rotary_embeddings_of_other_kinds_are_left_alone():
    from warpwright.nn._replace._huggingface import rotary_names

    def attention(model):
        return next(type(m) for m in model.modules() if type(m).__name__.endswith("Attention"))

    assert list(rotary_names(attention(hf_models.build("qwen3")[0]))) == ["apply_rotary_pos_emb"]
    assert rotary_names(attention(hf_models.build("gpt2")[0])) == {}
    torch.manual_seed(0)
    config = transformers.CohereConfig(**{**hf_models._LLAMA, "hidden_size": 32})
    assert rotary_names(attention(transformers.CohereForCausalLM(config))) == {}  # Neighbouring pairs.


def test_generation_gives_the_same_tokens_with_a_cache():
    for name in ("llama", "gpt2", "t5"):
        theirs, ours, inputs = pair(name, training=False)
        prompt = {"input_ids": inputs["input_ids"][:, :7], "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(ours.generate(**prompt), theirs.generate(**prompt))


def test_hidden_states_and_attentions_are_recorded():
    theirs, ours, inputs = pair("llama", training=False)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    mine, reference = ours(**inputs, **wanted), theirs(**inputs, **wanted)
    assert len(mine.hidden_states) == len(reference.hidden_states) == 3
    for a, b in zip(
        (*mine.hidden_states, *mine.attentions), (*reference.hidden_states, *reference.attentions), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    theirs, ours, inputs = pair("llama")
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours(**inputs).loss.backward()
    theirs(**inputs).loss.backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_saved_models_load_on_either_side(tmp_path):
    theirs, ours, inputs = pair("llama", training=False)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for place in ("ours", "theirs"):
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / place)
        assert torch.equal(loaded(**inputs).logits, theirs(**inputs).logits)
        replace_modules(loaded)
        torch.testing.assert_close(loaded(**inputs).logits, theirs(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_compiled_without_graph_breaks():
    theirs, ours, inputs = pair("llama", training=False)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ours(input_ids=x, use_cache=False).logits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs["input_ids"]), theirs(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_adapters_that_exchange_a_layer_later_count():
    theirs, ours, inputs = pair("llama", training=False)

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.a, self.b = (
                torch.nn.Linear(base.in_features, 2, bias=False),
                torch.nn.Linear(2, base.out_features, bias=False),
            )

        def forward(self, x):
            return self.base(x) + self.b(self.a(x))

    for model in (theirs, ours):
        torch.manual_seed(3)
        for layer in model.model.layers:
            layer.mlp.gate_proj = Adapter(layer.mlp.gate_proj)
            layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=1e-4, atol=1e-5)


ROTARY = """
import torch

class RotaryEmbedding(torch.nn.Module):
    def forward(self, x, position_ids):
        freqs = position_ids[..., None].float() * self.inv_freq
        emb = torch.cat((freqs, {second}), dim=-1)
        return emb.cos(), emb.sin()

def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)

def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed

class Attention(torch.nn.Module):
    def forward(self, q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin)
"""


@pytest.mark.parametrize(("second", "fused"), [("freqs", True), ("freqs + 1", False)])
def test_tables_must_hold_each_angle_twice(tmp_path, monkeypatch, second, fused):
    name = f"rotary_of_{fused}".lower()
    (tmp_path / f"{name}.py").write_text(ROTARY.format(second=second))
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    theirs = module.Attention()
    ours = copy.deepcopy(theirs)
    assert bool(replace_modules(ours).fused) == fused
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    angles = torch.randn(2, 5, 4)
    angles = torch.cat((angles, angles if fused else angles + 1), -1)
    for mine, reference in zip(
        ours(q, k, angles.cos(), angles.sin()), theirs(q, k, angles.cos(), angles.sin()), strict=True
    ):
        torch.testing.assert_close(mine, reference)
