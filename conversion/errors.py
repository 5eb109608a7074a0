"""The one exception that conversion raises on bad input."""

from collections.abc import Iterable

from hf_vit_seg.errors import HfVitSegError


class ConversionError(HfVitSegError):
    """Says in one sentence what was found, what was expected and how to mend it."""


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """The first names in quotes, and how many more there are."""
    names = list(names)
    listed = ", ".join(f"'{name}'" for name in names[:limit])
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")
