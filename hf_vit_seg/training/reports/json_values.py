"""Convert values of torch and numpy to JSON, which has no NaN and infinity."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = dict[str, "Json"] | list["Json"] | str | float | int | bool | None


def json_value(value: Any) -> Json:
    """Convert tensors, arrays, mappings and sequences to lists and dictionaries; numbers that are not finite to None.

    TypeError for other types.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None  # float() converts numpy's float64
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "tolist"):  # a tensor, an array, or one number of them
        return json_value(value.tolist())
    raise TypeError(f"found {type(value).__name__}, expected numbers, strings, lists or mappings")


def json_line(value: Any) -> str:
    """Format a value as one line of JSON."""
    return json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)
