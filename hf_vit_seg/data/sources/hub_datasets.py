"""Datasets of the Hugging Face Hub, and local datasets of the library `datasets`.

Images are decoded from their encoded bytes in the same way as files in folders. Code from the Hub is never executed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_vit_seg.data.images.files import MAX_PIXELS, ImageBytes, ImageFileError
from hf_vit_seg.data.images.pixels import File, array_mask, array_pixels, move_channels_first, read_mask, read_pixels
from hf_vit_seg.data.labels.names import normalize_name
from hf_vit_seg.data.samples import Labels, RawSample
from hf_vit_seg.data.wording import format_list
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.local_paths import is_local_path

from .source import SourceError, SourceRecord

SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))  # files of save_to_disk: of splits, and of one


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library `datasets`."""
    return any(all((folder / name).is_file() for name in names) for names in SAVED)


class HuggingFaceSource(SourceRecord):
    """A dataset that the library `datasets` can load.

    name: a Hub id such as `EPFL-ECEO/coralscapes`, or a folder: written by `save_to_disk`, with parquet files, or an
        imagefolder.
    split: such as `train`, or `train[:80%]` (not for folders written by `save_to_disk`).
    config: the configuration, if the dataset has several.
    revision: the commit, tag or branch on the Hub; a commit makes runs reproducible.
    image_column: the column of the images.
    mask_column: for segmentation, the column of the masks; default: the only other image column.
    label_column: for classification, the column of the labels: class labels, strings, or integers from 0; or lists of
        these, for `data.multi_label`.
    """

    tasks: ClassVar = ("segmentation", "classification")

    name: str
    split: str
    config: str | None = None
    revision: str | None = None
    image_column: str = "image"
    mask_column: str | None = None
    label_column: str = "label"

    def open(self, task: str, channels: int = 3) -> "HubDataset":
        """Load the dataset, from the Hub if needed. Raises SourceError if it, its split or a column is missing."""
        data = self.load()
        target = self.label_column if task == "classification" else self.mask_column or self.infer_mask_column(data)
        for column in (self.image_column, target):
            if column not in data.features:
                raise SourceError(f"{self.name} has no column '{column}'; it has {format_list(data.column_names, 20)}")
        self.check_columns(data, target, task)
        names = label_names(data, target) if task == "classification" else None
        return HubDataset(
            self.name, disable_decoding(data, (self.image_column, target)), self.image_column, target, names, channels
        )

    def check_columns(self, data: Any, target: str, task: str) -> None:
        """Raise SourceError for columns of another kind than images, masks and labels."""
        images = {"image_column": self.image_column} | ({"mask_column": target} if task == "segmentation" else {})
        for setting, column in images.items():
            if not holds_pixels(data.features[column]):
                others = [name for name, feature in data.features.items() if holds_pixels(feature)]
                raise SourceError(
                    f"{self.name}: the column '{column}' has {data.features[column]}, expected images or arrays: set "
                    f"{setting} to one of {format_list(others, 10) or 'none (this dataset has no such column)'}"
                )
        feature = label_feature(data.features[target])
        if task == "classification" and target_kind(feature) not in ("int", "str"):
            raise SourceError(f"{self.name}: the column '{target}' has {data.features[target]}, expected labels")

    def hub_id(self) -> str | None:
        """The dataset's Hub id; None for a local folder."""
        return None if is_local_path(self.name) or Path(self.name).exists() else self.name

    def hub_split(self) -> str | None:
        """The split on the Hub; None for a local folder."""
        return None if self.hub_id() is None else self.split

    def load(self) -> Any:
        """Load the split as a `datasets.Dataset`. Raises SourceError."""
        import datasets

        folder = Path(self.name).expanduser()
        if self.name.startswith((".", "~", "/")) and not folder.is_dir():
            raise SourceError(f"{folder}: the folder does not exist (relative paths start from {Path.cwd()})")
        try:
            if is_saved_dataset(folder):
                return self.select_saved_split(datasets.load_from_disk(os.fspath(folder)))
            place = os.fspath(folder) if folder.is_dir() else self.name
            return datasets.load_dataset(place, self.config, split=self.split, revision=self.revision)
        except SourceError:
            raise
        except Exception as error:  # the library, the network and the file formats raise anything
            reason = error_sentence(error)
            raise SourceError(f"the dataset {self.name} cannot be opened: {reason}") from error

    def select_saved_split(self, saved: Any) -> Any:
        """Select the split from a folder written by save_to_disk, which has one split or several."""
        splits = saved if isinstance(saved, dict) else {str(saved.split or self.split): saved}
        if self.split not in splits:
            raise SourceError(f"{self.name} has no split '{self.split}'; it has {format_list(splits, 10)}")
        return splits[self.split]

    def infer_mask_column(self, data: Any) -> str:
        """The only image column besides `image_column`."""
        import datasets

        others = [c for c, kind in data.features.items() if isinstance(kind, datasets.Image) and c != self.image_column]
        if len(others) != 1:
            raise SourceError(
                f"{self.name}: set mask_column to the column of the masks; the image columns besides "
                f"'{self.image_column}' are {format_list(others, 10) or 'none'}, all columns are "
                f"{format_list(data.column_names, 20)}"
            )
        return others[0]


