"""Which weights have been verified: no token of others may leave a generator (law 2).

Each install has a label of its own, `version.attempt`, which the engine attaches to the tokens that it samples. A
label is pending from the moment the engine may sample with it until its canary has decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from funicular.actors.errors import GroupFailed


class VersionGate:
    """Labels, and who waits for them."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._decided: dict[str, asyncio.Event] = {}
        self._rejections: dict[str, str] = {}
        self.committed: int | None = None
        """Highest version that was ever committed; None before the first."""

    def is_new(self, label: str) -> bool:
        """Labels never repeat: tokens of an old attempt must not pass for those of a new one."""
        return label not in self._versions

    def open(self, label: str, version: int) -> None:
        """From now on the engine may sample with these weights; their tokens wait."""
        if not self.is_new(label):
            raise RuntimeError(f"weights {label} were opened before")
        self._versions[label] = version
        self._decided[label] = asyncio.Event()

    def commit(self, label: str) -> None:
        """Tokens with this label may leave."""
        self.committed = self._versions[label]
        self._decided[label].set()

    def reject(self, label: str, reason: str) -> None:
        """Tokens with this label never leave."""
        self._rejections[label] = reason
        self._decided[label].set()

    async def versions(self, labels: Iterable[str], deadline_s: float) -> dict[str, int]:
        """The policy version of each label, once all are committed.

        Raises:
            GroupFailed: `weights_rejected`, if one was rejected, or not decided within the deadline.
            RuntimeError: for a label that was never opened: the engine served weights that nobody sent.
        """
        out = {}
        for label in labels:
            if label not in self._versions:
                raise RuntimeError(f"the engine sampled with weights {label!r}, which were never installed")
            try:
                await asyncio.wait_for(self._decided[label].wait(), deadline_s)
            except TimeoutError as error:
                detail = f"weights {label} were not verified within {deadline_s:.0f} s"
                raise GroupFailed("weights_rejected", detail) from error
            if label in self._rejections:
                raise GroupFailed("weights_rejected", f"weights {label}: {self._rejections[label]}")
            out[label] = self._versions[label]
        return out
