"""A run's final and best model in MLflow's model registry: where each lies, its digest, and the run that made it.

Weights stay where they are. MLflow's server refuses a source outside its artifacts, so a version's source is a folder
of the run's artifacts that holds a link, and with `tracking.upload_model` the final model itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from funicular.launch.checkpoint_files import EVALUATION, MANIFEST, folder_name, sha256, step_of
from funicular.launch.checkpoint_store import Store
from funicular.launch.metrics_file import read_metrics
from funicular.launch.retention import kept
from funicular.launch.run_folder import RunFolder

LINK = "funicular_model.json"
FINAL, BEST = "final", "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLink:
    """One model of a run."""

    aliases: tuple[str, ...]
    """`final`, `best`, or both."""
    step: int
    path: str
    """A folder, or the address of a checkpoint in the store."""
    format: str
    """`hugging_face`, or `checkpoint`: one file for each parameter, as a run resumes from."""
    sha256: str
    """Of a model's folder: `folder_digest`; of a checkpoint: its manifest, which has the digest of every file."""
    metrics: Mapping[str, float]
    """Of an evaluation at this step."""


def model_links(folder: RunFolder, best_metric: str, store: Store | None) -> list[ModelLink]:
    """The models that a run has now: the exported one, and the checkpoint with the highest `best_metric`.

    Args:
        store: where checkpoints are kept besides the run folder, if anywhere.

    Raises:
        StoreError: the store cannot be read.
        OSError: a file of the run folder cannot be read.
    """
    evaluations = _evaluations(folder, store)
    final = folder.model_step
    if final is not None and final not in evaluations:
        logged = {record["step"]: record for record in read_metrics(folder.metrics)}.get(final, {})
        evaluations[final] = _measured(logged)
    values = {step: found.get(best_metric) for step, found in evaluations.items()}
    best = next(iter(kept(values, keep_last=0, keep_best=1)), None)
    links = []
    if final is not None:
        links.append(
            ModelLink(
                aliases=(FINAL, BEST) if best == final else (FINAL,),
                step=final,
                path=str(folder.model),
                format="hugging_face",
                sha256=folder_digest(folder.model),
                metrics=evaluations[final],
            )
        )
    if best is not None and best != final:
        links.append(_checkpoint(folder, best, evaluations[best], store))
    return links


def folder_digest(folder: Path) -> str:
    """One digest of all files of a folder: sha256 of what `sha256sum` says of them, sorted by path.

    The same as `find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` in that folder.
    """
    names = sorted(file.relative_to(folder).as_posix().encode() for file in folder.rglob("*") if file.is_file())
    lines = (f"{sha256(folder / name.decode())}  ./{name.decode()}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def register(client: Any, run_id: str, name: str, links: list[ModelLink], *, upload: bool) -> int:
    """Make versions of the registered model `name` for those links that this run has none for; how many.

    Args:
        client: an `MlflowClient`.
        upload: the final model's files go to the run's artifacts.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    there = {
        (version.tags.get("step"), version.tags.get("format"))
        for version in client.search_model_versions(f"run_id = '{run_id}'")
        if version.name == name
    }
    missing = [link for link in links if (str(link.step), link.format) not in there]
    for link in missing:
        place = f"models/step_{link.step:06d}_{link.format}"
        client.log_text(run_id, json.dumps(asdict(link), indent=2) + "\n", f"{place}/{LINK}")
        if upload and link.format == "hugging_face":
            client.log_artifacts(run_id, link.path, place)
        tags = {"step": str(link.step), "path": link.path, "format": link.format, "sha256": link.sha256}
        tags |= {key: str(value) for key, value in link.metrics.items()}
        version = client.create_model_version(
            name, source=f"runs:/{run_id}/{place}", run_id=run_id, tags=tags, await_creation_for=None
        )
        for alias in link.aliases:
            client.set_registered_model_alias(name, alias, version.version)
    return len(missing)


def _evaluations(folder: RunFolder, store: Store | None) -> dict[int, Mapping[str, float]]:
    """Step to what was measured there, of every complete checkpoint that was measured."""
    found: dict[int, Mapping[str, float]] = {}
    for path in folder.checkpoints.glob("step_*"):
        step, file = step_of(path.name), path / EVALUATION
        if step is not None and (path / MANIFEST).is_file() and file.is_file():
            found[step] = _measured(json.loads(file.read_text()))
    if store:
        found |= {step: measured for step in store.steps() if (measured := _measured(store.evaluation(step)))}
    return found


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of the metrics of an evaluation what it measured, without its seconds."""
    return {key: value for key, value in metrics.items() if key.startswith("eval/")}


def _checkpoint(folder: RunFolder, step: int, metrics: Mapping[str, float], store: Store | None) -> ModelLink:
    local = folder.checkpoints / folder_name(step)
    here = (local / MANIFEST).is_file()
    if here:
        path, digest = str(local), sha256(local / MANIFEST)
    else:
        assert store is not None  # else it would not have been found
        path = f"{store.shown.rstrip('/')}/{folder_name(step)}"
        digest = hashlib.sha256(store.manifest(step)).hexdigest()
    return ModelLink(aliases=(BEST,), step=step, path=path, format="checkpoint", sha256=digest, metrics=metrics)
