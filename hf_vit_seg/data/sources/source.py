"""What every source of data can be asked, and what its settings have in common.

A source is a record in a recipe, `{kind: folders, images: ..., masks: ...}`, that opens what it names. Opening finds
the samples and reads no image; it is here that files without a partner are reported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

from pydantic import AfterValidator

from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.wording import listed
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import Record

# A path in a recipe: relative to the working directory, `~` being the user's own folder.
Place = Annotated[Path, AfterValidator(Path.expanduser)]


class SourceError(HfVitSegError):
    """A source that cannot be opened or read, in one sentence: what was found, what was expected, how to mend it."""


class Source(Protocol):
    """Samples by index 0 .. len - 1, always in the same order."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in the order of raw values (keypoints for pose); None when the source does not tell."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> RawSample:
        """One sample, decoded. ImageFileError when a file of it cannot be used."""
        ...

    def name(self, index: int) -> str:
        """What a sample is called, without reading it; unique in the source."""
        ...

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample, the image first; empty when it has none of its own."""
        ...

    def group(self, index: int) -> str | int:
        """What must not be torn apart when data are split: the image of a person, else the sample's name."""
        ...


class SourceRecord(Record):
    """A source's settings. `tasks` are those whose targets it has."""

    tasks: ClassVar[tuple[str, ...]] = ()

    def open(self, task: str, bands: int = 3) -> Source:
        """Find the samples for a task; images will have `bands` bands. SourceError in one sentence."""
        raise NotImplementedError

    def hub_id(self) -> str | None:
        """The dataset on the Hub, if it is one."""
        return None

    def hub_split(self) -> str | None:
        """The split of that dataset."""
        return None


def existing_folder(path: Path, what: str) -> Path:
    """A folder that is there."""
    if path.is_dir():
        return path
    raise SourceError(absence(path, what, "this is a file" if path.exists() else "there is no such folder"))


def existing_file(path: Path, what: str) -> Path:
    """A file that is there."""
    if path.is_file():
        return path
    raise SourceError(absence(path, what, "this is a folder" if path.is_dir() else "there is no such file"))


def absence(path: Path, what: str, reason: str) -> str:
    """Why a path cannot be used."""
    hint = "" if path.is_absolute() else f" (relative paths start from {Path.cwd()})"
    return f"{what}: {path}: {reason}{hint}"


def check_present(files: Sequence[Path], where: str) -> None:
    """Refuse files that a list or an annotation names but that are not there, the first few by name."""
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise SourceError(f"{where} names {len(missing)} of {len(files)} files that are not there: {listed(missing)}")


__all__ = ["Place", "Source", "SourceError", "SourceRecord", "check_present", "existing_file", "existing_folder"]
