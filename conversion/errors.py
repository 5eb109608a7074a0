"""The exceptions of the conversion package."""

from collections.abc import Iterable

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import shorten


class ConversionError(HfVitSegError):
    """A checkpoint or option that cannot be converted; the message has the found and the expected value."""


class UnsupportedCheckpoint(ConversionError):
    """A valid checkpoint that none of the sources describes; transformers may have a class for it."""


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names in quotes, each shortened to 80 characters, followed by the number of further names."""
    names = list(names)
    listed = ", ".join(quote(name) for name in names[:limit])
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")


def quote(name: str) -> str:
    """Quote a name on one line; names with line breaks, half surrogate pairs or quotes are escaped."""
    return f"'{name}'" if name.isprintable() and len(name) < 80 else shorten(name)
