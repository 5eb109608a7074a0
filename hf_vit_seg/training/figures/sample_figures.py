"""Figures of predictions for single samples with the truth: label maps, classes, keypoints.

    figures = {sample.name: segmentation_figure(sample.image, truth, prediction, names, palette)}
    write_figures(directory / "samples", figures)

Shapes: C channels, H W pixels, K classes or keypoints, P persons. Lengths are pixels.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.atomic_io import write_files
from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.drawing.overlays import (
    LegendRow,
    display_size,
    draw_overlay,
    nearest_labels,
    percent,
    resize_for_display,
)
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix

from .layout import Color, add_caption, center_on_square, grid, legend_below

MAX_SIDE = 480  # longest side of a panel
THUMBNAIL = 192
MAX_CLASSES = 24  # in a legend
MAX_STEM_LENGTH = 120  # letters of a file name
IGNORED: Color = (96, 96, 96)
WRONG, MISSED, RIGHT = (213, 40, 40), (0, 114, 178), (0, 128, 96)
ERROR_OPACITY, PALE = 0.8, 0.55


def segmentation_figure(
    image: torch.Tensor | Image.Image,
    truth: Any,
    prediction: Any,
    names: Sequence[str],
    palette: Any,
    ignore_index: int = 255,
) -> Image.Image:
    """Draw image, truth, prediction and errors side by side, with a legend of the IoU of each class in this image.

    `image` is (C, H, W) with any number of channels, or a PIL image; `truth` and `prediction` (H, W) are class indices
    of equal size, which may differ from the image's; `palette` (K, 3) is 0 .. 255. Errors are red; for two classes,
    missed pixels of the second class are blue.
    """
    labels, found = as_labels(truth), as_labels(prediction)
    counted = labels != ignore_index
    matrix = ConfusionMatrix(len(names), ignore_index)
    matrix.update(torch.from_numpy(found), torch.from_numpy(labels))
    scores = matrix.scores()
    colors = np.concatenate([np.asarray(palette, dtype=np.uint8)[: len(names)], np.array([IGNORED], dtype=np.uint8)])
    size = panel_size((labels.shape[1], labels.shape[0]))
    photo = resize_for_display(as_rgb(image), size)
    shown = nearest_labels(np.where(counted, labels, len(names)), size)
    guess = nearest_labels(found, size)
    wrong = float((found != labels)[counted].mean()) if counted.any() else 0.0
    panels = [
        add_caption(photo, "photo"),
        add_caption(draw_overlay(photo, shown, colors, [], longest_side=None), "ground truth"),
        add_caption(
            draw_overlay(photo, guess, colors, [], longest_side=None), f"prediction, mIoU {score(scores['mean_iou'])}"
        ),
        add_caption(error_panel(photo, shown, guess, len(names)), f"errors, {percent(wrong)} of pixels"),
    ]
    rows = class_rows(scores["per_category_iou"], matrix.counts.sum(dim=1).numpy(), names, colors)
    sheet = legend_below(grid(panels, len(panels)), rows, "IoU in this image")
    return legend_below(sheet, error_rows(matrix, counted, names), "share of all pixels")


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) in a panel: large images are reduced, small ones enlarged by an integer factor."""
    factor = max(1, MAX_SIDE // max(size))
    return display_size((size[0] * factor, size[1] * factor), MAX_SIDE, enlarge=False)


def as_labels(labels: Any) -> np.ndarray:
    """Convert a label map on any device to (H, W) int64."""
    return np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels).astype(np.int64)


def as_rgb(image: torch.Tensor | Image.Image) -> Image.Image:
    """Convert an image with any number of channels to RGB."""
    return image.convert("RGB") if isinstance(image, Image.Image) else to_rgb_image(image)


def error_panel(photo: Image.Image, truth: np.ndarray, found: np.ndarray, classes: int) -> Image.Image:
    """Draw the image in pale gray with errors in red or blue. Ignored pixels of `truth` are K."""
    pale = Image.blend(photo.convert("L").convert("RGB"), Image.new("RGB", photo.size, (255, 255, 255)), PALE)
    canvas = np.array(pale)
    counted = truth < classes
    wrong = counted & (truth != found)
    kinds = ((wrong, WRONG), (wrong & (truth == 1), MISSED)) if classes == 2 else ((wrong, WRONG),)
    for where, color in kinds:
        canvas[where] = color
    canvas[~counted] = IGNORED
    return Image.blend(pale, Image.fromarray(canvas), ERROR_OPACITY)


def class_rows(iou: np.ndarray, labeled: np.ndarray, names: Sequence[str], colors: np.ndarray) -> list[LegendRow]:
    """Return legend rows with the IoU of an image's classes, the most frequent first."""
    order: list[int] = np.argsort(-labeled, kind="stable").tolist()
    order = [k for k in order if not np.isnan(iou[k])][:MAX_CLASSES]
    return [(names[k], tuple(colors[k].tolist()), float(iou[k])) for k in order]


def error_rows(matrix: ConfusionMatrix, counted: np.ndarray, names: Sequence[str]) -> list[LegendRow]:
    """Return legend rows with the shares of errors and of ignored pixels."""
    rows: list[LegendRow] = []
    if len(names) != 2:
        wrong = int(matrix.counts.sum() - matrix.counts.diagonal().sum())
        rows.append(("wrong class", WRONG, wrong / counted.size))
    else:
        (_, false), (missed, _) = matrix.counts.tolist()
        rows += [
            (f"missed {names[1]}", MISSED, missed / counted.size),
            (f"false {names[1]}", WRONG, false / counted.size),
        ]
    if not counted.all():
        rows.append(("ignored", IGNORED, 1 - float(counted.mean())))
    return rows


def score(value: float) -> str:
    """Format a score as a percentage; a dash for NaN."""
    return "-" if np.isnan(value) else percent(value)


@dataclass(frozen=True, eq=False)
class ClassifiedImage:
    """An image, (C, H, W) or PIL, its classes, and the predicted ones with their probability, as text."""

    image: torch.Tensor | Image.Image
    truth: str
    prediction: str
    is_right: bool


def classification_figure(samples: Sequence[ClassifiedImage], columns: int = 6) -> Image.Image:
    """Draw a grid of images with true and predicted classes; wrong predictions are red."""
    return grid([classification_thumbnail(sample) for sample in samples], columns)


def classification_thumbnail(sample: ClassifiedImage) -> Image.Image:
    """Draw an image in a square of fixed size, with true and predicted classes above."""
    square = center_on_square(as_rgb(sample.image), THUMBNAIL)
    return add_caption(square, sample.truth, (sample.prediction, RIGHT if sample.is_right else WRONG))


def write_figures(folder: Path, figures: Mapping[str, Image.Image]) -> list[Path]:
    """Write figures as PNG, atomically, with valid file names; return the paths."""
    paths = figure_paths(folder, figures)
    write_files({path: content.save for path, content in zip(paths, figures.values(), strict=True)})
    return paths


def figure_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths of figures with these sample names, without duplicates."""
    paths: list[Path] = []
    taken: set[str] = set()
    for name in names:
        stem, number = file_stem(name), 1
        while (own := stem if number == 1 else f"{stem}_{number}").casefold() in taken:
            number += 1
        taken.add(own.casefold())
        paths.append(folder / f"{own}.png")
    return paths


def file_stem(name: str) -> str:
    """Return a sample's name without its suffix and without characters that are invalid in file names."""
    plain = re.sub(r"\.\w{1,5}$", "", name)
    return re.sub(r"[^\w.-]+", "_", plain).strip("._")[:MAX_STEM_LENGTH] or "sample"
