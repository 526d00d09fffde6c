"""Gauges at Ray's Prometheus endpoint that stay: Ray forgets one that is not set again for some 20 s.

So a thread sets them again and again, also while the process waits for something. The gauges of a process that is dead
or frozen are gone after some 30 s, which is right.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

PERIOD_S = 5.0

_Labels = tuple[tuple[str, str], ...]


class KeptGauges:
    """Gauges of one part. Methods may be called from any thread; in a process without Ray they do nothing.

    Args:
        labels: of all.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._lock = threading.Lock()
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, _Labels], float] = {}
        self._looks: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    def set(self, name: str, description: str, value: float, **labels: str) -> None:
        """Tell a value, now and from now on. Every call of a name has the same labels."""
        if not self._begin():
            return
        with self._lock:
            self._values[name, tuple(labels.items())] = value
            self._tell(name, description, value, labels)

    def end(self, name: str, description: str, **labels: str) -> None:
        """Tell 0 once and then nothing more."""
        with self._lock:
            if self._values.pop((name, tuple(labels.items())), None) is not None:
                self._tell(name, description, 0.0, labels)

    def look(self, what: Callable[[], None]) -> None:
        """Have something called every `PERIOD_S`, which sets what it sees."""
        if self._begin():
            with self._lock:
                self._looks.append(what)

    def _begin(self) -> bool:
        import ray

        if not ray.is_initialized():
            return False
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._keep, name="kept-gauges", daemon=True)
                self._thread.start()
        return True

    def _keep(self) -> None:
        import ray

        while ray.is_initialized():
            with self._lock:
                looks = list(self._looks)
            for what in looks:
                try:
                    what()
                except Exception:  # of whatever kind: the other gauges go on
                    log.exception("kept gauges")
            with self._lock:
                for (name, labels), value in self._values.items():
                    self._tell(name, "", value, dict(labels))
            time.sleep(PERIOD_S)

    def _tell(self, name: str, description: str, value: float, labels: Mapping[str, str]) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            keys = (*self._labels, *labels)
            self._gauges[name] = Gauge(name, description=description, tag_keys=keys)
            self._gauges[name].set_default_tags(self._labels)
        self._gauges[name].set(value, dict(labels))
