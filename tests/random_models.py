"""Models of any architecture in memory, far smaller than `tiny`'s and without a tokenizer."""

from __future__ import annotations

from typing import Any

import torch

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def random_model(architecture: str, **options: Any) -> Any:
    """Two layers, 60 words, float32; weights eight times the usual, so that a wrong layer shows.

    Args:
        options: keys of the architecture's configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES | options))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8.0)
    return model
