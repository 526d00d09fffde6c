"""Where the token of a Ray cluster is found."""

from __future__ import annotations

import os
from pathlib import Path

TOKEN_FIX = (
    "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token (`ray get-auth-token` on its head), or "
    "RAY_AUTH_MODE=disabled if it has none"
)


def token_place() -> str | None:
    """The variable or file that holds a token, as Ray looks for it; None: there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path("~/.ray/auth_token").expanduser())
    return str(file) if file.is_file() and file.read_text(encoding="utf-8").strip() else None


def use_token() -> None:
    """Have Ray's clients send the token that is there. Without RAY_AUTH_MODE, Ray 2.60 sends none.

    Before Ray is imported, which reads the variable then.
    """
    if "RAY_AUTH_MODE" not in os.environ and token_place() is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
