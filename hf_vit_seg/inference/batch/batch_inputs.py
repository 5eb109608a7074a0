"""Inputs of batch inference: their kinds, and a listing of their images without reading pixels.

Inputs are image files, folders, glob patterns, fsspec addresses of these, tar files as written for WebDataset, Parquet
files with a column of images, and datasets of the library `datasets` as `datasets://NAME?split=train`.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from hf_vit_seg.data.images.files import ImageFileError, readable_suffixes, walk_files
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.storage.addresses import (
    UNKNOWN,
    is_address,
    list_address,
    local_path,
    open_address,
    open_binary,
)
from hf_vit_seg.data.storage.tar_files import list_members
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.local_paths import installed_path, is_saved_dataset

Kind = Literal["files", "tar", "parquet", "dataset"]

DATASETS = "datasets://"
TAR, PARQUET = ".tar", ".parquet"
DATASET_SETTINGS = ("split", "config", "revision")
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")  # in this order, if no column is given
LABELS = re.compile(r"\.(seg|overlay|scores|entropy)\.png$")  # members of our own tar files


class InputError(HfVitSegError):
    """An input that cannot be used."""


@dataclass(frozen=True)
class Source:
    """A group of images that are read in the same way.

    `root` is the folder or address of `files` (empty for their full paths), else the tar file, the Parquet file, or the
    name of the dataset. `column` has the images of Parquet files and datasets.
    """

    kind: Kind
    root: str
    column: str = ""
    split: str = ""
    config: str = ""
    revision: str = ""


class Entry(NamedTuple):
    """An image of a source.

    `path` is its path or name in the source, `offset` its first byte in a tar file or its row, `size` its bytes
    (`UNKNOWN` if that requires reading), and `place` the path of its results, with a suffix.
    """

    path: str
    offset: int
    size: int
    place: str


def find_sources(
    inputs: Iterable[str], column: str = "", skip: Path | None = None
) -> Iterator[tuple[Source, Iterable[Entry]]]:
    """Resolve inputs to sources, each with the listing of its images; the folder `skip` is excluded.

    `column` is the column of the images in Parquet files and datasets. Raises InputError or ImageFileError for inputs
    without images, while the listing is read.
    """
    for given in inputs:
        if given.startswith(DATASETS):
            yield from open_dataset(given, column)
        elif is_address(given):
            yield from open_remote(given, column)
        else:
            yield from open_local(installed_path(os.fspath(local_path(given))), column, skip)


# Local files


def open_local(given: str, column: str, skip: Path | None) -> Iterator[tuple[Source, Iterable[Entry]]]:
    """Yield the sources of a local file, folder, or glob pattern."""
    matches = [given] if os.path.lexists(given) else sorted(glob(given, recursive=True))
    if not matches:
        raise ImageFileError(f"{given}: no such file or folder, and as a pattern it matches none")
    for match in matches:
        if is_saved_dataset(Path(match)):
            yield from open_dataset(DATASETS + match, column)
        elif os.path.isdir(match):
            yield from open_folder(match, column, skip)
        else:
            yield open_file(match, column)


def open_file(path: str, column: str) -> tuple[Source, Iterable[Entry]]:
    """Return the source of a single file."""
    if path.lower().endswith((TAR, PARQUET)):
        return open_container(path, column)
    folder, name = os.path.split(path)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read ({error.strerror})") from error
    return Source("files", folder), [Entry(name, 0, size, name)]


def open_folder(folder: str, column: str, skip: Path | None) -> Iterator[tuple[Source, Iterable[Entry]]]:
    """Yield the sources of a folder: its images, and the tar and Parquet files in it."""
    containers: list[str] = []
    skipped = () if skip is None else (skip,)
    yield Source("files", folder), list_folder(folder, containers, skipped)
    for path in containers:  # known when the images are listed
        yield open_container(os.path.join(folder, path), column, os.path.splitext(path)[0])


def list_folder(folder: str, containers: list[str], skip: tuple[Path, ...]) -> Iterator[Entry]:
    """Yield the images below a folder; paths of tar and Parquet files are added to `containers`."""
    has_images, start = False, len(os.path.join(folder, ""))
    for parent, names in walk_files(Path(folder), readable_suffixes() | {TAR, PARQUET}, skip):
        inside = parent[start:].replace(os.sep, "/")
        for name in names:
            path = f"{inside}/{name}" if inside else name
            has_images = True
            if path.lower().endswith((TAR, PARQUET)):
                containers.append(path)
                continue
            yield Entry(path, 0, file_size(f"{parent}/{name}"), path)
    if not has_images:
        raise ImageFileError(f"{folder} contains no images")


def file_size(path: str) -> int:
    """Return the size of a file; `UNKNOWN` for a broken link, which is reported when it is read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return UNKNOWN


