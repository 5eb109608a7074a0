"""Files in a local folder or at an fsspec address, written atomically."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from hf_vit_seg.atomic_io import write_files
from hf_vit_seg.data.storage.addresses import (
    ATTEMPTS,
    FIRST_PAUSE,
    StorageError,
    is_address,
    local_path,
    open_address,
)
from hf_vit_seg.errors import HfVitSegError, error_sentence, write_error, write_errors

Saver = Callable[[Path], Any]  # writes a file to a path


@dataclass(frozen=True)
class Storage:
    """The files below `root`, a local folder or an address; their names are separated by `/`."""

    root: str

    @cached_property
    def folder(self) -> Path | None:
        """The local folder; None for an address."""
        return None if is_address(self.root) else local_path(self.root)

    @cached_property
    def remote(self) -> tuple[Any, str]:
        """The file system of an address, and the path of the root in it."""
        return open_address(self.root)

    def path(self, name: str) -> str:
        """Return the path of a file in its file system."""
        if self.folder is not None:
            return os.fspath(self.folder / name)
        return str(PurePosixPath(self.remote[1]) / name) if name else self.remote[1]

    def write(self, files: Mapping[str, Saver], flush: bool = False) -> None:
        """Write a group of files in order, the last one when the others are complete. WriteError if one fails.

        `flush` writes local files to the disk before they get their names.
        """
        if self.folder is not None:
            write_files({self.folder / name: save for name, save in files.items()}, flush)
            return
        with write_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
            for name, save in files.items():
                path = Path(folder, PurePosixPath(name).name)
                save(path)
                self.upload(path, name)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to an address, with a few attempts: others may write there at the same time."""
        filesystem, _ = self.remote
        for attempt in range(ATTEMPTS):
            try:
                filesystem.makedirs(str(PurePosixPath(self.path(name)).parent), exist_ok=True)
                filesystem.put_file(os.fspath(path), self.path(name))
                return
            except Exception as error:  # network errors; each file system has its own classes
                if attempt == ATTEMPTS - 1 or isinstance(error, PermissionError):
                    raise write_error(Path(self.root, name), error) from error
                time.sleep(FIRST_PAUSE * 2**attempt)

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file, flushed to disk."""
        self.write({name: lambda path: path.write_text(text, encoding="utf-8", newline="")}, flush=True)

    @contextmanager
    def read_errors(self, name: str) -> Iterator[None]:
        """Raise StorageError for failures of reading except FileNotFoundError."""
        try:
            yield
        except (FileNotFoundError, HfVitSegError):
            raise
        except Exception as error:  # disk, network and access errors; each file system has its own classes
            if self.folder is not None and not isinstance(error, OSError):
                raise
            raise StorageError(f"{self.root}/{name} cannot be accessed: {error_sentence(error)}") from error

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none. Raises StorageError."""
        try:
            with self.read_errors(name), self.open(name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def open(self, name: str) -> Any:
        """Open a file for reading; listings of an address that fsspec has cached are dropped first."""
        if self.folder is None:
            self.remote[0].invalidate_cache()
        return open(self.path(name), "rb") if self.folder is not None else self.remote[0].open(self.path(name), "rb")

    def exists(self, name: str) -> bool:
        """Return whether a file exists, without a cache. Raises StorageError."""
        if self.folder is not None:
            return os.path.exists(self.path(name))
        with self.read_errors(name):
            self.remote[0].invalidate_cache()
            return self.remote[0].exists(self.path(name))

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files and folders in a folder, sorted, without hidden ones. Raises StorageError."""
        path = self.path(folder)
        try:
            with self.read_errors(folder):
                if self.folder is not None:
                    names = os.listdir(path)
                else:
                    self.remote[0].invalidate_cache()
                    names = [PurePosixPath(entry).name for entry in self.remote[0].ls(path, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove a file, if it exists. Raises StorageError."""
        with self.read_errors(name):
            if self.folder is not None:
                Path(self.path(name)).unlink(missing_ok=True)
            elif self.exists(name):
                self.remote[0].rm(self.path(name))


__all__ = ["Saver", "Storage"]
