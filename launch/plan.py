"""`funicular plan`: what a recipe asks for, before anything starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from funicular.actors.model_shape import ModelShape
from funicular.launch.config import Config
from funicular.launch.config_values import get
from funicular.launch.hardware import GPUS, Hardware, this_machine
from funicular.launch.model_shape import shape_of
from funicular.launch.native_types import with_native_types
from funicular.launch.plan_errors import earlier_error
from funicular.launch.plan_fixes import engine_fix, learner_fixes, too_few
from funicular.launch.plan_memory import CacheRoom, Part, engine_parts, learner_parts, states_of_rank
from funicular.launch.plan_nodes import node_map, too_wide
from funicular.launch.plan_options import PlanOptions
from funicular.launch.plan_speed import Bounds, Lengths, bounds
from funicular.launch.plan_times import earlier_times
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.yaml_nodes import one_line

FITS, TOO_LARGE, WRONG_INPUT = 0, 1, 2
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe on a kind of device."""

    config: Config
    shape: ModelShape
    hardware: Hardware
    on_gpu: bool
    learner: tuple[Part, ...]
    engine: tuple[Part, ...]
    room: CacheRoom
    lengths: Lengths
    bounds: Bounds
    gpus_per_node: int
    gpus: int | None = None
    """That are there, of all nodes; None: as many as the recipe takes."""

    @property
    def in_turns(self) -> bool:
        """Learner ranks and engine workers share GPUs."""
        return self.on_gpu and self.config.cluster.colocate

    @property
    def problems(self) -> list[str]:
        """Why the recipe does not fit, and what to change."""
        found = []
        of_rank = sum(part.nbytes for part in self.learner)
        if of_rank > self.hardware.memory:
            largest = max(self.learner, key=lambda part: part.nbytes)
            fixes = learner_fixes(self.config, self.shape, self.hardware.memory, on_gpu=self.on_gpu)
            found.append(
                f"a learner rank needs {_gib(of_rank)} of {_gib(self.hardware.memory)}, most of it {largest.name}. "
                + (f"It fits with {', or '.join(fixes)}" if fixes else "No one change that was tried makes it fit")
            )
        if self.room.completions < 1:
            found.append(
                f"an engine's KV cache has room for {self.room.tokens:,.0f} tokens and one completion may need "
                f"{self.room.longest:,}. {self._engine_remedy()}"
            )
        if self.on_gpu and (wide := too_wide(self.config, self.gpus_per_node)):
            found.append(wide)
        if self.gpus is not None and (few := too_few(self.config, self.gpus)):
            found.append(few)
        return found

    def _engine_remedy(self) -> str:
        if not self.on_gpu:
            return "Raise generator.kv_cache_gib"
        if fix := engine_fix(self.config, self.shape, self.hardware, self.gpus_per_node):
            return f"It fits with {fix}"
        return "Raise generator.gpu_memory_fraction, or lower generator.max_completion_tokens"

    def text(self) -> str:
        """For the terminal."""
        config, shape = self.config, self.shape
        lines = [
            f"model     {config.model.path}: {shape.model_type}, {shape.parameters / 1e9:.3f} billion parameters",
            f"device    {self.hardware.name}: {_gib(self.hardware.memory)}, {self.hardware.bandwidth / 1e9:,.0f} GB/s, "
            f"{self.hardware.flops / 1e12:,.2f} TFLOP/s",
            *_placement(config, on_gpu=self.on_gpu),
            *(f"          {line}" for line in (node_map(config, self.gpus_per_node) if self.on_gpu else ())),
            *_batch(config),
            "",
            *_table("one learner rank", self.learner),
            "",
            *_table("one engine worker", self.engine),
            f"  room for {self.room.tokens:,.0f} tokens an engine: {self.room.completions:,} completions of "
            f"{self.room.longest:,} with the prompt;",
            f"  generator.max_sequences={config.generator.max_sequences}",
            "",
            *self._turns(),
            *self._speed(),
        ]
        lines += [f"\n{line}" for line in self._earlier()]
        problems = self.problems
        lines += ["", *(f"DOES NOT FIT: {problem}" for problem in problems)] if problems else ["", "fits"]
        return "\n".join(lines)

    def _turns(self) -> list[str]:
        if not self.in_turns:
            return []
        of_rank = sum(part.nbytes for part in self.learner)
        of_worker = sum(part.nbytes for part in self.engine)
        kept = states_of_rank(self.config, self.shape)
        return [
            "one GPU, in turns (cluster.colocate)",
            f"  learner or engine, the larger: {_gib(max(of_rank, of_worker))}; besides what both never give up",
            f"  host's memory: {_gib(kept)} of each rank while its GPU generates",
            "",
        ]

    def _earlier(self) -> list[str]:
        """What plans of the same run folder were worth."""
        folder = Path(self.config.run_dir or Path("runs") / self.config.name).absolute()
        if self.on_gpu:  # the folder does not say on what kind the run was
            return []
        times = earlier_times(folder, self.config.model.path, self.shape, self.hardware)
        found = {"memory": earlier_error(folder), "times": times}
        return [f"{what} of an earlier run in {said}" for what, said in found.items() if said]

    def _speed(self) -> list[str]:
        found = self.bounds
        step_s = found.step_s(self.config.max_staleness)
        shared = ""
        if found.learn_tokens < found.learn_tokens_unshared:
            shared = (
                f"; {found.learn_tokens_unshared:,} if completions did not share their prompt (learner.share_prefix)"
            )
        lengths = f"{self.lengths.prompt:g} + {self.lengths.completion:g} tokens a completion"
        generator = self.config.generator
        if self.lengths == Lengths(prompt=generator.max_prompt_tokens, completion=generator.max_completion_tokens):
            lengths += ", the longest (means: --prompt-tokens, --completion-tokens)"
        mode = "in lockstep" if self.config.max_staleness == 0 else "generation beside learning"
        turns = f"  turns     {found.turns_s:>10.2f}   ranks leave their GPUs for the host's memory, and return"
        return [
            f"least seconds of a step, at {lengths}",
            f"  generate  {found.generate_s:>10.2f}   {found.decode_rate:,.0f} tokens/s, bound by "
            f"{found.decode_is_bound_by} with {found.in_flight:.0f} in flight an engine",
            f"  learn     {found.learn_s:>10.2f}   {found.learn_tokens:,} tokens{shared}",
            f"  sync      {found.sync_s:>10.2f}   {found.sync_bytes / 1e9:.2f} GB to the host's memory and back",
            *([turns] if self.in_turns else []),
            f"  step      {step_s:>10.2f}   {mode}: at most {found.completions / step_s:,.1f} completions/s",
        ]

    def record(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "model": asdict(self.shape),
            "device": asdict(self.hardware),
            "learner_rank": [asdict(part) for part in self.learner],
            "engine_worker": [asdict(part) for part in self.engine],
            "kv_cache": asdict(self.room),
            "bounds": asdict(self.bounds),
            "problems": self.problems,
        }


