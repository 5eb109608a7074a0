"""Depths of encoders with stages, from the names of their tensors."""

import re
from collections.abc import Mapping

from torch import Tensor


def infer_depths(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Count the layers of each stage in names such as `{prefix}stages.0.layers.1.norm1.weight`.

    Raises:
        KeyError: a layer between others, or a whole stage, is missing.
    """
    pattern = re.compile(re.escape(prefix) + r"stages\.(\d+)\.layers\.(\d+)\.")
    layers: dict[int, set[int]] = {}
    for name in state:
        if match := pattern.match(name):
            layers.setdefault(int(match[1]), set()).add(int(match[2]))
    depths = [len(layers.get(stage, ())) for stage in range(max(len(layers), 1))]
    for stage, depth in enumerate(depths):
        for layer in range(max(depth, 1)):
            if layer not in layers.get(stage, ()):
                raise KeyError(f"{prefix}stages.{stage}.layers.{layer}.norm1.weight")
    return depths
