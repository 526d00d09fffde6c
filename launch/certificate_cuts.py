"""The cuts of a certificate: ways to compute one and the same gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from funicular.actors.config import LearnerConfig

ONE_PASS = 1 << 40
"""Tokens of a pass that has room for everything."""
A_ROW_A_PASS = 1
MOST_RANKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One way."""

    name: str
    learner: LearnerConfig
    small_tiles: bool = False
    judged: bool = True
    """False: for information."""
    of_sharing: bool = False
    """It is there for prompts that are computed once; a model that cannot share them is not judged by it."""


def cuts(recipe: LearnerConfig) -> list[Cut]:
    """All that a recipe's learner is checked with, those of one rank first.

    Float32 throughout but for the last, which has the recipe's own types. Adapters are the recipe's in all of them.
    """
    plain = replace(
        _in_float32(recipe),
        ranks=1,
        zero_stage=0,
        micro_batch_tokens=ONE_PASS,
        packing=True,
        share_prefix="off",
        gradient_checkpointing=False,
        offload_activations=False,
        offload_optimizer="none",
        offload_parameters="none",
    )
    rows = replace(plain, micro_batch_tokens=A_ROW_A_PASS)
    shared = replace(plain, share_prefix="on")
    ranks = min(recipe.ranks, MOST_RANKS)
    own = replace(recipe, ranks=ranks, cpu_threads=0)
    where = f"recipe's learner{'' if ranks == recipe.ranks else f' on {ranks} ranks'}"
    found = [
        Cut(name="1 rank, one pass, packed", learner=plain),
        Cut(name="1 rank, one pass, padded", learner=replace(plain, packing=False)),
        Cut(name="1 rank, a row a pass", learner=rows),
        Cut(name="1 rank, one pass, prompts shared", learner=shared, of_sharing=True),
        Cut(name="1 rank, head in small tiles", learner=plain, small_tiles=True),
        Cut(name="1 rank, gradient checkpointing", learner=replace(plain, gradient_checkpointing=True)),
        *(
            Cut(
                name=f"{MOST_RANKS} ranks, ZeRO {stage}, a row a pass",
                learner=replace(rows, ranks=MOST_RANKS, zero_stage=stage),
            )
            for stage in range(4)
        ),
        Cut(
            name=f"{MOST_RANKS} ranks, ZeRO 3, prompts shared",
            learner=replace(shared, ranks=MOST_RANKS, zero_stage=3),
            of_sharing=True,
        ),
        Cut(name=f"{where}, in float32", learner=_in_float32(own)),
    ]
    if own != _in_float32(own):
        found.append(Cut(name=f"{where}, own types", learner=own, judged=False))
    return sorted(found, key=lambda cut: cut.learner.ranks)


def _in_float32(learner: LearnerConfig) -> LearnerConfig:
    return replace(
        learner, dtype="float32", compute_dtype="float32", head_dtype="auto", quantization="none", cpu_threads=0
    )
