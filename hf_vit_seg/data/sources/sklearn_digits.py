"""scikit-learn's handwritten digits: 1797 gray images of 8 x 8 pixels that need no download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from hf_vit_seg.data.images.pixels import as_bands
from hf_vit_seg.data.samples import RawSample

from .source import SourceError, SourceRecord

LEVELS = 16  # the lightest gray of the images


class DigitsSource(SourceRecord):
    """scikit-learn's handwritten digits, 8 x 8 pixels, whose 17 gray levels are spread over 0 .. 255.

    split: `train` or `test`, which share no image; the split is the same everywhere and keeps the classes' shares.
    share: the test's share of all images.
    """

    tasks: ClassVar = ("classification",)

    split: Literal["train", "test"]
    share: float = Field(0.2, gt=0, lt=1)

    def open(self, task: str, bands: int = 3) -> "Digits":
        """Load the images. SourceError without scikit-learn."""
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
        return Digits(images, digits.target[chosen], chosen, bands)


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (N, 8, 8) uint8, their classes (N,), and their places among all of scikit-learn's."""

    images: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    bands: int = 3
    class_names: tuple[str, ...] = tuple("0123456789")

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        """One image and its digit."""
        image = as_bands(self.images[index][None], self.bands, self.name(index))
        return RawSample(self.name(index), image, int(self.labels[index]))

    def name(self, index: int) -> str:
        """The image's place among all of scikit-learn's."""
        return f"digit {self.places[index]}"

    def files(self, index: int) -> tuple[Path, ...]:
        """None: the images come with scikit-learn."""
        return ()

    def group(self, index: int) -> str:
        """Every image is for itself."""
        return self.name(index)


__all__ = ["DigitsSource"]