def plan(loaded: LoadedRecipe, options: PlanOptions) -> int:
    """Print the plan; the exit status: 0 it fits, 1 it does not, 2 wrong input."""
    try:
        config = with_native_types(loaded.as_written, on_gpu=options.device != "cpu")
        made = make_plan(config, options)
        if options.json_file is not None:
            options.json_file.write_text(json.dumps(made.record(), indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    print("\n".join([*_recipe(loaded, config), made.text()]))
    return TOO_LARGE if made.problems else FITS


def _recipe(loaded: LoadedRecipe, config: Config) -> list[str]:
    """Every key that is not a default, and where it was set."""
    rows = [(f"{key}={one_line(get(config, key))}", place) for key, place in loaded.origins.items()]
    width = min(48, max((len(setting) for setting, _ in rows), default=0))
    return ["recipe    all other keys are defaults", *(f"  {setting:<{width}}  {place}" for setting, place in rows), ""]


def make_plan(config: Config, options: PlanOptions, shape: ModelShape | None = None) -> Plan:
    """The plan of a checked recipe.

    Args:
        shape: None: read from `model.path`.

    Raises:
        ValueError: there is no configuration of the model, or a number of GPUs without their kind.
    """
    on_gpu = options.device != "cpu"
    if options.gpus is not None and not on_gpu:
        raise ValueError(f"--gpus={options.gpus}: expected --gpu NAME beside it; the default is a plan for this CPU")
    hardware = GPUS[options.device] if on_gpu else this_machine()
    shape = shape or shape_of(config.model.path)
    engine, room = engine_parts(config, shape, hardware if on_gpu else None)
    lengths = Lengths(
        prompt=options.prompt_tokens or config.generator.max_prompt_tokens,
        completion=options.completion_tokens or config.generator.max_completion_tokens,
    )
    return Plan(
        config=config,
        shape=shape,
        hardware=hardware,
        on_gpu=on_gpu,
        learner=learner_parts(config, shape, on_gpu=on_gpu),
        engine=tuple(engine),
        room=room,
        lengths=lengths,
        bounds=bounds(config, shape, hardware, room, lengths, on_gpu=on_gpu),
        gpus_per_node=options.gpus_per_node,
        gpus=options.gpus,
    )


def _placement(config: Config, *, on_gpu: bool) -> list[str]:
    generator, learner = config.generator, config.learner
    of_engines = generator.count * generator.tensor_parallel_size
    unit = "GPU" if on_gpu else "CPU"
    shared = config.cluster.colocate and on_gpu
    places = learner.ranks if shared else of_engines + learner.ranks
    return [
        f"parts     {places} {unit}s: {generator.count} generators x {generator.tensor_parallel_size}, "
        f"{'on the GPUs of ' if shared else ''}{learner.ranks} learner ranks (ZeRO {learner.zero_stage}); "
        f"{config.reward.scorers} scorers, a CPU each",
    ]


def _batch(config: Config) -> list[str]:
    algorithm = config.algorithm
    completions = algorithm.groups_per_step * algorithm.group_size
    steps = algorithm.optimizer_batches * algorithm.num_iterations
    return [
        f"batch     {algorithm.groups_per_step} groups x {algorithm.group_size} completions = {completions} a step; "
        f"{steps} optimizer steps of {completions // algorithm.optimizer_batches} completions; "
        f"{config.max_steps} steps = {config.max_steps * completions:,} completions",
    ]


def _table(title: str, parts: Sequence[Part]) -> list[str]:
    width = max(len(part.name) for part in parts)
    rows = [f"  {part.name:<{width}}  {_gib(part.nbytes):>11}   {part.how}" for part in parts]
    total = sum(part.nbytes for part in parts)
    return [title, *rows, f"  {'together':<{width}}  {_gib(total):>11}"]


def _gib(nbytes: float) -> str:
    return f"{nbytes / _GIB:,.2f} GiB"
