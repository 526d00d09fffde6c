"""Where DeepSpeed keeps the elements that its optimizer updates, the same view of all ZeRO stages.

Without ZeRO the optimizer updates the parameters themselves. With it, each rank has flat float32 tensors, each with
pieces of several parameters; the optimizer's state is as flat. A `Shard` is one tensor that the optimizer updates, a
`Piece` the part of it that belongs to one parameter. What DeepSpeed has for this (`safe_get_full_fp32_param`, …) makes
every parameter whole on every rank, knows no stage 0, and before the first step it raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Neighbouring elements of one parameter that lie in this rank's shard."""

    name: str
    """The parameter's."""
    start: int
    """First element, in the flattened parameter."""
    offset: int
    """First element, in the flattened shard."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tensor that the optimizer updates. All ranks have the same shards in the same order, with other pieces."""

    master: torch.Tensor
    """float32. (numel of this rank's part and padding,), or the parameter itself without ZeRO."""
    names: tuple[str, ...]
    """Parameters that have pieces in this shard, on this rank or on another."""
    pieces: tuple[Piece, ...]


class OptimizerShards:
    """The shards of an engine's optimizer on this rank.

    Args:
        names: name of each trained parameter.

    Raises:
        ValueError: optimizer state is swapped to a disk, where its shards cannot be read.
    """

    def __init__(self, engine: Any, names: Mapping[torch.nn.Parameter, str]) -> None:
        self._zero = engine.optimizer if hasattr(engine.optimizer, "optimizer") else None
        self.optimizer: torch.optim.Optimizer = self._zero.optimizer if self._zero else engine.optimizer
        self.shards: Sequence[Shard]
        if self._zero is None:
            self.shards = [_whole(parameter, name) for parameter, name in names.items()]
        elif hasattr(self._zero, "fp16_partitioned_groups_flat"):
            self.shards = _shards_of_stage_3(self._zero, names)
        else:
            self.shards = _shards_of_stages_1_and_2(self._zero, names)

    @property
    def whole(self) -> bool:
        """Every rank has all elements of every parameter."""
        return self._zero is None

    @torch.no_grad()
    def update_model(self) -> None:
        """Bring the model's parameters in line with the shards. A collective."""
        zero = self._zero
        if zero is None:  # the shards are the parameters
            return
        # Links from parameters to the optimizer's old state; made again by the next step.
        zero._hp_optimizer_states_linked = False
        if not hasattr(zero, "fp16_partitioned_groups_flat"):
            zero.update_lp_params()
            return
        zero._partition_all_parameters()  # what a forward pass has left whole is old
        for index in range(len(self.shards)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:  # small ones, which stage 3 keeps whole between steps
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _whole(parameter: torch.nn.Parameter, name: str) -> Shard:
    piece = Piece(name=name, start=0, offset=0, count=parameter.numel())
    return Shard(master=parameter, names=(name,), pieces=(piece,))


def _shards_of_stages_1_and_2(zero: Any, names: Mapping[torch.nn.Parameter, str]) -> list[Shard]:
    bfloat16_optimizer = hasattr(zero, "fp32_groups_flat_partition")  # stage 1 with bfloat16 parameters
    masters = zero.fp32_groups_flat_partition if bfloat16_optimizer else zero.single_partition_of_fp32_groups
    groups = zero.bf16_groups if bfloat16_optimizer else zero.bit16_groups
    shards = []
    for master, group in zip(masters, groups, strict=True):
        pieces = []
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                piece = Piece(name=names[parameter], start=there.start, offset=here.start, count=here.numel)
                pieces.append(piece)
        shards.append(Shard(master=master, names=tuple(names[p] for p in group), pieces=tuple(pieces)))
    return shards


def _shards_of_stage_3(zero: Any, names: Mapping[torch.nn.Parameter, str]) -> list[Shard]:
    if zero.swap_optimizer:
        raise ValueError("learner.offload_optimizer: state on a disk cannot be saved; offload it to the CPU instead")
    shards = []
    for master, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        pieces = []
        offset = 0
        for parameter in group:
            length = parameter.partition_numel()  # the same on all ranks; the last ones have padding
            start = zero._get_param_partition_rank(parameter) * length
            count = min(length, parameter.ds_numel - start)
            if count > 0:
                pieces.append(Piece(name=names[parameter], start=start, offset=offset, count=count))
            offset += length
        shards.append(Shard(master=master, names=tuple(names[p] for p in group), pieces=tuple(pieces)))
    return shards
