"""One number about a part of a run, as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A name of docs/metrics.md (`now/...`), a value, and what tells it from others of that name."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
