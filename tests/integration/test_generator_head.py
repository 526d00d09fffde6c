"""A bfloat16 engine whose output head multiplies in float32, against transformers. Under a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.generator import Generator
from funicular.actors.types import GenerationRequest
from funicular.rewards.types import Task
from tests.publish_helpers import publish
from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


def logprobs(model: Any, tokens: list[int], head_dtype: torch.dtype) -> np.ndarray:
    """(len - 1,) by a bfloat16 model, the head's products in `head_dtype`."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, :-1].to(head_dtype)
        logits = (hidden @ model.lm_head.weight.to(head_dtype).T).float()
    return torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


async def test_a_float32_head_rounds_no_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_tiny_model(tmp_path)
    config = GeneratorConfig(
        dtype="bfloat16",
        head_dtype="float32",
        max_prompt_tokens=64,
        max_completion_tokens=64,
        max_sequences=4,
        kv_cache_gib=0.25,
    )
    options = {"model_folder": str(tmp_path), "chat_template": "auto", "seed": 0, "use_gpu": False}
    generator = Generator("generator-0", config, WeightSyncConfig(deadline_s=120.0), **options)
    await generator.start()
    try:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:  # layers add nothing, so that only the head can differ
                parameter.data.zero_()
        await generator.install(publish(model, 1, dtype=torch.bfloat16), 1)
        task = Task(task_id="t", prompt="one two three", answer=None, verifier="none")
        _, payload = await generator.generate(GenerationRequest(group_id="g", task=task, count=4, temperature=1.0))
    finally:
        await generator.stop()
    errors: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for index in range(4):
        part = payload.completion(index)
        tokens = [*payload.prompt_ids.tolist(), *payload.token_ids[part].tolist()]
        for dtype, of_dtype in errors.items():
            theirs = logprobs(model, tokens, dtype)[len(payload.prompt_ids) - 1 :]
            of_dtype += np.abs(payload.generator_logprobs[part] - theirs).tolist()
    exact, rounded = (float(np.mean(errors[dtype])) for dtype in (torch.float32, torch.bfloat16))
    assert exact < 1e-6, (exact, rounded)
    assert rounded > 1e-4, (exact, rounded)
