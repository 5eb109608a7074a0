"""Figures of persons with labeled and predicted keypoints.

Shapes: C channels, H W pixels, K keypoints, P persons. Keypoints are (x, y) in pixels of the image.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.drawing.overlays import display_size, resize_for_display
from hf_vit_seg.drawing.skeletons import MIN_SCORE, Skeleton, draw_skeletons

from .layout import add_caption, grid
from .sample_figures import as_rgb

MAX_SIDE = 640  # longest side of a panel
NO_BONES = Skeleton()


def pose_figure(
    image: torch.Tensor | Image.Image,
    truth: Any,
    predicted: Any,
    skeleton: Skeleton = NO_BONES,
    note: str = "",
) -> Image.Image:
    """Draw labeled and predicted persons side by side; left keypoints are orange, right ones blue.

    `image` is (C, H, W) or a PIL image; `truth` (P, K, 3) is x, y, visibility (0: not labeled), `predicted` (P, K, 3)
    is x, y, score; a single person may be (K, 3). `note` is appended to the title of the prediction.
    """
    photo = as_rgb(image)
    size = display_size(photo.size, MAX_SIDE, enlarge=True)
    scale = (size[0] / photo.width, size[1] / photo.height)
    labeled, predictions = persons(truth), persons(predicted)
    shown = resize_for_display(photo, size)
    return grid(
        [
            add_caption(draw_skeletons(shown, labeled, labeled[..., 2] > 0, scale, skeleton), "ground truth"),
            add_caption(
                draw_skeletons(
                    shown, predictions, predictions[..., 2] >= MIN_SCORE, scale, skeleton, show_uncertain=True
                ),
                f"prediction{', ' if note else ''}{note}",
            ),
        ],
        columns=2,
    )


def persons(keypoints: Any) -> np.ndarray:
    """Convert keypoints to (P, K, 3) float64. ValueError for another shape."""
    array = np.asarray(keypoints.cpu() if isinstance(keypoints, torch.Tensor) else keypoints, dtype=float)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"found keypoints of shape {array.shape}, expected (P, K, 3): x, y and visibility or score")
    return array
