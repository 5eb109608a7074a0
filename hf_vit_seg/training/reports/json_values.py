"""Numbers of torch and numpy as JSON has them, where NaN and infinity do not exist."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = dict[str, "Json"] | list["Json"] | str | float | int | bool | None


def json_value(value: Any) -> Json:
    """Tensors, arrays, mappings and sequences as lists and dictionaries; a number that is not finite becomes None.

    TypeError for anything that JSON has no word for.
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
        return float(value) if math.isfinite(value) else None  # float(): numpy's float64 is a float too
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "tolist"):  # a tensor, an array, or one number of them
        return json_value(value.tolist())
    raise TypeError(f"{type(value).__name__} has no form in JSON: give numbers, text, lists or mappings")


def json_line(value: Any) -> str:
    """A value on one line."""
    return json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)
