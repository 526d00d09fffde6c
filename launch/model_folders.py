"""What commands take as a model: a model folder, or a run folder, which stands for the model that the run wrote."""

from __future__ import annotations

import json
from pathlib import Path

from funicular.launch.run_folder import RunFolder


def run_folder_of(path: str) -> RunFolder | None:
    """The run folder at this path; None if it is something else."""
    folder = RunFolder(path=Path(path).expanduser().absolute())
    return folder if folder.config.is_file() and folder.ledger.is_file() else None


def model_of(path: str) -> str:
    """`path`, or the model folder of the run folder that stands there.

    Raises:
        ValueError: the run has not written its model yet.
    """
    run = run_folder_of(path)
    if run is None:
        return path
    if not (run.model / "config.json").is_file():
        raise ValueError(
            f"{path}: this run has not written its model; finish it, or write one from its newest checkpoint: "
            f"funicular export {path} --to FOLDER"
        )
    return str(run.model)


def model_override(path: str) -> str:
    """`model.path=...` for a recipe.

    Raises:
        ValueError: as `model_of`.
    """
    return f"model.path={json.dumps(model_of(path))}"


def adapter_of(path: str) -> Path:
    """The folder of the adapter that stands at `path`, or in `adapter/` of the model or run folder that does.

    Raises:
        ValueError: there is none.
    """
    given = Path(path).expanduser()
    for folder in (given, given / "adapter", given / "model" / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder.resolve()
    raise ValueError(
        f"{path}: no adapter there; expected a folder with adapter_config.json, or a model or run folder that has one "
        "in adapter/"
    )
