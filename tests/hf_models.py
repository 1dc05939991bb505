"""Models of Hugging Face's transformers, from their configurations: small, randomly initialised, in eval mode."""

from __future__ import annotations

import textwrap

import torch
import transformers
from sklearn.datasets import load_digits

#: The text that language models read: Python's own explanation of how it wraps text.
TEXT = textwrap.TextWrapper.__doc__.encode()
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
_BERT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
_IMAGES = {"num_labels": 10, "num_channels": 1}


def text(batch=2, length=24):
    """Bytes of the text: (batch, length), int64."""
    data = torch.tensor(list(TEXT[: batch * length]))
    return data.reshape(batch, length)


def images(batch=6, size=32):
    """Handwritten digits, (batch, 1, size, size), 0 to 1, and their classes."""
    digits = load_digits()
    pixels = torch.tensor(digits.images[:batch], dtype=torch.float32)[:, None] / 16
    return torch.nn.functional.interpolate(pixels, size=(size, size)), torch.tensor(digits.target[:batch])


def _of_text(name, config, **settings):
    def build():
        model = getattr(transformers, name)(getattr(transformers, config)(**settings))
        return model, {"input_ids": text(), "labels": text()}

    return build


def _of_images(name, config, size=32, **settings):
    def build():
        model = getattr(transformers, name)(getattr(transformers, config)(**_IMAGES, **settings))
        for module in model.modules():
            # The configurations' own first weights let the values of deep networks without skips vanish.
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
        pixels, classes = images(size=size)
        return model, {"pixel_values": pixels, "labels": classes}

    return build


_BUILDERS = {
    "resnet": _of_images("ResNetForImageClassification", "ResNetConfig", embedding_size=8,
                         hidden_sizes=[16, 32], depths=[2, 1]),
    "resnet-basic": _of_images("ResNetForImageClassification", "ResNetConfig", embedding_size=8,
                               hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic"),
    "mobilenet_v2": _of_images("MobileNetV2ForImageClassification", "MobileNetV2Config", size=64, depth_multiplier=0.25,
                               image_size=64),
    "efficientnet": _of_images("EfficientNetForImageClassification", "EfficientNetConfig", size=64,
                                width_coefficient=0.25,
                               depth_coefficient=0.3, hidden_dim=320, image_size=32),
    "convnext": _of_images("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 24, 32],
                           depths=[1, 1, 2, 1]),
    "vit": _of_images("ViTForImageClassification", "ViTConfig", hidden_size=32, num_hidden_layers=2,
                      num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8),
    "gpt2": _of_text("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=128),
    "llama": _of_text("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
    "mistral": _of_text("MistralForCausalLM", "MistralConfig", **_LLAMA),
    "qwen2": _of_text("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA),
    "qwen3": _of_text("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, **_LLAMA),
    "gemma": _of_text("GemmaForCausalLM", "GemmaConfig", head_dim=8, **_LLAMA),
    "mixtral": _of_text("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, experts_implementation="eager",
                        **_LLAMA),
    "bert": _of_text("BertForMaskedLM", "BertConfig", **_BERT),
    "t5": _of_text("T5ForConditionalGeneration", "T5Config", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                   vocab_size=128, dropout_rate=0.0, decoder_start_token_id=0),
    "t5-gated": _of_text("T5ForConditionalGeneration", "T5Config", d_model=32, d_kv=8, d_ff=48, num_layers=1,
                         num_heads=4, vocab_size=128, feed_forward_proj="gated-gelu", dropout_rate=0.0,
                         decoder_start_token_id=0),
}  # fmt: skip
NAMES = tuple(_BUILDERS)


def build(name):
    """The model and the arguments of a call, labels among them."""
    torch.manual_seed(0)
    model, inputs = _BUILDERS[name]()
    return model.eval(), inputs
