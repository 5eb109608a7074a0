"""Formatting of lists in messages."""

from collections.abc import Iterable


def format_list(values: Iterable[object], limit: int = 3) -> str:
    """Format the first `limit` values and a count of the rest; consecutive integers as `first .. last`."""
    values = list(values)
    numbers = [value for value in values if isinstance(value, int)]
    if len(values) > 2 and numbers == values and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} .. {numbers[-1]}"
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + more


__all__ = ["format_list"]
