"""Names of results: unique without regard to case, and in folders of limited size.

A name depends on the places of all images, and not on their order.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from hf_vit_seg.inference.files.suffixes import COCO, ENTROPY, OVERLAY, SCORES

# The results of `cat.overlay.jpg` would have the name of another result of `cat.jpg`.
RESERVED = tuple(suffix.rpartition(".")[0] for suffix in (OVERLAY, SCORES, ENTROPY, COCO))
FOLDER_LIMIT = 10_000  # images of one folder, above which their results are divided among subfolders
DIGITS, ALL_DIGITS = 8, 64  # digits of a digest in a name


def target_names(
    places: Sequence[str],
    flat_stems: bool = False,
    limit: int = FOLDER_LIMIT,
    origins: Sequence[str] | None = None,
) -> list[str]:
    """Return a unique path for the results of each place, without suffix.

    Places that differ only in suffix or case, and those like `cat.overlay.jpg`, whose results would have the names of
    the results of `cat.jpg`, get the suffix in the name, and if that is not enough, a digest of the place, or of its
    origin (such as the folder that was given as input) and place. Folders of more than `limit` images
    are divided by digest. With `flat_stems`, names have no dots, as keys of WebDataset.
    """
    stems = [stem(place, flat_stems) for place in places]
    reserved = [index for index, name in enumerate(stems) if name.lower().endswith(RESERVED)]
    for index in {*repeated_names(stems), *reserved}:
        stems[index] = with_suffix(stems[index], places[index])
    plain = {index: stems[index] for index in repeated_names(stems)}
    for index, name in plain.items():
        stems[index] = f"{name}_{digest(places[index])}"
    for digits in (DIGITS, ALL_DIGITS):  # equal places of several origins; equal digests are very unlikely
        for index in repeated_names(stems):
            origin = "" if origins is None else origins[index]
            name = plain.get(index, stems[index])
            stems[index] = f"{name}_{digest(f'{origin}/{places[index]}', digits)}"
    crowded = crowded_folders(stems, limit)
    if not crowded:
        return stems
    folders = all_folders(stems)
    prefixes = {folder: free_prefix(folder, parts, folders) for folder, parts in crowded.items()}
    return [divide(name, crowded, prefixes) for name in stems]


def stem(origin: str, flat: bool) -> str:
    """Return a place without suffix."""
    folder, slash, name = origin.rpartition("/")
    name = name.rpartition(".")[0] or name
    return folder + slash + (name.replace(".", "_") if flat else name)


def repeated_names(names: Sequence[str]) -> list[int]:
    """Return the indices of the names that occur more than once, without regard to case and Unicode form."""
    hashes = np.fromiter((hash(casefold_name(name)) for name in names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    repeated = np.zeros(len(names), bool)
    repeated[order[1:][equal]] = repeated[order[:-1][equal]] = True
    candidates = np.flatnonzero(repeated).tolist()  # and a few with equal hashes of different names
    counts = Counter(casefold_name(names[index]) for index in candidates)
    return [index for index in candidates if counts[casefold_name(names[index])] > 1]


def casefold_name(name: str) -> str:
    """Return a name in the form that case-insensitive, normalizing file systems compare."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def with_suffix(name: str, origin: str) -> str:
    """Add the suffix of a place to a name."""
    return f"{name}_{PurePosixPath(origin).suffix.lstrip('.').lower() or 'file'}"


def digest(text: str, digits: int = DIGITS) -> str:
    """Return the first hexadecimal digits of a digest."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


def crowded_folders(names: Sequence[str], limit: int) -> dict[str, int]:
    """Return the folders of more names than the limit, and their numbers of subfolders, half full on average."""
    counts = Counter(name.rpartition("/")[0] for name in names)
    return {folder: -(-count // (limit // 2)) for folder, count in counts.items() if count > limit}


def all_folders(names: Sequence[str]) -> set[str]:
    """Return the folders of names and the folders that contain these, in the form of `casefold_name`."""
    folders: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in names}:
        while folder and casefold_name(folder) not in folders:
            folders.add(casefold_name(folder))
            folder = folder.rpartition("/")[0]
    return folders


def free_prefix(folder: str, parts: int, folders: set[str]) -> str:
    """Return a prefix for the subfolders of a crowded folder, so that none of them is a folder of other results."""
    prefix = ""
    while any(casefold_name(subfolder(folder, prefix, number, parts)) in folders for number in range(parts)):
        prefix += "_"
    return prefix


def subfolder(folder: str, prefix: str, number: int, parts: int) -> str:
    """Return the path of a subfolder of a crowded folder."""
    return f"{folder}{'/' if folder else ''}{prefix}{number:0{len(str(parts - 1))}d}"


def divide(name: str, crowded: dict[str, int], prefixes: dict[str, str]) -> str:
    """Insert a subfolder into a name in a crowded folder."""
    folder, _, last = name.rpartition("/")
    if folder not in crowded:
        return name
    parts = crowded[folder]
    return f"{subfolder(folder, prefixes[folder], int(digest(last), 16) % parts, parts)}/{last}"


__all__ = ["FOLDER_LIMIT", "target_names"]
