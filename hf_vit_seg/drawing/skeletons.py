"""Skeletons of persons, drawn over an image.

Shapes: K keypoints, P persons. Keypoints are (x, y) in pixels of the image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hf_vit_seg.keypoint_names import Pairs, are_coco_keypoints, find_flip_pairs

MIN_SCORE = 0.2  # predicted keypoints below are drawn as rings without bones, as in ViTPose
LEFT, RIGHT, MIDDLE = (213, 94, 0), (0, 114, 178), (0, 158, 115)
# Bones between COCO's 17 keypoints.
COCO_BONES = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


@dataclass(frozen=True)
class Skeleton:
    """The bones between keypoints, and the pairs of left and right keypoints, as indices."""

    bones: Pairs = ()
    pairs: Pairs = ()

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        bones: Iterable[Sequence[int]] | None = None,
        pairs: Iterable[Sequence[int]] | None = None,
    ) -> "Skeleton":
        """Return the skeleton of keypoints with these names: COCO's bones for COCO's keypoints, and pairs found by
        names.
        """
        bone_names = bones or (COCO_BONES if are_coco_keypoints(names) else ())
        sides = pairs or find_flip_pairs(names)
        return cls(tuple((i, j) for i, j in bone_names), tuple((left, right) for left, right in sides))

    def color(self, *keypoints: int) -> tuple[int, int, int]:
        """Return the color of a keypoint, or of a bone by both its ends: left, right, or the middle."""
        for color, side in ((LEFT, 0), (RIGHT, 1)):
            if all(any(pair[side] == keypoint for pair in self.pairs) for keypoint in keypoints):
                return color
        return MIDDLE


def draw_skeletons(
    photo: Image.Image,
    people: np.ndarray,
    confident: np.ndarray,
    scale: tuple[float, float],
    skeleton: Skeleton,
    show_uncertain: bool = False,
) -> Image.Image:
    """Draw `people` (P, K, 3) on a copy of an image; their coordinates are multiplied by `scale` (x, y).

    Keypoints are drawn where `confident` (P, K) is true, and bones where it is true for both ends. With
    `show_uncertain`, the other keypoints are drawn as rings.
    """
    canvas = photo.copy()
    draw = ImageDraw.Draw(canvas)
    radius = max(2, max(photo.size) // 160)
    for person, is_confident in zip(people, confident, strict=True):
        points = [tuple(point) for point in ((person[:, :2] + 0.5) * scale - 0.5).tolist()]
        for bone in skeleton.bones:
            if is_confident[list(bone)].all():
                draw.line([points[end] for end in bone], fill=skeleton.color(*bone), width=radius)
        for k, (x, y) in enumerate(points):
            ring = (x - radius, y - radius, x + radius, y + radius)
            if is_confident[k]:
                draw.ellipse(ring, fill=skeleton.color(k), outline=(255, 255, 255))
            elif show_uncertain:
                draw.ellipse(ring, outline=skeleton.color(k))
    return canvas


__all__ = ["COCO_BONES", "MIN_SCORE", "Skeleton", "draw_skeletons"]
