"""Characters of class names that not every font has."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from hf_vit_seg.drawing import fonts
from hf_vit_seg.drawing.fonts import dejavu, fallback_families, find_font, load_font, supported_characters
from hf_vit_seg.drawing.overlays import add_legend
from hf_vit_seg.training.figures.layout import add_caption, legend_below
from hf_vit_seg.training.figures.style import new_figure, set_font_families, style_axes

CJK = "細胞核"
EM = 20


def build_font(path: Path, characters: str) -> Path:
    """A font in which each character is a square of the whole em, and the missing glyph is empty."""
    pen = TTGlyphPen(None)
    corners = [(0, 0), (0, 1000), (1000, 1000), (1000, 0)]
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", "square"]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict.fromkeys(map(ord, characters), "square"))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": f"Squares {path.stem}", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Iterator[Path]:
    """The only fonts of the system are one with CJK characters, one with a single one, and a broken one."""
    paths = [build_font(tmp_path / "few.ttf", CJK[0]), build_font(tmp_path / "squares.ttf", CJK + "ab")]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), *map(str, paths)])
    find_font.cache_clear()
    yield paths[1]
    find_font.cache_clear()


def ink(font, text: str) -> int:
    image = Image.new("L", (EM * 10, EM * 2))
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=font)
    return int((np.asarray(image) > 128).sum())


def test_ascii_has_the_usual_font(installed):
    assert load_font(EM, ["cell", "a…"]).getname() == fonts.ImageFont.load_default(EM).getname()
    assert fallback_families(["cell"]) == ["DejaVu Sans"]


@pytest.mark.parametrize("text", ["é", "Straße", "ядро", "πυρήνας"])
def test_european_letters_have_matplotlibs_font(installed, text):
    font = load_font(EM, [text])
    assert font.getname()[0] == "DejaVu Sans"
    assert {ord(character) for character in text} <= supported_characters(dejavu())
    assert fallback_families([text]) == ["DejaVu Sans"]


def test_installed_font_with_most_characters_is_found(installed):
    assert find_font(frozenset(CJK)) == installed
    assert ink(load_font(EM, ["cell", CJK]), CJK) == 3 * EM * EM
    assert fallback_families([CJK]) == ["DejaVu Sans", "Squares squares"]


def test_legends_and_captions_have_the_found_font(installed):
    picture = Image.new("RGB", (300, 200), "white")
    rows = [(CJK, (255, 0, 0), 0.5)]
    for draw in (
        lambda: add_legend(picture, rows),
        lambda: legend_below(picture, rows),
        lambda: add_caption(picture, CJK),
    ):
        drawn = np.asarray(draw()).astype(int).sum(axis=2)
        assert (drawn < 200).sum() > 2 * 14 * 14  # squares of ink


def test_plots_have_the_found_font(installed):
    figure = new_figure(4, 3, CJK)
    axes = style_axes(figure.add_subplot(), "scores")
    axes.set_yticks([0, 1], [CJK, "cell"])
    set_font_families(figure)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int).sum(axis=2)
    assert (drawn < 300).sum() > 3 * 25 * 25  # the title in 12 points at 150 dpi


def test_missing_characters_are_logged_once(installed, caplog):
    for _ in range(2):
        load_font(EM, ["ሀ"])
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "ሀ" in caplog.text
