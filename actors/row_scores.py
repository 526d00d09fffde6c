"""What forward passes before a step's first update said of each completion, kept until the step ends."""

from __future__ import annotations

import torch

from funicular.actors.collate import Batch
from funicular.actors.losses.kl import kl_to_go
from funicular.actors.losses.segments import Segments
from funicular.actors.types import KlScore

Row = tuple[str, int]


class RowScores:
    """Tensors of trained tokens by completion; nothing in here has a gradient."""

    def __init__(self) -> None:
        self.complete = False
        """Every completion of the step was scored, the reference policy's log-probabilities included."""
        self._old: dict[Row, torch.Tensor] = {}
        self._reference: dict[Row, torch.Tensor] = {}
        self._entropies: dict[Row, torch.Tensor] = {}

    def put(
        self, batch: Batch, *, old: torch.Tensor, entropies: torch.Tensor, reference: torch.Tensor | None = None
    ) -> None:
        """Keep (N,) tensors of a micro-batch, cut into its completions."""
        if not batch.rows:
            return
        lengths = batch.segments.lengths.tolist()
        kept = [(self._old, old), (self._entropies, entropies)]
        if reference is not None:
            kept.append((self._reference, reference))
        for store, values in kept:
            store.update(zip(batch.rows, values.detach().split(lengths), strict=True))

    def old(self, batch: Batch) -> torch.Tensor | None:
        """(N,) log-probabilities before the first update; None: these completions were not scored."""
        return _joined(self._old, batch)

    def reference(self, batch: Batch) -> torch.Tensor | None:
        """(N,) the reference policy's; None: these completions were not scored."""
        return _joined(self._reference, batch)

    def entropies(self, batch: Batch) -> torch.Tensor | None:
        """(N,) nats; None: these completions were not scored."""
        return _joined(self._entropies, batch)

    def kl(self) -> dict[Row, KlScore]:
        """KL to the reference policy of all completions for which it was kept."""
        return {row: _kl_score(self._old[row] - reference) for row, reference in self._reference.items()}


def _joined(store: dict[Row, torch.Tensor], batch: Batch) -> torch.Tensor | None:
    if not batch.rows or batch.rows[0] not in store:
        return None
    return torch.cat([store[row] for row in batch.rows])


def _kl_score(k1: torch.Tensor) -> KlScore:
    to_go = kl_to_go(k1, Segments.of_lengths(torch.tensor([len(k1)], device=k1.device)))
    return KlScore(
        tokens=len(k1),
        total=float(k1.double().sum()),
        to_go_sum=float(to_go.sum()),
        to_go_squares=float(to_go.square().sum()),
    )
