"""Paths of this machine, and the text that replaces them in published files.

An absolute path reveals the user name and the directory layout of a machine. `publishable` replaces every such path in
settings (a recipe, a config, metadata) by a relative one that begins with `./`, which no reader takes for a Hub id.
"""

import getpass
import os
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

# "/x", "~", "~/x", "~user/x", "..", "../x", "C:\x", "\\host\x"; "file:" may precede any of them.
LOCAL = re.compile(r"(?:file:(?://)?)?(?:/|~[\w.-]*(?:[/\\]|$)|\.\.(?:[/\\]|$)|[A-Za-z]:[/\\]|\\\\\w)")
WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\\\\")
# Names of classes may look like paths: "/m/01g317" in Open Images.
NAMES = frozenset({"classes", "id2label", "label2id"})
NAME_OR_PATH = "_name_or_path"  # config field: where it was loaded from
PRIVATE_LEVELS = 2  # folders at the root: a folder such as /home or /data is shared by several users
USER = "user"
INSTALLED = {"examples/nuclei": "hf_vit_seg.nuclei"}  # folders of the repository that are installed
# Files written by `save_to_disk` of the library `datasets`: of a dataset with splits, and of a single one.
SAVED_DATASETS = (("dataset_dict.json",), ("state.json", "dataset_info.json"))


def installed_path(path: str) -> str:
    """Return the installed copy of a path of the repository's examples that the current directory does not have."""
    for folder, package in INSTALLED.items():
        if (path == folder or path.startswith(f"{folder}/")) and not os.path.lexists(path):
            return os.path.join(str(files(package)), *path.removeprefix(folder).split("/"))
    return path


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of the library `datasets`."""
    return any(all((folder / name).is_file() for name in names) for names in SAVED_DATASETS)


def is_local_path(text: str) -> bool:
    """Return whether a text is a path of this machine: absolute, below a home directory, or with ".."."""
    return LOCAL.match(text) is not None


def publishable(settings: Any, base: PurePath | None = None) -> Any:
    """Remove local paths and `_name_or_path` from settings, so that they can be published. Paths below `base` become
    relative to it; of others, only the last component is kept.
    """
    if isinstance(settings, Mapping):
        kept = {name: value for name, value in settings.items() if name != NAME_OR_PATH}
        return {name: value if is_names(name, value) else publishable(value, base) for name, value in kept.items()}
    if isinstance(settings, list | tuple):
        return [publishable(value, base) for value in settings]
    return publishable_path(settings, base) if isinstance(settings, str) and is_local_path(settings) else settings


def publishable_path(text: str, base: PurePath | None = None) -> str:
    """Return a local path relative to `base`, or its last component where it is not below it; `text` if it is no such
    path.
    """
    if not is_local_path(text):
        return text
    path = absolute(text)
    folder = base if base is not None and path.is_relative_to(base) and path != base else fixed_part(path).parent
    hidden = user_name()
    return "./" + "/".join(USER if part == hidden else part for part in path.relative_to(folder).parts)


def common_folder(settings: Any) -> PurePath | None:
    """Return the deepest folder that holds all local paths in settings; None if it does not belong to a user."""
    try:
        folder = os.path.commonpath([fixed_part(absolute(text)).parent for text in local_paths(settings)])
    except ValueError:  # no paths, or of different disks
        return None
    path, home = Path(folder), Path.home()
    return path if len(path.parts) > PRIVATE_LEVELS and path not in home.parents else None


def local_paths(settings: Any) -> Iterator[str]:
    """Yield the local paths in settings."""
    if isinstance(settings, Mapping):
        settings = [value for name, value in settings.items() if not is_names(name, value)]
    if isinstance(settings, list | tuple):
        for value in settings:
            yield from local_paths(value)
    elif isinstance(settings, str) and is_local_path(settings):
        yield settings


def is_names(name: Any, value: Any) -> bool:
    """Return whether a setting is a list or a table of class names."""
    return name in NAMES and not isinstance(value, str)


def absolute(text: str) -> PurePath:
    """Return a path from the root, without `..`; links are not followed."""
    text = re.sub(r"^file:(?://)?", "", text)
    if WINDOWS.match(text):
        return PureWindowsPath(text)
    return (PurePosixPath if os.name == "posix" else PurePath)(os.path.abspath(os.path.expanduser(text)))


def fixed_part(path: PurePath) -> PurePath:
    """Return the path; for a template such as `images/{stem}.png`, the folder before the first brace."""
    braces = [index for index, part in enumerate(path.parts) if "{" in part]
    return type(path)(*path.parts[: braces[0]]) if braces else path


def user_name() -> str | None:
    """Return the name of the user who runs this; None if the system does not know it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


__all__ = ["common_folder", "is_local_path", "publishable", "publishable_path"]
