"""Checks of the settings in a preprocessor_config.json, which may come from a stranger."""

from collections.abc import Callable, Mapping
from typing import Any

from .errors import HfVitSegError

MAX_SIDE = 2**14  # of a resized or cropped image
MAX_NUMBER = 1e9  # of means, standard deviations and factors; the minimum is its inverse: float32 stays finite
MIN_SHARE = 0.01  # of the resized image that a crop keeps
MAX_SHOWN = 80  # characters of a value in a message
SIZE_KEYS = ({"height", "width"}, {"shortest_edge"}, {"longest_edge"}, {"shortest_edge", "longest_edge"})


def is_number(value: Any) -> bool:
    """Return whether a value is a number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def is_positive(value: Any) -> bool:
    """Return whether a value can be multiplied and divided by."""
    return is_number(value) and value >= 1 / MAX_NUMBER


def is_side(value: Any) -> bool:
    """Return whether a value is a number of pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE


def is_size(value: Any) -> bool:
    """Return whether a value is a size: a number, a pair, or a mapping of sides."""
    if isinstance(value, Mapping):
        return set(value) in SIZE_KEYS and all(map(is_side, value.values()))
    return is_side(value) or (isinstance(value, list) and len(value) in (1, 2) and all(map(is_side, value)))


def is_crop(value: Any) -> bool:
    """Return whether a value is the size of a crop, which has both sides."""
    return is_size(value) and (not isinstance(value, Mapping) or set(value) == {"height", "width"})


def is_flag(value: Any) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def is_filter(value: Any) -> bool:
    """Return whether a value is a filter that both backends have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3


def is_share(value: Any) -> bool:
    """Return whether a value is the share of an image that a crop keeps."""
    return is_number(value) and MIN_SHARE <= value <= 1


def is_channels(value: Any, is_valid: Callable[[Any], bool] = is_number) -> bool:
    """Return whether a value is a number, or a list with a number for each channel."""
    return is_valid(value) or (isinstance(value, list) and len(value) > 0 and all(map(is_valid, value)))


def is_palette(value: Any) -> bool:
    """Return whether a value is a list of colors."""
    return isinstance(value, list) and all(
        isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color)
        for color in value
    )


def is_index_list(value: Any) -> bool:
    """Return whether a value is a list of class indices."""
    return isinstance(value, list) and all(type(index) is int and index >= 0 for index in value)


# What a setting must be, and its description.
FLAG = (is_flag, "true or false")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_resize": FLAG,
    "size": (is_size, f"a number of pixels up to {MAX_SIDE}, or sides such as {{height: 512, width: 512}}"),
    "resample": (is_filter, "0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)"),
    "size_divisor": (is_side, f"a number of pixels up to {MAX_SIDE}"),
    "do_center_crop": FLAG,
    "crop_size": (is_crop, f"a number of pixels up to {MAX_SIDE}, or {{height: 224, width: 224}}"),
    "crop_pct": (is_share, f"a number from {MIN_SHARE} to 1"),
    "do_rescale": FLAG,
    "rescale_factor": (is_positive, "a positive number such as 1/255"),
    "do_normalize": FLAG,
    "image_mean": (is_channels, "a number for each channel"),
    "image_std": (lambda value: is_channels(value, is_positive), "a positive number for each channel"),
    "do_convert_rgb": FLAG,
    "do_reduce_labels": FLAG,
    "reduce_labels": FLAG,
    "label_ids_to_fuse": (is_index_list, "a list of class indices"),
    "palette": (is_palette, "a list of colors [red, green, blue] of 0 to 255"),
}


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise HfVitSegError for invalid settings of an image processor; null means the default. `where` begins the
    message.
    """
    for name, (is_valid, expected) in CHECKS.items():
        value = settings.get(name)
        if value is not None and not is_valid(value):
            raise HfVitSegError(f"{where}: {name} is {show(value)}, expected {expected}; correct or remove it")
    mean, deviation = settings.get("image_mean"), settings.get("image_std")
    if isinstance(mean, list) and isinstance(deviation, list) and len(mean) != len(deviation):
        raise HfVitSegError(
            f"{where}: image_mean has {len(mean)} channels and image_std {len(deviation)}, expected as many; correct "
            "them"
        )


def show(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


__all__ = ["CHECKS", "MIN_SHARE", "check_settings", "is_share", "is_side"]
