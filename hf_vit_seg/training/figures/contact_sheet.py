"""A contact sheet of a split: images with mask overlays (or their class, or keypoints), and a legend.

Shapes: C channels, H W pixels, K classes or keypoints. Lengths are pixels.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageOps

from hf_vit_seg.data.checks.report import SplitFacts
from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.labels.segment_classes import apply_classes
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import Labels, Person, RawSample, RawSegments
from hf_vit_seg.drawing.object_overlays import draw_numbers
from hf_vit_seg.drawing.overlays import FAINT, PAPER, LegendRow, draw_overlay, nearest_labels, resize_for_display
from hf_vit_seg.drawing.palettes import class_palette
from hf_vit_seg.drawing.skeletons import Skeleton, draw_skeletons
from hf_vit_seg.errors import HfVitSegError

from .layout import Color, add_caption, fit_size, grid, legend_below
from .sample_figures import IGNORED
from .segment_figures import count_objects, segment_colors

MAX_SAMPLES = 24  # samples
WIDTH = 1600  # width of the sheet in pixels
SIDE = 196  # the largest width and height of an image
FINER = 2  # factor of supersampling, for smooth class borders
OPACITY = 0.55
STRIPE = 8  # width of the stripes on ignored pixels
LIGHT: Color = (220, 220, 220)
UNKNOWN: Color = (255, 0, 255)
MARGIN = 0.25  # around a person, as a share of the box


def contact_sheet(part: SplitFacts, max_samples: int = MAX_SAMPLES) -> Image.Image:
    """Draw up to `max_samples` samples of a split, with every class and unknown values, and the shares of the classes.

    ValueError if no sample can be read.
    """
    chosen = select_samples(part, max_samples)
    if not chosen:
        raise HfVitSegError(f"{part.split}: no sample can be read")
    thumbnail = THUMBNAILS[part.dataset.task]
    cells = [thumbnail(part, part.dataset.raw(index)) for index in chosen]
    count = len(part.facts)
    shown = "all" if len(chosen) == count else f"{len(chosen)} of"
    sheet = grid(cells, max(1, WIDTH // max(cell.width for cell in cells)))
    sheet = add_caption(sheet, f"  {part.split}: {shown} {count} samples")
    return legend_below(sheet, legend(part), "share of all pixels") if part.dataset.task == "segmentation" else sheet


def select_samples(part: SplitFacts, max_samples: int) -> list[int]:
    """Return sorted indices: for each class, from the rarest, the sample with most of it; the rest evenly spaced."""
    usable = [index for index, facts in enumerate(part.facts) if facts.fault is None]
    if len(usable) <= max_samples:
        return usable
    kinds = [*part.unknown.values(), *sorted(part.classes, key=lambda occurrence: len(occurrence.samples))]
    chosen: dict[int, None] = {}
    for occurrence in kinds[:max_samples]:
        if occurrence.samples and chosen.keys().isdisjoint(occurrence.samples):
            chosen[occurrence.top_sample] = None
    for index in range(max_samples):
        if len(chosen) < max_samples:
            chosen[usable[index * len(usable) // max_samples]] = None
    return sorted(chosen)


def segmentation_thumbnail(part: SplitFacts, sample: RawSample) -> Image.Image:
    """Draw the image, and next to it the mask over the image in gray.

    Ignored pixels are striped, and pixels with unknown values are magenta.
    """
    assert isinstance(sample.target, torch.Tensor)
    photo = to_rgb_image(sample.image)
    size = fit_size(photo.size, SIDE)
    labels = nearest_labels(class_indices(part.table, sample.target), (FINER * size[0], FINER * size[1]))
    labels = add_stripes(labels, part)
    gray = ImageOps.autocontrast(photo.convert("L"), cutoff=1).convert("RGB")
    gray = resize_for_display(gray, (FINER * size[0], FINER * size[1]))
    overlay = draw_overlay(gray, labels, palette(part.table), (), OPACITY, longest_side=None).reduce(FINER)
    pair = Image.new("RGB", (2 * size[0] + 2, size[1]), PAPER)
    pair.paste(resize_for_display(photo, size), (0, 0))
    pair.paste(overlay, (size[0] + 2, 0))
    height, width = sample.image.shape[1:]
    return add_caption(pair, sample.name, (f"{height} x {width}", FAINT))


def add_stripes(labels: np.ndarray, part: SplitFacts) -> np.ndarray:
    """Mark ignored pixels by stripes of K and K + 2."""
    count = len(part.table.names)
    rows, columns = np.indices(labels.shape)
    return np.where((labels == count) & ((rows + columns) // STRIPE % 2 > 0), count + 2, labels)


def class_indices(table: ClassTable, raw: torch.Tensor) -> np.ndarray:
    """Return class indices (H, W), with K for ignored pixels and K + 1 for unknown values."""
    count = len(table.names)
    classes = replace(table, unknown_values="ignore").apply(raw)
    classes[classes == table.ignore_index] = count
    for value in table.unknown(raw):
        same = raw == torch.tensor(value).view(-1, 1, 1)
        classes[same.all(dim=0) if raw.ndim == 3 else same[0]] = count + 1
    return classes.numpy()


def palette(table: ClassTable) -> np.ndarray:
    """Return the colors (K + 3, 3) of classes, ignored pixels, unknown values, and stripes."""
    classes = class_palette(table.palette, len(table.names))
    return np.concatenate([classes, np.array([IGNORED, UNKNOWN, LIGHT], dtype=np.uint8)])


def classification_thumbnail(part: SplitFacts, sample: RawSample) -> Image.Image:
    """Draw an image with its classes as the title."""
    target = sample.target
    raws = target.indices if isinstance(target, Labels) else [target] if isinstance(target, int) else []
    title = format_list(map(part.class_name, raws), 3) or "no class"
    photo = to_rgb_image(sample.image)
    side = SIDE // 2 if max(photo.size) < SIDE // 2 else SIDE
    shown = resize_for_display(photo, fit_size(photo.size, side))
    return add_caption(on_square(shown, side), title, (sample.name, FAINT))


def on_square(photo: Image.Image, side: int) -> Image.Image:
    """Paste an image into the upper left corner of a white square, so that there is room for the title."""
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(photo, (0, 0))
    return square


def pose_thumbnail(part: SplitFacts, sample: RawSample) -> Image.Image:
    """Draw a person with keypoints, cropped from the image."""
    assert isinstance(sample.target, Person)
    x, y, width, height = sample.target.box
    rows, columns = sample.image.shape[1:]
    left, top = max(0, int(x - MARGIN * width)), max(0, int(y - MARGIN * height))
    right, bottom = min(columns, int(x + width * (1 + MARGIN)) + 1), min(rows, int(y + height * (1 + MARGIN)) + 1)
    photo = to_rgb_image(sample.image).crop((left, top, right, bottom))
    size = fit_size(photo.size, SIDE)
    scale = (size[0] / photo.width, size[1] / photo.height)
    points = sample.target.keypoints.numpy().astype(float)[None] - (left, top, 0)
    skeleton = Skeleton.of(part.table.names, getattr(part.dataset.source, "bones", None))
    drawn = draw_skeletons(resize_for_display(photo, size), points, points[..., 2] > 0, scale, skeleton)
    return add_caption(on_square(drawn, SIDE), sample.name, (f"{int((points[..., 2] > 0).sum())} keypoints", FAINT))


def legend(part: SplitFacts) -> list[LegendRow]:
    """Return each class with its color and its share of all pixels."""
    counts = [*(o.count for o in part.classes), part.ignored_count, sum(o.count for o in part.unknown.values())]
    names, colors = [*part.table.names, "not counted (striped)", "unknown"], palette(part.table)[:-1].tolist()
    total, classes = max(1, sum(counts)), len(part.table.names)
    return [
        (name, (red, green, blue), count / total)
        for i, (name, (red, green, blue), count) in enumerate(zip(names, colors, counts, strict=True))
        if i < classes or count
    ]


def segment_thumbnail(part: SplitFacts, sample: RawSample) -> Image.Image:
    """Draw the image, and next to it its segments over the image in gray, each object in its own color.

    Stuff has the color of its class. Ignored pixels are gray.
    """
    raw, table = sample.target, replace(part.table, unknown_values="ignore")
    assert isinstance(raw, RawSegments)
    segments = apply_classes(raw, table, part.dataset.task, sample.unlabeled)
    photo = to_rgb_image(sample.image)
    size = fit_size(photo.size, SIDE)
    gray = ImageOps.autocontrast(photo.convert("L"), cutoff=1).convert("RGB")
    large = (FINER * size[0], FINER * size[1])
    colors = segment_colors(segments.classes, table.stuff, class_palette(table.palette, len(table.names)))
    numbers = segments.ids.numpy().astype(np.int64)
    drawn = draw_numbers(resize_for_display(gray, large), numbers, colors, OPACITY, None).reduce(FINER)
    pair = Image.new("RGB", (2 * size[0] + 2, size[1]), PAPER)
    pair.paste(resize_for_display(photo, size), (0, 0))
    pair.paste(drawn, (size[0] + 2, 0))
    return add_caption(pair, sample.name, (count_objects(segments.classes, table.stuff), FAINT))


THUMBNAILS: dict[str, Callable[[SplitFacts, RawSample], Image.Image]] = {
    "segmentation": segmentation_thumbnail,
    "classification": classification_thumbnail,
    "pose": pose_thumbnail,
    "instance": segment_thumbnail,
    "panoptic": segment_thumbnail,
}

__all__ = ["contact_sheet"]
