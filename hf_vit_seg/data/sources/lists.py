"""Pairs of images and masks or labels, listed in a file."""

import csv
import io
import os
import re
from collections import Counter
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.unicode_names import normalize_name
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import Labels
from hf_vit_seg.data.storage.addresses import ConnectionLost, StorageError, read_address

from .file_source import FileSource
from .source import Location, SourceError, SourceRecord, check_present, existing_file, existing_folder, portable_path

TARGET_COLUMNS = {"segmentation": "mask", "classification": "label"}
INTEGER = re.compile("-?(0|[1-9][0-9]*)")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class ListSource(SourceRecord):
    """Images and masks, or images and labels, listed in a file.

    file: a .csv or .tsv file with a header line; or a text file with two words per line, image and target, in which
        lines that begin with # are comments.
    root: the folder that paths in the file are relative to; default: the folder of the file. Both may be fsspec
        addresses, such as `https://host/photos`, as may the paths in the file.
    image_column: the column of the image paths.
    target_column: the column of the mask paths or labels; default: `mask` or `label`, depending on the task. Labels
        are names; or integers from 0 that index `data.classes`, if all of them are integers without leading zeros.
    separator: what separates the labels of an image, such as `;`, for `data.multi_label`; an empty field has none.

    Spaces around fields are removed. Paths may have `/` or `\\` between folders.
    """

    tasks: ClassVar = ("segmentation", "classification")

    file: Location
    root: Location | None = None
    image_column: str = "image"
    target_column: str | None = None
    separator: str | None = Field(default=None, min_length=1)

    def open(self, task: str, channels: int = 3) -> FileSource:
        """Read the list, in file order. Raises SourceError if columns or files are missing."""
        root = self.find_root()
        rows = self.rows(task)
        images = [portable_path(root, image) for image, _ in rows]
        if repeated := [image for image, count in Counter(map(os.path.normpath, images)).items() if count > 1]:
            raise SourceError(f"{self.file} lists images more than once: {format_list(repeated)}")
        check_present(root, images, str(self.file))
        if task == "segmentation":
            masks = [portable_path(root, mask) for _, mask in rows]
            check_present(root, masks, str(self.file))
            return FileSource(root, images, root, masks, channels=channels)
        if isinstance(root, Path) and all(label and (root / portable_path(root, label)).is_file() for _, label in rows):
            raise SourceError(
                f"{self.file}: all labels are names of files, such as {rows[0][1]}, expected classes: set "
                "target_column to the column of the labels, or task: segmentation for masks"
            )
        if self.separator is not None:
            several, names = encode_label_lists([split_labels(label, self.separator) for _, label in rows])
            return FileSource(root, images, root, several, names, channels)
        labels, names = encode_labels([label for _, label in rows])
        return FileSource(root, images, root, labels, names, channels)

    def find_root(self) -> Path | str:
        """Return the folder or address that paths are relative to. Raises SourceError."""
        if self.root is not None:
            return self.root if isinstance(self.root, str) else existing_folder(self.root, "root")
        return self.file.rpartition("/")[0] if isinstance(self.file, str) else existing_file(self.file, "file").parent

    def read_text(self) -> str:
        """Return the content of the file. Raises SourceError."""
        name = str(self.file)
        try:
            data = (
                read_address(name, name)
                if isinstance(self.file, str)
                else existing_file(self.file, "file").read_bytes()
            )
            return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
        except UnicodeDecodeError as error:
            raise SourceError(f"{name} is not UTF-8 text ({error})") from None
        except (ImageFileError, ConnectionLost, StorageError) as error:
            raise SourceError(str(error)) from None

    def rows(self, task: str) -> list[tuple[str, str]]:
        """Read the image and target of each line. Raises SourceError."""
        path, text = Path(self.file), self.read_text()
        delimiter = DELIMITERS.get(path.suffix.lower())
        rows = word_rows(path, text) if delimiter is None else self.column_rows(path, text, delimiter, task)
        if not rows:
            raise SourceError(f"{path} lists no images")
        return rows

    def column_rows(self, path: Path, text: str, delimiter: str, task: str) -> list[tuple[str, str]]:
        """Read the image and target of each row of a table."""
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        columns = (self.image_column, self.target_column or TARGET_COLUMNS[task])
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for column in columns:
            if column not in (reader.fieldnames or []):
                raise SourceError(
                    f"{path} has no column '{column}', found {format_list(reader.fieldnames or ['none'], 10)}: set "
                    "image_column and target_column to names of the header line"
                )
        rows = []
        for row in reader:
            image, target = ((row[column] or "").strip() for column in columns)
            if None in row:
                raise SourceError(
                    f"{path}, line {reader.line_num}: found more fields than the header line has: quote fields that "
                    "contain the delimiter"
                )
            if not image or not (target or self.separator):
                raise SourceError(f"{path}, line {reader.line_num}: both image and {columns[1]} are required")
            rows.append((image, target))
        return rows


def word_rows(path: Path, text: str) -> list[tuple[str, str]]:
    """Read the image and target of each line of two words."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (words := line.split()) or line.startswith("#"):
            continue
        if len(words) != 2:
            raise SourceError(
                f"{path}, line {number}: found {len(words)} words, expected two, image and target: if paths have "
                "spaces, use a .csv file with the columns image and mask (or label)"
            )
        rows.append((words[0], words[1]))
    return rows


def split_labels(text: str, separator: str) -> list[str]:
    """Split a field into labels; empty ones are dropped."""
    return [label for part in text.split(separator) if (label := part.strip())]


def encode_label_lists(lists: list[list[str]]) -> tuple[list[Labels], tuple[str, ...] | None]:
    """Encode the labels of each image as class indices; also return their sorted names, or None for integers."""
    indices, names = encode_labels([label for labels in lists for label in labels])
    each = iter(indices)
    return [Labels(tuple(sorted({next(each) for _ in labels}))) for labels in lists], names


def encode_labels(labels: list[str]) -> tuple[list[int], tuple[str, ...] | None]:
    """Encode labels as class indices; also return their sorted names, or None if the labels are integers."""
    if all(map(INTEGER.fullmatch, labels)):
        return [int(label) for label in labels], None
    labels = [normalize_name(label) for label in labels]
    names = tuple(sorted(set(labels)))
    places = {name: index for index, name in enumerate(names)}
    return [places[label] for label in labels], names


__all__ = ["ListSource"]
