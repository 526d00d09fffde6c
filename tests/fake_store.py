"""A file system of pyarrow that fails, hangs or kills where a test wants it; otherwise a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs

from funicular.launch.checkpoint_store import Store

Watch = Callable[[str, str], None]


class FakeFaultyHandler(fs.FileSystemHandler):
    """Calls `watch(operation, path)` before each change; what that raises is what the caller sees."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._real = fs.LocalFileSystem()

    def get_type_name(self) -> str:
        return "faulty"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self._real.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self._real.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.watch("create_dir", path)
        self._real.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        for file in sorted(file for file in Path(path).rglob("*") if file.is_file()):  # one by one, as object stores do
            self.watch("delete_dir", str(file))
            file.unlink()
        self._real.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.watch("delete_file", path)
        self._real.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self.watch("move", dest)
        self._real.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        return self._real.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self._real.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.watch("write", path)
        return self._real.open_output_stream(path)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError


def faulty_store(folder: Path, watch: Watch) -> Store:
    """A store in a folder. One file at a time, so that faults fall in the same place every time."""
    return Store(fs.PyFileSystem(FakeFaultyHandler(watch)), str(folder), str(folder), threads=1)
