"""Folders of images and folders of masks or instance maps, paired by name; and folders of images for each class."""

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable
from pathlib import Path
from typing import ClassVar, Literal

from hf_vit_seg.data.images.files import files_below, readable_suffixes
from hf_vit_seg.data.labels.unicode_names import compose
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.storage.addresses import StorageError, files_below_address, is_address
from hf_vit_seg.records import Count

from .file_source import FileSource
from .instance_maps import InstanceMaps
from .source import Location, Place, SourceError, SourceRecord, existing_file, existing_folder

STEM = "{stem}"


class FoldersSource(SourceRecord):
    """Images with masks or instance maps in folders, paired by stem: the path below the folder without its suffix.

    images: a folder or an fsspec address such as `s3://bucket/photos`, searched recursively; or a template whose
        `{stem}` is the common part of image and mask paths: `photos/{stem}_rgb.png`,
        `leftImg8bit/train/{stem}_leftImg8bit.png`, `cases/{stem}/image.png`. Subfolders of the template's fixed part
        belong to the stem.
    masks: the same for the masks. For the tasks instance and panoptic, the class of each object and of the pixels
        without object; for instance they may be missing if there is one class.
    instances: the same for the instance maps (tasks instance and panoptic): 0 is no object, and each object has its own
        number, as in PNG files of 16 bits.
    label_divisor: the values of the instance maps include the class: class * label_divisor + number for objects, and
        the class for other pixels. 1000 for Cityscapes' instanceIds.
    unpaired: whether files without a counterpart are an `error` or skipped (`skip`).
    stems: a text file with one stem per line, such as `ImageSets/Segmentation/train.txt` of Pascal VOC: the samples, in
        this order. Files that it does not list are left out. Empty lines and those that begin with # are skipped.
    """

    tasks: ClassVar = ("segmentation", "instance", "panoptic")

    images: str
    masks: str | None = None
    instances: str | None = None
    label_divisor: Count | None = None
    unpaired: Literal["error", "skip"] = "error"
    stems: Place | None = None

    def open(self, task: str, channels: int = 3) -> FileSource | InstanceMaps:
        """Pair the files, sorted by stem or in the order of `stems`.

        Raises SourceError for unpaired files (of those that are listed), if there are no pairs, and for settings that
        do not fit the task.
        """
        kinds = self.target_kinds(task)
        folders = {kind: template_folder(template, kind) for kind, template in {"images": self.images, **kinds}.items()}
        stems = {
            kind: find_stems(
                template, folders[kind], set() if STEM in template else set(folders.values()) - {folders[kind]}
            )
            for kind, template in {"images": self.images, **kinds}.items()
        }
        listed = read_stems(existing_file(self.stems, "stems"), *stems.values()) if self.stems is not None else None
        if listed is not None:
            stems = {kind: {stem: each[stem] for stem in listed if stem in each} for kind, each in stems.items()}
        pairs = [stem for stem in listed or sorted(stems["images"]) if all(stem in each for each in stems.values())]
        if self.unpaired == "error" or not pairs:
            for kind, template in kinds.items():
                check_pairs(self.images, stems["images"], kind, template, stems[kind])
        files = {kind: [each[stem] for stem in pairs] for kind, each in stems.items()}
        if "instances" not in kinds:
            return FileSource(folders["images"], files["images"], folders["masks"], files["masks"], channels=channels)
        return InstanceMaps(
            folders["images"],
            files["images"],
            folders["instances"],
            files["instances"],
            folders.get("masks"),
            files.get("masks", []),
            self.label_divisor,
            channels,
        )

    def target_kinds(self, task: str) -> dict[str, str]:
        """Return the folders or templates of the targets, `masks` and `instances`. Raises SourceError."""
        if task == "segmentation":
            if self.masks is None or self.instances is not None or self.label_divisor is not None:
                raise SourceError("folders requires masks, without instances and label_divisor, for segmentation")
            return {"masks": self.masks}
        if self.instances is None:
            raise SourceError(f"folders requires instances, the folder of the instance maps, for {task}")
        if self.label_divisor is not None and self.masks is not None:
            raise SourceError("label_divisor reads the classes from the instance maps: remove it, or masks")
        if task == "panoptic" and self.label_divisor is None and self.masks is None:
            raise SourceError("folders requires masks, the folder of the class maps, or label_divisor, for panoptic")
        return {"instances": self.instances} | ({} if self.masks is None else {"masks": self.masks})


