"""Colors of objects that stay the same from frame to frame of a video.

An object has the color of the object of the last frame that it overlaps most, if both have the same class; each color
is used once in a frame. Objects are not tracked: an object that is hidden for a frame gets another color.

Shapes: H W a frame, n objects.
"""

import numpy as np

from hf_vit_seg.drawing.object_overlays import object_colors
from hf_vit_seg.inference.found_segments import FoundSegments

MIN_IOU = 0.1  # minimum IoU of an object in consecutive frames


class ObjectColors:
    """Assigns the colors of objects, frame by frame."""

    def __init__(self) -> None:
        self.last: tuple[FoundSegments, np.ndarray] | None = None  # with the number (n,) of each object's color
        self.used = 0  # numbers of colors so far

    def assign(self, segments: FoundSegments) -> np.ndarray:
        """Return the colors (n, 3) uint8 of the objects of the next frame; stuff has the colors of its classes."""
        numbers = np.full(len(segments.objects), -1)
        if self.last is not None and self.last[0].size == segments.size:
            for own, other in self.pairs(self.last[0], segments):
                numbers[own] = self.last[1][other]
        fresh = np.flatnonzero(numbers < 0)
        numbers[fresh] = np.arange(self.used, self.used + len(fresh))
        self.used += len(fresh)
        self.last = (segments, numbers)
        colors = object_colors(self.used)[numbers]
        for index, found_object in enumerate(segments.objects):
            if found_object.label in segments.stuff:
                colors[index] = segments.palette[found_object.label]
        return colors

    @staticmethod
    def pairs(last: FoundSegments, segments: FoundSegments) -> list[tuple[int, int]]:
        """Match objects of a frame with objects of the last frame that have the same color, as pairs of indices."""
        maps = [frame.instance_map().astype(np.int64) for frame in (segments, last)]
        both = (maps[0] > 0) & (maps[1] > 0)
        codes, counts = np.unique(maps[0][both] * (len(last.objects) + 1) + maps[1][both], return_counts=True)
        own, other = codes // (len(last.objects) + 1) - 1, codes % (len(last.objects) + 1) - 1
        areas = [
            np.array([found_object.area for found_object in frame.objects], np.int64) for frame in (segments, last)
        ]
        iou = counts / np.maximum(areas[0][own] + areas[1][other] - counts, 1) if len(codes) else counts
        pairs: list[tuple[int, int]] = []
        taken: tuple[set[int], set[int]] = (set(), set())
        for index in np.argsort(-iou, kind="stable").tolist():
            one, two = int(own[index]), int(other[index])
            same = segments.objects[one].label == last.objects[two].label
            if iou[index] >= MIN_IOU and same and one not in taken[0] and two not in taken[1]:
                pairs.append((one, two))
                taken[0].add(one)
                taken[1].add(two)
        return pairs


__all__ = ["ObjectColors"]
