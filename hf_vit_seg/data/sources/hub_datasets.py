"""Datasets of the Hugging Face Hub, local datasets of the library `datasets`, and Parquet files.

Images are decoded from their encoded bytes in the same way as files in folders. Code from the Hub is never executed.
"""

import os
from pathlib import Path, PurePath
from typing import Any

from pydantic import Field

from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.storage.addresses import is_address, local_path
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.local_paths import is_local_path, is_saved_dataset

from .columns import ColumnsSource
from .source import SourceError


class HuggingFaceSource(ColumnsSource):
    """A dataset that the library `datasets` can load.

    name: a Hub id such as `EPFL-ECEO/coralscapes`, or a folder: written by `save_to_disk`, with parquet files, or an
        imagefolder.
    split: such as `train`, or `train[:80%]` (not for folders written by `save_to_disk`).
    config: the configuration, if the dataset has several.
    revision: the commit, tag or branch on the Hub; a commit makes runs reproducible.

    The columns are as in `parquet`.
    """

    name: str
    split: str
    config: str | None = None
    revision: str | None = None

    @property
    def title(self) -> str:
        """The name of the dataset."""
        return self.name

    def hub_id(self) -> str | None:
        """Return the dataset's Hub id; None for a local folder."""
        return None if is_local_path(self.name) or Path(self.name).exists() else self.name

    def hub_split(self) -> str | None:
        """Return the split on the Hub; None for a local folder."""
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
            location = os.fspath(folder) if folder.is_dir() else self.name
            return datasets.load_dataset(location, self.config, split=self.split, revision=self.revision)
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


class ParquetSource(ColumnsSource):
    """Parquet files with columns of encoded images, as the Hub has them.

    data_files: one or a list: paths, fsspec addresses, and glob patterns of these. The library `datasets` converts them
        to Arrow files in its cache once, so that rows are read in any order.
    """

    data_files: str | tuple[str, ...] = Field(min_length=1)

    @property
    def title(self) -> str:
        """The file names."""
        return format_list([PurePath(path).name for path in self.places])

    @property
    def places(self) -> list[str]:
        """The paths, with `~` expanded, addresses and patterns."""
        given = (self.data_files,) if isinstance(self.data_files, str) else self.data_files
        return [each if is_address(each) else os.fspath(local_path(each)) for each in given]

    def load(self) -> Any:
        """Load the files, in order, as a `datasets.Dataset`. Raises SourceError."""
        import datasets

        try:
            return datasets.load_dataset("parquet", data_files=self.places, split="train")
        except Exception as error:  # the library, the network and the file formats raise anything
            raise SourceError(f"{self.title} cannot be opened: {error_sentence(error)}") from error


__all__ = ["HuggingFaceSource", "ParquetSource"]
