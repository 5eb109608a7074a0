"""The encoded image of a row of a manifest, from files, addresses, tar files, Parquet files and datasets.

Readers may be called from several threads.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.data.storage.addresses import (
    is_address,
    join,
    open_binary,
    read_address,
    read_range,
    read_remote,
)

from .batch_inputs import Source, load_dataset
from .manifest import Manifest, Row

KEPT_ROWS = 64  # more than threads read ahead
MAX_OPEN = 16  # readers; those of Parquet files have a row group in memory


class Reader(Protocol):
    """Reads the encoded images of a source."""

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """Return the file of a row, called `name` in messages. Raises ImageFileError or ConnectionLost."""
        ...


class Readers:
    """Reads the rows of a manifest, with one reader for each of the sources that were read last.

    A process keeps it for all of its shards: a stream, which has no other way to a row than reading those before it,
    is then read once by each process.
    """

    def __init__(self, manifest: Manifest):
        self.manifest, self.opened, self.lock = manifest, OrderedDict[int, Reader](), threading.Lock()

    def read(self, row: Row) -> Path | ImageBytes:
        """Return the encoded image of a row. Raises ImageFileError or ConnectionLost."""
        with self.lock:
            if row.source not in self.opened:
                source = self.manifest.sources[row.source]
                self.opened[row.source] = READERS[source.kind](source)
            self.opened.move_to_end(row.source)
            reader = self.opened[row.source]
            if len(self.opened) > MAX_OPEN:
                self.opened.popitem(last=False)
        return reader.read(row, self.manifest.locate(row))


class FileReader:
    """Files of a folder or at an address."""

    def __init__(self, source: Source):
        self.root = source.root

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """Return the path of a local file, or the content of a remote one."""
        if not is_address(self.root):
            return Path(self.root, row.path)
        return ImageBytes(name, read_address(join(self.root, row.path), name, row.size))


class TarReader:
    """Members of an uncompressed tar file, each read by its place in the file."""

    def __init__(self, source: Source):
        self.path = source.root

    def read(self, row: Row, name: str) -> ImageBytes:
        """Return the content of a member."""
        return ImageBytes(name, read_range(self.path, row.offset, row.size, name))


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
        """Return the file in a cell."""
        with self.lock:
            group = next(g for g in range(len(self.starts) - 1) if row.offset < self.starts[g + 1])
            if group != self.group:
                table = read_remote(name, lambda: self.file.read_row_group(group, columns=[self.column]))
                self.group, self.cells = group, table.column(0)
            assert self.cells is not None
            cell = self.cells[row.offset - self.starts[group]].as_py()
        return cell_file(cell, name, os.path.dirname(self.path))


class DatasetReader:
    """Rows of a dataset: by index if it is on this disk, else in order, with few rows kept.

    Rows that increase are read in one pass over the stream. For smaller ones, it starts again.
    """

    def __init__(self, source: Source):
        import datasets

        data = load_dataset(source)
        if isinstance((data.features or {}).get(source.column), datasets.Image):
            data = data.cast_column(source.column, datasets.Image(decode=False))
        self.data, self.column = data.select_columns([source.column]), source.column
        self.lock, self.next, self.ahead = threading.Lock(), -1, dict[int, Any]()
        self.rows: Iterator[Any] = iter(())

    def read(self, row: Row, name: str) -> Path | ImageBytes:
        """Return the file in a cell."""
        with self.lock:
            indexed = hasattr(self.data, "__len__")
            value = self.data[row.offset] if indexed else read_remote(name, lambda: self.advance(row.offset))
        return cell_file(value[self.column], name, "")

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
                row = next(self.rows)
                if self.next >= index - KEPT_ROWS:
                    self.ahead[self.next] = row
                self.next += 1
            value = next(self.rows)
        except StopIteration:
            raise ImageFileError(f"row {index}: the dataset has fewer rows than when the run was planned") from None
        except BaseException:
            self.next = -1
            raise
        self.next += 1
        return value


READERS: dict[str, Callable[[Source], Reader]] = {
    "files": FileReader,
    "tar": TarReader,
    "parquet": ParquetReader,
    "dataset": DatasetReader,
}


def cell_file(cell: Any, name: str, folder: str) -> Path | ImageBytes:
    """Return the file in a cell: bytes, or a struct of bytes and path, which may be relative to a folder."""
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return ImageBytes(name, cell["bytes"])
        if cell.get("path") and not is_address(cell["path"]):
            return Path(folder, cell["path"])
        cell = None
    if cell is None:
        raise ImageFileError(f"{name}: the cell has no image")
    return ImageBytes(name, cell)


__all__ = ["Readers"]
