"""Samples that are files: an image and its mask, or an image and its class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.samples import RawSample


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below `image_folder`, and for each the mask file below `mask_folder`, or the class index.

    Paths are kept as strings, which take a fraction of the memory that path objects do.
    """

    image_folder: Path
    images: Sequence[str]
    mask_folder: Path
    targets: Sequence[str] | Sequence[int]
    class_names: tuple[str, ...] | None = None
    bands: int = 3

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.images)

    def read(self, index: int) -> RawSample:
        """Decode a sample. ImageFileError when a file of it cannot be used."""
        target = self.targets[index]
        image = read_pixels(self.image_folder / self.images[index], self.bands)
        return RawSample(
            name=self.name(index),
            image=image,
            target=target if isinstance(target, int) else read_mask(self.mask_folder / target),
        )

    def name(self, index: int) -> str:
        """The image's path below its folder."""
        return self.images[index]

    def files(self, index: int) -> tuple[Path, ...]:
        """The image, and the mask if there is one."""
        target = self.targets[index]
        image = self.image_folder / self.images[index]
        return (image,) if isinstance(target, int) else (image, self.mask_folder / target)

    def group(self, index: int) -> str:
        """Every image is for itself."""
        return self.images[index]


__all__ = ["FileSource"]
