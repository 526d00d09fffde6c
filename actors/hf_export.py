"""The trained policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from funicular.actors.deepspeed_engine import gathered, is_partitioned
from funicular.actors.lora import trained_parts
from funicular.actors.prompts import chat_template_text, load_tokenizer
from funicular.actors.weight_packing import Weight, cut_buckets

_SHARD_BYTES = 4 << 30
_COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".py")
"""Tokenizer, image processor, chat template, generation config, a model's own code. Weights are written new."""


def export_model(
    causal_lm: Any,
    weights: Sequence[Weight],
    source: Path,
    folder: Path,
    *,
    chat_template: str,
    lora: Any,
    writes: bool,
) -> None:
    """Write merged weights, configuration, tokenizer and chat template; adapters besides in `adapter/`.

    A collective: all ranks take part in gathering, the rank with `writes` writes, one shard in memory at a time.

    Args:
        source: the initial model's folder, whose tokenizer and configuration files are copied.
        chat_template: `model.chat_template`: the exported tokenizer renders messages as training did.
        lora: peft's LoraConfig, or None.
    """
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        _copy_files(source, folder)
        _write_configs(causal_lm, folder)
        write_chat_template(folder, chat_template)
    _write_weights(weights, causal_lm.dtype, folder, writes=writes)
    if lora is not None:
        _write_adapter(causal_lm, lora, folder / "adapter", writes=writes)


def _copy_files(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and path.suffix in _COPIED_SUFFIXES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def _write_configs(causal_lm: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"]) if "text_config" in config else (config,):
        # Training turns the cache off at the call, never here: a model saved with use_cache false generates slowly.
        part |= {"use_cache": True, "dtype": str(causal_lm.dtype).removeprefix("torch.")}
        part.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not (folder / "generation_config.json").exists():
        causal_lm.generation_config.save_pretrained(folder)


def write_chat_template(folder: Path, chat_template: str) -> None:
    """Have the folder's tokenizer render messages as `model.chat_template` says."""
    tokenizer = load_tokenizer(str(folder))
    if chat_template == "auto" and tokenizer.chat_template is not None:
        return  # what was copied is right already, several templates by name included
    tokenizer.chat_template = chat_template_text(tokenizer, chat_template)
    tokenizer.save_pretrained(folder)


def _write_weights(weights: Sequence[Weight], dtype: torch.dtype, folder: Path, *, writes: bool) -> None:
    from safetensors.torch import save_file

    shards = cut_buckets(weights, dtype.itemsize, _SHARD_BYTES)
    one = len(shards) == 1
    index: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if one else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for weight in shard:
            with gathered(weight.parts):
                if writes:
                    tensors[weight.name] = _lasting(weight, dtype)
        if writes:
            save_file(tensors, folder / name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
    if writes and not one:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def _lasting(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight on the host, copied only where it must be: what was gathered goes away, and safetensors refuses
    tensors that lie in one memory."""
    value = weight.value()
    alone = value.untyped_storage().nbytes() == value.nbytes
    return value.to("cpu", dtype, copy=is_partitioned(weight.parts) or not alone).contiguous()


def _write_adapter(causal_lm: Any, lora: Any, folder: Path, *, writes: bool) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trained_parts(causal_lm).items():
        with gathered([parameter]):
            if writes:
                tensors[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        lora.save_pretrained(folder)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
