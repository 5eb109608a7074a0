"""The folder of a demo server's uploads and results: private, limited in size, emptied by age.

gradio deletes a file when its upload was complete and `delete_cache` has come to it. What an interrupted upload leaves,
and what a server that was killed leaves, is deleted here, by age.
"""

import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from gradio.utils import get_upload_folder

from hf_vit_seg.errors import HfVitSegError

SECONDS_KEPT = 3600  # of uploads and results
SECONDS_STALLED = 600  # of an upload that no data arrive for
SECONDS_BETWEEN = 60  # sweeps
MAX_BYTES = 4 * 2**30  # of all files together
FOLDER = "hf_vit_seg_demo"
VARIABLE = "GRADIO_TEMP_DIR"  # where gradio looks up its upload folder


class FolderFullError(HfVitSegError):
    """The upload folder has reached its limit of size."""

    def __init__(self) -> None:
        super().__init__("the server has no space left for files: try again in an hour, older files are deleted then")


def private_folder() -> Path:
    """Create the folder, tell gradio of it by its environment variable, and return it.

    It is `hf_vit_seg_demo` below GRADIO_TEMP_DIR, or one for this user in the directory for temporary files. If that
    belongs to another user, or is a file or a link, a new folder is created beside it.
    """
    given = os.environ.get(VARIABLE)
    if given and Path(given).name.startswith(FOLDER):
        folder = Path(given)
    elif given:
        folder = Path(given) / FOLDER
    else:
        owner = f"_{os.getuid()}" if hasattr(os, "getuid") else ""
        folder = Path(tempfile.gettempdir()) / f"{FOLDER}{owner}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # a file or a broken link, see below
        folder.mkdir(mode=0o700, exist_ok=True)
    if not make_private(folder):
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}_"))
    os.environ[VARIABLE] = str(folder.resolve())
    return folder.resolve()


def make_private(folder: Path) -> bool:
    """Make a folder of this user unreadable for others; return false for links and folders of other users."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        return False
    folder.chmod(0o700)
    return True


def entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below a folder with its status, contents before their folder; links are not followed."""
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in [*names, *folders]:
            path = Path(parent, name)
            try:
                yield path, path.lstat()
            except OSError:
                continue  # deleted by someone else


def bytes_used(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(status.st_size for _, status in entries(folder) if stat.S_ISREG(status.st_mode))


def sweep(folder: Path, kept: Iterable[str] = ()) -> None:
    """Delete files older than `SECONDS_KEPT`, and stalled uploads; the modification time of `kept` files is renewed.

    gradio writes an upload into the folder itself, and moves it to a new folder when it is complete.
    """
    for path in kept:
        if os.path.exists(path):
            os.utime(path)
    now = time.time()
    for path, status in entries(folder):
        is_folder = stat.S_ISDIR(status.st_mode)
        limit = SECONDS_STALLED if path.parent == folder and not is_folder else SECONDS_KEPT
        if now - status.st_mtime < limit:
            continue
        try:
            path.rmdir() if is_folder else path.unlink()
        except OSError:
            continue  # a folder with younger files


def sweep_regularly(folder: Path, kept: Callable[[], Iterable[str]], stop: threading.Event) -> threading.Thread:
    """Sweep now, and from time to time until `stop` is set."""

    def loop() -> None:
        while not stop.wait(SECONDS_BETWEEN):
            sweep(folder, kept())

    sweep(folder, kept())
    thread = threading.Thread(target=loop, name="upload folder", daemon=True)
    thread.start()
    return thread


def fresh_folder() -> Path:
    """Create a folder for results among gradio's files. Raises FolderFullError if they have reached their limit."""
    uploads = Path(get_upload_folder())
    if bytes_used(uploads) >= MAX_BYTES:
        raise FolderFullError
    folder = uploads / token_hex(32)
    folder.mkdir(parents=True)
    return folder


__all__ = ["FolderFullError", "bytes_used", "fresh_folder", "private_folder", "sweep", "sweep_regularly"]
