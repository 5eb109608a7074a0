"""The graphs to export: modules from pixel values to one tensor, or to several for models that find objects.

Shapes: B images, C channels, H W pixels, h w the logits' grid, K classes, k of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import interpolate

CLASSES_TOGETHER = 16  # number of classes that are resized at once
MAX_CLASSES = 255  # limit of a uint8 label map; 255 is reserved for ignored pixels
EXAMPLE_SIDES = (101, 139)  # odd, so that the graph cannot specialize to divisible sizes


@dataclass(frozen=True)
class Geometry:
    """The input shape of a program; `size` (height, width) and `batch` are dynamic if None."""

    channels: int = 3
    size: tuple[int, int] | None = None
    batch: int | None = None

    def example(self, dtype: torch.dtype) -> torch.Tensor:
        """Return example pixel values for tracing."""
        return torch.zeros(self.batch or 2, self.channels, *(self.size or EXAMPLE_SIDES), dtype=dtype)

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """The names of the dynamic axes by number."""
        axes = {} if self.batch else {0: "batch"}
        return axes if self.size else axes | {2: "height", 3: "width"}


class LogitGraph(nn.Module):
    """Pixel values (B, C, H, W) to logits (B, K, h, w)."""

    outputs = ("logits",)

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the model's logits."""
        return self.model(pixel_values).logits


class ObjectGraph(nn.Module):
    """Pixel values (B, C, H, W) to the tensors of a model's output that its objects are computed from."""

    def __init__(self, model: Any, outputs: tuple[str, ...]):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors named by `outputs`."""
        outputs = self.model(pixel_values)
        return tuple(getattr(outputs, name) for name in self.outputs)


class LabelGraph(nn.Module):
    """Pixel values (B, C, H, W) to labels (B, H, W) uint8: the argmax of the bilinearly resized logits.

    Labels have the input's size or `size`. Logits are resized a few classes at a time with a running maximum, so that
    they never exist in full at that size. Ties are broken by the lower class.
    """

    outputs = ("label_map",)

    def __init__(self, model: Any, size: tuple[int, int] | None = None):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the label maps at `size`, or at the size of the pixel values (B, C, H, W)."""
        logits = self.model(pixel_values).logits
        return resize_to_labels(logits.float(), self.size or pixel_values.shape[-2:])


def resize_to_labels(logits: torch.Tensor, size: Any) -> torch.Tensor:
    """Resize logits (B, K, h, w) and compute labels (B, H, W) uint8."""
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
def export_graph(graph: nn.Module, geometry: Geometry, dtype: torch.dtype) -> ExportedProgram:
    """Export the graph with torch.export."""
    axes = dict.fromkeys(geometry.dynamic_axes, Dim.DYNAMIC)
    return torch.export.export(graph, (geometry.example(dtype),), dynamic_shapes={"pixel_values": axes or None})


__all__ = [
    "CLASSES_TOGETHER",
    "MAX_CLASSES",
    "Geometry",
    "LabelGraph",
    "LogitGraph",
    "ObjectGraph",
    "export_graph",
]
