"""The folder of a demo server's uploads and results: private, limited in size, emptied by age.

gradio deletes a file when its upload is complete and `delete_cache` reaches it. Files of interrupted uploads and of
killed servers are deleted here, by age.
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

SECONDS_KEPT = 3600  # age at which uploads and results are deleted
SECONDS_STALLED = 600  # without new data, until an upload is deleted
SECONDS_BETWEEN = 60  # interval between sweeps
MAX_BYTES = 4 * 2**30  # total size of the folder
FOLDER = "hf_vit_seg_demo"
VARIABLE = "GRADIO_TEMP_DIR"  # where gradio looks up its upload folder


class FolderFullError(HfVitSegError):
    """The upload folder has reached its limit of size."""

    def __init__(self) -> None:
        super().__init__("the server has no space left for files: try again in an hour, older files are deleted then")


def private_folder() -> Path:
    """Create a folder for this process, tell gradio of it by its environment variable, and return it.

    It is in `hf_vit_seg_demo` below GRADIO_TEMP_DIR, or in one for this user in the directory for temporary files. If
    that belongs to another user, or is a file or a link, a new folder is created next to it. Servers do not share a
    folder: gradio names the place of an upload by its content, and deletes its uploads when a server is closed.
    """
    given = os.environ.get(VARIABLE)
    if given and Path(given).parent.name.startswith(FOLDER) and Path(given).is_dir() and make_private(Path(given)):
        return Path(given)
    if given:
        parent = Path(given) / FOLDER
    else:
        owner = f"_{os.getuid()}" if hasattr(os, "getuid") else ""
        parent = Path(tempfile.gettempdir()) / f"{FOLDER}{owner}"
    parent.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # a file or a broken link, see below
        parent.mkdir(mode=0o700, exist_ok=True)
    if not make_private(parent):
        parent = Path(tempfile.mkdtemp(prefix=f"{FOLDER}_"))
    folder = Path(tempfile.mkdtemp(dir=parent)).resolve()
    os.environ[VARIABLE] = str(folder)
    return folder


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


def sweep(parent: Path, kept: Iterable[str] = ()) -> None:
    """Delete files older than `SECONDS_KEPT`, and stalled uploads; the modification time of `kept` files is renewed.

    `parent` has a folder for each server. gradio writes an upload into the folder itself, and moves it to a new folder
    in it when it is complete.
    """
    for path in kept:
        if os.path.exists(path):
            os.utime(path)
    now = time.time()
    for path, status in entries(parent):
        is_folder = stat.S_ISDIR(status.st_mode)
        limit = SECONDS_STALLED if path.parent.parent == parent and not is_folder else SECONDS_KEPT
        if now - status.st_mtime < limit:
            continue
        try:
            path.rmdir() if is_folder else path.unlink()
        except OSError:
            continue  # a folder with younger files


def sweep_regularly(folder: Path, kept: Callable[[], Iterable[str]], stop: threading.Event) -> threading.Thread:
    """Sweep the folders of all servers now, and from time to time until `stop` is set."""

    def sweep_all() -> None:
        sweep(folder.parent, [str(folder), *kept()])  # the folder may be empty for long

    def loop() -> None:
        while not stop.wait(SECONDS_BETWEEN):
            sweep_all()

    sweep_all()
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
