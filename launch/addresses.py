"""Addresses of stores: folders and URIs. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path


def is_uri(path: str) -> bool:
    """Whether it has a scheme."""
    return bool(re.match(r"^[A-Za-z][A-Za-z0-9+.-]+://", path))


def shown_address(path: str) -> str:
    """An address without user, password and options; absolute."""
    if not is_uri(path):
        return str(Path(path).expanduser().absolute())
    return public_uri(path.split("?")[0])


def public_uri(uri: str) -> str:
    """A URI, or a text with URIs, without user and password: what may be printed and stored."""
    return re.sub(r"([?&])password=[^&\s]*&?", r"\1", re.sub(r"://[^/\s]*@", "://", uri), flags=re.IGNORECASE)
