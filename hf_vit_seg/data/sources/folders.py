"""Folders of images and folders of masks, paired by name."""

import re
from pathlib import Path
from typing import ClassVar, Literal

from hf_vit_seg.data.images.files import files_below, readable_suffixes
from hf_vit_seg.data.labels.names import compose
from hf_vit_seg.data.wording import format_list

from .file_source import FileSource
from .source import SourceError, SourceRecord, existing_folder

STEM = "{stem}"


class FoldersSource(SourceRecord):
    """Images and masks in folders, paired by stem: the path below the folder without its suffix.

    images: a folder, searched recursively; or a template whose `{stem}` is the common part of image and mask paths:
        `photos/{stem}_rgb.png`, `leftImg8bit/train/{stem}_leftImg8bit.png`, `cases/{stem}/image.png`. Subfolders
        of the template's fixed part belong to the stem.
    masks: the same for the masks.
    unpaired: whether files without a counterpart are an `error` or skipped (`skip`).
    """

    tasks: ClassVar = ("segmentation",)

    images: str
    masks: str
    unpaired: Literal["error", "skip"] = "error"

    def open(self, task: str, channels: int = 3) -> FileSource:
        """Pair the files, sorted by stem. Raises SourceError for unpaired files, or if there are no pairs."""
        image_folder, mask_folder = template_folder(self.images, "images"), template_folder(self.masks, "masks")
        images = find_stems(self.images, image_folder, None if STEM in self.images else mask_folder)
        masks = find_stems(self.masks, mask_folder, None if STEM in self.masks else image_folder)
        pairs = sorted(images.keys() & masks.keys())
        if self.unpaired == "error" or not pairs:
            self.check_pairs(images, masks)
        return FileSource(
            image_folder,
            [images[stem] for stem in pairs],
            mask_folder,
            [masks[stem] for stem in pairs],
            channels=channels,
        )

    def check_pairs(self, images: dict[str, str], masks: dict[str, str]) -> None:
        """Raise SourceError for stems with only an image or only a mask."""
        faults = []
        for have, lack, found, others in (("image", "mask", images, masks), ("mask", "image", masks, images)):
            if alone := sorted(found.keys() - others.keys()):
                faults.append(f"{len(alone)} of {len(found)} {have}s have no {lack} ({format_list(alone)})")
        if faults:
            raise SourceError(
                f"{self.images} and {self.masks} do not match by stem: {'; '.join(faults)}. If the names differ, use "
                "templates such as 'masks/{stem}_mask.png'; set unpaired: skip to skip these files"
            )


def template_folder(place: str, what: str) -> Path:
    """The folder of a template's fixed part, or `place` itself if it is a folder."""
    if {"{", "}"} & set(place.replace(STEM, "", 1)):
        raise SourceError(f"{what}: {place}: a template must have {STEM} once and no other braces")
    fixed, stem, _ = place.partition(STEM)
    folder = Path(fixed).parent if stem and not fixed.endswith("/") else Path(fixed)
    return existing_folder(folder.expanduser(), what)


def find_stems(place: str, folder: Path, skip: Path | None) -> dict[str, str]:
    """Find the files of a folder or template by stem, as paths relative to `folder`; the folder `skip` is excluded."""
    pattern = stem_pattern(compose(place))
    suffixes = readable_suffixes() | ({Path(place).suffix.lower()} if STEM in place else frozenset())
    found: dict[str, str] = {}
    for path in files_below(folder, suffixes, skip):
        if match := pattern.fullmatch(compose(path.as_posix())):
            stem = match["folder"] + match["stem"]
            if stem in found:
                raise SourceError(
                    f"{place} has two files with the stem '{stem}', {found[stem]} and {path.as_posix()}: select one "
                    f"by a template such as '{folder}/{STEM}{path.suffix}'"
                )
            found[stem] = path.as_posix()
    if not found:
        raise SourceError(f"{place}: found no image files (.png, .jpg, .tif, .npy ...)")
    return found


def stem_pattern(place: str) -> re.Pattern[str]:
    """Compile the pattern of relative paths: subfolders and {stem} form the stem; without a suffix, all match."""
    fixed, _, rest = place.partition(STEM) if STEM in place else ("", "", "")
    ending = re.escape(rest) if "." in rest else re.escape(rest) + r"\.[^./]*"
    return re.compile(rf"(?P<folder>(?:.*/)?){re.escape(fixed.rpartition('/')[2])}(?P<stem>[^/]+){ending}")


__all__ = ["FoldersSource"]
