"""What the config.json of a local model says, for rules that look at it before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def model_config(path: str) -> dict[str, Any]:
    """Of `model.path`. Empty where nothing can be read here: the part that loads the model looks again."""
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text())
    except json.JSONDecodeError:
        return {}
    return read if isinstance(read, dict) else {}
