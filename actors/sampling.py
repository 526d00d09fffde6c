"""What the engine is asked for one completion. Whatever would hide the distribution that is sampled from stays off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from funicular.actors.config import GeneratorConfig
from funicular.actors.types import GenerationRequest


def sampling_parameters(config: GeneratorConfig, request: GenerationRequest, member: int) -> Any:
    """vLLM's parameters for completion `member` of a request.

    top_p, top_k, min_p and penalties stay at what turns them off: the learner's log-probabilities are those of the
    whole distribution at the sampling temperature.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

    repetition = None
    if config.stop_repetition_count:
        repetition = RepetitionDetectionParams(
            max_pattern_size=config.stop_repetition_tokens, min_count=config.stop_repetition_count
        )
    return SamplingParams(
        temperature=request.temperature,
        max_tokens=config.max_completion_tokens,
        min_tokens=config.min_completion_tokens,
        stop=list(config.stop),
        stop_token_ids=list(config.stop_token_ids),
        include_stop_str_in_output=True,  # its tokens were sampled, and are trained
        repetition_detection=repetition,
        structured_outputs=_structured_outputs(request.task.structured_output),
        seed=None if request.seed is None else seed_of(request.seed, member),  # members must differ
        logprobs=0,  # of the sampled token alone
        detokenize=bool(config.stop),  # the engine looks for stop texts in what it decodes
        output_kind=RequestOutputKind.DELTA,
    )


def _structured_outputs(form: Mapping[str, Any] | None) -> Any:
    """Tokens that the form rules out are not sampled: log-probabilities are of what is left of the distribution."""
    if form is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    ((kind, content),) = form.items()
    if kind == "json_schema":
        return StructuredOutputsParams(json=dict(content))
    return StructuredOutputsParams(**{kind: content})


def seed_of(*parts: object) -> int:
    """A number below 2^63 that depends on nothing but `parts`."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
