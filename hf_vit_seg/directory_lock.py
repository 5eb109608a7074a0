"""Locks on directories and files while a command writes them: one writer at a time.

The lock belongs to the operating system (`flock` on Unix), which releases it when the process ends or is killed. The
lock file lies in the directory and is removed on release; one that a killed process left behind does no harm.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hf_vit_seg.errors import HfVitSegError

LOCK = ".hf_vit_seg.lock"
RUN_FOLDERS = ("best", "last", "checkpoints", "plots", "samples", "trackers", "test")  # a run replaces them
RECIPE, LOG = "recipe.yaml", "log.jsonl"
NOT_SUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
# The holder may be releasing the lock at this moment: try for a few tenths of a second before refusing.
SECONDS, INTERVAL = 0.3, 0.05


class LockError(HfVitSegError):
    """A directory or file that cannot be written."""


class InUseError(LockError):
    """A directory or file that another process is writing."""


@contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is created if it is missing; InUseError if another process holds it.

    The folders of a run that training replaces (`best`, `last`, ...) and everything in them share the run's lock. A
    directory that was created here and is still empty at the end is removed. LockError if it cannot be created.
    """
    folder = lock_owner(path)
    with create_directory(folder), hold_lock(folder / LOCK, folder):
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Lock a single file in the same way; the lock file is in the same folder."""
    path = without_parent_links(path)
    with create_directory(path.parent), hold_lock(path.with_name(f".{path.name}.lock"), path):
        yield


def lock_owner(path: Path) -> Path:
    """Return the directory whose lock protects `path`: the run directory that contains it, or `path` itself."""
    resolved = path.resolve()
    for run in resolved.parents:
        if resolved.relative_to(run).parts[0] in RUN_FOLDERS and is_run(run):
            return run
    return without_parent_links(path)


def without_parent_links(path: Path) -> Path:
    """Return a path without "..", so that no directory is created only to be left again."""
    return Path(os.path.normpath(path))


def is_run(folder: Path) -> bool:
    """Return whether a training run writes, or has written, this directory."""
    return (folder / RECIPE).is_file() and ((folder / LOG).is_file() or (folder / "checkpoints").is_dir())


@contextmanager
def create_directory(folder: Path) -> Iterator[None]:
    """Create a directory and its parents; remove at the end those that were missing and are still empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LockError(f"{folder} cannot be created ({error.strerror}): choose another directory") from error
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or removed by another process
            for path in missing:
                path.rmdir()


@contextmanager
def hold_lock(file: Path, target: Path) -> Iterator[None]:
    """Hold the lock `file` of `target`."""
    lock = FileLock(file, timeout=SECONDS, poll_interval=INTERVAL, thread_local=False, fallback_to_soft=False)
    if not acquire(lock, file, target):
        yield
        return
    try:
        own = file.stat()
        with suppress(OSError):  # Windows forbids it; the text only names the holder to others
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        try:
            yield
        finally:
            remove(file, own)
    finally:
        lock.release()


def remove(file: Path, own: os.stat_result) -> None:
    """Remove the lock file `own`, unless its directory was replaced by one that another process may have locked."""
    with suppress(OSError):
        if os.path.samestat(file.stat(), own):
            file.unlink()


def acquire(lock: FileLock, file: Path, target: Path) -> bool:
    """Take the lock; False, with a warning, on file systems that have none."""
    try:
        lock.acquire()
    except Timeout:
        raise InUseError(
            f"{target} is being written by {holder(file)}: wait until it ends, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise LockError(f"{target} cannot be written ({error.strerror}): choose another output") from error
        with suppress(OSError):
            file.unlink()
        logging.getLogger(__name__).warning(
            "%s is on a file system without locks (%s): make sure that no other process writes it",
            target,
            error.strerror,
        )
        return False
    return True


def holder(file: Path) -> str:
    """Return a description of the process that holds the lock."""
    try:
        return file.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


__all__ = ["LOCK", "InUseError", "LockError", "lock_directory", "lock_file"]
