"""`funicular export`: a run's model, or a checkpoint's, as a Hugging Face folder or on the hub."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from funicular.launch.checkpoint_store import open_store
from funicular.launch.checkpoints import Checkpoints, Snapshot
from funicular.launch.config import Config
from funicular.launch.export_options import ExportOptions
from funicular.launch.model_folders import run_folder_of
from funicular.launch.models import resolve_model
from funicular.launch.recipe import resolved_config
from funicular.launch.run_folder import MODEL_STEP, RunFolder

EXPORTED, FAILED, WRONG_INPUT = 0, 1, 2
_ADAPTER = "adapter"


def export(options: ExportOptions) -> int:
    """Write, check and print; the exit status: 0, 1 if the hub did not take it, 2 for wrong input."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        run = run_folder_of(options.run_dir)
        if run is None:
            raise ValueError(f"{options.run_dir}: not a run folder; expected one with config.yaml and ledger.jsonl")
        _check_target(options)
        config = resolved_config(run.config)
        with _scratch_folder(options.to) as scratch:
            step = _write(run, config, options, scratch)
            base = _take_form(scratch, config, options)
            for sentence in _check(scratch, base):
                print(sentence)
            if options.hub is not None:
                print(f"uploaded: {_upload(scratch, options.hub)}")
            if options.to is not None:
                scratch.rename(options.to)
                print(f"step {step} of {run.path} is in {options.to}")
    except HfHubHTTPError as error:
        print(f"not uploaded: {str(error).splitlines()[0]}", file=sys.stderr)
        return FAILED
    except (ValueError, OSError) as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    return EXPORTED


def _check_target(options: ExportOptions) -> None:
    if options.to is None and options.hub is None:
        raise ValueError("where to? Give --to FOLDER, --hub OWNER/NAME, or both")
    if options.to is not None and options.to.exists():
        raise ValueError(f"--to {options.to}: it exists; give a new folder, or delete that one")


@contextmanager
def _scratch_folder(target: Path | None) -> Iterator[Path]:
    """A folder beside the target, so that what stands there in the end is whole."""
    parent = None if target is None else target.absolute().parent
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-", dir=parent) as outer:
        yield Path(outer) / "model"


def _write(run: RunFolder, config: Config, options: ExportOptions, scratch: Path) -> int:
    """The newest state, or the one that is asked for, into `scratch`; its step."""
    finished = run.model_step
    path = config.checkpoint.path
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint, open_store(path, config.name) if path else None)
    step = options.step
    if step is None:
        # the run may be under way: nothing in its folder is put right here
        step = max([*checkpoints.steps(), *checkpoints.stored(), -1 if finished is None else finished])
    if step < 0:
        raise ValueError(f"{run.path}: no model and no complete checkpoint yet")
    if step == finished:
        shutil.copytree(run.model, scratch, ignore=shutil.ignore_patterns(MODEL_STEP))
    else:
        _write_checkpoint(checkpoints.get(step), config, options, scratch)
    return step


def _write_checkpoint(snapshot: Snapshot, config: Config, options: ExportOptions, scratch: Path) -> None:
    from funicular.actors.checkpoint_export import export_checkpoint, initial_model_of

    learner = Path(snapshot.learner)
    export_checkpoint(
        learner,
        _base_model(initial_model_of(learner), config, options),
        config.learner,
        scratch,
        chat_template=config.model.chat_template,
        seed=config.seed,
    )


def _base_model(named: Path | None, config: Config, options: ExportOptions) -> Path:
    """The initial model: as the command line says, where the run had it, or as its recipe names it."""
    if options.base is not None:
        return resolve_model(options.base, key="--base")
    if named is not None and named.is_dir():
        return named
    return resolve_model(config.model.path)


def _take_form(scratch: Path, config: Config, options: ExportOptions) -> Path | None:
    """Leave only what is asked for. Returns the base model of an adapter that is alone, else None."""
    adapter = scratch / _ADAPTER
    if options.form == "adapter":
        if not adapter.is_dir():
            raise ValueError(f"--adapter: {options.run_dir} trained no adapter (learner.lora_rank is 0)")
        alone = scratch.with_name(_ADAPTER)
        adapter.rename(alone)
        shutil.rmtree(scratch)
        alone.rename(scratch)
        adapter = scratch
    elif options.form == "merged":
        shutil.rmtree(adapter, ignore_errors=True)
    if adapter.is_dir():
        _name_base(adapter, config.model.path)
    return _base_model(None, config, options) if options.form == "adapter" else None


def _name_base(adapter: Path, base: str) -> None:
    """peft and the hub look here for the model that an adapter belongs to."""
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"base_model_name_or_path": base}, indent=2) + "\n")


def _check(scratch: Path, base: Path | None) -> list[str]:
    from funicular.actors.export_checks import check_adapter, check_model

    return check_model(scratch) if base is None else check_adapter(scratch, base)


def _upload(folder: Path, name: str) -> str:
    """Its address. The token is the one of `hf auth login`, or HF_TOKEN."""
    from huggingface_hub import HfApi

    hub = HfApi()
    repository = hub.create_repo(name, private=True, exist_ok=True)
    hub.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Trained by Funicular")
    return str(repository)
