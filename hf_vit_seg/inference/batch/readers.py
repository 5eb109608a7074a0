"""The encoded image of a row of a manifest, from files, addresses, tar files, Parquet files and datasets.

Readers may be called from several threads.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.inference.image_inputs import MAX_DOWNLOAD

from .inputs import Source, load_dataset, open_binary
from .manifest import Manifest, Row
from .storage import ATTEMPTS, FIRST_PAUSE, is_address, open_address

Value = TypeVar("Value")
KEPT_ROWS = 64  # more than threads read ahead
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)


class ConnectionLost(HfVitSegError):
    """An image that could not be read over the network now: its shard is not complete, and is repeated."""


class Reader(Protocol):
    """Reads the encoded images of a source."""

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """The file of a row, called `name` in messages. Raises ImageFileError or ConnectionLost."""
        ...


class Readers:
    """Reads the rows of a manifest, with one reader for each source."""

    def __init__(self, manifest: Manifest):
        self.manifest, self.opened, self.lock = manifest, dict[int, Reader](), threading.Lock()

    def read(self, row: Row) -> Path | ImageBytes:
        """The encoded image of a row. Raises ImageFileError or ConnectionLost."""
        with self.lock:
            if row.source not in self.opened:
                source = self.manifest.sources[row.source]
                self.opened[row.source] = READERS[source.kind](source)
        return self.opened[row.source].read(row, self.manifest.locate(row))


class FileReader:
    """Files of a folder or at an address."""

    def __init__(self, source: Source):
        self.root = source.root
        self.remote = open_address(source.root) if is_address(source.root) else None

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """The path of a local file, or the content of a remote one."""
        if self.remote is None:
            return Path(self.root, row.path)
        check_size(row, name)
        filesystem, root = self.remote
        path = f"{root.rstrip('/')}/{row.path}"
        return ImageBytes(name, read_remote(name, lambda: filesystem.cat_file(path)))


class TarReader:
    """Members of an uncompressed tar file, each read by its place in the file."""

    def __init__(self, source: Source):
        self.path = source.root
        self.remote = open_address(source.root) if is_address(source.root) else None
        self.file = None if self.remote else open_binary(source.root)
        self.lock = threading.Lock()

    def read(self, row: Row, name: str) -> ImageBytes:
        """The content of a member."""
        check_size(row, name)
        if self.remote is not None:
            filesystem, path = self.remote
            stop = row.offset + row.size
            data = read_remote(name, lambda: filesystem.cat_file(path, start=row.offset, end=stop))
        else:
            with self.lock:
                data = read_remote(name, lambda: self.read_local(row))
        if len(data) != row.size:
            raise ImageFileError(f"{name}: the tar file is shorter than when the run was planned")
        return ImageBytes(name, data)

    def read_local(self, row: Row) -> bytes:
        """Read a member of a local file."""
        assert self.file is not None
        self.file.seek(row.offset)
        return self.file.read(row.size)


class ParquetReader:
    """Rows of a Parquet file; the row group that was read last is kept."""

    def __init__(self, source: Source):
        import pyarrow.parquet

        self.column, self.path = source.column, source.root
        self.file = read_remote(source.root, lambda: pyarrow.parquet.ParquetFile(open_binary(source.root)))
        counts = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self.lock, self.group, self.cells = threading.Lock(), -1, None

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """The file in a cell."""
        with self.lock:
            group = next(g for g in range(len(self.starts) - 1) if row.offset < self.starts[g + 1])
            if group != self.group:
                table = read_remote(name, lambda: self.file.read_row_group(group, columns=[self.column]))
                self.group, self.cells = group, table.column(0)
            assert self.cells is not None
            cell = self.cells[row.offset - self.starts[group]].as_py()
        return cell_file(cell, name, os.path.dirname(self.path))


class DatasetReader:
    """Rows of a dataset: by index if it is on this disk, else in order, with few rows read ahead."""

    def __init__(self, source: Source):
        import datasets

        data = load_dataset(source)
        if isinstance((data.features or {}).get(source.column), datasets.Image):
            data = data.cast_column(source.column, datasets.Image(decode=False))
        self.data, self.column = data.select_columns([source.column]), source.column
        self.lock, self.next, self.ahead = threading.Lock(), -1, dict[int, Any]()
        self.rows: Iterator[Any] = iter(())

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """The file in a cell."""
        with self.lock:
            indexed = hasattr(self.data, "__len__")
            found = self.data[row.offset] if indexed else read_remote(name, lambda: self.advance(row.offset))
        return cell_file(found[self.column], name, "")

    def advance(self, index: int) -> Any:
        """Read the stream up to a row; rows that threads request out of order are kept for a while."""
        if index in self.ahead:
            return self.ahead.pop(index)
        for old in [row for row in self.ahead if row < index - KEPT_ROWS]:  # those of finished images are not requested
            del self.ahead[old]
        if self.next < 0 or index < self.next:
            self.ahead.clear()
            self.rows, self.next = iter(self.data.skip(index)), index
        try:
            while self.next < index:
                self.ahead[self.next] = next(self.rows)
                self.next += 1
            found = next(self.rows)
        except StopIteration:
            raise ImageFileError(f"row {index}: the dataset has fewer rows than when the run was planned") from None
        except BaseException:
            self.next = -1
            raise
        self.next += 1
        return found


READERS: dict[str, Callable[[Source], Reader]] = {
    "files": FileReader,
    "tar": TarReader,
    "parquet": ParquetReader,
    "dataset": DatasetReader,
}


def cell_file(cell: Any, name: str, folder: str) -> Path | ImageBytes:
    """The file in a cell: bytes, or a struct of bytes and path, which may be relative to a folder."""
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return ImageBytes(name, cell["bytes"])
        if cell.get("path") and not is_address(cell["path"]):
            return Path(folder, cell["path"])
        cell = None
    if cell is None:
        raise ImageFileError(f"{name}: the cell has no image")
    return ImageBytes(name, cell)


def check_size(row: Row, name: str) -> None:
    """ImageFileError for a file that is too large to be downloaded."""
    if row.size > MAX_DOWNLOAD:
        raise ImageFileError(f"{name}: the file has {row.size:,} bytes, more than the limit of {MAX_DOWNLOAD:,}")


def read_remote(name: str, read: Callable[[], Value], attempts: int = ATTEMPTS) -> Value:
    """Read over a network, with a few attempts. Raises ImageFileError for what is not there, or ConnectionLost."""
    try:
        return read()
    except PERMANENT as error:
        if isinstance(error, HfVitSegError):
            raise
        raise ImageFileError(f"{name} cannot be read: {error_sentence(error)}") from error
    except Exception as error:  # each file system has its own; what remains is the connection
        if attempts == 1:
            raise ConnectionLost(f"{name} cannot be read now: {error_sentence(error)}") from error
    time.sleep(FIRST_PAUSE * 2 ** (ATTEMPTS - attempts))
    return read_remote(name, read, attempts - 1)


__all__ = ["ConnectionLost", "Readers"]
