"""Versions in a run without generators: counted, and sent to nobody."""

from __future__ import annotations

from funicular.actors.weight_sync import PublishReport


class UnsentWeights:
    """Stands where `WeightSync` does."""

    def __init__(self) -> None:
        self.version = -1
        """Newest policy version; -1 before the first."""

    async def publish(self, version: int) -> PublishReport:
        """Note the version; nothing is packed."""
        self.version = version
        return PublishReport(version=version, records=[], pack_seconds=0.0, seconds=0.0, total_bytes=0)
