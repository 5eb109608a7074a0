"""Facts of the objects of an image: how many there are, and which are tiny, split or overlapping.

Shapes: H W pixels, n segments.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.labels.segment_classes import count_objects, segment_targets
from hf_vit_seg.data.samples import RawSegments
from hf_vit_seg.data.transforms.sample_segments import MIN_AREA

EIGHT = np.ones((3, 3), bool)  # pixels that touch at a corner are connected


@dataclass(frozen=True)
class ObjectFacts:
    """The number of objects (with stuff, of segments), and how many of the objects have a fault.

    `tiny` have fewer than 8 pixels, and training leaves them out; `split` consist of several parts that do not touch;
    `hidden` are covered completely by others. `overlaps` are pixels of several annotations.
    """

    count: int = 0
    tiny: int = 0
    split: int = 0
    hidden: int = 0
    overlaps: int = 0


def read_object_facts(raw: RawSegments, table: ClassTable, task: str) -> ObjectFacts:
    """Collect the facts of an image's objects."""
    assert raw.classes is not None
    targets = segment_targets(raw, table, task)
    things = [number for number, index in enumerate(targets, 1) if index >= 0 and table.is_thing(index)]
    ids = raw.ids.clamp(min=0)
    areas = torch.bincount(ids.flatten(), minlength=len(targets) + 1)
    boxes = ndimage.find_objects(ids.numpy(), max_label=len(targets)) if len(targets) else []
    split = sum(is_split(ids[boxes[number - 1]].numpy() == number) for number in things if boxes[number - 1])
    return ObjectFacts(
        count=count_objects(targets, table),
        tiny=sum(0 < int(areas[number]) < MIN_AREA for number in things),
        split=split,
        hidden=sum(int(areas[number]) == 0 for number in things),
        overlaps=raw.overlaps,
    )


def is_split(mask: np.ndarray) -> bool:
    """Return whether a mask (H, W) has several 8-connected parts."""
    components: Any = ndimage.label(mask, EIGHT)  # the parts, and their number
    return components[1] > 1


__all__ = ["ObjectFacts", "read_object_facts"]
