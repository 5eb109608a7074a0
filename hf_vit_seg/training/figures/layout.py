"""How pictures and words are put together on one sheet. Lengths are pixels."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from hf_vit_seg.drawing.overlays import FAINT, INK, PAPER, LegendRow, draw_line, legend_lines

EM = 16  # size of letters
SPACE = 10  # between pictures
LINE = round(EM * 1.6)

Color = tuple[int, int, int]
Words = tuple[str, Color]


def captioned(picture: Image.Image, *lines: str | Words) -> Image.Image:
    """A picture under lines of text, each in a color of its own or black; what is too long for it is cut."""
    font = ImageFont.load_default(EM)
    sheet = Image.new("RGB", (picture.width, picture.height + LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        text, color = (line, INK) if isinstance(line, str) else line
        draw.text((0, LINE * (i + 0.5)), fitting(text, picture.width, font), fill=color, font=font, anchor="lm")
    sheet.paste(picture, (0, LINE * len(lines)))
    return sheet


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a text as there is room for."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures row by row on white, in cells of the largest one's size."""
    if not pictures:
        raise ValueError("a grid has one picture or more")
    columns = min(columns, len(pictures))
    width, height = (max(picture.size[axis] for picture in pictures) + SPACE for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width + SPACE, rows * height + SPACE), PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (SPACE + i % columns * width, SPACE + i // columns * height))
    return sheet


def legend_below(picture: Image.Image, rows: Sequence[LegendRow], heading: str = "") -> Image.Image:
    """A picture with a legend below it, in as many columns as its width has room for."""
    font = ImageFont.load_default(EM)
    lines = legend_lines(rows)
    if not lines:
        return picture
    name = max(font.getlength(text) for text, _, _ in lines)
    column = round(EM * 4 + name + font.getlength("100.0 %"))
    columns = max(1, (picture.width - SPACE) // column)
    deep = -(-len(lines) // columns)
    top = picture.height + (LINE if heading else 0)
    sheet = Image.new("RGB", (max(picture.width, SPACE + column), top + deep * LINE + SPACE), PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((SPACE, top - LINE / 2), heading, fill=FAINT, font=font, anchor="lm")
    for i, line in enumerate(lines):
        corner = (SPACE + i // deep * column, top + i % deep * LINE)
        draw_line(draw, corner, line, EM, column - 2 * EM, font)
    return sheet
