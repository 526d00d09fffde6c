"""Where checkpoints are kept besides the run folder: a folder, or anything that pyarrow reaches by a URI.

A checkpoint there has the files of the local one; its manifest comes last and goes first. Calls block, and may hang as
long as the file system does: whoever calls waits with a deadline (`launch/background.py`).
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from funicular.launch.addresses import is_uri, shown_address
from funicular.launch.background import each
from funicular.launch.checkpoint_files import (
    EVALUATION,
    MANIFEST,
    STATE,
    folder_name,
    read_manifest,
    step_of,
    sync_file,
    sync_folder,
)

log = logging.getLogger(__name__)

_THREADS = 4
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class StoreError(ValueError):
    """The store did not do what it was asked for; names address, reason and what to do."""


class Store:
    """Checkpoints of one run in a file system.

    Args:
        filesystem: a `pyarrow.fs.FileSystem`.
        base: folder of the run in it.
        shown: its address for messages, without credentials.
        threads: files that are copied at a time.
    """

    def __init__(self, filesystem: Any, base: str, shown: str, *, threads: int = _THREADS) -> None:
        self._fs = filesystem
        self._base = base
        self._threads = threads
        self.shown = shown

    def probe(self) -> None:
        """Write, read and delete a small file.

        Raises:
            StoreError: it cannot be done.
        """
        name = f".probe-{uuid.uuid4().hex}"
        with self._trying("cannot write to"):
            self._fs.create_dir(self._base, recursive=True)
            self._write(name, b"funicular")
            if self._read(name) != b"funicular":
                raise OSError("what was written is not what is read")
            self._fs.delete_file(self._path(name))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        with self._trying("cannot list"):
            found = [step for step in map(step_of, self._folders()) if step is not None]
            marks = self._fs.get_file_info([self._path(folder_name(step), MANIFEST) for step in found])
            return sorted(step for step, mark in zip(found, marks, strict=True) if mark.is_file)

    def state(self, step: int) -> Mapping[str, Any]:
        """A checkpoint's state.json."""
        with self._trying(f"cannot read {folder_name(step)} of"):
            return json.loads(self._read(folder_name(step), STATE))

    def evaluation(self, step: int) -> Mapping[str, float]:
        """Metrics of an evaluation at this step; empty if there was none."""
        with self._trying(f"cannot read {folder_name(step)} of"):
            if not self._fs.get_file_info([self._path(folder_name(step), EVALUATION)])[0].is_file:
                return {}
            return json.loads(self._read(folder_name(step), EVALUATION))

    def manifest(self, step: int) -> bytes:
        """A checkpoint's manifest, as it stands there."""
        with self._trying(f"cannot read {folder_name(step)} of"):
            return self._read(folder_name(step), MANIFEST)

    def upload(self, folder: Path, *, until: float, failed: Callable[[str], None]) -> None:
        """Copy a complete checkpoint; the manifest last. Tries again what fails.

        Args:
            until: time.monotonic() after which nothing is tried again.
            failed: called with a sentence for each failed try.

        Raises:
            StoreError: it did not succeed in time.
        """
        manifest = (folder / MANIFEST).read_bytes()
        names = [*read_manifest(manifest.decode(), str(folder / MANIFEST))["files"]]
        if (folder / EVALUATION).is_file():
            names.append(EVALUATION)
        left = names
        pause = _FIRST_PAUSE_S
        fresh = True
        while True:
            try:
                if fresh:
                    self._forget(folder.name)  # another of this step; its files must not mix with the new ones
                    fresh = False
                self._copy_up(folder, left)
                self._put_manifest(folder.name, manifest)
                return
            except _errors() as error:
                failed(f"{folder.name} to {self.shown}: {_said(error)}")
                if time.monotonic() + pause >= until:
                    raise StoreError(
                        f"checkpoint.path: {folder.name} is not in {self.shown}: {_said(error)}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def put_evaluation(self, step: int, evaluation: Mapping[str, float]) -> None:
        """Add what was measured at a checkpoint's step."""
        with self._trying(f"cannot write {folder_name(step)} of"):
            self._write(f"{folder_name(step)}/{EVALUATION}", json.dumps(evaluation).encode())

    def fetch(self, step: int, folder: Path) -> None:
        """Copy a checkpoint's files into a new local folder; whoever calls compares them with the manifest.

        Raises:
            StoreError: a file cannot be read.
            CheckpointError: the manifest cannot be used.
        """
        from pyarrow.fs import LocalFileSystem, copy_files

        name = folder_name(step)

        def copy(file: str) -> None:
            copy_files(
                self._path(name, file),
                str(folder / file),
                source_filesystem=self._fs,
                destination_filesystem=LocalFileSystem(),
            )

        with self._trying(f"cannot read {name} of"):
            manifest = self._read(name, MANIFEST)
            files = [*read_manifest(manifest.decode(), f"{self.shown}/{name}/{MANIFEST}")["files"]]
            if self._fs.get_file_info([self._path(name, EVALUATION)])[0].is_file:
                files.append(EVALUATION)
            for parent in {(folder / file).parent for file in files}:
                parent.mkdir(parents=True, exist_ok=True)
            for error in each(copy, files, threads=self._threads, name="fetch").values():
                raise error
            (folder / MANIFEST).write_bytes(manifest)

    def delete(self, step: int) -> None:
        """Delete a checkpoint."""
        with self._trying(f"cannot delete {folder_name(step)} of"):
            self._forget(folder_name(step))

    def sweep(self) -> None:
        """Delete what interrupted uploads left. Not while one is under way."""
        with self._trying("cannot delete what interrupted uploads left in"):
            complete = set(self.steps())
            for name in self._folders():
                if step_of(name) is not None and step_of(name) not in complete:
                    self._forget(name)

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except _errors() as error:
            raise StoreError(
                f"checkpoint.path: {what} {self.shown}: {_said(error)}; check the address, its permissions and the "
                "credentials that this process sees, or set checkpoint.path=null to keep checkpoints in the run folder"
            ) from error

    def _folders(self) -> list[str]:
        from pyarrow.fs import FileSelector, FileType

        infos = self._fs.get_file_info(FileSelector(self._base, allow_not_found=True))
        return [info.base_name for info in infos if info.type == FileType.Directory]

    def _copy_up(self, folder: Path, names: list[str]) -> None:
        """Copy files. `names` shrinks to those that failed, so that the next try does not begin anew."""
        from pyarrow.fs import LocalFileSystem, copy_files

        target = folder.name
        for parent in {str(Path(target, name).parent) for name in names}:
            self._fs.create_dir(self._path(parent), recursive=True)

        def copy(name: str) -> None:
            copy_files(
                str(folder / name),
                self._path(target, name),
                source_filesystem=LocalFileSystem(),
                destination_filesystem=self._fs,
            )
            self._sync(f"{target}/{name}")
            size = self._fs.get_file_info([self._path(target, name)])[0].size
            if size != (folder / name).stat().st_size:
                raise OSError(f"{name} has {size} bytes there, {(folder / name).stat().st_size} here")

        errors = each(copy, list(names), threads=self._threads, name="upload")
        names[:] = list(errors)
        for error in errors.values():
            raise error

    def _put_manifest(self, folder: str, content: bytes) -> None:
        scratch = f"{folder}/{MANIFEST}.tmp"
        self._write(scratch, content)
        self._fs.move(self._path(scratch), self._path(folder, MANIFEST))
        if local := self._local(folder):
            sync_folder(local)

    def _forget(self, folder: str) -> None:
        manifest = self._path(folder, MANIFEST)
        info, mark = self._fs.get_file_info([self._path(folder), manifest])
        if mark.is_file:
            self._fs.delete_file(manifest)  # first, so that a half-deleted folder is none
        if info.type.name == "Directory":
            self._fs.delete_dir(self._path(folder))

    def _path(self, *parts: str) -> str:
        return "/".join((self._base, *parts))

    def _read(self, *parts: str) -> bytes:
        with self._fs.open_input_stream(self._path(*parts)) as stream:
            return stream.read()

    def _write(self, name: str, content: bytes) -> None:
        with self._fs.open_output_stream(self._path(name)) as stream:
            stream.write(content)
        self._sync(name)

    def _sync(self, name: str) -> None:
        """pyarrow writes local files without waiting for the disk."""
        if file := self._local(name):
            sync_file(file)

    def _local(self, name: str) -> Path | None:
        path, filesystem = self._path(name), self._fs
        if filesystem.type_name == "subtree":
            path, filesystem = f"{filesystem.base_path.rstrip('/')}/{path.lstrip('/')}", filesystem.base_fs
        return Path(path) if filesystem.type_name == "local" else None


def open_store(path: str, name: str) -> Store:
    """The store of a run.

    Args:
        path: `checkpoint.path`: a folder, or a URI such as s3://bucket/prefix, gs://…, hdfs://…, file://….
        name: the run's; its checkpoints lie in a folder of this name.

    Raises:
        StoreError: nothing is known of such an address.
    """
    from pyarrow.fs import FileSystem, LocalFileSystem

    shown = shown_address(path)
    if is_uri(path):
        try:
            filesystem, base = FileSystem.from_uri(path)
        except _errors() as error:
            raise StoreError(
                f"checkpoint.path={shown}: {_said(error)}; expected a folder, or a URI that pyarrow.fs knows: file://, "
                "s3://, gs://, hdfs://"
            ) from error
    else:
        filesystem, base = LocalFileSystem(), shown
    return Store(filesystem, f"{base.rstrip('/')}/{name}", f"{shown.rstrip('/')}/{name}")


def _errors() -> tuple[type[Exception], ...]:
    from pyarrow import ArrowException

    return (OSError, ArrowException)


def _said(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
