"""Numbers and names in messages."""

from collections.abc import Iterable


def listed(values: Iterable[object], most: int = 3) -> str:
    """Values in words: the first `most` and a count of the others; whole numbers in a row by their ends."""
    values = list(values)
    numbers = [value for value in values if isinstance(value, int)]
    if len(values) > 2 and numbers == values and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} .. {numbers[-1]}"
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


__all__ = ["listed"]
