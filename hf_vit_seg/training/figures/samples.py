"""Pictures of what a model makes of single samples, beside the truth: label maps, classes, keypoints.

    pictures = {sample.name: segmentation_picture(sample.image, truth, prediction, names, palette)}
    write_pictures(directory / "samples", pictures)

Shapes: C bands, H W pixels, K classes or keypoints, P persons. Lengths are pixels.
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

from .layout import Color, captioned, grid, legend_below

LONGEST_SIDE = 480  # of a panel
THUMBNAIL = 192
MOST_CLASSES = 24  # in a legend
LONGEST_STEM = 120  # letters of a file name
IGNORED: Color = (96, 96, 96)
WRONG, MISSED, RIGHT = (213, 40, 40), (0, 114, 178), (0, 128, 96)
ERROR_OPACITY, PALE = 0.8, 0.55


def segmentation_picture(
    image: torch.Tensor | Image.Image,
    truth: Any,
    prediction: Any,
    names: Sequence[str],
    palette: Any,
    ignore_index: int = 255,
) -> Image.Image:
    """Photo, truth, prediction and errors side by side, above a legend with the IoU of each class in this image.

    `image` is (C, H, W) of any band count, or a picture; `truth` and `prediction` (H, W) are class indexes at one size,
    which need not be the image's; `palette` (K, 3) is 0 .. 255. Of more than two classes all mistakes are red; of two,
    what was missed of the second is blue.
    """
    labels, found = as_labels(truth), as_labels(prediction)
    counted = labels != ignore_index
    matrix = ConfusionMatrix(len(names), ignore_index)
    matrix.update(torch.from_numpy(found), torch.from_numpy(labels))
    scores = matrix.scores()
    colors = np.concatenate([np.asarray(palette, dtype=np.uint8)[: len(names)], np.array([IGNORED], dtype=np.uint8)])
    size = panel_size((labels.shape[1], labels.shape[0]))
    photo = resize_for_display(as_picture(image), size)
    shown = nearest_labels(np.where(counted, labels, len(names)), size)
    guess = nearest_labels(found, size)
    wrong = float((found != labels)[counted].mean()) if counted.any() else 0.0
    panels = [
        captioned(photo, "photo"),
        captioned(draw_overlay(photo, shown, colors, [], longest_side=None), "truth"),
        captioned(
            draw_overlay(photo, guess, colors, [], longest_side=None), f"prediction, mIoU {score(scores['mean_iou'])}"
        ),
        captioned(error_panel(photo, shown, guess, len(names)), f"errors, {percent(wrong)} of pixels"),
    ]
    rows = class_rows(scores["per_category_iou"], matrix.counts.sum(dim=1).numpy(), names, colors)
    sheet = legend_below(grid(panels, len(panels)), rows, "IoU in this image")
    return legend_below(sheet, error_rows(matrix, counted, names), "share of the pixels")


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in a panel: large images are reduced, small ones enlarged by a whole factor."""
    factor = max(1, LONGEST_SIDE // max(size))
    return display_size((size[0] * factor, size[1] * factor), LONGEST_SIDE, enlarge=False)


def as_labels(labels: Any) -> np.ndarray:
    """A label map, wherever it lies, as (H, W) int64."""
    return np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels).astype(np.int64)


def as_picture(image: torch.Tensor | Image.Image) -> Image.Image:
    """An image of any band count as RGB."""
    return image.convert("RGB") if isinstance(image, Image.Image) else to_rgb_image(image)


def error_panel(photo: Image.Image, truth: np.ndarray, found: np.ndarray, classes: int) -> Image.Image:
    """The photo in pale gray, with mistakes in red (or blue, see above). `truth` has K where pixels do not count."""
    pale = Image.blend(photo.convert("L").convert("RGB"), Image.new("RGB", photo.size, (255, 255, 255)), PALE)
    canvas = np.array(pale)
    counted = truth < classes
    wrong = counted & (truth != found)
    kinds = ((wrong, WRONG), (wrong & (truth == 1), MISSED)) if classes == 2 else ((wrong, WRONG),)
    for where, color in kinds:
        canvas[where] = color
    canvas[~counted] = IGNORED
    return Image.blend(pale, Image.fromarray(canvas), ERROR_OPACITY)


def class_rows(iou: np.ndarray, labelled: np.ndarray, names: Sequence[str], colors: np.ndarray) -> list[LegendRow]:
    """Rows of the legend for the classes of an image, the most frequent first: IoU in place of a share."""
    order: list[int] = np.argsort(-labelled, kind="stable").tolist()
    order = [k for k in order if not np.isnan(iou[k])][:MOST_CLASSES]
    return [(names[k], tuple(colors[k].tolist()), float(iou[k])) for k in order]


def error_rows(matrix: ConfusionMatrix, counted: np.ndarray, names: Sequence[str]) -> list[LegendRow]:
    """Rows of the legend for what is no class, with their share of the image's pixels."""
    rows: list[LegendRow] = []
    if len(names) == 2:
        (_, false), (missed, _) = matrix.counts.tolist()
        rows += [
            (f"missed {names[1]}", MISSED, missed / counted.size),
            (f"false {names[1]}", WRONG, false / counted.size),
        ]
    if not counted.all():
        rows.append(("not counted", IGNORED, 1 - float(counted.mean())))
    return rows


def score(value: float) -> str:
    """A score in per cent; a dash where there is none."""
    return "-" if np.isnan(value) else percent(value)


@dataclass(frozen=True, eq=False)
class ClassifiedImage:
    """An image, (C, H, W) or a picture, its class, the predicted one, and how probable (0 .. 1) that was."""

    image: torch.Tensor | Image.Image
    truth: int
    prediction: int
    probability: float


def classification_picture(samples: Sequence[ClassifiedImage], names: Sequence[str], columns: int = 6) -> Image.Image:
    """A grid of images, each under its class and the predicted one, which is red where it is wrong."""
    return grid([classified(sample, names) for sample in samples], columns)


def classified(sample: ClassifiedImage, names: Sequence[str]) -> Image.Image:
    """One image in a square of fixed size, under its two classes."""
    photo = as_picture(sample.image)
    scale = THUMBNAIL / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    photo = resize_for_display(photo, (width, height))
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (255, 255, 255))
    square.paste(photo, ((THUMBNAIL - photo.width) // 2, (THUMBNAIL - photo.height) // 2))
    color = RIGHT if sample.prediction == sample.truth else WRONG
    verdict = f"{percent(sample.probability)} {names[sample.prediction]}"
    return captioned(square, names[sample.truth], (verdict, color))


def write_pictures(folder: Path, pictures: Mapping[str, Image.Image]) -> list[Path]:
    """Write pictures as PNG, each whole or not at all, under names that file systems take; return the paths."""
    paths = picture_paths(folder, pictures)
    write_files({path: content.save for path, content in zip(paths, pictures.values(), strict=True)})
    return paths


def picture_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files of pictures with these names."""
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
    """A sample's name without its suffix and without what file systems refuse."""
    plain = re.sub(r"\.\w{1,5}$", "", name)
    return re.sub(r"[^\w.-]+", "_", plain).strip("._")[:LONGEST_STEM] or "sample"
