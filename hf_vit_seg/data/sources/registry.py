"""Where data come from: a table of kinds, `{kind: folders, images: ..., masks: ...}` in a recipe.

An installed package adds a kind by an entry point of the group `hf_vit_seg.data_sources` that names a `SourceRecord`.
"""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.records import Table

from .class_folders import ClassFoldersSource
from .coco_keypoints import CocoKeypointsSource
from .coco_masks import CocoMasksSource
from .folders import FoldersSource
from .hub_datasets import HuggingFaceSource
from .lists import ListSource
from .sklearn_digits import DigitsSource
from .source import Source, SourceError, SourceRecord

SOURCES: Table[SourceRecord] = Table(
    "data source",
    {
        "folders": FoldersSource,
        "list": ListSource,
        "huggingface": HuggingFaceSource,
        "coco_masks": CocoMasksSource,
        "class_folders": ClassFoldersSource,
        "coco_keypoints": CocoKeypointsSource,
        "sklearn_digits": DigitsSource,
    },
    kind=SourceRecord,
    group="hf_vit_seg.data_sources",
)


def open_source(settings: Mapping[str, Any], task: str, bands: int = 3, place: str = "data") -> Source:
    """The source that `{kind: ..., ...}` describes, for a task; `place` is where messages say that it stands.

    RecordError for settings that are not known, SourceError for data that are not there.
    """
    record = SOURCES.read_kind(settings, place)
    if task not in record.tasks:
        fitting = [name for name in SOURCES.own if task in SOURCES.own[name].tasks]
        raise SourceError(
            f"{place}: {settings['kind']} is a source for {' and '.join(record.tasks)}, and the task is {task}: use "
            f"{', '.join(fitting)}, or set the task"
        )
    try:
        return record.open(task, bands)
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from None


__all__ = ["SOURCES", "Source", "SourceError", "SourceRecord", "open_source"]
