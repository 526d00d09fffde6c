"""Reads the rows of a dataset: a file, a folder or a hub id. `datasets` is imported only where it is
needed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.rewards.nearest import known_names

FILE_TYPES = (".jsonl", ".json", ".parquet", ".jsonl.gz")
_FILES_SHOWN = 5


class DataError(ValueError):
    """The data cannot be read or used; the message names the key, the file and the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, and where it stands, for messages."""

    place: str
    values: dict[str, Any]
    folder: Path | None = None
    """What paths in it are relative to; None: the working directory."""


def read_rows(path: str, *, subset: str | None, split: str, key: str, made_by_rule: Iterable[str] = ()) -> list[Row]:
    """All rows, in the order of the file.

    Args:
        path: a .jsonl, .jsonl.gz, .json or .parquet file, a folder, or a hub id (owner/name).
        subset, split: of a folder or hub dataset.
        key: the recipe's key that named the path, for messages.
        made_by_rule: names of sets that `key` also takes, for messages.

    Raises:
        DataError: nothing readable stands there.
    """
    local = Path(path).expanduser()
    if local.is_file():
        rows = [
            Row(place=f"{local} row {number}", values=values, folder=local.parent)
            for number, values in enumerate(_file_rows(local, key), start=1)
        ]
    elif local.is_dir() or _may_be_hub_id(path):
        rows = _dataset_rows(str(local) if local.is_dir() else path, subset, split, key)
    else:
        raise DataError(
            f"{key}={path}: no such file or folder; expected a {', '.join(FILE_TYPES)} file, a folder, "
            f"a hub id (owner/name) or a set made by rule; {known_names(path, made_by_rule)}"
        )
    if not rows:
        raise DataError(f"{key}={path}: there are no rows")
    return rows


def column(row: Row, name: str, key: str) -> Any:
    """The value of a column.

    Raises:
        DataError: the row has no such column; names those that it has and the nearest.
    """
    if name not in row.values:
        raise DataError(f"{key}={name}: {row.place} has no such column; {known_names(name, row.values)}")
    return row.values[name]


def _file_rows(file: Path, key: str) -> Iterator[dict[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
    elif file.name.endswith((".jsonl", ".jsonl.gz")):
        for _, values in jsonl_rows(file):
            yield values
    elif file.suffix == ".json":
        listed = _parsed(file.read_text(encoding="utf-8"), str(file))
        if not isinstance(listed, list):
            raise DataError(f"{file}: expected a list of objects, got {type(listed).__name__}")
        for number, item in enumerate(listed, start=1):
            if not isinstance(item, dict):
                raise DataError(f"{file} item {number}: expected an object, got {type(item).__name__}")
            yield item
    else:
        raise DataError(f"{key}={file}: cannot read this type of file; expected {', '.join(FILE_TYPES)}")


def jsonl_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one on each line, gzipped or not, and their line numbers from 1; empty lines count.

    Raises:
        DataError: a file that cannot be read, or a line that is no JSON object; names file and line.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _object(line, f"{file} line {number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:  # EOFError: a gzip file that was cut
        raise DataError(f"{file}: cannot be read: {error}") from error


def _object(text: str, place: str) -> dict[str, Any]:
    value = _parsed(text, place)
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not valid JSON: {error}") from None


def _may_be_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith(FILE_TYPES)


def _dataset_rows(path: str, subset: str | None, split: str, key: str) -> list[Row]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(path, name=subset, split=split)
    except (OSError, ValueError) as error:  # not found, not reachable, no such subset or split
        raise DataError(
            f"{key}={path} (subset {subset}, split {split}): {error}{_fix(path, subset, key, error)}"
        ) from error
    folder = Path(path) if Path(path).is_dir() else None
    return [
        Row(place=f"{path}/{split} row {n}", values=dict(values), folder=folder)
        for n, values in enumerate(_undecoded(loaded), start=1)
    ]


def _fix(path: str, subset: str | None, key: str, error: Exception) -> str:
    """What to try instead, as the end of a message; empty where `datasets` has said it."""
    if isinstance(error, ConnectionError):
        return f". A file needs no hub: {key}=FILE.jsonl"
    if subset is not None and "BuilderConfig" in str(error):
        fix = ". Without subsets: data.subset=null"
        folder = Path(path)
        if folder.is_dir():  # often plain files, which the recipe of a hub's set is given
            files = sorted(file.name for file in folder.iterdir() if file.name.endswith(FILE_TYPES))
            some = ", ".join(files[:_FILES_SHOWN]) + (", ..." if len(files) > _FILES_SHOWN else "")
            fix += f", or {key}={folder}/FILE, FILE one of {some}" if files else ""
        return fix
    return ""


def _undecoded(loaded: Any) -> Any:
    """The dataset with images as they are stored, bytes and path: decoded, they would fill the driver's memory."""
    from datasets import Image, List

    for name, feature in loaded.features.items():
        if isinstance(feature, Image):
            loaded = loaded.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            loaded = loaded.cast_column(name, List(Image(decode=False)))
    return loaded
