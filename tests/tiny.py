"""A random model in a Hugging Face folder, small enough for every test and made without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Architecture = Literal["llama", "qwen2", "mistral"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    "What is the sum of twelve and thirty? The answer is forty-two.",
    "Count the letters of the word and write the number: 0 1 2 3 4 5 6 7 8 9 10 11 12.",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "Sort the numbers: 31, 7, 19, 4. The sorted numbers are 4, 7, 19, 31.",
    "If a is 3 and b is 5 then a + b = 8, a * b = 15 and b - a = 2.",
)


def make_tiny_model(
    folder: Path,
    *,
    architecture: Architecture = "llama",
    tied: bool = True,
    seed: int = 0,
) -> Path:
    """Write a two-layer model and its tokenizer into `folder`; returns `folder`.

    Every dimension divides by two, so the model can be cut over two tensor-parallel workers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    config = _make_config(architecture, tied=tied, tokenizer=tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float()
        scale_weights(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scale_weights(model: Any) -> None:
    """At the default scale of 0.02 the logits are all but equal, and a wrong layer would hardly show."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4.0)
        elif name.endswith(".bias"):
            parameter.data.normal_(std=0.05)


def tiny_tokenizer(more_special: Sequence[str] = ()) -> Any:
    """Byte-level BPE over a few sentences: every text encodes, none needs an unknown token.

    Args:
        more_special: further special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more_special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        extra_special_tokens=list(more_special),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _make_config(architecture: Architecture, *, tied: bool, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[architecture]
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=128,  # heads of 32: vLLM on CPU knows no smaller ones
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
