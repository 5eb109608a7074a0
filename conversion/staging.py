"""Staging: an output appears complete under its name, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hf_vit_seg.directory_lock import LOCK, LockError, locked_directory, locked_file

from .errors import ConversionError


def check_directory(target: Path, force: bool) -> None:
    """Refuse an output directory that is a file, or that holds something unless `force`."""
    if target.exists() and not target.is_dir():
        raise ConversionError(f"'{target}' is a file, a directory is to be written; give another path")
    if target.is_dir() and not force and any(path.name != LOCK for path in target.iterdir()):
        raise ConversionError(f"directory '{target}' is not empty; give another path, or force to replace it")


def check_file(target: Path, force: bool) -> None:
    """Refuse an output file that is a directory, or that exists unless `force`."""
    if target.is_dir():
        raise ConversionError(f"'{target}' is a directory, a file is to be written; give the path of a file")
    if target.exists() and not force:
        raise ConversionError(f"'{target}' exists; give another path, or force to replace it")


def check_apart(origin: Path, target: Path) -> None:
    """Refuse to replace a place that the input lies in."""
    if origin.resolve().is_relative_to(target.resolve()):
        raise ConversionError(f"'{origin}' lies in '{target}', which would be replaced; give another path")


@contextmanager
def locked_output(target: Path, directory: bool, force: bool) -> Iterator[None]:
    """Check an output, a directory or a file, and let no other process write it meanwhile."""
    check = check_directory if directory else check_file
    check(target, force)
    with ExitStack() as stack:
        try:
            stack.enter_context((locked_directory if directory else locked_file)(target))
        except LockError as error:
            raise ConversionError(str(error)) from error
        check(target, force)  # another process may have written it
        yield


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, a file or a directory; it takes the place of `target` at the end.

    Whatever was there is moved away only when the new one is complete, and comes back if that fails.
    """
    target = Path(os.path.abspath(target))  # without "..", which has no name to write under
    target.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield workshop / target.name
        replace(workshop / target.name, target, workshop / "replaced")
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def replace(new: Path, target: Path, old: Path) -> None:
    """Put `new` where `target` is, and `target` where `old` is."""
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
