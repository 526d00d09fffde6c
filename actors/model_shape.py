"""What a model consists of, as plans count it. No torch at import time: the loop holds one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Numbers of parameters and sizes of layers. `linear` and `head` are what multiplies every token."""

    model_type: str
    parameters: int
    """All of them, shared ones once."""
    linear: tuple[tuple[int, int], ...]
    """(in, out) of each linear layer but the output head."""
    head: int
    """Elements of the output head's matrix."""
    tied: bool
    """The output head is the embedding."""
    layers: int
    width: int
    heads: int
    key_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int

    @property
    def products(self) -> int:
        """N: multiply-adds of one token in a forward pass, attention's over other tokens left out."""
        return sum(i * o for i, o in self.linear) + self.head

    @property
    def cache_values(self) -> int:
        """Values of the KV cache for one token: 2 · layers · key heads · head dimension."""
        return 2 * self.layers * self.key_heads * self.head_dim

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters of this rank on every linear layer but the head."""
        return sum(rank * (i + o) for i, o in self.linear)

    def values_of_a_layer(self) -> int:
        """Values that one token leaves in one decoder layer for the backward pass.

        Normed inputs, queries, keys and values before and after rotation, attention's output, the residual; gate, up,
        activation and product of the MLP.
        """
        return 7 * self.width + 4 * self.key_heads * self.head_dim + 4 * self.mlp_width


def shape_of_model(model: Any) -> ModelShape:
    """The shape of a transformers model for causal language, before adapters are put in and before it is partitioned.

    Its weights need not be there (torch's meta device).

    Raises:
        ValueError: its configuration names its sizes in another way.
    """
    import torch

    text = model.config.get_text_config()
    if missing := [name for name in _SIZES if getattr(text, name, None) is None]:
        raise ValueError(f"{model.config.model_type}: plans need {', '.join(missing)}, which its configuration lacks")
    head = model.get_output_embeddings()
    linear = tuple(
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    return ModelShape(
        model_type=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        head=math.prod(head.weight.shape),
        tied=head.weight is model.get_input_embeddings().weight,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        key_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        mlp_width=text.intermediate_size,
        vocabulary=text.vocab_size,
    )
