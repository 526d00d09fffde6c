"""Does an exported folder do what its users need? Each check loads the thing it speaks of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from funicular.actors.images import is_vision_model
from funicular.actors.prompts import load_tokenizer

WEIGHTS = "adapter_model.safetensors"


class ExportError(ValueError):
    """An exported folder cannot be used; says what is wrong with it."""


def check_model(folder: Path) -> list[str]:
    """Load the model as a user would. Returns a sentence for each check.

    Raises:
        ExportError: the first check that fails.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    config = json.loads((folder / "config.json").read_text())
    for name, part in {"config.json": config, "its text_config": config.get("text_config", config)}.items():
        if part.get("use_cache") is not True:
            raise ExportError(f"{folder}: use_cache is {part.get('use_cache')} in {name}: generation would be slow")
    if not load_tokenizer(str(folder)).chat_template:
        raise ExportError(f"{folder}: the tokenizer has no chat template: messages cannot be rendered")
    GenerationConfig.from_pretrained(folder, local_files_only=True)
    kind = AutoModelForImageTextToText if is_vision_model(folder) else AutoModelForCausalLM
    model, said = kind.from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)
    _refuse_differences(folder, said)
    return [
        "config.json: use_cache is true",
        "tokenizer with a chat template, generation config",
        f"transformers loads {model.num_parameters():,} parameters in {str(model.dtype).removeprefix('torch.')}, none "
        "missing, none left over",
    ]


def check_adapter(folder: Path, base: Path) -> list[str]:
    """Load an adapter with peft on its base model. Returns a sentence for each check.

    Raises:
        ExportError: peft would leave a tensor out, or lacks one.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
    used = set(get_peft_model_state_dict(PeftModel.from_pretrained(model, folder)))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        there = set(file.keys())
    if used != there:
        raise ExportError(
            f"{folder}: peft uses {len(used)} tensors, the file holds {len(there)}; the first that differs is "
            f"{min(used ^ there)}"
        )
    return [f"peft loads the adapter on {base}: {len(there)} tensors, none missing, none left over"]


def _refuse_differences(folder: Path, said: Any) -> None:
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, said[what])):
            raise ExportError(f"{folder}: {what.replace('_', ' ')} of transformers: {', '.join(names[:3])}")
