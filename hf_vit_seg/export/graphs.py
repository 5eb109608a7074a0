"""What is exported: a model in evaluation that takes pixel values and gives one tensor.

Shapes: B images, C channels, H W pixels, h w the logits' grid, K classes, k of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import interpolate

CLASSES_TOGETHER = 16  # how many classes of a label map are resized at a time
MOST_CLASSES = 255  # of a uint8 label map: 255 stays free, for pixels that do not count
EXAMPLE_SIDES = (101, 139)  # odd: a program recorded with them has no place for a size that happens to fit


@dataclass(frozen=True)
class Geometry:
    """Which images a program takes: of any `size` (height, width) and `batch` unless these are given."""

    channels: int = 3
    size: tuple[int, int] | None = None
    batch: int | None = None

    def example(self, dtype: torch.dtype) -> torch.Tensor:
        """Pixel values of a size that the program shall take."""
        return torch.zeros(self.batch or 2, self.channels, *(self.size or EXAMPLE_SIDES), dtype=dtype)

    @property
    def open_axes(self) -> dict[int, str]:
        """The axes that are not fixed, by number, with their names."""
        axes = {} if self.batch else {0: "batch"}
        return axes if self.size else axes | {2: "height", 3: "width"}


class LogitGraph(nn.Module):
    """Pixel values (B, C, H, W) to logits (B, K, h, w)."""

    output = "logits"

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The model's logits."""
        return self.model(pixel_values).logits


class LabelGraph(nn.Module):
    """Pixel values (B, C, H, W) to labels (B, H, W) uint8: the arg-max of the logits, resized bilinearly.

    Labels are of the input's size or of `size`. A few classes at a time are resized, and only the best so far is kept,
    so that the resized logits never exist as a whole. Of exactly tied classes the first wins.
    """

    output = "label_map"

    def __init__(self, model: Any, size: tuple[int, int] | None = None):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The labels."""
        logits = self.model(pixel_values).logits
        return labels_at(logits.float(), self.size or pixel_values.shape[-2:])


def labels_at(logits: torch.Tensor, size: Any) -> torch.Tensor:
    """Labels (B, H, W) uint8 of logits (B, K, h, w) at another size."""
    if logits.shape[1] == 1:
        return (interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0] > 0).to(torch.uint8)
    best = labels = None
    for first in range(0, logits.shape[1], CLASSES_TOGETHER):
        part = logits[:, first : first + CLASSES_TOGETHER]
        planes = interpolate(part, size=size, mode="bilinear", align_corners=False)  # (B, k, H, W)
        value, index = planes.max(1)
        index = index.to(torch.uint8) + first
        if best is None or labels is None:
            best, labels = value, index
            continue
        labels = torch.where(value > best, index, labels)
        best = torch.maximum(best, value)
    assert labels is not None
    return labels


@torch.no_grad()
def recorded(graph: nn.Module, geometry: Geometry, dtype: torch.dtype) -> ExportedProgram:
    """The graph as torch.export records it."""
    axes = dict.fromkeys(geometry.open_axes, Dim.DYNAMIC)
    return torch.export.export(graph, (geometry.example(dtype),), dynamic_shapes={"pixel_values": axes or None})


__all__ = [
    "CLASSES_TOGETHER",
    "MOST_CLASSES",
    "Geometry",
    "LabelGraph",
    "LogitGraph",
    "recorded",
]