# Addresses


def open_remote(address: str, column: str) -> Iterator[tuple[Source, Iterable[Entry]]]:
    """Yield the sources of an fsspec address: a file, a folder, or a glob pattern."""
    filesystem, path = open_address(address)
    try:
        files = list_address(filesystem, path)
    except FileNotFoundError:
        files = {}
    except Exception as error:  # network and access errors; each file system has its own classes
        raise InputError(f"{address} cannot be listed: {error_sentence(error)}") from error
    suffixes = readable_suffixes()
    alone = list(files) == [path]
    images = {name: size for name, size in files.items() if alone or PurePosixPath(name).suffix.lower() in suffixes}
    containers = [name for name in files if name.lower().endswith((TAR, PARQUET))]
    images = {name: size for name, size in images.items() if name not in containers}
    if not images and not containers:
        raise ImageFileError(f"{address}: no images found")
    root = common_root(path, list(files))
    if images:
        yield (
            Source("files", filesystem.unstrip_protocol(root)),
            [Entry(name, 0, size, name.partition("?")[0]) for name, size in relative_names(images, root)],
        )
    for name, _ in relative_names(dict.fromkeys(containers, 0), root):
        full = filesystem.unstrip_protocol(f"{root}/{name}")
        yield open_container(full, column, os.path.splitext(name)[0])


def common_root(path: str, files: list[str]) -> str:
    """Return the folder that names of listed files are relative to."""
    if len(files) > 1 and not has_magic(path):
        return path.rstrip("/")
    folders = [name.rpartition("/")[0] for name in files]
    return folders[0] if len(folders) == 1 else os.path.commonpath(folders)


def relative_names(files: dict[str, int], root: str) -> list[tuple[str, int]]:
    """Return the names of files below a root, and their sizes."""
    return [(name.removeprefix(root).lstrip("/"), size) for name, size in files.items()]


# Tar and Parquet files


def open_container(path: str, column: str, container: str | None = None) -> tuple[Source, Iterable[Entry]]:
    """Return the source of a tar or Parquet file; `place` is the folder of the results, by default the file's stem."""
    folder = container or PurePosixPath(path.replace(os.sep, "/")).stem
    if path.lower().endswith(TAR):
        return Source("tar", path), list_tar(path, folder)
    with open_parquet(path) as file:
        chosen = image_column({field.name: field.type for field in file.schema_arrow}, column, path)
        rows = file.metadata.num_rows
    return Source("parquet", path, chosen), (Entry("", row, UNKNOWN, f"{folder}/{row:08d}.row") for row in range(rows))


def list_tar(path: str, folder: str) -> Iterator[Entry]:
    """Yield the images of a tar file, by their headers; label maps written by this package are left out."""
    suffixes, has_images = readable_suffixes(), False
    for member in list_members(path):
        if PurePosixPath(member.name).suffix.lower() in suffixes and not LABELS.search(member.name):
            has_images = True
            inside = str(PurePosixPath("/", member.name)).lstrip("/").replace("../", "")
            yield Entry(member.name, member.offset, member.size, f"{folder}/{inside}")
    if not has_images:
        raise ImageFileError(f"{path} contains no images")


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """Open a Parquet file. Raises ImageFileError."""
    import pyarrow
    import pyarrow.parquet

    with open_binary(path) as stream:
        try:
            file = pyarrow.parquet.ParquetFile(stream)
        except pyarrow.ArrowException as error:
            raise ImageFileError(f"{path} is not a Parquet file: {error_sentence(error)}") from error
        except ValueError as error:  # the server only sends whole files
            raise ImageFileError(
                f"{path}: the server does not support range requests: {error_sentence(error)}"
            ) from error
        yield file


def image_column(columns: dict[str, Any], given: str, path: str) -> str:
    """Return the column of images in a table of Arrow types: the `given` one, or the only one of encoded files."""
    usable = [name for name, kind in columns.items() if holds_files(kind)]
    if given:
        if given in usable:
            return given
        raise InputError(
            f"{path}: found {'another kind of' if given in columns else 'no'} column '{given}', expected encoded "
            f"images: set --image-column to one of {format_list(usable, 10) or 'none (this file has no such column)'}"
        )
    candidates = [name for name in IMAGE_COLUMNS if name in usable]
    if candidates or len(usable) == 1:
        return (candidates or usable)[0]
    raise InputError(
        f"{path}: set --image-column to the column of the images; the columns of encoded files are "
        f"{format_list(usable, 10) or 'none'}"
    )


