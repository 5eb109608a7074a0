"""Segments in a pipeline of transforms: their classes and areas, in addition to the map of their numbers.

The map of numbers is transformed as a mask. An object that a crop cuts below `MIN_SHARE` of its area, or of which
fewer than `MIN_AREA` pixels are left, is removed, and its pixels are ignored: too little of it is visible to learn
it as an object, and is not background. Stuff is kept if any pixel is left.

Shapes: H W pixels, n segments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from hf_vit_seg.data.labels.segment_classes import keep_segments
from hf_vit_seg.data.samples import Segments

MIN_SHARE = 0.1  # minimum fraction of an object's area left by a crop
MIN_AREA = 8  # pixels of an object


class SegmentAreas:
    """The classes of the segments of a sample, and their areas (n,) float64 in pixels of the current scale.

    Transforms that change the scale call `rescale_areas`, so that a small object is not mistaken for one that is cut.
    """

    def __init__(self, segments: Segments, stuff: frozenset[int]):
        """`stuff` are the indices of the stuff classes."""
        self.classes, self.stuff = segments.classes, stuff
        self.areas = segments.areas().to(torch.float64)

    def class_map(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the class of each pixel (H, W) from 2; 1 is background, and 0 is ignored."""
        return Segments(ids, tuple(index + 2 for index in self.classes)).label_map(1, 0)

    def remove_slivers(self, ids: torch.Tensor) -> Segments:
        """Return the segments of a transformed map (H, W) without objects that are cut to slivers."""
        segments = Segments(ids, self.classes)
        areas = segments.areas()
        stuff = torch.tensor([index in self.stuff for index in self.classes], dtype=torch.bool)
        kept = (areas >= MIN_SHARE * self.areas) & (areas >= MIN_AREA)
        return keep_segments(segments, torch.where(stuff, areas > 0, kept))


# Transforms of torchvision see images and masks only.
CURRENT: ContextVar[SegmentAreas | None] = ContextVar("segment areas", default=None)


@contextmanager
def use_areas(areas: SegmentAreas) -> Iterator[None]:
    """Make the segments of a sample known to the transforms that are called inside."""
    token = CURRENT.set(areas)
    try:
        yield
    finally:
        CURRENT.reset(token)


def current_areas() -> SegmentAreas | None:
    """Return the classes and areas of the segments of the sample that is transformed; None for other targets."""
    return CURRENT.get()


def rescale_areas(factor: float) -> None:
    """Multiply the areas of the segments of the sample that is transformed, if any, by the factor of a resize."""
    if (areas := current_areas()) is not None:
        areas.areas = areas.areas * factor


__all__ = ["MIN_AREA", "MIN_SHARE", "SegmentAreas", "current_areas", "rescale_areas", "use_areas"]