def disable_decoding(data: Any, columns: tuple[str, str]) -> Any:
    """Select columns, with images as encoded bytes."""
    import datasets

    data = data.select_columns(list(columns))
    for column in columns:
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def holds_pixels(feature: Any) -> bool:
    """Whether a column has encoded images, or arrays of numbers."""
    import datasets

    # List and LargeList are new in datasets 4 and 3.
    lists = [kind for name in ("List", "LargeList") if (kind := getattr(datasets, name, None)) is not None]
    arrays = (datasets.Array2D, datasets.Array3D, datasets.Sequence, list, *lists)
    encoded = isinstance(feature, dict) and {"bytes", "path"} & feature.keys()
    return bool(encoded) or isinstance(feature, (datasets.Image, *arrays))


def target_kind(feature: Any) -> str:
    """The Python type of a label column: `int`, `str`, or another dtype; empty for arrays."""
    import datasets

    if not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        return ""
    kind = str(getattr(feature, "dtype", ""))
    return "str" if "string" in kind else "int" if "int" in kind else kind


def label_feature(feature: Any) -> Any:
    """The feature of a label, or of each label of a list."""
    return feature.feature if is_label_list(feature) else feature


def is_label_list(feature: Any) -> bool:
    """Whether a column has lists of labels: class labels, strings, or integers."""
    return target_kind(getattr(feature, "feature", None)) in ("int", "str")


def label_names(data: Any, column: str) -> tuple[str, ...] | None:
    """The class names: those of the dataset, or the distinct strings in alphabetical order; None for integers."""
    feature = label_feature(data.features[column])
    if getattr(feature, "names", None):
        return tuple(map(normalize_name, feature.names))
    if target_kind(feature) != "str":
        return None
    if is_label_list(data.features[column]):
        found = {label for labels in data[column] for label in labels or ()}
    else:
        found = {name for name in data.unique(column) if name is not None}
    return tuple(sorted(map(normalize_name, found)))


@dataclass(frozen=True, eq=False)
class HubDataset:
    """Rows of a dataset; `target` is the column of masks or labels."""

    title: str
    data: Any
    image: str
    target: str
    class_names: tuple[str, ...] | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.data)

    @property
    def multi_label(self) -> bool:
        """Whether images have lists of classes."""
        return is_label_list(self.data.features[self.target])

    def read(self, index: int) -> RawSample:
        """Read a row. Raises ImageFileError."""
        row, name = self.data[index], self.name(index)
        image = self.cell(row, self.image, name)
        pixels = (
            read_pixels(image, self.channels)
            if is_file(image)
            else array_pixels(image, self.channels, name, MAX_PIXELS)
        )
        target = row[self.target]
        if isinstance(target, str) and self.class_names:
            return RawSample(name, pixels, self.class_names.index(normalize_name(target)))
        if isinstance(target, int):
            return RawSample(name, pixels, target)
        if self.multi_label:
            return RawSample(name, pixels, Labels(self.indices(target or [])))
        mask = self.cell(row, self.target, name)
        raw = read_mask(mask) if is_file(mask) else array_mask(move_channels_first(mask, (1, 3, 4), name), name)
        return RawSample(name, pixels, raw)

    def indices(self, labels: Sequence[int | str]) -> tuple[int, ...]:
        """The class indices of an image's labels, integers or names."""
        names = self.class_names or ()
        return tuple(
            sorted({names.index(normalize_name(label)) if isinstance(label, str) else label for label in labels})
        )

    def cell(self, row: dict[str, Any], column: str, name: str) -> Any:
        """The encoded file in a cell, or the array of a numeric column."""
        value, feature = row[column], self.data.features[column]
        if value is None:
            raise ImageFileError(f"{name}: the column '{column}' is empty")
        if not isinstance(value, dict):
            return to_array(value, getattr(feature, "dtype", None), f"{name}, column '{column}'")
        if value.get("bytes") is not None:
            return ImageBytes(f"{name}, column '{column}'", value["bytes"])
        if not value.get("path"):
            raise ImageFileError(f"{name}: the column '{column}' has neither the bytes nor the path of a file")
        return Path(value["path"])

    def encoded_files(self, index: int) -> tuple[File, ...]:
        """The image and the mask that are stored as encoded files."""
        row, name = self.data[index], self.name(index)
        columns = [c for c in (self.image, self.target) if isinstance(row[c], dict)]
        return tuple(self.cell(row, column, name) for column in columns)

    def name(self, index: int) -> str:
        """The dataset's name and the row number."""
        return f"{self.title} row {index}"

    def files(self, index: int) -> tuple[Path, ...]:
        """Empty: rows are not stored in separate files."""
        return ()

    def group(self, index: int) -> int:
        return index


def to_array(value: Any, dtype: str | None, name: str) -> np.ndarray:
    """Convert nested lists to an array. Raises ImageFileError for ragged lists and for values that are not numbers."""
    try:
        return np.asarray(value, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ImageFileError(f"{name}: expected an array of numbers, found other values ({error})") from error


def is_file(cell: Any) -> bool:
    """Whether a cell is an encoded file (else an array)."""
    return isinstance(cell, File)


__all__ = ["HuggingFaceSource", "is_saved_dataset"]
