"""The policy of a checkpoint as a Hugging Face folder, without learner ranks: as a run exports it at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from funicular.actors import hf_export, lora, weight_packing
from funicular.actors.config import LearnerConfig
from funicular.actors.learner_state import INDEX
from funicular.actors.model_identity import model_digest
from funicular.actors.parameter_files import VALUE, file_of
from funicular.actors.policy import load_causal_lm
from funicular.actors.quantization import loading_options
from funicular.actors.tensor_file import TensorFile

_SECTION = "parameters"


def initial_model_of(checkpoint: Path) -> Path:
    """The folder that the run of a checkpoint began with, as it was named there; it need not exist here."""
    return Path(_index(checkpoint)["model_folder"])


def export_checkpoint(
    checkpoint: Path, source: Path, config: LearnerConfig, folder: Path, *, chat_template: str, seed: int
) -> None:
    """Load the initial model, put the checkpoint's parameters into it, and write it, adapters in `adapter/` besides.

    The whole model is in this process's memory, in `learner.dtype`.

    Args:
        checkpoint: the learner's part of a checkpoint.
        source: the initial model.
        config: the run's; what must stay over a run is taken from the checkpoint.
        chat_template: `model.chat_template`.
        seed: the run's.

    Raises:
        ValueError: `source` is not the model that the run began with, or lacks a parameter of the checkpoint.
        TensorFileError: a file of the checkpoint is missing or torn.
    """
    index = _index(checkpoint)
    if index["model"] != model_digest(source):
        raise ValueError(
            f"the run of {checkpoint} began with the model in {index['model_folder']} (digest {index['model']}), and "
            f"{source} is another ({model_digest(source)}); give that model: --base FOLDER"
        )
    fixed = {key.removeprefix("learner."): value for key, value in index["fixed"].items()}
    config = replace(config, **fixed, zero_stage=1)  # one process, and nothing is partitioned
    device = torch.device("cuda" if torch.cuda.is_available() and config.quantization != "none" else "cpu")
    causal_lm = load_causal_lm(source, getattr(torch, config.dtype), **loading_options(config, device))
    adapters = lora.add_adapters(causal_lm, config, seed, with_reference=False) if config.lora_rank else None
    _load_parameters(causal_lm, checkpoint, index["parameters"])
    weights = weight_packing.weights_of(causal_lm)
    hf_export.export_model(causal_lm, weights, source, folder, chat_template=chat_template, lora=adapters, writes=True)


@torch.no_grad()
def _load_parameters(causal_lm: Any, checkpoint: Path, saved: Mapping[str, Any]) -> None:
    here = {lora.hugging_face_name(name): parameter for name, parameter in causal_lm.named_parameters()}
    for name, entry in saved.items():
        parameter = here.get(name)
        if parameter is None or list(parameter.shape) != entry["shape"]:
            shape = "none" if parameter is None else f"shape {list(parameter.shape)}"
            raise ValueError(f"{checkpoint}: {name} was saved with shape {entry['shape']}, the model has {shape}")
        parameter.copy_(TensorFile(file_of(checkpoint, _SECTION, name)).tensor(VALUE))


def _index(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / INDEX).read_text())
