"""Samples stored as files on this disk or at addresses: an image and its mask, or an image with a class index."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.samples import Labels, RawSample
from hf_vit_seg.data.storage.addresses import file_at, locate


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files in `image_folder`, and their mask files in `mask_folder` or their classes.

    Folders are paths, or addresses as strings. Paths of files are strings, which take a fraction of the memory of Path
    objects.
    """

    image_folder: Path | str
    images: Sequence[str]
    mask_folder: Path | str
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
        """Read a sample. Raises ImageFileError, or ConnectionLost."""
        target, files = self.targets[index], tuple(map(file_at, self.files(index)))
        return RawSample(
            name=self.name(index),
            image=read_pixels(files[0], self.channels),
            target=target if not isinstance(target, str) else read_mask(files[1]),
            encoded=files,
        )

    def name(self, index: int) -> str:
        """Return the image's path relative to its folder."""
        return self.images[index]

    def files(self, index: int) -> tuple[Path | str, ...]:
        """Return the image, and the mask if there is one."""
        target, image = self.targets[index], locate(self.image_folder, self.images[index])
        return (image, locate(self.mask_folder, target)) if isinstance(target, str) else (image,)

    def group(self, index: int) -> str:
        """Return the image's path: samples are independent."""
        return self.images[index]


__all__ = ["FileSource"]
