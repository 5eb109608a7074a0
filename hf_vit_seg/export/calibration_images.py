"""Calibration images for 8-bit quantization.

Shapes: C channels, H W pixels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from hf_vit_seg.inference.image_segmenter import ImageSegmenter


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration images as pixel values (1, C, H, W) float32, and their names: paths below the common folder."""

    images: Sequence[np.ndarray]
    names: Sequence[str]

    @classmethod
    def from_files(
        cls, files: Sequence[Path], segmenter: ImageSegmenter, max_images: int, size: tuple[int, int] | None = None
    ) -> "Calibration":
        """Preprocess at most `max_images` evenly spaced files, and resize them to `size` (height, width) if given."""
        chosen = [files[i * len(files) // max_images] for i in range(max_images)] if len(files) > max_images else files
        images = (segmenter.prepare(file).pixel_values.float() for file in chosen)
        pixels = [(resize_images(image, size) if size else image).numpy() for image in images]
        folder = os.path.commonpath([file.parent for file in chosen])
        return cls(pixels, [os.path.relpath(file, folder) for file in chosen])

    def reader(self) -> Any:
        """Create a CalibrationDataReader of onnxruntime."""
        from onnxruntime.quantization import CalibrationDataReader

        class Reader(CalibrationDataReader):
            """Iterates over the images."""

            def __init__(self, images: Sequence[np.ndarray]):
                self.upcoming = iter(images)

            def get_next(self) -> Any:
                """Return the next image, or None at the end."""
                image = next(self.upcoming, None)
                return None if image is None else {"pixel_values": image}

        return Reader(self.images)


def resize_images(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize pixel values (1, C, H, W) to `size` (height, width)."""
    return interpolate(image, size, mode="bilinear", antialias=True)


__all__ = ["Calibration", "resize_images"]
