"""Atomic writes: a file or directory appears complete, or not at all, even when a process is killed.

Content is written under a temporary name in the same folder, flushed to disk, and renamed. A directory that is replaced
stays in place until the new one is complete. `clean_up` removes what a killed process left behind.
"""

import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_vit_seg.errors import write_error, write_errors

PARTIAL, PREVIOUS = ".tmp-", ".old-"
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
TORCH_WRITERS = ("inline_container", "PytorchStreamWriter")  # named in the RuntimeError of torch.save on a full disk


# Files


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file and flush it to disk."""
    write_files({path: lambda partial: partial.write_text(text, encoding="utf-8")}, flush=True)


def write_files(files: Mapping[Path, Callable[[Path], Any]], flush: bool = False) -> None:
    """Write a group of files: each function gets a temporary path with the suffix of its file.

    The files are renamed when all are complete. If one fails, none is kept. WriteError if writing fails.
    """
    try:
        for path, save in files.items():
            with write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                save(partial_path(path))
                apply_umask(partial_path(path))
                if flush:
                    flush_to_disk(partial_path(path))
        for path in files:
            with write_errors(path):
                os.replace(partial_path(path), path)
    finally:
        for path in files:
            partial_path(path).unlink(missing_ok=True)
    if flush:
        for folder in {path.parent for path in files}:
            flush_to_disk(folder)


def json_text(content: Any, indent: int | None = None) -> str:
    """Format JSON as the text of a file."""
    return json.dumps(content, indent=indent, ensure_ascii=False) + "\n"


# Directories


@contextmanager
def atomic_directory(target: Path, only_missing: bool = False) -> Iterator[Path]:
    """Yield an empty directory to fill, which replaces `target` at the end. WriteError if writing fails.

    With `only_missing`, files of `target` are kept, and missing ones are added.
    """
    with directory_errors(target):
        yield new_directory(target)
        add_missing(target) if only_missing and target.exists() else commit(target)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path with the same name to create a file or directory, which replaces `target` at the end.

    WriteError if the disk is full or cannot be written.
    """
    target = Path(os.path.abspath(target))  # a path that ends in ".." has no name
    previous = target.with_name(PREVIOUS + target.name)
    if previous.exists() and not target.exists():  # killed between the two renames of `replace`
        os.replace(previous, target)
    with write_errors(target):
        folder = new_directory(target)
    try:
        yield folder / target.name
        replace(folder / target.name, target)
    except OSError as error:
        if error.errno not in FULL_DISK:  # not a failure to write
            raise
        raise write_error(target, error) from error
    finally:
        remove(folder)


@contextmanager
def directory_errors(target: Path) -> Iterator[None]:
    """Convert a failure to write `target` into a WriteError, and remove the incomplete directory."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_WRITERS):
            raise
        remove(partial_path(target))
        raise write_error(target, error) from error


def partial_path(target: Path) -> Path:
    """Return the temporary name of `target`, with the same suffix."""
    return target.with_name(PARTIAL + target.name)


def new_directory(target: Path) -> Path:
    """Create the temporary directory of `target`, empty. `commit` renames it."""
    partial = partial_path(target)
    remove(partial)
    partial.mkdir(parents=True)
    return partial


def commit(target: Path) -> None:
    """Rename the temporary directory of `target` to `target`."""
    replace(partial_path(target), target)


def replace(new: Path, target: Path) -> None:
    """Flush a file or directory and rename it to `target`; restore the previous `target` if that fails."""
    previous = target.with_name(PREVIOUS + target.name)
    apply_umask(new)
    flush_all(new)
    if target.exists():
        remove(previous)
        os.replace(target, previous)
    try:
        os.replace(new, target)
    except OSError:
        if previous.exists():
            os.replace(previous, target)
        raise
    flush_to_disk(target.parent)
    remove(previous)


def add_missing(target: Path) -> None:
    """Move files that are missing in `target` from its temporary directory."""
    partial = partial_path(target)
    apply_umask(partial)
    flush_all(partial)
    for path in sorted(partial.rglob("*")):
        final = target / path.relative_to(partial)
        if path.is_file() and not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            path.replace(final)
            flush_to_disk(final.parent)
    remove(partial)


def move_contents(source: Path, target: Path, last: str) -> None:
    """Move the entries of a directory to another, replacing entries with the same name; `last` is moved last."""
    for entry in sorted(source.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
        final = target / entry.name
        if final.is_dir():
            shutil.rmtree(final)
        entry.replace(final)


def remove_directory(target: Path) -> None:
    """Remove a directory atomically: an interruption leaves no incomplete directory under its name."""
    temporary = partial_path(target)
    remove(temporary)
    target.rename(temporary)
    remove(temporary)


def clean_up(folder: Path) -> None:
    """Remove incomplete outputs of a killed process in `folder`, and restore outputs that it was replacing.

    No other process may be writing to the folder.
    """
    for path in sorted(folder.glob(f"{PREVIOUS}*")):
        final = path.with_name(path.name.removeprefix(PREVIOUS))
        remove(path) if final.exists() else path.rename(final)
    for path in sorted(folder.glob(f"{PARTIAL}*")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def apply_umask(path: Path) -> None:
    """Add the permissions that the umask allows to a file, or to all files of a directory.

    safetensors creates its files for the owner alone.
    """
    files = [Path(parent) / name for parent, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    if os.name != "posix" or not files:
        return
    allowed = new_file_mode(files[0].parent)
    for file in files:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode | allowed != mode:
            file.chmod(mode | allowed)


def new_file_mode(folder: Path) -> int:
    """Return the permissions of a new file in a folder; the umask cannot be read without changing it."""
    probe = folder / f"{PARTIAL}mode-{os.getpid()}-{threading.get_ident()}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


def flush_all(path: Path) -> None:
    """Flush a file, or all files and folders of a directory."""
    if path.is_dir():
        for parent, _, names in os.walk(path, topdown=False):
            for name in names:
                flush_to_disk(Path(parent) / name)
            flush_to_disk(Path(parent))
    else:
        flush_to_disk(path)


def flush_to_disk(path: Path) -> None:
    """fsync a file or, where the operating system allows it, a directory."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "PARTIAL",
    "atomic_directory",
    "atomic_path",
    "clean_up",
    "commit",
    "directory_errors",
    "json_text",
    "move_contents",
    "new_directory",
    "partial_path",
    "remove_directory",
    "write_files",
    "write_text",
]
