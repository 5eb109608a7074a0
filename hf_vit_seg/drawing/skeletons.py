"""Skeletons of persons, drawn over an image.

Shapes: K keypoints, P persons. Keypoints are (x, y) in pixels of the image.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

LEAST_SCORE = 0.2  # predicted keypoints below are drawn as rings without bones, as in ViTPose
LEFT, RIGHT, MIDDLE = (213, 94, 0), (0, 114, 178), (0, 158, 115)
# Bones between COCO's 17 keypoints; odd keypoints are on the left side, even ones on the right.
COCO_BONES = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
COCO_KEYPOINTS = 17


def draw_skeletons(
    photo: Image.Image,
    people: np.ndarray,
    sure: np.ndarray,
    scale: tuple[float, float],
    bones: Sequence[tuple[int, int]] | None,
    faint: bool = False,
) -> Image.Image:
    """Draw `people` (P, K, 3) on a copy of an image; their coordinates are multiplied by `scale` (x, y).

    Keypoints are drawn where `sure` (P, K) is true, and bones where it is true for both ends; with `faint`, the other
    keypoints are drawn as rings.
    """
    canvas = photo.copy()
    draw = ImageDraw.Draw(canvas)
    radius = max(2, max(photo.size) // 160)
    coco = people.shape[1] == COCO_KEYPOINTS and bones is None
    pairs = COCO_BONES if coco else tuple(bones or ())
    for person, certain in zip(people, sure, strict=True):
        places = [tuple(place) for place in ((person[:, :2] + 0.5) * scale - 0.5).tolist()]
        for pair in pairs:
            if certain[list(pair)].all():
                draw.line([places[end] for end in pair], fill=side_color(pair, coco), width=radius)
        for k, (x, y) in enumerate(places):
            ring = (x - radius, y - radius, x + radius, y + radius)
            if certain[k]:
                draw.ellipse(ring, fill=side_color((k, k), coco), outline=(255, 255, 255))
            elif faint:
                draw.ellipse(ring, outline=side_color((k, k), coco))
    return canvas


def side_color(pair: tuple[int, int], coco: bool) -> tuple[int, int, int]:
    """The color of a bone, or of a keypoint (k, k): left, right, or middle if it belongs to both sides or neither."""
    sides = {end % 2 for end in pair if end}  # keypoint 0 is the nose
    if not coco or 0 in pair or len(sides) != 1:
        return MIDDLE
    return LEFT if sides == {1} else RIGHT


__all__ = ["COCO_BONES", "LEAST_SCORE", "draw_skeletons"]