def check_pairs(template: str, images: dict[str, str], kind: str, other_template: str, others: dict[str, str]) -> None:
    """Raise SourceError for stems with only an image or only a mask (or instance map)."""
    noun, faults = {"masks": "mask", "instances": "instance map"}[kind], []
    for have, lack, found, counterparts in (("image", noun, images, others), (noun, "image", others, images)):
        if alone := sorted(found.keys() - counterparts.keys()):
            faults.append(f"{len(alone)} of {len(found)} {have}s have no {lack} ({format_list(alone)})")
    if faults:
        raise SourceError(
            f"{template} and {other_template} do not match by stem: {'; '.join(faults)}. If the names differ, use "
            f"templates such as '{kind}/{{stem}}_mask.png'; set unpaired: skip to skip these files"
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


def find_stem(word: str, stems: Container[str]) -> str:
    """Return the stem of a line, with `/` as separator and without a suffix."""
    portable = word.replace("\\", "/")
    candidates = (word, portable, portable.rpartition(".")[0])
    return next((stem for stem in candidates if stem in stems), word)


def template_folder(template: str, what: str) -> Path | str:
    """Return the folder of a template's fixed part, or `place` itself if it is a folder; an address as a string."""
    if {"{", "}"} & set(template.replace(STEM, "", 1)):
        raise SourceError(f"{what}: {template}: a template must have {STEM} once and no other braces")
    fixed, stem, _ = template.partition(STEM)
    if is_address(template):
        return fixed.rpartition("/")[0] if stem else fixed.rstrip("/")
    folder = Path(fixed).parent if stem and not fixed.endswith("/") else Path(fixed)
    return existing_folder(folder.expanduser(), what)


def find_stems(template: str, folder: Path | str, skip: Collection[Path | str]) -> dict[str, str]:
    """Find the files of a folder or template by stem, relative to `folder`; the folders `skip` are excluded."""
    pattern = stem_pattern(compose(template))
    suffixes = readable_suffixes() | ({Path(template).suffix.lower()} if STEM in template else frozenset())
    stems: dict[str, str] = {}
    for path in list_files(folder, suffixes, skip):
        if match := pattern.fullmatch(compose(path)):
            stem = match["folder"] + match["stem"]
            if stem in stems:
                raise SourceError(
                    f"{template} has two files with the stem '{stem}', {stems[stem]} and {path}: select one "
                    f"by a template such as '{folder}/{STEM}{Path(path).suffix}'"
                )
            stems[stem] = path
    if not stems:
        raise SourceError(f"{template}: found no image files (.png, .jpg, .tif, .npy ...)")
    return stems


def list_files(folder: Path | str, suffixes: frozenset[str], skip: Collection[Path | str] = ()) -> Iterable[str]:
    """Return the files below a folder or an address with one of these suffixes, relative to it. Raises SourceError."""
    if isinstance(folder, Path):
        local = [pattern for pattern in skip if isinstance(pattern, Path)]
        return (path.as_posix() for path in files_below(folder, suffixes, local))
    try:
        return files_below_address(folder, suffixes, [pattern for pattern in skip if isinstance(pattern, str)])
    except StorageError as error:
        raise SourceError(str(error)) from None


def stem_pattern(template: str) -> re.Pattern[str]:
    """Compile the pattern of relative paths: subfolders and {stem} form the stem; without a suffix, all match."""
    fixed, _, rest = template.partition(STEM) if STEM in template else ("", "", "")
    ending = re.escape(rest) if "." in rest else re.escape(rest) + r"\.[^./]*"
    return re.compile(rf"(?P<folder>(?:.*/)?){re.escape(fixed.rpartition('/')[2])}(?P<stem>[^/]+){ending}")


class ClassFoldersSource(SourceRecord):
    """Images sorted into a folder for each class, `root/cat/1.jpg`, as in ImageNet.

    root: the parent folder of the class folders, or its fsspec address; their names in alphabetical order are the
        classes.
    """

    tasks: ClassVar = ("classification",)

    root: Location

    def open(self, task: str, channels: int = 3) -> FileSource:
        """Find the images. Raises SourceError if there are no class folders, or one has no images."""
        classes = address_classes(self.root) if isinstance(self.root, str) else folder_classes(self.root)
        root = self.root
        if not classes:
            raise SourceError(f"{root} has no subfolders: create one folder of images per class")
        if empty := [name for name, files in classes.items() if not files]:
            raise SourceError(
                f"{root}: found folders without images: {format_list(empty)}; remove them, as every folder is a class"
            )
        images = [f"{name}/{path}" for name, files in classes.items() for path in files]
        labels = [label for label, files in enumerate(classes.values()) for _ in files]
        return FileSource(root, images, root, labels, tuple(map(compose, classes)), channels)


def folder_classes(root: Path) -> dict[str, list[str]]:
    """Return the images of each class folder, relative to it."""
    folders = sorted(path for path in existing_folder(root, "root").iterdir() if path.is_dir())
    visible = [folder for folder in folders if not folder.name.startswith(".")]
    return {folder.name: [p.as_posix() for p in files_below(folder, readable_suffixes())] for folder in visible}


def address_classes(root: str) -> dict[str, list[str]]:
    """Return the images of each class folder at an address, relative to it."""
    classes: dict[str, list[str]] = {}
    for path in list_files(root, readable_suffixes()):
        folder, inside, name = path.partition("/")
        if inside:
            classes.setdefault(folder, []).append(name)
    return dict(sorted(classes.items()))


__all__ = ["ClassFoldersSource", "FoldersSource"]
