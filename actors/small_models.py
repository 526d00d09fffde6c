"""Models small enough to be checked on a laptop: the first layers of a large one, or a random one of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}


def cut_layers(folder: Path, layers: int, target: Path) -> str:
    """Write the model of a folder with its first decoder layers only. Returns a sentence that says so.

    Raises:
        ValueError: the model has fewer layers, or its configuration names none.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder))
    had = getattr(config, "num_hidden_layers", None)
    if had is None or not 0 < layers <= had:
        raise ValueError(
            f"--layers {layers}: {folder} has {had or 'no num_hidden_layers in its config.json, not'} layers"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    model, report = AutoModelForCausalLM.from_pretrained(
        str(folder), config=config, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"--layers {layers}: {folder} lacks {', '.join(sorted(report['missing_keys'])[:3])}")
    _save(model, folder, target)
    return f"cut to its first {layers} of {had} layers"


def random_model(kind: str, tokenizer_folder: Path, seed: int, target: Path) -> str:
    """Write a random model of two layers of 128 and the given tokenizer. Returns a sentence that says so.

    Args:
        kind: `model_type` of a transformers configuration, such as qwen2.

    Raises:
        ValueError: transformers knows no such causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **_TINY, **ends)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float()
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--random-tiny {kind}: transformers makes no such model: {str(error).splitlines()[0]}"
        ) from error
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4.0)  # at the default scale of 0.02 logits are all but equal
    _save(model, tokenizer_folder, target)
    return f"a random {kind} of {config.num_hidden_layers} layers, with another model's tokenizer"


def _save(model: Any, tokenizer_folder: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(tokenizer_folder)).save_pretrained(target)
