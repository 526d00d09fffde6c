"""Frozen weights of 4 bits under adapters: NF4 with double quantization (QLoRA, arXiv 2305.14314), by bitsandbytes.

Tried on a CPU, where bitsandbytes has kernels too, with version 0.50.2; not yet on a GPU, for which it is meant.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from funicular.actors.config import LearnerConfig
from funicular.actors.deepspeed_engine import whole_shape


def loading_options(config: LearnerConfig, device: torch.device) -> dict[str, Any]:
    """What transformers' `from_pretrained` needs to load weights as `learner.quantization` says; {} for `none`.

    The output head, embeddings and norms stay as they are.

    Raises:
        ValueError: bitsandbytes is missing, or the weights would be trained or partitioned.
    """
    if config.quantization == "none":
        return {}
    if not config.lora_rank or config.zero_stage == 3:
        raise ValueError(
            f"learner.quantization: weights of 4 bits stay under adapters and are not partitioned, got learner."
            f"lora_rank={config.lora_rank}, learner.zero_stage={config.zero_stage}; set a lora_rank above 0 and a "
            "zero_stage below 3, or learner.quantization=none"
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "learner.quantization: this node has no bitsandbytes, which is in no lock; pip install bitsandbytes, or "
            "set learner.quantization=none"
        )
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.compute_dtype),
    )
    return {"quantization_config": quantization, "device_map": {"": str(device)}}


def keep_trainable(model: Any) -> None:
    """Keep packed weights in the layout that has gradients, for the life of a model that was put into eval mode.

    On a CPU with AVX512-BF16, bitsandbytes packs them for inference in the first pass, rounded and without a gradient,
    unless the layer says that it is trained.
    """
    for module in model.modules():
        if is_quantized(getattr(module, "weight", None)):
            module.training = True


def is_quantized(parameter: Any) -> bool:
    """Whether its elements are packed."""
    return getattr(parameter, "quant_state", None) is not None


def dense_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of what the parameter stands for, packed, partitioned or neither."""
    return tuple(parameter.quant_state.shape) if is_quantized(parameter) else whole_shape(parameter)


def dense(parameter: Any) -> torch.Tensor:
    """What the parameter stands for, detached: itself, unless it is packed."""
    if not is_quantized(parameter):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, parameter.quant_state)
