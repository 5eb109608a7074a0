"""Folders of images and folders of masks, paired by name."""

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import ClassVar, Literal

from hf_vit_seg.data.images.files import files_below, readable_suffixes
from hf_vit_seg.data.labels.names import compose
from hf_vit_seg.data.wording import format_list

from .file_source import FileSource
from .source import Place, SourceError, SourceRecord, existing_file, existing_folder

STEM = "{stem}"


class FoldersSource(SourceRecord):
    """Images and masks in folders, paired by stem: the path below the folder without its suffix.

    images: a folder, searched recursively; or a template whose `{stem}` is the common part of image and mask paths:
        `photos/{stem}_rgb.png`, `leftImg8bit/train/{stem}_leftImg8bit.png`, `cases/{stem}/image.png`. Subfolders
        of the template's fixed part belong to the stem.
    masks: the same for the masks.
    unpaired: whether files without a counterpart are an `error` or skipped (`skip`).
    stems: a text file with one stem per line, such as `ImageSets/Segmentation/train.txt` of Pascal VOC: the samples, in
        this order. Files that it does not list are left out. Empty lines and those that begin with # are skipped.
    """

    tasks: ClassVar = ("segmentation",)

    images: str
    masks: str
    unpaired: Literal["error", "skip"] = "error"
    stems: Place | None = None

    def open(self, task: str, channels: int = 3) -> FileSource:
        """Pair the files, sorted by stem or in the order of `stems`.

        Raises SourceError for unpaired files (of those that are listed), or if there are no pairs.
        """
        image_folder, mask_folder = template_folder(self.images, "images"), template_folder(self.masks, "masks")
        images = find_stems(self.images, image_folder, None if STEM in self.images else mask_folder)
        masks = find_stems(self.masks, mask_folder, None if STEM in self.masks else image_folder)
        listed = read_stems(existing_file(self.stems, "stems"), images, masks) if self.stems is not None else None
        if listed is not None:
            images, masks = ({stem: found[stem] for stem in listed if stem in found} for found in (images, masks))
        pairs = [stem for stem in listed or sorted(images) if stem in images and stem in masks]
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


def read_stems(path: Path, *folders: dict[str, str]) -> list[str]:
    """Read the stems of a list, with or without a suffix. Raises SourceError for repeated and unknown ones."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text ({error})") from None
    known = set().union(*folders)
    words = [compose(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    stems = [find_stem(word, known) for word in words]
    if not stems:
        raise SourceError(f"{path} lists no stems")
    if unknown := [word for word, stem in zip(words, stems, strict=True) if stem not in known]:
        raise SourceError(
            f"{path} lists {len(stems)} stems, of which {len(unknown)} have neither an image nor a mask: "
            f"{format_list(unknown)}: a stem is the path below the folder without suffix"
        )
    if repeated := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise SourceError(f"{path} lists stems more than once: {format_list(repeated)}")
    return stems


def find_stem(word: str, known: Container[str]) -> str:
    """The stem that a line stands for: as it is, with other separators, or without its suffix."""
    portable = word.replace("\\", "/")
    candidates = (word, portable, portable.rpartition(".")[0])
    return next((stem for stem in candidates if stem in known), word)


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
