"""The table of data sources, selected by `kind` in a recipe: `{kind: folders, images: ..., masks: ...}`.

Plugins register a `SourceRecord` through an entry point of the group `hf_vit_seg.data_sources`.
"""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.entry_points import DataSourceRecord
from hf_vit_seg.records import Table

from .cityscapes import CityscapesSource
from .coco_keypoints import CocoKeypointsSource
from .coco_masks import CocoMasksSource
from .coco_panoptic import CocoPanopticSource
from .folders import ClassFoldersSource, FoldersSource
from .hub_datasets import HuggingFaceSource, ParquetSource
from .lists import ListSource
from .sklearn_digits import DigitsSource
from .source import Source, SourceError, SourceRecord
from .tar_shards import WebDatasetSource

METHODS = ("__len__", "read", "name", "files", "group")  # methods of a Source

SOURCES: Table[SourceRecord] = Table(
    "data source",
    {
        "folders": FoldersSource,
        "list": ListSource,
        "huggingface": HuggingFaceSource,
        "webdataset": WebDatasetSource,
        "parquet": ParquetSource,
        "coco_masks": CocoMasksSource,
        "cityscapes": CityscapesSource,
        "coco_panoptic": CocoPanopticSource,
        "class_folders": ClassFoldersSource,
        "coco_keypoints": CocoKeypointsSource,
        "sklearn_digits": DigitsSource,
    },
    kind=SourceRecord,
    group="hf_vit_seg.data_sources",
    contract=DataSourceRecord,
)


def open_source(settings: Mapping[str, Any], task: str, channels: int = 3, location: str = "data") -> Source:
    """Open the source of the settings `{kind: ..., ...}` for a task; `location` is the settings' key in messages.

    Raises RecordError for invalid settings and SourceError for missing data.
    """
    record = SOURCES.read_kind(settings, location)
    if task not in record.tasks:
        fitting = [name for name in SOURCES.own if task in SOURCES.own[name].tasks]
        raise SourceError(
            f"{location}: {settings['kind']} supports {' and '.join(record.tasks)}, but the task is {task}: use "
            f"{', '.join(fitting)}, or change the task"
        )
    try:
        source = record.open(task, channels)
    except SourceError as error:
        raise SourceError(f"{location}: {error}") from None
    missing = [name for name in METHODS if not hasattr(source, name)]
    if missing:
        raise SourceError(
            f"{location}: {type(record).__name__}.open returned {type(source).__name__} without {', '.join(missing)}, "
            "expected a Source"
        )
    return source


__all__ = ["SOURCES", "Source", "SourceError", "SourceRecord", "open_source"]
