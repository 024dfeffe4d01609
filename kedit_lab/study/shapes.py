"""Models of published shapes with random weights and the lab's tokenizer: what an edit costs there, no download."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kedit_lab.model.lab import Lab, load, make_lab

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "gpt-j": {"model_type": "gptj"},
    "qwen2.5-1.5b": {
        "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
        "num_attention_heads": 32, "vocab_size": 32000,
    },
}  # fmt: skip


def random_lab(shape: str, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Lab:
    """A model of exactly that shape with random weights: for time and memory, it knows nothing.

    Raises ValueError for an unknown shape.
    """
    if shape not in CONFIGS:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(CONFIGS)}")
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**CONFIGS[shape])
    with torch.device(device):  # its weights are drawn where they will lie
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)
    tokenizer = load().tokenizer
    with torch.no_grad():  # ids without a text are never the likeliest: sampled prefixes are as long as they should be
        model.get_output_embeddings().weight[len(tokenizer) :] = 0
    return make_lab(model, tokenizer, shape)
