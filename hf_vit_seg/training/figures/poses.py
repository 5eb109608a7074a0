"""Pictures of persons with their keypoints, labelled and predicted.

Shapes: C bands, H W pixels, K keypoints, P persons. Keypoints are (x, y) in pixels of the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.drawing.overlays import display_size, resize_for_display
from hf_vit_seg.drawing.skeletons import LEAST_SCORE, draw_skeletons

from .layout import captioned, grid
from .samples import as_picture

LONGEST_SIDE = 640  # of a panel


def pose_picture(
    image: torch.Tensor | Image.Image,
    truth: Any,
    predicted: Any,
    bones: Sequence[tuple[int, int]] | None = None,
    note: str = "",
) -> Image.Image:
    """Labelled and predicted persons side by side, the left side orange, the right blue.

    `image` is (C, H, W) or a picture; `truth` (P, K, 3) is x, y, visibility (0: not labelled), `predicted` (P, K, 3) is
    x, y, score; one person may come as (K, 3). `bones` are pairs of keypoints; None is COCO's for 17 keypoints, and
    none for other numbers. `note` stands behind the title of the prediction.
    """
    photo = as_picture(image)
    size = display_size(photo.size, LONGEST_SIDE, enlarge=True)
    scale = (size[0] / photo.width, size[1] / photo.height)
    labelled, found = persons(truth), persons(predicted)
    shown = resize_for_display(photo, size)
    return grid(
        [
            captioned(draw_skeletons(shown, labelled, labelled[..., 2] > 0, scale, bones), "truth"),
            captioned(
                draw_skeletons(shown, found, found[..., 2] >= LEAST_SCORE, scale, bones, faint=True),
                f"prediction{', ' if note else ''}{note}",
            ),
        ],
        columns=2,
    )


def persons(keypoints: Any) -> np.ndarray:
    """Keypoints as (P, K, 3) float64. ValueError for another shape."""
    array = np.asarray(keypoints.cpu() if isinstance(keypoints, torch.Tensor) else keypoints, dtype=float)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"persons are (P, K, 3): x, y and visibility or score of each keypoint; got {array.shape}")
    return array
