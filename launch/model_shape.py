"""The shape of a model (`actors/model_shape.py`) from its configuration alone: no weights, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funicular.actors.model_shape import ModelShape, shape_of_model
from funicular.launch.models import EMBEDDED, ModelError, resolve_model


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
        return shape_of_model(model)
    except (ValueError, KeyError) as error:
        raise ModelError(f"model.path: {config.model_type}: {str(error).splitlines()[0]}") from error


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
