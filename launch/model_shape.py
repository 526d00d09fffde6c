"""The shape of a model (`actors/model_shape.py`) from its configuration alone: no weights, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funicular.actors.model_shape import ModelShape, shape_of_model
from funicular.launch.models import EMBEDDED, ModelError, resolve_model

HUB_ANSWER_S = 15.0
"""Seconds for the hub to give one small file; its client alone tries for a minute before it looks into its cache."""


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
    """A folder with the model's config.json; weights need not be there. Of a hub that is silent, the cache's.

    Raises:
        ModelError: there is none.
    """
    if path == EMBEDDED or Path(path).expanduser().is_dir():
        return resolve_model(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from funicular.launch.background import within

    try:
        return Path(within(lambda: hf_hub_download(path, "config.json"), HUB_ANSWER_S, "an answer of the hub")).parent
    except TimeoutError as error:
        try:
            return Path(hf_hub_download(path, "config.json", local_files_only=True)).parent
        except LocalEntryNotFoundError:
            raise ModelError(
                f"model.path={path}: {error}, and its cache has no config.json of it. Make the hub reachable, or "
                "give a folder that holds nothing but that file: model.path=FOLDER"
            ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ModelError(
            f"model.path={path}: the hub did not give its config.json ({str(error).splitlines()[0]}). A folder that "
            "holds nothing but that file will do: model.path=FOLDER"
        ) from error
