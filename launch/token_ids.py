"""Token ids of completions that are only text: some reward functions count them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

from funicular.launch.models import EMBEDDED, cache_folder
from funicular.rewards.config import RewardConfig
from funicular.rewards.config_checks import user_file
from funicular.rewards.functions import FUNCTIONS

ARGUMENT = "completion_ids"


def needs_token_ids(reward: RewardConfig, folder: Path) -> bool:
    """Whether a reward function looks at token ids: it takes them by name, or stands in a file that names them."""
    return any(_needs(reward.function_of(label), folder) for label in reward.functions)


def tokenizer_for(model: str) -> Callable[[str], list[int]]:
    """Text to token ids by the model's tokenizer, if it is on this machine; nothing is fetched or converted.

    Args:
        model: `model.path`.

    Raises:
        ValueError: it is not here.
    """
    folder = _local_folder(model)
    if folder is None:
        hint = f" (a run with model.path={EMBEDDED} puts it here)" if model == EMBEDDED else ""
        raise ValueError(
            f"model.path={model}: a reward function counts tokens, and this model's tokenizer is not on this machine; "
            f"give each row its {ARGUMENT}, or a model.path that is here{hint}"
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _needs(name: str, folder: Path) -> bool:
    if name in FUNCTIONS:
        return ARGUMENT in inspect.signature(FUNCTIONS[name]).parameters
    source = user_file(name, folder).read_text(encoding="utf-8")
    defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return ARGUMENT in source or name.rpartition(":")[2] not in defined


def _local_folder(model: str) -> str | None:
    folder = cache_folder() / EMBEDDED if model == EMBEDDED else Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    if model == EMBEDDED or model.count("/") != 1:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(model, local_files_only=True, allow_patterns=["*token*", "config.json", "*.jinja"])
    except (LocalEntryNotFoundError, OSError):
        return None
