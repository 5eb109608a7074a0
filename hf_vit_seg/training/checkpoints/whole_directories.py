"""Directories that are whole or absent, whenever a process is killed or a machine stops.

A directory is filled under a temporary name beside its own, forced to disk, and renamed. One that replaces another
lets it stand until the new one is whole; what a killed process leaves behind is tidied up by the next.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_vit_seg.errors import WriteError, error_sentence, write_errors

TEMPORARY, PREVIOUS = ".tmp-", ".old-"
TORCH_WORDS = ("inline_container", "PytorchStreamWriter")  # in what torch.save raises when it cannot write


@contextmanager
def written(target: Path) -> Iterator[None]:
    """What cannot be written of a directory that is filled and put in place here leaves nothing behind. WriteError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in TORCH_WORDS):
            raise
        shutil.rmtree(temporary_name(target), ignore_errors=True)
        raise WriteError(f"{target} cannot be written: {error_sentence(error, short=True)}") from error


def temporary_name(target: Path) -> Path:
    """Where a directory is filled."""
    return target.with_name(TEMPORARY + target.name)


def empty_temporary(target: Path) -> Path:
    """The temporary directory of `target`, new and empty."""
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def put_in_place(target: Path) -> None:
    """Give the filled temporary directory its name, in place of what has it now."""
    temporary, previous = temporary_name(target), target.with_name(PREVIOUS + target.name)
    force_to_disk(temporary)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    temporary.rename(target)
    sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def add_missing(target: Path) -> None:
    """Move those files of the filled temporary directory to `target` that it lacks; the others stay as they are."""
    temporary = temporary_name(target)
    force_to_disk(temporary)
    for path in sorted(temporary.rglob("*")):
        own = target / path.relative_to(temporary)
        if path.is_file() and not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            path.replace(own)
            sync(own.parent)
    shutil.rmtree(temporary)


def replace_file(target: Path, text: str) -> None:
    """Give a file this text, whole or not at all."""
    temporary = temporary_name(target)
    try:
        with write_errors(target):
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def remove_whole(target: Path) -> None:
    """Remove a directory so that no part of it can be taken for the whole."""
    doomed = target.with_name(TEMPORARY + target.name)
    shutil.rmtree(doomed, ignore_errors=True)
    target.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove from `folder` what a killed process left unfinished, and bring back what it was about to replace."""
    for path in sorted(folder.glob(f"{PREVIOUS}*")):
        whole = path.with_name(path.name.removeprefix(PREVIOUS))
        if whole.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(whole)
    for path in sorted(folder.glob(f"{TEMPORARY}*")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def force_to_disk(folder: Path) -> None:
    """Wait until all files of a directory are on the disk, and then their names."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """fsync of a file or, where the system can, a directory."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
