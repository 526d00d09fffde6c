"""Records that cross actors: frozen, and small unless the name says payload. No torch at import time.

Suffixes: `_G` one entry per completion of the group, `_T` one per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from funicular.rewards.types import Task, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """The images of one prompt as a vision tower reads them, one after the other."""

    pixel_values: np.ndarray
    """(patches, values of a patch) float32."""
    grid_thw: np.ndarray
    """(images, 3) int64: patches of each image in time, height and width."""
    places: np.ndarray
    """(placeholders,) int64: where in `prompt_ids` the tokens stand that the images take the place of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPayload:
    """The G completions of one task as packed arrays: from generator to scorer and learner by reference.

    Completion `i` is `token_ids[offsets[i]:offsets[i + 1]]`; the other per-token arrays align with it.
    Ray hands the arrays out as read-only views of shared memory: copy before writing.
    """

    group_id: str
    prompt_ids: np.ndarray
    """(P,) int32: the rendered prompt, as the engine saw it."""
    token_ids: np.ndarray
    """(sum of lengths,) int32: sampled tokens, the end-of-sequence token included."""
    offsets: np.ndarray
    """(G+1,) int64."""
    generator_logprobs: np.ndarray | None
    """(sum of lengths,) float32: temperature-scaled log-probability the generator gave to each token; None: no
    generator sampled them, they were given."""
    token_versions: np.ndarray | None
    """(sum of lengths,) int32: the policy version that sampled each token; None: none did."""
    texts: tuple[str, ...]
    """(G) decoded without special tokens: for scoring and display, never re-encoded (law 5)."""
    images: ImageFeatures | None = None
    """Of the prompt, once for all completions; None: it has none."""

    def completion(self, index: int) -> slice:
        """The slice of completion `index` in every per-token array."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """What the loop knows of a generated group without reading its payload."""

    group_id: str
    generator: str
    """Name of the generator that made it."""
    prompt_tokens: int
    lengths_G: tuple[int, ...]
    """Tokens per completion, end-of-sequence included."""
    truncated_G: tuple[bool, ...]
    """True where the completion ended at the length limit, or was stopped because it repeated itself."""
    finite_G: tuple[bool, ...]
    """False where a generator log-probability is NaN or infinite: the completion is void (law 4)."""
    oldest_version: int | None
    newest_version: int | None
    """Of the policy versions that sampled its tokens; None: they were given."""
    seconds: float
    """From submission to the last member's last token."""
    repeated_G: tuple[bool, ...] = ()
    """True where the completion was stopped because it repeated itself; empty where nothing was sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPayload:
    """What a teacher said of a group: from teacher to learner by reference."""

    group_id: str
    logprobs: np.ndarray
    """(sum of lengths,) float32: log-probability of each sampled token under the teacher, at the sampling temperature;
    completions stand as in the group's GroupPayload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecord:
    """What the loop knows of a teacher's scores without reading them."""

    group_id: str
    teacher: str
    """Name of the teacher that gave them."""
    finite_G: tuple[bool, ...]
    """False where a log-probability is NaN or infinite: the completion is void (law 4)."""
    seconds: float
    """From the first request to the last answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTimes:
    """When the loop saw a group pass: seconds since 1970, by the driver's clock."""

    issued_at: float
    generated_at: float
    scored_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A rollout group as loop and buffer hold it: records, and a reference to the payload."""

    group_id: str
    slot: int
    task: Task
    generation: GenerationRecord
    verdicts_G: tuple[Verdict, ...]
    payload: Any
    """ray.ObjectRef of the GroupPayload. Owned by the loop; loop and buffer never read it."""
    scoring_seconds: float
    teaching: TeacherRecord | None = None
    """None: no teacher scores completions in this run."""
    teacher_payload: Any = None
    """ray.ObjectRef of the TeacherPayload, owned by the loop, as `payload` is; None where `teaching` is."""
    times: GroupTimes | None = None
    """None: no loop rolled it out."""

    @property
    def valid_G(self) -> tuple[bool, ...]:
        """False for void completions, which are in no mean, std, count, normaliser or loss."""
        taught_G = self.teaching.finite_G if self.teaching else self.generation.finite_G
        return tuple(
            finite and taught and verdict.reward is not None
            for finite, taught, verdict in zip(self.generation.finite_G, taught_G, self.verdicts_G, strict=True)
        )

    @property
    def rewards_G(self) -> tuple[float | None, ...]:
        """The reward of each completion; None for the void ones."""
        return tuple(v.reward if ok else None for v, ok in zip(self.verdicts_G, self.valid_G, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class KlScore:
    """What a learner rank tells of one completion's KL to the reference policy, before advantages are known.

    Of k1 = learner - reference log-probability of each trained token (nats), and of its sums from a token to the end.
    """

    tokens: int
    """Trained tokens."""
    total: float
    """Sum of k1."""
    to_go_sum: float
    """Sum over tokens of k1 summed from the token to the end."""
    to_go_squares: float
    """Sum over tokens of the square of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptySlot:
    """What fills a slot whose group failed for good: it trains nothing, but the slot order goes on."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one training step reports. The new weights are not yet published when it is returned."""

    metrics: Mapping[str, float]
    """Metric name (`policy/loss`, …; docs/metrics.md) to value, already reduced over ranks."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What the loop asks of a generator: `count` completions of one task."""

    group_id: str
    task: Task
    count: int
    temperature: float
    """0: greedy, for evaluation."""
    seed: int | None = None
    """Of the group's sampling (`generator.request_seeds`); None: the engine's own random numbers."""
