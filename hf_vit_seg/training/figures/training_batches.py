"""A mosaic of a training batch as the model sees it: transformed images with their labels.

Shapes: B images, C channels, H W pixels, K classes or keypoints.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.drawing.object_overlays import draw_numbers
from hf_vit_seg.drawing.overlays import LegendRow, draw_overlay, nearest_labels, percent, resize_for_display
from hf_vit_seg.drawing.skeletons import Skeleton, draw_skeletons
from hf_vit_seg.training.losses.objectives import Batch
from hf_vit_seg.training.recipe.schema import Task

from .contact_sheet import palette
from .layout import add_caption, center_on_square, fit_size, grid, legend_below

SIDE = 240  # longest side of an image
PAIRS = 4  # images with their label maps in a row
COLUMNS: dict[Task, int] = {
    "segmentation": PAIRS,
    "instance": PAIRS,
    "panoptic": PAIRS,
    "classification": 6,
    "pose": 6,
}
MAX_SAMPLES = 16
MAX_NAMES = 3  # classes in a caption
MIN_SHARE = 0.01  # minimum fraction of a class in mixed labels
WHITE = 255.0

Cell = Callable[[Image.Image, torch.Tensor, ClassTable], Image.Image]


def training_batch_figure(
    batch: Batch, task: Task, table: ClassTable, processor: BaseImageProcessor, title: str = ""
) -> Image.Image:
    """Draw up to 16 images of a batch with their labels; for segmentation with a legend of the classes."""
    labels, pixels = image_labels(batch), batch["pixel_values"].detach().float().cpu()
    images = [as_image(image, processor) for image in pixels[:MAX_SAMPLES]]
    cells = [CELLS[task](image, label, table) for image, label in zip(images, labels, strict=False)]
    sheet = grid(cells, COLUMNS[task])
    sheet = add_caption(sheet, f"  {title}") if title else sheet
    if task != "segmentation":
        return sheet
    return legend_below(sheet, class_rows(torch.stack(labels[:MAX_SAMPLES]), table), "share of all pixels")


def image_labels(batch: Batch) -> list[torch.Tensor]:
    """Return the labels of each image; for segments their numbers (H, W), 0 for none and -1 for ignored pixels."""
    if "mask_labels" not in batch:
        return list(batch["labels"].detach().cpu())
    size = batch["pixel_values"].shape[-2:]
    maps = [torch.zeros(size, dtype=torch.int64) for _ in batch["mask_labels"]]
    for numbers, masks in zip(maps, batch["mask_labels"], strict=True):
        for number, mask in enumerate(masks.detach().cpu(), start=1):
            numbers[mask.bool()] = number
    for numbers, ignored in zip(maps, batch.get("ignore_mask", ()), strict=False):
        numbers[ignored.detach().cpu()] = -1
    return maps


def as_image(pixels: torch.Tensor, processor: Any) -> Image.Image:
    """Undo the normalization of an image processor (C, H, W); values that are not 8-bit are stretched."""
    if getattr(processor, "do_normalize", True):
        mean, std = (torch.tensor(list(each)).view(-1, 1, 1) for each in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    white = 1 / processor.rescale_factor if getattr(processor, "do_rescale", True) else WHITE
    values = pixels * white
    in_range = float(values.min()) >= -1 and float(values.max()) <= WHITE + 1
    return to_rgb_image(values.round().clamp(0, WHITE).to(torch.uint8) if in_range else values)


def fit(image: Image.Image) -> Image.Image:
    """Resize an image so that its longest side is that of a cell."""
    return resize_for_display(image, fit_size(image.size, SIDE))


def as_indices(labels: torch.Tensor, table: ClassTable) -> np.ndarray:
    """Return class indices, with K for ignored pixels."""
    return torch.where(labels == table.ignore_index, len(table.names), labels).numpy()


def segmentation_cell(image: Image.Image, labels: torch.Tensor, table: ClassTable) -> Image.Image:
    """Draw an image next to its overlay with the label map (H, W)."""
    photo = fit(image)
    shown = nearest_labels(as_indices(labels, table), photo.size)
    return grid([photo, draw_overlay(photo, shown, palette(table), [], longest_side=None)], 2)


def class_rows(labels: torch.Tensor, table: ClassTable) -> list[LegendRow]:
    """Return legend rows with the share of each class in labels (B, H, W), the most frequent first."""
    names, colors = [*table.names, "ignored"], palette(table)
    shares = np.bincount(as_indices(labels, table).ravel(), minlength=len(names)) / max(labels.numel(), 1)
    order: list[int] = np.argsort(-shares, kind="stable").tolist()
    return [(names[k], tuple(colors[k].tolist()), float(shares[k])) for k in order if shares[k]]


def classification_cell(image: Image.Image, label: torch.Tensor, table: ClassTable) -> Image.Image:
    """Draw an image with its class, or with the classes and shares (K,) of a mixed label."""
    if label.ndim == 0:
        text = table.names[int(label)]
    else:
        present = [k for k in label.argsort(descending=True).tolist() if label[k] >= MIN_SHARE]
        whole = all(float(label[k]) == 1 for k in present)
        texts = [table.names[k] if whole else f"{table.names[k]} {percent(float(label[k]))}" for k in present]
        text = format_list(texts, MAX_NAMES)
    return add_caption(center_on_square(image, SIDE), text or "no class")


def pose_cell(image: Image.Image, label: torch.Tensor, table: ClassTable) -> Image.Image:
    """Draw a person's crop with its keypoints (K, 3) in pixels of the crop."""
    photo = fit(image)
    scale = (photo.width / image.width, photo.height / image.height)
    points = label.numpy().astype(float)[None]
    return draw_skeletons(photo, points, points[..., 2] > 0, scale, Skeleton.of(table.names))


def segments_cell(image: Image.Image, numbers: torch.Tensor, table: ClassTable) -> Image.Image:
    """Draw an image next to its objects, each in a different color."""
    photo = fit(image)
    return grid([photo, draw_numbers(photo, nearest_labels(numbers.numpy(), photo.size), longest_side=None)], 2)


CELLS: dict[Task, Cell] = {
    "segmentation": segmentation_cell,
    "instance": segments_cell,
    "panoptic": segments_cell,
    "classification": classification_cell,
    "pose": pose_cell,
}

__all__ = ["training_batch_figure"]
