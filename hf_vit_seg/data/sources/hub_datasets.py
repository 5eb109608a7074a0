"""Datasets of the Hugging Face Hub and its library `datasets`, also those on a disk.

Images are taken as the encoded files that they are, and decoded as files in folders are; code of the Hub is never run.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_vit_seg.data.images.files import MAX_PIXELS, ImageBytes, ImageFileError
from hf_vit_seg.data.images.pixels import File, array_mask, array_pixels, channels_in_front, read_mask, read_pixels
from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.wording import listed
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.local_paths import is_local_path

from .source import SourceError, SourceRecord

SAVED = ("dataset_dict.json", "state.json")  # one of them lies in what save_to_disk wrote


class HuggingFaceSource(SourceRecord):
    """A dataset that the library `datasets` knows.

    name: a Hub id such as `EPFL-ECEO/coralscapes`, or a folder: what `save_to_disk` wrote, parquet files, or an
        imagefolder.
    split: such as `train`, or `train[:80%]` (not of saved folders).
    config: the dataset's configuration, where it has several.
    revision: the commit, tag or branch on the Hub; a commit makes a run repeatable.
    image_column: the column of the images.
    mask_column: for segmentation, the column of the masks; without it the only other column of images.
    label_column: for classification, the column of the labels: class names, words, or numbers from 0.
    """

    tasks: ClassVar = ("segmentation", "classification")

    name: str
    split: str
    config: str | None = None
    revision: str | None = None
    image_column: str = "image"
    mask_column: str | None = None
    label_column: str = "label"

    def open(self, task: str, bands: int = 3) -> "HubDataset":
        """Open the dataset, from the Hub if need be. SourceError when it, its split or a column is not there."""
        data = self.load()
        target = self.label_column if task == "classification" else self.mask_column or self.only_other(data)
        for column in (self.image_column, target):
            if column not in data.features:
                raise SourceError(f"{self.name} has no column '{column}'; it has {listed(data.column_names, 20)}")
        names = label_names(data, target) if task == "classification" else None
        if task == "classification" and target_kind(data.features[target]) not in ("int", "str"):
            raise SourceError(f"{self.name}: the column '{target}' has no labels but {data.features[target]}")
        return HubDataset(
            self.name, undecoded(data, (self.image_column, target)), self.image_column, target, names, bands
        )

    def hub_id(self) -> str | None:
        """The dataset on the Hub, unless it lies in a folder."""
        return None if is_local_path(self.name) or Path(self.name).exists() else self.name

    def hub_split(self) -> str | None:
        """The split, as `datasets` knows it."""
        return None if self.hub_id() is None else self.split

    def load(self) -> Any:
        """The split as a `datasets.Dataset`."""
        import datasets

        folder = Path(self.name).expanduser()
        if self.name.startswith((".", "~", "/")) and not folder.is_dir():
            raise SourceError(f"{folder}: there is no such folder (relative paths start from {Path.cwd()})")
        try:
            if any((folder / name).is_file() for name in SAVED):
                return self.saved_split(datasets.load_from_disk(os.fspath(folder)))
            place = os.fspath(folder) if folder.is_dir() else self.name
            return datasets.load_dataset(place, self.config, split=self.split, revision=self.revision)
        except SourceError:
            raise
        except Exception as error:  # the library, the network and the file formats raise anything
            reason = error_sentence(error)
            raise SourceError(f"the dataset {self.name} cannot be opened: {reason}") from error

    def saved_split(self, saved: Any) -> Any:
        """The split of what save_to_disk wrote: all splits by name, or a single one."""
        splits = saved if isinstance(saved, dict) else {str(saved.split or self.split): saved}
        if self.split not in splits:
            raise SourceError(f"{self.name} has no split '{self.split}'; it has {listed(splits, 10)}")
        return splits[self.split]

    def only_other(self, data: Any) -> str:
        """The only column of images that is not the images'."""
        import datasets

        others = [c for c, kind in data.features.items() if isinstance(kind, datasets.Image) and c != self.image_column]
        if len(others) != 1:
            raise SourceError(
                f"{self.name}: mask_column is to name the column of the masks; other columns of images than "
                f"'{self.image_column}' are {listed(others, 10) or 'none'}, all columns {listed(data.column_names, 20)}"
            )
        return others[0]


def undecoded(data: Any, columns: tuple[str, str]) -> Any:
    """These columns alone, images as the bytes of their files."""
    import datasets

    data = data.select_columns(list(columns))
    for column in columns:
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def target_kind(feature: Any) -> str:
    """What Python makes of a column of labels: int, str or else."""
    kind = str(getattr(feature, "dtype", ""))
    return "str" if "string" in kind else "int" if "int" in kind else kind


def label_names(data: Any, column: str) -> tuple[str, ...] | None:
    """The names of the labels: those the dataset gives, or the words themselves in alphabetical order."""
    feature = data.features[column]
    if getattr(feature, "names", None):
        return tuple(feature.names)
    return tuple(sorted(set(data.unique(column)) - {None})) if target_kind(feature) == "str" else None


@dataclass(frozen=True, eq=False)
class HubDataset:
    """Rows of a dataset; `target` is the column of masks or labels."""

    title: str
    data: Any
    image: str
    target: str
    class_names: tuple[str, ...] | None = None
    bands: int = 3

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.data)

    def read(self, index: int) -> RawSample:
        """Decode a row. ImageFileError when its image or mask cannot be used."""
        row, name = self.data[index], self.name(index)
        image = self.cell(row, self.image, name)
        pixels = read_pixels(image, self.bands) if is_file(image) else array_pixels(image, self.bands, name, MAX_PIXELS)
        target = row[self.target]
        if isinstance(target, str) and self.class_names:
            return RawSample(name, pixels, self.class_names.index(target))
        if isinstance(target, int):
            return RawSample(name, pixels, target)
        mask = self.cell(row, self.target, name)
        raw = read_mask(mask) if is_file(mask) else array_mask(channels_in_front(mask, (1, 3, 4), name), name)
        return RawSample(name, pixels, raw)

    def cell(self, row: dict[str, Any], column: str, name: str) -> Any:
        """An image's file, or the array of a column of numbers."""
        value, feature = row[column], self.data.features[column]
        if value is None:
            raise ImageFileError(f"{name}: the column '{column}' is empty in this row")
        if not isinstance(value, dict):
            return array_of(value, getattr(feature, "dtype", None), f"{name}, column '{column}'")
        if value.get("bytes") is not None:
            return ImageBytes(f"{name}, column '{column}'", value["bytes"])
        if not value.get("path"):
            raise ImageFileError(f"{name}: the column '{column}' has neither the bytes of a file nor its path here")
        return Path(value["path"])

    def name(self, index: int) -> str:
        """The dataset and the row's number."""
        return f"{self.title} row {index}"

    def files(self, index: int) -> tuple[Path, ...]:
        """None: the rows' bytes lie in the dataset's own files."""
        return ()

    def group(self, index: int) -> int:
        """Every row is for itself."""
        return index


def array_of(value: Any, dtype: str | None, name: str) -> np.ndarray:
    """Nested lists as an array. ImageFileError where rows differ in length, or their values fit no number."""
    try:
        return np.asarray(value, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ImageFileError(f"{name}: expected an array of numbers, found values that form none ({error})") from error


def is_file(cell: Any) -> bool:
    """Whether a cell is an encoded file, and no array."""
    return isinstance(cell, File)


__all__ = ["HuggingFaceSource"]
