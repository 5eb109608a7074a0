"""Check and lock the output of a conversion or an export."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hf_vit_seg.conversion.errors import ConversionError

from hf_vit_seg.directory_lock import LOCK, LockError, lock_directory, lock_file

OVERWRITE = "--overwrite (in Python, overwrite=True)"


def check_directory(target: Path, overwrite: bool) -> None:
    """Raise ConversionError if an output directory is a file, or is not empty without `overwrite`."""
    if target.exists() and not target.is_dir():
        raise ConversionError(f"'{target}' is a file, expected a directory; choose another path")
    if target.is_dir() and not overwrite and any(path.name != LOCK for path in target.iterdir()):
        raise ConversionError(
            f"directory '{target}' is not empty; choose another path, or pass {OVERWRITE} to replace it"
        )


def check_file(target: Path, overwrite: bool) -> None:
    """Raise ConversionError if an output file is a directory, or exists without `overwrite`."""
    if target.is_dir():
        raise ConversionError(f"'{target}' is a directory, expected a file; choose another path")
    if target.exists() and not overwrite:
        raise ConversionError(f"'{target}' exists; choose another path, or pass {OVERWRITE} to replace it")


def check_apart(origin: Path, target: Path) -> None:
    """Raise ConversionError if the output directory contains the input."""
    if origin.resolve().is_relative_to(target.resolve()):
        raise ConversionError(f"'{origin}' is in '{target}', which would be replaced; choose another path")


@contextmanager
def lock_output(target: Path, directory: bool, overwrite: bool) -> Iterator[None]:
    """Check and lock an output directory or file."""
    check = check_directory if directory else check_file
    check(target, overwrite)
    with ExitStack() as stack:
        try:
            stack.enter_context((lock_directory if directory else lock_file)(target))
        except LockError as error:
            raise ConversionError(str(error)) from error
        check(target, overwrite)  # another process may have written it
        yield
