"""Keeps a judge's scores in an SQLite file, which several processes may share."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

_LOCK_DEADLINE_S = 10.0


def key_of(*parts: Any) -> str:
    """A hash of everything that a score depends on. Plain JSON data only."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ScoreCache:
    """Scores by key.

    Args:
        path: of the file, made when it is missing; None keeps nothing.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path

    def scores(self, keys: Iterable[str]) -> dict[str, float]:
        """The scores that are known of these.

        Raises:
            ValueError: the file cannot be used.
        """
        if self._path is None:
            return {}
        with self._open() as connection:
            rows = (connection.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone() for key in keys)
            return {key: row[0] for key, row in zip(keys, rows, strict=True) if row}

    def store(self, scores: Mapping[str, float]) -> None:
        """Keep these.

        Raises:
            ValueError: the file cannot be used.
        """
        if self._path is not None and scores:
            with self._open() as connection:
                connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        assert self._path is not None
        try:
            with closing(sqlite3.connect(self._path, timeout=_LOCK_DEADLINE_S)) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL)")
                yield connection
        except sqlite3.Error as error:
            raise ValueError(f"llm_judge: cache={self._path!r} cannot be used: {error}") from error
