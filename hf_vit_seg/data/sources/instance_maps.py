"""Instance maps: images whose pixels have the number of their object, with one class or a class map.

Shapes: H W pixels, n segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.samples import RawSample, RawSegments

SEVERAL_CLASSES = "objects whose pixels have several classes in the class map (the most frequent one is used)"


def number_values(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the positive values of a map (H, W) from 1: (H, W) int32, and the value of each number (n,).

    0 remains 0, and negative values become -1.
    """
    found, places = torch.unique(values, return_inverse=True)
    first = int((found <= 0).sum())
    numbers = (places - first + 1).to(torch.int32)
    numbers[values == 0] = 0
    numbers[values < 0] = -1
    return numbers, found[first:]


def majority_classes(ids: torch.Tensor, count: int, classes: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The most frequent class (count,) of each object, and whether an object has several.

    `ids` and `classes` are maps (H, W); of equally frequent classes, the lowest value is used.
    """
    objects = ids > 0
    values, places = torch.unique(classes[objects], return_inverse=True)
    pairs = (ids[objects].to(torch.int64) - 1) * len(values) + places
    table = torch.bincount(pairs, minlength=count * len(values)).view(count, len(values))
    return values[table.argmax(1)], bool(((table > 0).sum(1) > 1).any())


def segments_of_classes(ids: torch.Tensor, count: int, classes: torch.Tensor) -> tuple[RawSegments, bool]:
    """Join `count` objects (H, W) with a map of raw classes (H, W); also whether an object has several classes.

    Each class of pixels that belong to no object is a region.
    """
    own, several = majority_classes(ids, count, classes) if count else (classes.new_zeros(0), False)
    empty = ids == 0
    values, places = torch.unique(classes[empty], return_inverse=True)
    joined = ids.clone()
    joined[empty] = (places + count + 1).to(torch.int32)
    regions = frozenset(range(count + 1, count + len(values) + 1))
    return RawSegments(joined, (*own.tolist(), *values.tolist()), regions), several


def segments_of_codes(values: torch.Tensor, divisor: int) -> RawSegments:
    """Decode a map (H, W) whose values are class * divisor + number for objects, and the class for other pixels."""
    ids, codes = number_values(values + 1)  # the class 0 is a region, too
    codes = codes - 1
    single = codes >= divisor
    classes = torch.where(single, codes // divisor, codes)
    return RawSegments(ids, tuple(classes.tolist()), frozenset(((~single).nonzero()[:, 0] + 1).tolist()))


def read_instances(path: Path) -> torch.Tensor:
    """Read an instance map (H, W) int64. Raises ImageFileError for colors."""
    values = read_mask(path)
    if values.ndim != 2:
        raise ImageFileError(
            f"{path}: found colors, expected an instance map with one number per pixel: save it as a PNG of 16 bits"
        )
    return values


@dataclass(frozen=True, eq=False)
class InstanceMaps:
    """Image files, their instance maps and, if given, their class maps; paths are relative to the folders.

    With a `divisor`, the values of instance maps include the class (see `segments_of_codes`).
    """

    image_folder: Path
    images: Sequence[str]
    instance_folder: Path
    instances: Sequence[str]
    class_folder: Path | None = None
    class_maps: Sequence[str] = ()
    divisor: int | None = None
    channels: int = 3
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> RawSample:
        """Read an image and its segments. Raises ImageFileError."""
        image = read_pixels(self.image_folder / self.images[index], self.channels)
        target, notes = self.segments(index)
        return RawSample(self.name(index), image, target, notes)

    def segments(self, index: int) -> tuple[RawSegments, tuple[str, ...]]:
        """Read the segments of an image, and notes on them."""
        path, values = self.instance_folder / self.instances[index], self.read_values(index)
        if self.divisor is not None:
            return segments_of_codes(values, self.divisor), ()
        ids, found = number_values(values)
        if self.class_folder is None:
            return RawSegments(ids, None), ()
        classes = read_instances(self.class_folder / self.class_maps[index])
        if classes.shape != ids.shape:
            sizes = ["x".join(map(str, each.shape)) for each in (ids, classes)]
            raise ImageFileError(
                f"{path}: the instance map has {sizes[0]} pixels (height x width), its class map {sizes[1]}: use maps "
                "of the image's size"
            )
        segments, several = segments_of_classes(ids, len(found), classes)
        return segments, (SEVERAL_CLASSES,) if several else ()

    def read_values(self, index: int) -> torch.Tensor:
        """Read the values of an instance map (H, W) int64. Raises ImageFileError."""
        return read_instances(self.instance_folder / self.instances[index])

    def name(self, index: int) -> str:
        """The image's path relative to its folder."""
        return self.images[index]

    def files(self, index: int) -> tuple[Path, ...]:
        """The image, the class map if there is one, and the instance map."""
        maps = () if self.class_folder is None else (self.class_folder / self.class_maps[index],)
        return (self.image_folder / self.images[index], *maps, self.instance_folder / self.instances[index])

    def group(self, index: int) -> str:
        """The image's path: samples are independent."""
        return self.images[index]


__all__ = ["InstanceMaps", "number_values", "segments_of_classes", "segments_of_codes"]
