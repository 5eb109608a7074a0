"""fsspec addresses of files and folders, such as `s3://bucket/photos`, `hf://datasets/me/photos` and `memory://photos`.

Nothing that is opened here is kept: the readers may be used in several threads, and in forked and spawned processes.
"""

import os
import time
from collections.abc import Callable, Collection
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.errors import HfVitSegError, error_sentence

Value = TypeVar("Value")
LOCAL = "file://"
ATTEMPTS, FIRST_PAUSE = 4, 0.5  # for network reads and writes; each pause is twice the last one
MAX_DOWNLOAD = 512 * 2**20  # bytes of a file that is read whole
UNKNOWN = -1  # size in bytes
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)


class StorageError(HfVitSegError):
    """A folder or address that cannot be used."""


class ConnectionLost(HfVitSegError):
    """A file that could not be read over the network now, and may be read later."""


def is_address(text: str) -> bool:
    """Return whether a text is an fsspec address such as `s3://bucket/photos`."""
    return "://" in text and not text.startswith(LOCAL)


def local_path(text: str) -> Path:
    """Return the path of a local folder or file, which may begin with `file://` or `~`."""
    return Path(text.removeprefix(LOCAL)).expanduser()


def open_address(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it. Raises StorageError."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:  # unknown protocols, and packages that are not installed
        raise StorageError(f"{address} cannot be opened: {error_sentence(error)}") from error


def open_binary(path: str) -> Any:
    """Open a local file, or one at an address, for reading. Raises ImageFileError."""
    try:
        if not is_address(path):
            return open(path, "rb")
        filesystem, address = open_address(path)
        return filesystem.open(address, "rb")
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read: {error_sentence(error)}") from error


def list_address(filesystem: Any, path: str) -> dict[str, int]:
    """Return the files at a path of a file system with their sizes, sorted by name, without hidden files.

    The path is that of a file, a folder, or a glob pattern.
    """
    if has_magic(path.partition("?")[0]) and "://" not in path:
        entries = filesystem.glob(path, detail=True)
    elif "://" in path or filesystem.isfile(path):  # web servers have no folders
        entries = {path: filesystem.info(path)}
    else:
        entries = filesystem.find(path, detail=True)
    kept = {name: info for name, info in sorted(entries.items()) if info.get("type", "file") == "file"}
    hidden = {name for name in kept if "/." in name.removeprefix(path)}
    return {
        name: UNKNOWN if info.get("size") is None else int(info["size"])
        for name, info in kept.items()
        if name not in hidden
    }


def files_below_address(folder: str, suffixes: Collection[str], skip: Collection[str] = ()) -> list[str]:
    """Return the files below an address with one of these lower-case suffixes, relative to it, sorted by name.

    There are none below the addresses `skip`. Raises StorageError if the address cannot be listed.
    """
    filesystem, path = open_address(folder)
    if "://" in path:
        raise StorageError(f"{folder}: a web server does not list its files: use a list of files (kind: list)")
    try:
        sizes = list_address(filesystem, path)
    except Exception as error:  # network and access errors; each file system has its own classes
        raise StorageError(f"{folder} cannot be listed: {error_sentence(error)}") from error
    inside = [name.removeprefix(path).lstrip("/") for name in sizes]
    skipped = tuple(f"{pattern.rstrip('/')}/" for pattern in skip)
    return [
        name
        for name in inside
        if PurePosixPath(name).suffix.lower() in suffixes and not join(folder, name).startswith(skipped)
    ]


def join(folder: str, name: str) -> str:
    """Return the path or address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else os.path.join(folder, name)


def locate(folder: Path | str, name: str) -> Path | str:
    """Return the path or the address of a file in a folder; `name` may be an address itself."""
    if is_address(name):
        return name
    return folder / name if isinstance(folder, Path) else join(folder, name)


def file_at(location: Path | str) -> Path | ImageBytes:
    """Return a local file, or the content of one at an address. Raises as `read_address`."""
    return location if isinstance(location, Path) else ImageBytes(location, read_address(location, location))


def read_address(address: str, name: str, size: int = UNKNOWN) -> bytes:
    """Read a file at an address whose `size` may be known. Raises ImageFileError or ConnectionLost."""
    check_size(size, name)
    filesystem, path = open_address(address)
    data = read_remote(name, lambda: filesystem.cat_file(path))
    check_size(len(data), name)
    return data


def read_range(path: str, start: int, size: int, name: str) -> bytes:
    """Read bytes of a local file or one at an address. Raises ImageFileError or ConnectionLost."""
    check_size(size, name)
    data = read_remote(name, lambda: read_local_range(path, start, size))
    if len(data) > size:  # the server sent the whole file
        data = data[start : start + size]
    if len(data) != size:
        raise ImageFileError(f"{name}: the file {PurePosixPath(path).name} is shorter than when it was listed")
    return data


def read_local_range(path: str, start: int, size: int) -> bytes:
    """Read bytes of a file."""
    if is_address(path):
        filesystem, address = open_address(path)
        return filesystem.cat_file(address, start=start, end=start + size)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def check_size(size: int, name: str) -> None:
    """ImageFileError for a file that is too large to be read whole."""
    if size > MAX_DOWNLOAD:
        raise ImageFileError(f"{name}: the file has {size:,} bytes, more than the limit of {MAX_DOWNLOAD:,}")


def read_remote(name: str, read: Callable[[], Value], attempts: int = ATTEMPTS) -> Value:
    """Read over a network, with a few attempts. Raises ImageFileError for missing files, or ConnectionLost."""
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


__all__ = [
    "ATTEMPTS",
    "FIRST_PAUSE",
    "MAX_DOWNLOAD",
    "UNKNOWN",
    "ConnectionLost",
    "StorageError",
    "file_at",
    "files_below_address",
    "is_address",
    "join",
    "list_address",
    "local_path",
    "locate",
    "open_address",
    "open_binary",
    "read_address",
    "read_range",
    "read_remote",
]
