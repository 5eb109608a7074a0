"""Tar files of WebDataset, whose members are read in any order by their places in the files."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob, has_magic
from itertools import product
from pathlib import Path, PurePath
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from hf_vit_seg.data.images.files import ImageBytes, ImageFileError, readable_suffixes
from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import Labels, RawSample
from hf_vit_seg.data.storage.addresses import (
    ConnectionLost,
    StorageError,
    is_address,
    local_path,
    open_address,
    read_range,
)
from hf_vit_seg.data.storage.tar_files import Member, list_members
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.records import Count

from .instance_maps import read_segments
from .lists import encode_label_lists, encode_labels, split_labels
from .source import SourceError, SourceRecord

# As in WebDataset, the extension begins at the first dot of a member's name, and hidden files are skipped.
MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<extension>[^/]+)")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
IMAGES = ("jpg", "jpeg", "png", "webp")  # in this order, before the other formats


class WebDatasetSource(SourceRecord):
    """Tar files of WebDataset: members that differ only in their extension, from the first dot on, are a sample.

    urls: uncompressed tar files, one or a list: paths, fsspec addresses, and glob patterns of these; `{000..127}` is a
        range of numbers, and `{a,b}` a choice.
    image: the extensions of images, separated by `;`, the first one that a sample has; default: those of image formats.
    mask: the same for masks, and for the class maps of the tasks instance and panoptic.
    label: the same for labels, text files with a name, or an integer from 0 that indexes `data.classes`.
    instance: the same for instance maps (tasks instance and panoptic), see `instances` of `folders`.
    label_divisor: the values of the instance maps include the class, see `folders`.
    separator: what separates the labels of an image, such as `;`, for `data.multi_label`.
    unpaired: whether images without a target, and targets without an image, are an `error` or skipped (`skip`).
    """

    tasks: ClassVar = ("segmentation", "classification", "instance", "panoptic")

    urls: str | tuple[str, ...] = Field(min_length=1)
    image: str | None = None
    mask: str = "seg.png;mask.png"
    label: str = "cls;cls.txt"
    instance: str = "instances.png"
    label_divisor: Count | None = None
    separator: str | None = Field(default=None, min_length=1)
    unpaired: Literal["error", "skip"] = "error"

    def open(self, task: str, channels: int = 3) -> "TarSource":
        """List the members of the files, in their order. Raises SourceError."""
        extensions = self.extensions(task)
        paths = find_tar_files((self.urls,) if isinstance(self.urls, str) else self.urls)
        listed = [
            (number, key, members)
            for number, path in enumerate(paths)
            for key, members in list_samples(path, extensions).items()
        ]
        required = set(extensions)
        if task == "instance" and not any("mask" in members for *_, members in listed):
            required.discard("mask")  # one class needs no mask
        complete = [each for each in listed if required <= each[2].keys()]
        if not complete or (self.unpaired == "error" and len(complete) < len(listed)):
            raise SourceError(describe_unpaired(paths, listed, {kind: extensions[kind] for kind in required}))
        targets, names = None, None
        if task == "classification":
            targets, names = self.encode(
                [read_label(members["label"], paths[number]) for number, _, members in complete]
            )
        kinds = [kind for kind in extensions if kind in required - {"label"}]
        return TarSource(
            tuple(paths),
            [key for _, key, _ in complete],
            np.array([number for number, _, _ in complete], np.int32),
            {kind: [members[kind].name for *_, members in complete] for kind in kinds},
            {kind: np.array([members[kind][1:3] for *_, members in complete], np.int64) for kind in kinds},
            targets,
            names,
            self.label_divisor,
            channels,
        )

    def extensions(self, task: str) -> dict[str, tuple[str, ...]]:
        """Return the extensions of each kind of members that a task reads."""
        others = sorted(suffix.removeprefix(".") for suffix in readable_suffixes())
        image = split_extensions(self.image) if self.image else (*IMAGES, *(s for s in others if s not in IMAGES))
        target = {"segmentation": "mask", "classification": "label"}.get(task, "instance")
        kinds = [target, "mask"] if target == "instance" and self.label_divisor is None else [target]
        return {"image": image} | {kind: split_extensions(getattr(self, kind)) for kind in kinds}

    def encode(self, labels: list[str]) -> tuple[Sequence[int] | Sequence[Labels], tuple[str, ...] | None]:
        """Encode labels as class indices, and return their names unless they are integers."""
        if self.separator is None:
            return encode_labels(labels)
        return encode_label_lists([split_labels(label, self.separator) for label in labels])


def describe_unpaired(
    paths: Sequence[str],
    listed: Sequence[tuple[int, str, Mapping[str, Member]]],
    required: Mapping[str, Sequence[str]],
) -> str:
    """Format the message on samples without some of the required kinds of members."""
    required_kinds = " and ".join(f"{kind} (.{', .'.join(extensions[:4])})" for kind, extensions in required.items())
    if not listed:
        return (
            f"{format_list(paths)}: found no samples with {required_kinds}: set {', '.join(required)} to the extensions"
        )
    faults = [
        f"{paths[number]}: {key} has no {' and no '.join(sorted(required.keys() - members.keys()))}"
        for number, key, members in listed
        if not required.keys() <= members.keys()
    ]
    return (
        f"{len(faults)} of {len(listed)} samples are incomplete, expected {required_kinds}: {format_list(faults)}; set "
        f"{', '.join(required)} to the extensions of the files, or unpaired: skip to skip these samples"
    )


def split_extensions(text: str) -> tuple[str, ...]:
    """Return the extensions in a setting, lower-case and without a leading dot."""
    return tuple(part.strip().removeprefix(".").lower() for part in text.split(";") if part.strip())


def expand_braces(text: str) -> Iterator[str]:
    """Expand `{000..127}` and `{a,b}` as a shell does."""
    parts = BRACES.split(text)
    choices = [list(brace_choices(part)) if number % 2 else [part] for number, part in enumerate(parts)]
    return map("".join, product(*choices))


def brace_choices(text: str) -> Iterator[str]:
    """Yield the texts that the content of a brace expands to."""
    if not (match := RANGE.fullmatch(text)):
        yield from text.split(",")
        return
    first, last = match.groups()
    width = len(first) if first.startswith("0") else 0
    yield from (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))


def find_tar_files(urls: Sequence[str]) -> list[str]:
    """Return the tar files of paths, addresses and patterns, each once. Raises SourceError."""
    paths: dict[str, None] = {}
    for given in (text for url in urls for text in expand_braces(url)):
        matches = match_address(given) if is_address(given) else match_path(given)
        if not matches:
            raise SourceError(f"urls: {given} matches no files (relative paths start from {Path.cwd()})")
        paths |= dict.fromkeys(matches)
    return list(paths)


def match_path(given: str) -> list[str]:
    """Return the local files of a path or pattern, sorted."""
    path = os.fspath(local_path(given))
    return [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob(path, recursive=True)))


def match_address(given: str) -> list[str]:
    """Return the files at an address or pattern, sorted. Raises SourceError."""
    if not has_magic(given):
        return [given]
    try:
        filesystem, path = open_address(given)
        return [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(path))]
    except StorageError as error:
        raise SourceError(str(error)) from None
    except Exception as error:  # network and access errors; each file system has its own classes
        raise SourceError(f"{given} cannot be listed: {error_sentence(error)}") from error


def list_samples(path: str, extensions: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Member]]:
    """Return the members of each sample of a tar file, by kind. Raises SourceError."""
    ranks = {kind: {each: rank for rank, each in enumerate(suffixes)} for kind, suffixes in extensions.items()}
    labels = ranks.get("label", {})
    samples: dict[str, dict[str, Member]] = {}
    best: dict[tuple[str, str], int] = {}
    try:
        for member in list_members(path, lambda name: member_extension(name) in labels):
            match = MEMBER.fullmatch(member.name)
            if match is None:
                continue
            for kind, rank in ((kind, suffixes.get(match["extension"].lower())) for kind, suffixes in ranks.items()):
                if rank is None:
                    continue
                before = best.get((match["key"], kind))
                if before == rank:
                    raise SourceError(f"{path} has two files {member.name}: names must be unique in a tar file")
                if before is None or rank < before:
                    best[match["key"], kind] = rank
                    samples.setdefault(match["key"], {})[kind] = member
    except (ImageFileError, ConnectionLost, StorageError) as error:
        raise SourceError(str(error)) from error
    return samples


def member_extension(name: str) -> str:
    """Return the lower-case extension of a member; empty for one that is skipped."""
    match = MEMBER.fullmatch(name)
    return match["extension"].lower() if match else ""


def read_label(member: Member, path: str) -> str:
    """Return the label in a member. Raises SourceError."""
    try:
        return member.data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: {member.name} is not UTF-8 text ({error})") from None


@dataclass(frozen=True, eq=False)
class TarSource:
    """Samples in tar files. `members` are names, and `places` (n, 2) offsets and sizes of the files of each kind.

    Kinds are `image`, `mask` and `instance`. `tars` (n,) are indices of `paths`. Ranges of addresses are read.
    """

    paths: tuple[str, ...]
    keys: Sequence[str]
    tars: np.ndarray
    members: Mapping[str, Sequence[str]]
    places: Mapping[str, np.ndarray]
    labels: Sequence[int] | Sequence[Labels] | None = None
    class_names: tuple[str, ...] | None = None
    divisor: int | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def multi_label(self) -> bool:
        """Whether images have lists of classes."""
        return self.labels is not None and isinstance(self.labels[0], Labels)

    def read(self, index: int) -> RawSample:
        """Read a sample. Raises ImageFileError, or ConnectionLost."""
        files = {kind: self.file(kind, index) for kind in self.members}
        name, image, encoded = self.name(index), read_pixels(files["image"], self.channels), tuple(files.values())
        if self.labels is not None:
            return RawSample(name, image, self.labels[index], encoded=encoded)
        if "instance" not in files:
            return RawSample(name, image, read_mask(files["mask"]), encoded=encoded)
        segments, notes = read_segments(files["instance"], files.get("mask"), self.divisor)
        return RawSample(name, image, segments, notes, encoded=encoded)

    def file(self, kind: str, index: int) -> ImageBytes:
        """Read the file of a kind. Raises ImageFileError, or ConnectionLost."""
        path = self.paths[self.tars[index]]
        offset, size = self.places[kind][index].tolist()
        name = f"{path}: {self.members[kind][index]}"
        return ImageBytes(name, read_range(path, offset, size, name))

    def name(self, index: int) -> str:
        """Return the name of the tar file, with its folders if it is not unique, and the key of the sample."""
        return f"{self.titles[self.tars[index]]}: {self.keys[index]}"

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """The names of the tar files; their paths or addresses if names are equal."""
        names = tuple(PurePath(path).name for path in self.paths)
        return names if len(set(names)) == len(names) else self.paths

    def files(self, index: int) -> tuple[Path, ...]:
        """Empty: samples are not stored in separate files."""
        return ()

    def group(self, index: int) -> str:
        """Return the sample's name: samples are independent."""
        return self.name(index)


__all__ = ["TarSource", "WebDatasetSource"]
