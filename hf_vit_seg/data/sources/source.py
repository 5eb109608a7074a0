"""The interface of data sources and of their settings.

The settings of a source are a record in a recipe, `{kind: folders, images: ..., masks: ...}`. `open` finds the samples
and reports missing and unpaired files, without reading images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, BeforeValidator

from hf_vit_seg.data.labels.unicode_names import spellings
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.storage.addresses import is_address, local_path, locate
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import Record

# A path in a recipe, relative to the working directory; `~` is expanded.
Place = Annotated[Path, AfterValidator(Path.expanduser)]


def parse_location(value: Any) -> Any:
    """Expand `~` in a local path; addresses are returned unchanged."""
    return value if not isinstance(value, str) or is_address(value) else local_path(value)


# A path as above, or an fsspec address such as `s3://bucket/photos`, which remains a string.
Location = Annotated[Path | str, BeforeValidator(parse_location)]


class SourceError(HfVitSegError):
    """A source that cannot be opened or read. The message says what was found, what was expected and how to fix it."""


class Source(Protocol):
    """Samples by index 0 .. len - 1, in a fixed order."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names in the order of raw values (keypoints for pose); None if unknown."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> RawSample:
        """Read a sample. Raises ImageFileError if a file is unusable."""
        ...

    def name(self, index: int) -> str:
        """Return the unique name of a sample, without reading it."""
        ...

    def files(self, index: int) -> tuple[Path | str, ...]:
        """Return the files of a sample, the image first: paths, or addresses as strings.

        Empty if the sample is not stored in separate files.
        """
        ...

    def group(self, index: int) -> str | int:
        """Return the group of a sample, such as the image of a person; groups are not divided between splits."""
        ...


class SourceRecord(Record):
    """The settings of a source. `tasks` are the supported tasks."""

    tasks: ClassVar[tuple[str, ...]] = ()

    def open(self, task: str, channels: int = 3) -> Source:
        """Find the samples for a task; images are read with `channels` channels. Raises SourceError."""
        raise NotImplementedError

    def hub_id(self) -> str | None:
        """Return the Hub id of the dataset; None if it is not on the Hub."""
        return None

    def hub_split(self) -> str | None:
        """Return the split of the dataset on the Hub."""
        return None


def existing_folder(path: Path, what: str) -> Path:
    """Return the folder, or raise SourceError if it does not exist."""
    if path.is_dir():
        return path
    raise SourceError(
        format_path_error(
            path, what, "found a file, expected a folder" if path.exists() else "the folder does not exist"
        )
    )


def existing_file(path: Path, what: str) -> Path:
    """Return the file, or raise SourceError if it does not exist."""
    if path.is_file():
        return path
    raise SourceError(
        format_path_error(path, what, "found a folder, expected a file" if path.is_dir() else "the file does not exist")
    )


def format_path_error(path: Path, what: str, reason: str) -> str:
    """Format the message on an unusable path."""
    hint = "" if path.is_absolute() else f" (relative paths start from {Path.cwd()})"
    return f"{what}: {path}: {reason}{hint}"


def portable_path(folder: Path | str, text: str) -> str:
    """Return the path of a listed file in a folder; lists may have been written on another system.

    If there is no such file, backslashes are tried as separators, and both Unicode forms of accented letters. A file
    that is not found keeps its name. At addresses, only the separators are replaced.
    """
    if isinstance(folder, str) or is_address(text):
        return text.replace("\\", "/")
    if (folder / text).is_file():
        return text
    others = [form for each in (text, text.replace("\\", "/")) for form in spellings(each)]
    return next((each for each in others if (folder / each).is_file()), text)


def check_present(folder: Path | str, names: Sequence[str], where: str) -> None:
    """Raise SourceError if files of a list or an annotation file do not exist; those at addresses are not checked."""
    places = (locate(folder, name) for name in names)
    missing = [path for path in places if isinstance(path, Path) and not path.is_file()]
    if missing:
        raise SourceError(
            f"{where} lists {len(names)} files, of which {len(missing)} do not exist: {format_list(missing)}"
        )


__all__ = [
    "Location",
    "Place",
    "Source",
    "SourceError",
    "SourceRecord",
    "check_present",
    "existing_file",
    "existing_folder",
    "portable_path",
]
