"""What a model consists of, from its configuration alone: no weights, no GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.launch.models import EMBEDDED, ModelError, resolve_model


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


def shape_of(path: str) -> ModelShape:
    """The shape of the model of `model.path`.

    Of a hub id only config.json is fetched. The modules are made without memory for their weights.

    Raises:
        ModelError: there is no configuration there, or transformers knows no such model.
    """
    from transformers import AutoConfig

    folder = config_folder(path)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise ModelError(f"model.path={path}: {str(error).splitlines()[0]}") from error
    return shape_from_config(config)


def shape_from_config(config: Any) -> ModelShape:
    """The shape of a model of a transformers configuration.

    Raises:
        ModelError: it is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError) as error:
        raise ModelError(f"model.path: {config.model_type}: {str(error).splitlines()[0]}") from error
    text = config.get_text_config()
    head = model.get_output_embeddings()
    linear = tuple(
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    return ModelShape(
        model_type=config.model_type,
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


def config_folder(path: str) -> Path:
    """A folder with the model's config.json; weights need not be there.

    Raises:
        ModelError: there is none.
    """
    if path == EMBEDDED or Path(path).expanduser().is_dir():
        return resolve_model(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(path, "config.json")).parent
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ModelError(
            f"model.path={path}: the hub did not give its config.json ({str(error).splitlines()[0]}). A folder that "
            "holds nothing but that file will do: model.path=FOLDER"
        ) from error
