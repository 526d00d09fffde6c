"""A whole run with a tiny random model: recipe, reward function, and the command that trains it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tiny import make_tiny_model

REWARD = '''
def variety(prompts, completions, **columns):
    """Part of different characters: a random model's completions differ in it."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [len(set(text)) / max(1, len(text)) for text in texts]
'''

RECIPE = """
name: tiny
max_steps: 4
model: {path: MODEL}
data: {path: arithmetic, size: 300, kinds: add2}
reward: {functions: {"reward.py:variety": 1.0}}
algorithm: {group_size: 4, groups_per_step: 2}
generator: {max_prompt_tokens: 96, max_completion_tokens: 12, max_sequences: 16, kv_cache_gib: 0.2, cpu_threads: 1}
learner: {learning_rate: 1e-3, cpu_threads: 1, micro_batch_tokens: 512}
evaluation: {tasks: 4}
checkpoint: {every: 2}
tracking: {mlflow: false, completions_every: 0, traces_per_step: 0, system_metrics: false}
cluster: {object_store_gib: 0.2}
"""


def tiny_recipe(folder: Path) -> Path:
    """Write model, reward function and recipe into `folder`; the recipe's path."""
    make_tiny_model(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(folder / "model")))
    return recipe


def train_command(recipe: Path, *overrides: str) -> list[str]:
    """The command line that trains it."""
    return [sys.executable, "-m", "funicular.launch.cli", "train", "-c", str(recipe), *overrides]


def train(recipe: Path, *overrides: str, deadline_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Train to the end, as a user does."""
    return subprocess.run(
        train_command(recipe, *overrides),
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
