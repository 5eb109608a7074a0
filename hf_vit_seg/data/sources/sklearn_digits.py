"""scikit-learn's handwritten digits: 1797 gray images of 8 x 8 pixels, without a download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from hf_vit_seg.data.images.pixels import as_channels
from hf_vit_seg.data.samples import RawSample

from .source import SourceError, SourceRecord

LEVELS = 16  # the maximum value of the images


class DigitsSource(SourceRecord):
    """scikit-learn's handwritten digits, 8 x 8 pixels, with 17 gray levels scaled to 0 .. 255.

    split: `train` or `test`; the split is deterministic and stratified by class.
    share: the share of test images.
    """

    tasks: ClassVar = ("classification",)

    split: Literal["train", "test"]
    share: float = Field(0.2, gt=0, lt=1)

    def open(self, task: str, channels: int = 3) -> "Digits":
        """Load the images. Raises SourceError if scikit-learn is not installed."""
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError:
            raise SourceError("sklearn_digits needs scikit-learn: pip install scikit-learn") from None
        digits: Any = load_digits()
        places = np.arange(len(digits.target))
        parts = train_test_split(places, test_size=self.share, random_state=0, stratify=digits.target)
        chosen = np.sort(parts[0] if self.split == "train" else parts[1])
        images = np.round(digits.images[chosen] * (255 / LEVELS)).astype(np.uint8)
        return Digits(images, digits.target[chosen], chosen, channels)


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (N, 8, 8) uint8, their classes (N,), and their indices in scikit-learn's dataset."""

    images: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    channels: int = 3
    class_names: tuple[str, ...] = tuple("0123456789")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        image = as_channels(self.images[index][None], self.channels, self.name(index))
        return RawSample(self.name(index), image, int(self.labels[index]))

    def name(self, index: int) -> str:
        """Return the image's index in scikit-learn's dataset."""
        return f"digit {self.places[index]}"

    def files(self, index: int) -> tuple[Path, ...]:
        """Empty: the images are part of scikit-learn."""
        return ()

    def group(self, index: int) -> str:
        return self.name(index)


__all__ = ["DigitsSource"]
