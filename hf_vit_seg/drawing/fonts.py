"""Fonts that have the characters of class and file names: Pillow's own, matplotlib's, or an installed one."""

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

ELLIPSIS = "…"  # Pillow's font has it, but no other character beyond ASCII
INSTALL = "install one that has them, such as fonts-noto-cjk"
logger = logging.getLogger(__name__)


def load_font(size: float, texts: Iterable[str]) -> Font:
    """Load a font that has the characters of all texts, or the most of them."""
    needed = beyond_ascii(texts)
    return open_font(size, (find_font(needed) or dejavu()) if needed else None)


@lru_cache(maxsize=64)
def open_font(size: float, path: Path | None) -> Font:
    """Open a font file; None is Pillow's own font."""
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def fallback_families(texts: Iterable[str]) -> list[str]:
    """Return the font families for matplotlib, in order: it takes each character from the first family that has it."""
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    font = find_font(beyond_ascii(texts))
    if font is not None and font != dejavu():
        font_manager.fontManager.addfont(font)
        families.append(font_manager.FontProperties(fname=font).get_name())
    return families


def beyond_ascii(texts: Iterable[str]) -> frozenset[str]:
    """Return the characters that Pillow's own font lacks."""
    return frozenset(c for text in texts for c in text if not c.isascii() and c != ELLIPSIS and c.isprintable())


@lru_cache(maxsize=64)
def find_font(needed: frozenset[str]) -> Path | None:
    """Find the font with the most of the characters, DejaVu Sans first; None if there are no characters."""
    codes = {ord(character) for character in needed}
    if not codes or codes <= supported_characters(dejavu()):
        return dejavu() if codes else None
    best = dejavu()
    for path in installed_fonts():
        if len(codes & supported_characters(path)) > len(codes & supported_characters(best)):
            best = path
    if missing := codes - supported_characters(best):
        shown = "".join(map(chr, sorted(missing)[:10]))
        logger.warning("no font has the characters %s, which figures show as boxes: %s", shown, INSTALL)
    return best


def dejavu() -> Path:
    """Return the font that matplotlib ships: Latin, Greek, Cyrillic, Hebrew, Arabic, symbols."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def installed_fonts() -> list[Path]:
    """Return the fonts of the system, regular ones first."""
    from matplotlib import font_manager

    paths = sorted(map(Path, font_manager.findSystemFonts()))
    return sorted(paths, key=lambda path: "regular" not in path.stem.lower())


@lru_cache(maxsize=1024)
def supported_characters(path: Path) -> frozenset[int]:
    """Return the code points that a scalable font has; none for fonts that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        face: Any = FT2Font(str(path))
        return frozenset(face.get_charmap()) if face.scalable else frozenset()
    except (RuntimeError, OSError, ValueError):
        return frozenset()


__all__ = ["Font", "fallback_families", "load_font"]
