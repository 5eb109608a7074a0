"""Folders of images and folders of masks, paired by name."""

import re
from pathlib import Path
from typing import ClassVar, Literal

from hf_vit_seg.data.images.files import files_below, readable_suffixes
from hf_vit_seg.data.wording import listed

from .file_source import FileSource
from .source import SourceError, SourceRecord, existing_folder

STEM = "{stem}"


class FoldersSource(SourceRecord):
    """Images and masks in folders, paired by stem: the path below the folder without its suffix.

    images: a folder, searched with its sub-folders; or a template whose `{stem}` stands for what image and mask have
        in common: `photos/{stem}_rgb.png`, `leftImg8bit/train/{stem}_leftImg8bit.png`, `cases/{stem}/image.png`.
        Sub-folders below the template's fixed part belong to the stem.
    masks: the same for the masks.
    unpaired: what becomes of files without a partner: `error`, or `skip`, which leaves them out.
    """

    tasks: ClassVar = ("segmentation",)

    images: str
    masks: str
    unpaired: Literal["error", "skip"] = "error"

    def open(self, task: str, bands: int = 3) -> FileSource:
        """Pair the files, in the order of their stems. SourceError when some have no partner, or there are none."""
        image_folder, mask_folder = located(self.images, "images"), located(self.masks, "masks")
        images = stems(self.images, image_folder, None if STEM in self.images else mask_folder)
        masks = stems(self.masks, mask_folder, None if STEM in self.masks else image_folder)
        pairs = sorted(images.keys() & masks.keys())
        if self.unpaired == "error" or not pairs:
            self.check_pairs(images, masks)
        return FileSource(
            image_folder, [images[stem] for stem in pairs], mask_folder, [masks[stem] for stem in pairs], bands=bands
        )

    def check_pairs(self, images: dict[str, str], masks: dict[str, str]) -> None:
        """Refuse stems that have only an image or only a mask."""
        faults = []
        for have, lack, found, others in (("image", "mask", images, masks), ("mask", "image", masks, images)):
            if alone := sorted(found.keys() - others.keys()):
                faults.append(f"{len(alone)} of {len(found)} {have}s have no {lack} ({listed(alone)})")
        if faults:
            raise SourceError(
                f"{self.images} and {self.masks} do not match by stem: {'; '.join(faults)}. Give templates such as "
                "'masks/{stem}_mask.png' where names differ, or unpaired: skip to leave these out"
            )


def located(place: str, what: str) -> Path:
    """The folder of a template's fixed part, or the folder itself."""
    if {"{", "}"} & set(place.replace(STEM, "", 1)):
        raise SourceError(f"{what}: {place}: a template has {STEM} once and no other braces")
    fixed, stem, _ = place.partition(STEM)
    folder = Path(fixed).parent if stem and not fixed.endswith("/") else Path(fixed)
    return existing_folder(folder.expanduser(), what)


def stems(place: str, folder: Path, skip: Path | None) -> dict[str, str]:
    """Files of a folder or template by stem, as paths below `folder`; what lies below `skip` is left out."""
    pattern = stem_pattern(place)
    suffixes = readable_suffixes() | ({Path(place).suffix.lower()} if STEM in place else frozenset())
    found: dict[str, str] = {}
    for path in files_below(folder, suffixes, skip):
        if match := pattern.fullmatch(path.as_posix()):
            stem = match["folder"] + match["stem"]
            if stem in found:
                raise SourceError(
                    f"{place} has two files of the stem '{stem}', {found[stem]} and {path.as_posix()}: name one kind "
                    f"by a template such as '{folder}/{STEM}{path.suffix}'"
                )
            found[stem] = path.as_posix()
    if not found:
        raise SourceError(f"{place}: there are no image files (with suffixes such as .png, .jpg, .tif, .npy)")
    return found


def stem_pattern(place: str) -> re.Pattern[str]:
    """What paths below the folder look like: sub-folders and {stem} are the stem; any suffix where none is given."""
    fixed, _, rest = place.partition(STEM) if STEM in place else ("", "", "")
    ending = re.escape(rest) if "." in rest else re.escape(rest) + r"\.[^./]*"
    return re.compile(rf"(?P<folder>(?:.*/)?){re.escape(fixed.rpartition('/')[2])}(?P<stem>[^/]+){ending}")


__all__ = ["FoldersSource"]
