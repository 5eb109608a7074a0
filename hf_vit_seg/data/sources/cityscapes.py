"""Cityscapes' instance maps, `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png` (arXiv 1604.01685).

Shapes: H W pixels, n segments.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Literal

import torch

from hf_vit_seg.data.images.pixels import File
from hf_vit_seg.data.labels.raw_values import IGNORED_VALUE
from hf_vit_seg.data.samples import RawSegments

from .folders import FoldersSource
from .instance_maps import InstanceMaps, read_instances, segments_of_codes
from .source import Place, SourceRecord

DIVISOR = 1000  # the value of an object is its label id times 1000 and its number; that of other pixels the label id
IMAGES = "{root}/leftImg8bit/{split}/{{stem}}_leftImg8bit.png"
INSTANCES = "{root}/gtFine/{split}/{{stem}}_gtFine_instanceIds.png"


@cache
def label_set() -> Mapping[str, Any]:
    """Return the names, label ids and things of the 19 classes that are evaluated."""
    return json.loads((files("hf_vit_seg.configs") / "labels" / "cityscapes.json").read_text(encoding="utf-8"))


class CityscapesSource(SourceRecord):
    """Cityscapes with its 19 classes, of which 8 are things. Other labels, and groups of objects, are ignored.

    For the task instance, only the things are read, and stuff is background.

    root: the folder with `leftImg8bit` and `gtFine`.
    split: `train` or `val`.
    """

    tasks: ClassVar = ("panoptic", "instance")

    root: Place
    split: Literal["train", "val"] = "train"

    def open(self, task: str, channels: int = 3) -> "Cityscapes":
        """Pair images and instance maps, sorted by city and name. Raises SourceError."""
        places = {"root": self.root.as_posix(), "split": self.split}
        pairs = FoldersSource(
            images=IMAGES.format(**places), instances=INSTANCES.format(**places), label_divisor=DIVISOR
        ).open("instance", channels)
        assert isinstance(pairs, InstanceMaps)
        known = label_set()
        things = tuple(known["things"])
        names = tuple(name for name in known["names"] if task == "panoptic" or name in things)
        values = {
            label: names.index(name) if name in names else None
            for label, name in zip(known["label_ids"], known["names"], strict=True)
        }
        return Cityscapes(**{**vars(pairs), "class_names": names}, values=values, things=things)


@dataclass(frozen=True, eq=False)
class Cityscapes(InstanceMaps):
    """Images and instance maps; `values` is the raw value of each label id, None for stuff that is background."""

    values: Mapping[int, int | None] | None = None
    things: tuple[str, ...] = ()

    def segments(self, maps: Sequence[File]) -> tuple[RawSegments, tuple[str, ...]]:
        """Read the segments of the instance map."""
        segments = segments_of_codes(read_instances(maps[-1]), DIVISOR)
        assert segments.classes is not None and self.values is not None
        kinds = [self.values.get(label, IGNORED_VALUE) for label in segments.classes]
        background = torch.tensor([False, False, *(kind is None for kind in kinds)])
        ids = segments.ids.masked_fill(background[segments.ids.to(torch.int64) + 1], 0)
        return replace(segments, ids=ids, classes=tuple(IGNORED_VALUE if kind is None else kind for kind in kinds)), ()


__all__ = ["CityscapesSource"]
