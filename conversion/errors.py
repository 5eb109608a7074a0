"""The exception of the conversion package."""

from collections.abc import Iterable

from hf_vit_seg.errors import HfVitSegError


class ConversionError(HfVitSegError):
    """A checkpoint or option that cannot be converted; the message says what was found and expected."""


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names in quotes, followed by the number of further names."""
    names = list(names)
    listed = ", ".join(f"'{name}'" for name in names[:limit])
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")
