"""Samples in the columns of a table of the library `datasets`: images, and masks, labels or instance maps.

Images are decoded from their encoded bytes in the same way as files in folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from hf_vit_seg.data.images.files import MAX_PIXELS, ImageBytes, ImageFileError
from hf_vit_seg.data.images.pixels import File, array_mask, array_pixels, move_channels_first, read_mask, read_pixels
from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS
from hf_vit_seg.data.labels.unicode_names import normalize_name
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import Labels, RawSample
from hf_vit_seg.records import Count

from .instance_maps import join_segments
from .source import SourceError, SourceRecord


class ColumnsSource(SourceRecord):
    """Samples in the columns of a table.

    image_column: the column of the images.
    mask_column: for segmentation, the column of the masks; default: the only other image column. For instance and
        panoptic, that of the class maps; for instance, it may be missing if there is one class.
    label_column: for classification, the column of the labels: class labels, strings, or integers from 0; or lists of
        these, for `data.multi_label`.
    instances_column: for instance and panoptic, the column of the instance maps, see `folders`.
    label_divisor: the values of the instance maps include the class, see `folders`.
    """

    tasks: ClassVar = ("segmentation", "classification", "instance", "panoptic")

    image_column: str = "image"
    mask_column: str | None = None
    label_column: str = "label"
    instances_column: str = "instances"
    label_divisor: Count | None = None

    @property
    def title(self) -> str:
        """The name of the table in messages and in the names of samples."""
        raise NotImplementedError

    def load(self) -> Any:
        """Load the table as a `datasets.Dataset`. Raises SourceError."""
        raise NotImplementedError

    def open(self, task: str, channels: int = 3) -> "HubDataset":
        """Load the table. Raises SourceError if it or a column is missing."""
        data = self.load()
        columns = self.target_columns(task, data)
        for column in (self.image_column, *columns):
            if column not in data.features:
                raise SourceError(f"{self.title} has no column '{column}'; it has {format_list(data.column_names, 20)}")
        self.check_columns(data, columns, task)
        names = label_names(data, columns[0]) if task == "classification" else None
        kept = disable_decoding(data, (self.image_column, *columns))
        if task in SEGMENT_TASKS:
            return SegmentsDataset(
                self.title,
                kept,
                self.image_column,
                columns[0],
                names,
                channels,
                (*columns[1:], None)[0],
                self.label_divisor,
            )
        return HubDataset(self.title, kept, self.image_column, columns[0], names, channels)

    def target_columns(self, task: str, data: Any) -> tuple[str, ...]:
        """Return the columns of the targets; for segments, also of the class maps. Raises SourceError."""
        if task == "classification":
            return (self.label_column,)
        if task == "segmentation":
            return (self.mask_column or self.infer_mask_column(data),)
        if task == "panoptic" and self.label_divisor is None and self.mask_column is None:
            raise SourceError("set mask_column to the column of the class maps, or label_divisor, for panoptic")
        if self.label_divisor is not None and self.mask_column is not None:
            raise SourceError("label_divisor reads the classes from the instance maps: remove it, or mask_column")
        return (self.instances_column, *([self.mask_column] if self.mask_column else []))

    def check_columns(self, data: Any, targets: tuple[str, ...], task: str) -> None:
        """Raise SourceError for columns of another kind than images, masks and labels."""
        settings = {"segmentation": ("mask_column",), "classification": ()}.get(
            task, ("instances_column", "mask_column")
        )
        images = {"image_column": self.image_column} | dict(zip(settings, targets, strict=False))
        for setting, column in images.items():
            if not holds_pixels(data.features[column]):
                others = [name for name, feature in data.features.items() if holds_pixels(feature)]
                raise SourceError(
                    f"{self.title}: the column '{column}' has {data.features[column]}, expected images or arrays: set "
                    f"{setting} to one of {format_list(others, 10) or 'none (this dataset has no such column)'}"
                )
        feature = label_feature(data.features[targets[0]])
        if task == "classification" and target_kind(feature) not in ("int", "str"):
            raise SourceError(
                f"{self.title}: the column '{targets[0]}' has {data.features[targets[0]]}, expected labels"
            )

    def infer_mask_column(self, data: Any) -> str:
        """Return the only image column besides `image_column`."""
        others = [c for c, kind in data.features.items() if holds_files(kind) and c != self.image_column]
        if len(others) != 1:
            raise SourceError(
                f"{self.title}: set mask_column to the column of the masks; the image columns besides "
                f"'{self.image_column}' are {format_list(others, 10) or 'none'}, all columns are "
                f"{format_list(data.column_names, 20)}"
            )
        return others[0]


def disable_decoding(data: Any, columns: Sequence[str]) -> Any:
    """Select columns, with images as encoded bytes."""
    import datasets

    data = data.select_columns(list(columns))
    for column in columns:
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def holds_files(feature: Any) -> bool:
    """Return whether a column has encoded images: of the feature Image, bytes, or bytes or a path by key."""
    import datasets

    if isinstance(feature, dict):
        return bool({"bytes", "path"} & feature.keys())
    binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return binary or isinstance(feature, datasets.Image)


def holds_pixels(feature: Any) -> bool:
    """Return whether a column has encoded images, or arrays of numbers."""
    import datasets

    # List and LargeList are new in datasets 4 and 3.
    lists = [kind for name in ("List", "LargeList") if (kind := getattr(datasets, name, None)) is not None]
    arrays = (datasets.Array2D, datasets.Array3D, datasets.Sequence, list, *lists)
    return holds_files(feature) or isinstance(feature, arrays)


def target_kind(feature: Any) -> str:
    """Return the Python type of a label column: `int`, `str`, or another dtype; empty for arrays."""
    import datasets

    if not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        return ""
    kind = str(getattr(feature, "dtype", ""))
    return "str" if "string" in kind else "int" if "int" in kind else kind


def label_feature(feature: Any) -> Any:
    """Return the feature of a label, or of each label of a list."""
    return feature.feature if is_label_list(feature) else feature


def is_label_list(feature: Any) -> bool:
    """Return whether a column has lists of labels: class labels, strings, or integers."""
    return target_kind(getattr(feature, "feature", None)) in ("int", "str")


def label_names(data: Any, column: str) -> tuple[str, ...] | None:
    """Return the class names of the dataset, or its distinct strings in alphabetical order; None for integers."""
    feature = label_feature(data.features[column])
    if getattr(feature, "names", None):
        return tuple(map(normalize_name, feature.names))
    if target_kind(feature) != "str":
        return None
    if is_label_list(data.features[column]):
        names = {label for labels in data[column] for label in labels or ()}
    else:
        names = {name for name in data.unique(column) if name is not None}
    return tuple(sorted(map(normalize_name, names)))


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
        image, target = self.cell(row, self.image, name), row[self.target]
        pixels, encoded = self.pixels_of_cell(image, name), (encoded_file(image),)
        if isinstance(target, str) and self.class_names:
            return RawSample(name, pixels, self.class_names.index(normalize_name(target)), encoded=encoded)
        if isinstance(target, int):
            return RawSample(name, pixels, target, encoded=encoded)
        if self.multi_label:
            return RawSample(name, pixels, Labels(self.indices(target or [])), encoded=encoded)
        mask = self.cell(row, self.target, name)
        return RawSample(name, pixels, mask_of_cell(mask, name), encoded=(*encoded, encoded_file(mask)))

    def pixels_of_cell(self, cell: Any, name: str) -> torch.Tensor:
        """The image in a cell, an encoded file or an array."""
        if is_file(cell):
            return read_pixels(cell, self.channels)
        return array_pixels(cell, self.channels, name, MAX_PIXELS)

    def indices(self, labels: Sequence[int | str]) -> tuple[int, ...]:
        """Return the class indices of an image's labels, integers or names."""
        names = self.class_names or ()
        return tuple(
            sorted({names.index(normalize_name(label)) if isinstance(label, str) else label for label in labels})
        )

    def cell(self, row: dict[str, Any], column: str, name: str) -> Any:
        """Return the encoded file in a cell, or the array of a numeric column."""
        value, feature = row[column], self.data.features[column]
        if value is None:
            raise ImageFileError(f"{name}: the column '{column}' is empty")
        if isinstance(value, bytes):
            return ImageBytes(f"{name}, column '{column}'", value)
        if not isinstance(value, dict):
            return to_array(value, getattr(feature, "dtype", None), f"{name}, column '{column}'")
        if value.get("bytes") is not None:
            return ImageBytes(f"{name}, column '{column}'", value["bytes"])
        if not value.get("path"):
            raise ImageFileError(f"{name}: the column '{column}' has neither the bytes nor the path of a file")
        return Path(value["path"])

    def name(self, index: int) -> str:
        """Return the dataset's name and the row number."""
        return f"{self.title} row {index}"

    def files(self, index: int) -> tuple[Path, ...]:
        """Empty: rows are not stored in separate files."""
        return ()

    def group(self, index: int) -> int:
        """Return the row number: rows are independent."""
        return index


