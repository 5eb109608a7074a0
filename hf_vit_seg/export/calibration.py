"""Images on which the ranges of 8-bit programs are measured.

Shapes: C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from hf_vit_seg.inference.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class Calibration:
    """Pixel values (1, C, H, W), float32, as the model will see them."""

    images: Sequence[np.ndarray]

    @classmethod
    def from_files(
        cls, files: Sequence[Path], segmenter: Segmenter, most: int, size: tuple[int, int] | None = None
    ) -> "Calibration":
        """At most so many of the files, evenly spread, and at one (height, width) where the program has no other."""
        chosen = [files[i * len(files) // most] for i in range(most)] if len(files) > most else files
        images = (segmenter.prepare(file).pixel_values.float() for file in chosen)
        return cls([(resized(image, size) if size else image).numpy() for image in images])

    def reader(self) -> Any:
        """The images as onnxruntime.quantization reads them."""
        from onnxruntime.quantization import CalibrationDataReader

        class Reader(CalibrationDataReader):
            """One image at a time."""

            def __init__(self, images: Sequence[np.ndarray]):
                self.upcoming = iter(images)

            def get_next(self) -> Any:
                """The next image, None behind the last."""
                image = next(self.upcoming, None)
                return None if image is None else {"pixel_values": image}

        return Reader(self.images)


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixel values (1, C, H, W) at another (height, width)."""
    return interpolate(image, size, mode="bilinear", antialias=True)


__all__ = ["Calibration", "resized"]