def holds_files(kind: Any) -> bool:
    """Return whether an Arrow type has encoded files: binary, or a struct of bytes and path as `datasets` writes it."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


# Datasets


def open_dataset(given: str, column: str) -> Iterator[tuple[Source, Iterable[Entry]]]:
    """Yield the sources of `datasets://NAME?split=test`, a dataset of the Hub or a local folder of `datasets`.

    A stream of Parquet files is read by their row groups, so that several processes do not read the same rows.
    """
    name, _, query = given.removeprefix(DATASETS).partition("?")
    settings = dict(parse_qsl(query))
    if unknown := settings.keys() - set(DATASET_SETTINGS):
        raise InputError(f"{given}: found {format_list(sorted(unknown))}, expected {format_list(DATASET_SETTINGS)}")
    source = Source("dataset", name, **settings)
    data = load_dataset(source)
    features = data.features or data._resolve_features().features  # formats without a schema are read at the start
    chosen = image_column({key: arrow_type(feature) for key, feature in features.items()}, column, given)
    folder = PurePosixPath(name.replace(os.sep, "/")).name or "dataset"
    files = parquet_files(source, data)
    if not files:
        rows = count_rows(data)
        yield Source("dataset", name, chosen, **settings), dataset_entries(folder, 0, rows)
    first = 0
    for path in files:
        with open_parquet(path) as file:
            rows = file.metadata.num_rows
        yield Source("parquet", path, chosen), dataset_entries(folder, first, rows)
        first += rows


def dataset_entries(folder: str, first: int, rows: int) -> Iterator[Entry]:
    """Yield the rows of a part of a dataset; results are named by the row numbers in the dataset, from `first` on."""
    return (Entry("", row, UNKNOWN, f"{folder}/{first + row:08d}.row") for row in range(rows))


def parquet_files(source: Source, data: Any) -> list[str]:
    """Return the paths or addresses of the Parquet files of a streamed dataset, in order; empty for other formats."""
    import datasets

    if hasattr(data, "__len__") or data.info.builder_name != "parquet":
        return []
    folder = Path(source.root).expanduser()
    location = os.fspath(folder) if folder.is_dir() else source.root
    try:
        builder = datasets.load_dataset_builder(location, source.config or None, revision=source.revision or None)
    except Exception as error:  # the library, the network and the file formats raise anything
        raise InputError(f"the dataset {source.root} cannot be opened: {error_sentence(error)}") from error
    files: Any = builder.config.data_files or {}
    return list(map(str, files.get(source.split or "train", [])))


def arrow_type(feature: Any) -> Any:
    """Return the Arrow type of a feature."""
    from datasets.features.features import get_nested_type

    return get_nested_type(feature)


def load_dataset(source: Source) -> Any:
    """Load a dataset, without decoding images: of a folder by save_to_disk as a table, others as a stream."""
    import datasets

    folder = Path(source.root).expanduser()
    try:
        if is_saved_dataset(folder):
            data: Any = datasets.load_from_disk(os.fspath(folder))
            split = source.split or (next(iter(data)) if isinstance(data, dict) else "")
            return data[split] if isinstance(data, dict) else data
        location = os.fspath(folder) if folder.is_dir() else source.root
        options = {"revision": source.revision or None, "streaming": True}
        return datasets.load_dataset(location, source.config or None, split=source.split or "train", **options)
    except Exception as error:  # the library, the network and the file formats raise anything
        raise InputError(f"the dataset {source.root} cannot be opened: {error_sentence(error)}") from error


def count_rows(data: Any) -> int:
    """Return the number of rows from the metadata of the dataset, or by reading all rows without images."""
    if hasattr(data, "__len__"):
        return len(data)
    splits, name = data.info.splits or {}, str(data.split)
    if name in splits and splits[name].num_examples:
        return splits[name].num_examples
    others = [key for key, feature in (data.features or {}).items() if not holds_files(arrow_type(feature))]
    return sum(1 for _ in (data.select_columns(others[:1]) if others else data.decode(False)))


__all__ = ["Entry", "InputError", "Source", "find_sources", "load_dataset"]
