"""Overlays of label maps: the image under translucent class colors, with a legend to the right or below.

Shapes: H W pixels, K classes. Lengths are pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, ImageDraw

from hf_vit_seg.errors import HfVitSegError

from .fonts import Font, load_font

LegendRow = tuple[str, tuple[int, int, int], float]  # name, color, share in 0 .. 1

MIN_SIDE = 384  # smaller images are enlarged by an integer factor if they get a legend
MAX_NAME_LENGTH = 28
MAX_ROWS = 40
PAPER, INK, FAINT = (255, 255, 255), (25, 25, 25), (120, 120, 120)


def draw_overlay(
    image: Image.Image,
    label_map: np.ndarray,
    palette: np.ndarray,
    rows: Sequence[LegendRow],
    opacity: float = 0.5,
    longest_side: int | None = 1600,
) -> Image.Image:
    """Blend an image with the class colors, with opaque lines between classes.

    `label_map` (H, W) indexes `palette` (K, 3). The image is reduced to `longest_side`; None keeps its size. `rows`
    add a legend on the right, or in columns below if it is taller than the image; tiny images are then enlarged.
    """
    if not 0 <= opacity <= 1:
        raise HfVitSegError(f"opacity must be between 0 (image only) and 1 (colors only), got {opacity}")
    sides = display_size(image.size, longest_side, enlarge=bool(rows))
    picture = resize_for_display(image, sides)
    labels = nearest_labels(label_map, sides)
    colors = color_labels(labels, palette)
    picture = Image.blend(picture, colors, opacity)
    if opacity > 0:
        picture.paste(colors, mask=Image.fromarray(boundary_mask(labels)))
    return add_legend(picture, rows) if rows else picture


def save_overlay(picture: Image.Image, path: Path) -> None:
    """Save an RGB picture as PNG: as small as by PIL's defaults on photos, in a seventh of the time.

    Matches are not worth their search in photos: runs of the filter's residuals compress as well.
    """
    png: Any = imagecodecs.PNG
    pixels = np.asarray(picture)
    path.write_bytes(imagecodecs.png_encode(pixels, level=1, strategy=png.STRATEGY.RLE, filter=png.FILTER.PAETH))


def display_size(size: tuple[int, int], longest_side: int | None, enlarge: bool) -> tuple[int, int]:
    """Return the (width, height) of the image in the figure."""
    longest = max(size)
    if longest_side is not None and longest > longest_side:
        width, height = (max(1, round(side * longest_side / longest)) for side in size)
        return width, height
    factor = -(-MIN_SIDE // longest) if enlarge and longest < MIN_SIDE else 1
    return size[0] * factor, size[1] * factor


def resize_for_display(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to (width, height): bilinear when reduced, nearest when enlarged."""
    if image.size == size:
        return image
    smaller = size[0] < image.width or size[1] < image.height
    if not smaller:
        return image.resize(size, Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def nearest_labels(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map (H, W) to `size` (width, height) by nearest-exact sampling."""
    height, width = label_map.shape
    if (width, height) == size:
        return label_map
    columns, rows = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(size, (width, height), strict=True))
    return label_map[rows[:, None], columns]


def color_labels(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Return the colors (K, 3) of labels (H, W); PIL maps labels of 8 bits in half the time of numpy."""
    if labels.dtype != np.uint8 or len(palette) > 256:
        return Image.fromarray(np.take(palette, labels, axis=0))
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    return picture.convert("RGB")


def boundary_mask(labels: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) uint8, 255 where the right or lower neighbor has another class, else 0."""
    mask = np.zeros(labels.shape, dtype=bool)
    mask[:, :-1] = labels[:, :-1] != labels[:, 1:]
    mask[:-1] |= labels[:-1] != labels[1:]
    return mask.astype(np.uint8) * 255


def add_legend(picture: Image.Image, rows: Sequence[LegendRow]) -> Image.Image:
    """Add a legend on the right if it is not taller than the image, else in columns below."""
    em = max(14, max(picture.size) // 48)
    lines = legend_lines(rows)
    font = load_font(em, (text for text, _, _ in lines))
    line = round(em * 1.6)
    name = round(max(font.getlength(text) for text, _, _ in lines))
    column = round(em * 1.6) + name + em + round(font.getlength("100.0 %")) + em
    legend_at_right = len(lines) * line + em <= picture.height
    columns = 1 if legend_at_right else max(1, picture.width // column)
    deep = -(-len(lines) // columns)
    panel = (columns * column + em, deep * line + em)
    size = (
        (picture.width + panel[0], picture.height)
        if legend_at_right
        else (max(picture.width, panel[0]), picture.height + panel[1])
    )
    canvas = Image.new("RGB", size, PAPER)
    canvas.paste(picture, (0, 0))
    x, y = (picture.width, 0) if legend_at_right else (0, picture.height)
    for i, entry in enumerate(lines):
        corner = (x + em + i // deep * column, y + em // 2 + i % deep * line)
        draw_line(canvas, corner, entry, em, column - em, font)
    return canvas


def legend_lines(rows: Sequence[LegendRow]) -> list[tuple[str, tuple[int, int, int] | None, float]]:
    """Return the legend's lines, with long names truncated; from MAX_ROWS on, the last classes are merged into one
    line.
    """
    lines: list[tuple[str, tuple[int, int, int] | None, float]] = [
        (name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…", color, share)
        for name, color, share in rows
    ]
    if len(lines) > MAX_ROWS:
        rest = lines[MAX_ROWS - 1 :]
        lines[MAX_ROWS - 1 :] = [(f"{len(rest)} more", None, sum(share for _, _, share in rest))]
    return lines


def draw_line(
    canvas: Image.Image,
    corner: tuple[int, int],
    entry: tuple[str, tuple[int, int, int] | None, float],
    em: int,
    width: int,
    font: Font,
) -> None:
    """Draw one line of the legend: swatch, name and right-aligned share."""
    (x, y), (text, color, share) = corner, entry
    if color is not None:
        ImageDraw.Draw(canvas).rectangle((x, y + em * 0.2, x + em, y + em * 1.2), fill=color, outline=INK)
    paste_text(canvas, (x + round(em * 1.6), y), em * 0.7, text, INK, font, "lm")
    paste_text(canvas, (x + width, y), em * 0.7, percent(share), FAINT, font, "rm")


def paste_text(
    canvas: Image.Image,
    corner: tuple[int, int],
    down: float,
    text: str,
    color: tuple[int, int, int],
    font: Font,
    anchor: str,
) -> None:
    """Draw text as ImageDraw.text does at (x, y + down), with a mask that is rendered once."""
    mask, (left, top) = text_mask(text, font, anchor, down)
    canvas.paste(color, (corner[0] + left, corner[1] + top), mask)


@lru_cache(maxsize=2048)  # rendering takes most of the time of an overlay, and legends repeat names and shares
def text_mask(text: str, font: Font, anchor: str, down: float) -> tuple[Image.Image, tuple[int, int]]:
    """Return the coverage of text as a gray image, and the offset of its corner from the anchor, moved by `down`."""
    left, top, right, bottom = font.getbbox(text, anchor=anchor)
    left, top = floor(left) - 1, floor(top) - 1
    mask = Image.new("L", (ceil(right) - left + 2, ceil(bottom) - top + 2 + ceil(down)))
    ImageDraw.Draw(mask).text((-left, down - top), text, fill=255, font=font, anchor=anchor)
    return mask, (left, top)


def percent(share: float) -> str:
    """Format a share in 0 .. 1 as a percentage with one decimal; a positive share is never shown as zero."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"
