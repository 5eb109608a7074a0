"""Instance maps: images whose pixels have the number of their object, with one class or a class map.

Shapes: H W pixels, n segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import File, read_mask, read_pixels
from hf_vit_seg.data.samples import RawSample, RawSegments
from hf_vit_seg.data.storage.addresses import file_at, locate

SEVERAL_CLASSES = "objects whose pixels have several classes in the class map (the most frequent one is used)"


def number_values(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the positive values of a map (H, W) from 1: (H, W) int32, and the value of each number (n,).

    0 remains 0, and negative values become -1.
    """
    distinct, places = torch.unique(values, return_inverse=True)
    first = int((distinct <= 0).sum())
    numbers = (places - first + 1).to(torch.int32)
    numbers[values == 0] = 0
    numbers[values < 0] = -1
    return numbers, distinct[first:]


def majority_classes(ids: torch.Tensor, count: int, classes: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the most frequent class (count,) of each object, and whether an object has several.

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


def read_instances(file: File) -> torch.Tensor:
    """Read an instance map (H, W) int64. Raises ImageFileError for colors."""
    return check_instances(read_mask(file), file)


def check_instances(values: torch.Tensor, file: object) -> torch.Tensor:
    """Return a map (H, W). Raises ImageFileError for colors."""
    if values.ndim != 2:
        raise ImageFileError(
            f"{file}: found colors, expected an instance map with one number per pixel: save it as a PNG of 16 bits"
        )
    return values


def read_segments(
    instances: File, class_map: File | None = None, divisor: int | None = None
) -> tuple[RawSegments, tuple[str, ...]]:
    """Read the segments of an instance map and, if given, a class map, see `join_segments`."""
    classes = None if class_map is None else read_instances(class_map)
    return join_segments(read_instances(instances), classes, divisor, instances)


def join_segments(
    values: torch.Tensor, classes: torch.Tensor | None, divisor: int | None, file: object
) -> tuple[RawSegments, tuple[str, ...]]:
    """Return the segments of an instance map (H, W) and, if given, a class map (H, W); also notes on them.

    With a `divisor`, the values of the instance map include the class (see `segments_of_codes`). `file` names the
    instance map in messages. Raises ImageFileError.
    """
    check_instances(values, file)
    if divisor is not None:
        return segments_of_codes(values, divisor), ()
    ids, numbers = number_values(values)
    if classes is None:
        return RawSegments(ids, None), ()
    if check_instances(classes, file).shape != ids.shape:
        sizes = ["x".join(map(str, each.shape)) for each in (ids, classes)]
        raise ImageFileError(
            f"{file}: the instance map has {sizes[0]} pixels (height x width), its class map {sizes[1]}: use maps "
            "of the image's size"
        )
    segments, several = segments_of_classes(ids, len(numbers), classes)
    return segments, (SEVERAL_CLASSES,) if several else ()


@dataclass(frozen=True, eq=False)
class InstanceMaps:
    """Image files, their instance maps and, if given, their class maps; paths are relative to the folders.

    Folders are paths, or addresses as strings. With a `divisor`, the values of instance maps include the class (see
    `segments_of_codes`).
    """

    image_folder: Path | str
    images: Sequence[str]
    instance_folder: Path | str
    instances: Sequence[str]
    class_folder: Path | str | None = None
    class_maps: Sequence[str] = ()
    divisor: int | None = None
    channels: int = 3
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> RawSample:
        """Read an image and its segments. Raises ImageFileError, or ConnectionLost."""
        image, *maps = files = tuple(map(file_at, self.files(index)))
        target, notes = self.segments(maps)
        return RawSample(self.name(index), read_pixels(image, self.channels), target, notes, encoded=files)

    def segments(self, maps: Sequence[File]) -> tuple[RawSegments, tuple[str, ...]]:
        """Read the segments of the class map, if there is one, and the instance map, and notes on them."""
        *class_map, instances = maps
        return read_segments(instances, *class_map, divisor=self.divisor)

    def name(self, index: int) -> str:
        """Return the image's path relative to its folder."""
        return self.images[index]

    def files(self, index: int) -> tuple[Path | str, ...]:
        """Return the image, the class map if there is one, and the instance map."""
        maps = [] if self.class_folder is None else [locate(self.class_folder, self.class_maps[index])]
        image = locate(self.image_folder, self.images[index])
        return (image, *maps, locate(self.instance_folder, self.instances[index]))

    def group(self, index: int) -> str:
        """Return the image's path: samples are independent."""
        return self.images[index]


__all__ = [
    "InstanceMaps",
    "join_segments",
    "number_values",
    "read_instances",
    "read_segments",
    "segments_of_classes",
    "segments_of_codes",
]