@dataclass(frozen=True, eq=False)
class SegmentsDataset(HubDataset):
    """Rows with instance maps in the column `target`, and class maps in `class_map` if there are any."""

    class_map: str | None = None
    divisor: int | None = None

    def read(self, index: int) -> RawSample:
        """Read a row. Raises ImageFileError."""
        row, name = self.data[index], self.name(index)
        columns = (self.image, self.target, *([] if self.class_map is None else [self.class_map]))
        image, *maps = cells = [self.cell(row, column, name) for column in columns]
        instances, *class_map = (mask_of_cell(cell, name) for cell in maps)
        segments, notes = join_segments(
            instances, class_map[0] if class_map else None, self.divisor, f"{name}, column '{self.target}'"
        )
        encoded = tuple(map(encoded_file, cells))
        return RawSample(name, self.pixels_of_cell(image, name), segments, notes, encoded=encoded)


def mask_of_cell(cell: Any, name: str) -> torch.Tensor:
    """Return the mask in a cell, an encoded file or an array."""
    return read_mask(cell) if is_file(cell) else array_mask(move_channels_first(cell, (1, 3, 4), name), name)


def encoded_file(cell: Any) -> File | None:
    """The encoded file in a cell; None for an array."""
    return cell if is_file(cell) else None


def to_array(value: Any, dtype: str | None, name: str) -> np.ndarray:
    """Convert nested lists to an array. Raises ImageFileError for ragged lists and for values that are not numbers."""
    try:
        return np.asarray(value, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ImageFileError(f"{name}: expected an array of numbers, found other values ({error})") from error


def is_file(cell: Any) -> bool:
    """Return whether a cell is an encoded file (else an array)."""
    return isinstance(cell, File)


__all__ = ["ColumnsSource", "HubDataset", "SegmentsDataset"]
