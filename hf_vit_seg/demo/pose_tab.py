"""The tab that finds a person's keypoints, for pose models."""

import math
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.drawing.overlays import display_size, resize_for_display
from hf_vit_seg.drawing.skeletons import MIN_SCORE, Skeleton, draw_skeletons
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.pose_estimator import Box

from .accelerator import CALLS
from .catalogue import Catalogue
from .image_reading import READERS
from .segmentation_view import MAX_SIDE
from .uploads import model_choice, photo_input, report_failures, show_results

KEYPOINTS = ("keypoint", "x", "y", "score")


class PoseTab:
    """An image of a person in, the skeleton and a table of keypoints out."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = photo_input("Image of one person", height=360)
                box = gr.Textbox(
                    "", label="Box of the person", placeholder="x, y, width, height in pixels; empty: the whole image"
                )
                model = model_choice(catalogue.titles("pose"))
            with gr.Column(scale=2, min_width=480):
                skeleton = gr.Image(label="Skeleton", interactive=False, format="png")
                table = gr.Dataframe(headers=list(KEYPOINTS), label="Keypoints", interactive=False)
                outputs, inputs = [skeleton, table], [photo, model, box]
                show_results([photo.change, box.submit, model.change], self.estimate, inputs, outputs)
        gr.on([], self.estimate, inputs, outputs, api_name="estimate_pose", **CALLS)

    def estimate(self, image: str | None, model: str, box: str = "") -> tuple[Any, Any]:
        """Find a person's keypoints: a picture of the skeleton, and each keypoint's place in pixels and its score."""
        if image is None:
            return None, None
        with report_failures(Path(image)):
            estimator = self.catalogue.load(model)
            pixels = READERS.read(Path(image), estimator.channels)
            persons = self.catalogue.call(model, pixels, parse_box(box, pixels.shape[1], pixels.shape[2]))
            return draw_pose(to_rgb_image(pixels), persons, estimator.skeleton), keypoint_rows(estimator.names, persons)


def keypoint_rows(names: list[str], keypoints: torch.Tensor) -> list[list[Any]]:
    """Return the table of keypoints (K, 3)."""
    return [[name, *(round(value, 3) for value in row)] for name, row in zip(names, keypoints.tolist(), strict=True)]


def parse_box(text: str, height: int, width: int) -> Box | None:
    """Parse a typed box. Raises ValueError if it is not a box inside an image of `height` and `width` pixels."""
    if not text.strip():
        return None
    try:
        x, y, across, down = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise HfVitSegError(
            f"a box is x, y, width, height in pixels, such as 20, 10, 200, 400; found '{text}'"
        ) from None
    box = x, y, across, down
    overlaps = max(x, 0) < min(x + across, width) and max(y, 0) < min(y + down, height)
    if not overlaps or not all(map(math.isfinite, box)):
        raise HfVitSegError(
            f"a box has a width and a height and lies over the image, which is {width} wide and {height} high; found "
            f"'{text}'"
        )
    return box


def draw_pose(photo: Image.Image, keypoints: torch.Tensor, skeleton: Skeleton) -> Image.Image:
    """Draw the skeleton of keypoints (K, 3), as x, y, score, on a photo."""
    size = display_size(photo.size, MAX_SIDE, enlarge=True)
    person = np.asarray(keypoints, dtype=float)[None]
    scale = (size[0] / photo.width, size[1] / photo.height)
    return draw_skeletons(
        resize_for_display(photo, size), person, person[..., 2] >= MIN_SCORE, scale, skeleton, show_uncertain=True
    )


__all__ = ["PoseTab"]
