"""Samples stored as files: an image and its mask, or an image with a class index."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.samples import Labels, RawSample


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files in `image_folder`, and their mask files in `mask_folder` or their classes.

    Paths are strings, which take a fraction of the memory of Path objects.
    """

    image_folder: Path
    images: Sequence[str]
    mask_folder: Path
    targets: Sequence[str] | Sequence[int] | Sequence[Labels]
    class_names: tuple[str, ...] | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.images)

    @property
    def multi_label(self) -> bool:
        """Whether images have lists of classes."""
        return any(isinstance(target, Labels) for target in self.targets[:1])

    def read(self, index: int) -> RawSample:
        """Read a sample. Raises ImageFileError."""
        target = self.targets[index]
        image = read_pixels(self.image_folder / self.images[index], self.channels)
        return RawSample(
            name=self.name(index),
            image=image,
            target=read_mask(self.mask_folder / target) if isinstance(target, str) else target,
        )

    def name(self, index: int) -> str:
        """The image's path relative to its folder."""
        return self.images[index]

    def files(self, index: int) -> tuple[Path, ...]:
        """The image, and the mask if there is one."""
        target = self.targets[index]
        image = self.image_folder / self.images[index]
        return (image, self.mask_folder / target) if isinstance(target, str) else (image,)

    def group(self, index: int) -> str:
        """The image's path: samples are independent."""
        return self.images[index]


__all__ = ["FileSource"]
