"""The learner's part of a checkpoint: everything by the parameters' names, whatever ranks and ZeRO stage saved it.

    index.json                     what saved it, schedule, counters; shape and optimizer scalars of each parameter
    parameters/NAME.safetensors    `parameter` in float32, and beside it each optimizer state (`exp_avg`, …)
    random/rank_00000.safetensors  random state of a rank
    SECTION/NAME.safetensors       whole tensors that another part of the learner keeps

NAME is that of Hugging Face; under LoRA only trained parameters are there. Ranks share the files out among them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from funicular.actors.deepspeed_engine import whole_shape
from funicular.actors.lora import hugging_face_name
from funicular.actors.optimizer_shards import OptimizerShards
from funicular.actors.parameter_files import VALUE, file_of, name_of, read_shard, state_of, write_parameter
from funicular.actors.random_state import random_state, seed_from, set_random_state
from funicular.actors.tensor_file import TensorFile, save_tensors

INDEX = "index.json"
_COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")

Sections = Mapping[str, Iterable[tuple[str, torch.Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What must stay for a checkpoint to mean the same, by recipe key, and the initial model."""

    fixed: Mapping[str, str | int | float | None]
    """Dotted key to value."""
    model: str
    """`model_identity.model_digest` of the initial model."""
    model_folder: str
    """For messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of the learner's ranks this process is."""

    rank: int
    ranks: int
    device: torch.device


def save(folder: Path, engine: Any, identity: Identity, place: Place, sections: Sections) -> None:
    """Write the state of all ranks into a folder that they share; a collective. Nothing is synced to disk.

    Args:
        sections: by folder name, whole tensors that every rank is given in the same order.

    Raises:
        ValueError: the optimizer keeps what cannot be saved by a parameter's name.
    """
    for name in ("parameters", "random", *sections):
        (folder / name).mkdir(parents=True, exist_ok=True)
    parameters = _save_parameters(folder, engine, place)
    for section, named_tensors in sections.items():
        for number, (name, tensor) in enumerate(named_tensors):
            if number % place.ranks == place.rank:
                save_tensors(file_of(folder, section, name), {VALUE: tensor})
    save_tensors(_random_file(folder, place.rank), random_state(place.device))
    if place.rank == 0:
        index = {
            "fixed": dict(identity.fixed),
            "model": identity.model,
            "model_folder": identity.model_folder,
            "saved_by": {"ranks": place.ranks, "zero_stage": engine.zero_optimization_stage()},
            "schedule": {key: getattr(engine.lr_scheduler, key) for key in ("last_epoch", "_step_count")},
            "counters": {key: getattr(engine, key) for key in _COUNTERS},
            "parameters": parameters,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    torch.distributed.barrier()


@torch.no_grad()
def load(folder: Path, engine: Any, identity: Identity, place: Place) -> None:
    """Continue from what `save` wrote, with any number of ranks and any ZeRO stage; a collective.

    Learning rate, decay and the like are the recipe's, at the checkpoint's place in the schedule.

    Raises:
        ValueError: it was saved by a run whose recipe differs in what must stay, or with another model.
        TensorFileError: a file is missing or torn.
    """
    index = json.loads((folder / INDEX).read_text())
    names = trained_parameters(engine.module.causal_lm)
    _refuse_another(index, identity, {name: list(whole_shape(p)) for p, name in names.items()}, folder)
    shards = OptimizerShards(engine, names)
    for shard in shards.shards:
        read_shard(folder, index["parameters"], shard, shards.optimizer)
    shards.update_model()
    for key, value in index["counters"].items():
        setattr(engine, key, value)
    _set_schedule(engine.lr_scheduler, shards.optimizer, index["schedule"])
    saved_ranks = index["saved_by"]["ranks"]
    file = TensorFile(_random_file(folder, place.rank % saved_ranks))
    state = {name: file.tensor(name) for name in file.names()}
    if place.rank < saved_ranks:
        set_random_state(state, place.device)
    else:
        seed_from(state, place.rank)
    torch.distributed.barrier()


class Section(Mapping[str, torch.Tensor]):
    """The tensors of a section by name; each is read when it is asked for. Empty if it was not saved."""

    def __init__(self, folder: Path, section: str) -> None:
        files = sorted((folder / section).glob("*.safetensors"))
        self._files = {name_of(file): file for file in files}

    def __getitem__(self, name: str) -> torch.Tensor:
        return TensorFile(self._files[name]).tensor(VALUE)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def trained_parameters(causal_lm: Any) -> dict[torch.nn.Parameter, str]:
    """The parameters that are trained, in the model's order, with their names."""
    return {p: hugging_face_name(name) for name, p in causal_lm.named_parameters() if p.requires_grad}


def share_out(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The rank that writes each parameter: the largest first, each to the rank with the least so far."""
    loads = [0] * ranks
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


def _save_parameters(folder: Path, engine: Any, place: Place) -> dict[str, Any]:
    """Write this rank's share of the files. Returns what the index says of each parameter."""
    names = trained_parameters(engine.module.causal_lm)
    shards = OptimizerShards(engine, names)
    shard_of = {name: shard for shard in shards.shards for name in shard.names}
    shapes = {name: whole_shape(parameter) for parameter, name in names.items()}
    owners = share_out({name: math.prod(shape) for name, shape in shapes.items()}, place.ranks)
    entries = {}
    for name, shape in shapes.items():
        shard = shard_of[name]
        tensors, scalars = state_of(shards.optimizer, shard, whole=shards.whole)
        write_parameter(
            file_of(folder, "parameters", name) if owners[name] == place.rank else None,
            shape,
            {VALUE: shard.master, **tensors},
            [piece for piece in shard.pieces if piece.name == name],
            gather_to=None if shards.whole else owners[name],
        )
        entries[name] = {"shape": list(shape), "states": list(tensors), "scalars": scalars}
    return entries


def _random_file(folder: Path, rank: int) -> Path:
    return folder / "random" / f"rank_{rank:05}.safetensors"


def _set_schedule(schedule: Any, optimizer: torch.optim.Optimizer, place: Mapping[str, int]) -> None:
    """Put a LambdaLR at a place; its learning rates are a function of that alone."""
    for key, value in place.items():
        setattr(schedule, key, value)
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _refuse_another(
    index: Mapping[str, Any], identity: Identity, shapes: Mapping[str, list[int]], folder: Path
) -> None:
    way_out = "or begin a new run from its exported model (model.path)"
    for key, value in identity.fixed.items():
        saved = index["fixed"].get(key)
        if saved != value:
            raise ValueError(
                f"{key}: the checkpoint {folder} was saved with {saved!r}, this run has {value!r}; "
                f"set {key}={saved} to continue it, {way_out}"
            )
    if index["model"] != identity.model:
        raise ValueError(
            f"model.path: the run of the checkpoint {folder} began with the model in {index['model_folder']} (digest "
            f"{index['model']}), this run's model in {identity.model_folder} is another ({identity.model}); set "
            f"model.path to the model that the run began with, {way_out}"
        )
    saved_shapes = {name: entry["shape"] for name, entry in index["parameters"].items()}
    if saved_shapes != shapes:
        names = [name for name in {**saved_shapes, **shapes} if saved_shapes.get(name) != shapes.get(name)]
        name = names[0]
        raise ValueError(
            f"model.path: {len(names)} trained parameters differ from those of the checkpoint {folder}, the first is "
            f"{name}: saved with shape {saved_shapes.get(name)}, here {shapes.get(name)}; train the same parameters of "
            f"the same model, {way_out}"
        )
