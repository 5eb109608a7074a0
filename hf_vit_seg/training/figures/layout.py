"""Layout of images, captions and legends. Lengths are pixels."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from hf_vit_seg.drawing.fonts import Font, load_font
from hf_vit_seg.drawing.overlays import FAINT, INK, PAPER, LegendRow, draw_line, legend_lines, resize_for_display

EM = 16  # font size
SPACE = 10  # between images
LINE = round(EM * 1.6)

Color = tuple[int, int, int]
ColoredText = tuple[str, Color]


def add_caption(image: Image.Image, *lines: str | ColoredText) -> Image.Image:
    """Add lines of text above an image, black or in a given color; text that does not fit is truncated."""
    font = load_font(EM, (line if isinstance(line, str) else line[0] for line in lines))
    sheet = Image.new("RGB", (image.width, image.height + LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        text, color = (line, INK) if isinstance(line, str) else line
        draw.text((0, LINE * (i + 0.5)), truncate_text(text, image.width, font), fill=color, font=font, anchor="lm")
    sheet.paste(image, (0, LINE * len(lines)))
    return sheet


def truncate_text(text: str, width: int, font: Font) -> str:
    """Truncate a text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def fit_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the largest (width, height) with the same aspect ratio in a square."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def center_on_square(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to the largest size that fits into a square, and paste it into the middle of a white one."""
    shown = resize_for_display(image, fit_size(image.size, side))
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(shown, ((side - shown.width) // 2, (side - shown.height) // 2))
    return square


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange images row by row on white, in cells of the largest size."""
    if not images:
        raise ValueError("found no images, expected one or more")
    columns = min(columns, len(images))
    width, height = (max(image.size[axis] for image in images) + SPACE for axis in (0, 1))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width + SPACE, rows * height + SPACE), PAPER)
    for i, image in enumerate(images):
        sheet.paste(image, (SPACE + i % columns * width, SPACE + i // columns * height))
    return sheet


def legend_below(image: Image.Image, rows: Sequence[LegendRow], heading: str = "") -> Image.Image:
    """Add a legend below an image, in as many columns as fit."""
    lines = legend_lines(rows)
    font = load_font(EM, [heading, *(text for text, _, _ in lines)])
    if not lines:
        return image
    name = max(font.getlength(text) for text, _, _ in lines)
    column = round(EM * 4 + name + font.getlength("100.0 %"))
    columns = max(1, (image.width - SPACE) // column)
    deep = -(-len(lines) // columns)
    top = image.height + (LINE if heading else 0)
    sheet = Image.new("RGB", (max(image.width, SPACE + column), top + deep * LINE + SPACE), PAPER)
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((SPACE, top - LINE / 2), heading, fill=FAINT, font=font, anchor="lm")
    for i, line in enumerate(lines):
        corner = (SPACE + i // deep * column, top + i % deep * LINE)
        draw_line(sheet, corner, line, EM, column - 2 * EM, font)
    return sheet
