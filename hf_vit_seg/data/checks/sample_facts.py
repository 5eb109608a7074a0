"""What is to be known of a sample before training on it, and a file that remembers it.

Looking at every file takes a while; what was found is kept by path, size and time of change of a sample's files, so
that a run that goes on does not look again.

Shapes: C bands, H W pixels, K keypoints.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.labels.raw_values import ClassTableError, Raw
from hf_vit_seg.data.samples import Person, RawSample
from hf_vit_seg.errors import HfVitSegError, error_sentence

VERSION = 3  # of what is remembered


@dataclass(frozen=True)
class SampleFacts:
    """A sample that was read: a fault in one sentence, or its shape and what its target holds.

    `values` are pairs of a raw value and how often it occurs: pixels of a mask, one image of a class, one person of a
    labelled keypoint. `digest` is that of the image's pixels.
    """

    name: str
    fault: str | None = None
    shape: tuple[int, ...] = ()
    dtype: str = ""
    values: tuple[tuple[Raw, int], ...] = ()
    digest: str = ""

    @property
    def kind(self) -> str:
        """Bands and type of the image's numbers, such as `3 x uint8`."""
        return f"{self.shape[0]} x {self.dtype}"


def facts_of(dataset: RawDataset, index: int) -> SampleFacts:
    """Read a sample."""
    name = dataset.name(index)
    try:
        sample = dataset.raw(index)
    except (HfVitSegError, OSError) as error:  # sources of plugins may leave out which sample they mean
        return SampleFacts(name, fault=named(error, name, name, dataset.where(index)))
    try:
        values = raw_counts(dataset, sample)
    except ClassTableError as error:
        return SampleFacts(name, fault=named(error, dataset.where(index), name))
    shape = tuple(sample.image.shape)
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)
    digest.update(sample.image.numpy().tobytes())
    return SampleFacts(
        name=name,
        shape=shape,
        dtype=str(sample.image.dtype).removeprefix("torch."),
        values=tuple(values.items()),
        digest=digest.hexdigest(),
    )


def named(error: Exception, where: str, *names: str) -> str:
    """An error's sentence, which begins with `where` unless it has that or one of `names` in it."""
    reason = error_sentence(error)
    return reason if any(name in reason for name in (where, *names)) else f"{where}: {reason}"


def raw_counts(dataset: RawDataset, sample: RawSample) -> Mapping[Raw, int]:
    """How often each raw value occurs in a sample's target. ClassTableError for a mask of the wrong kind."""
    target = sample.target
    if isinstance(target, torch.Tensor):
        return dataset.class_table.histogram(target)
    if isinstance(target, Person):
        return dict.fromkeys(torch.nonzero(target.keypoints[:, 2] > 0).flatten().tolist(), 1)
    return {} if target is None else {target: 1}


class FactsFile:
    """Facts of samples by key, in a JSON file; None keeps them nowhere. A file that cannot be read counts as empty."""

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[str, SampleFacts] = {}
        self.used: dict[str, SampleFacts] = {}
        if path is not None and path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self.known = {key: read_facts(row) for key, row in content["samples"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):  # of another version, or cut short
                self.known = {}

    def recall(self, key: str | None) -> SampleFacts | None:
        """What is known by a key."""
        facts = self.known.get(key or "")
        if facts is not None and key is not None:
            self.used[key] = facts
        return facts

    def keep(self, key: str | None, facts: SampleFacts) -> None:
        """Remember facts; those without a key are not."""
        if key is not None:
            self.used[key] = facts

    def write(self, whole: bool = True) -> None:
        """Write what was recalled and kept, as a whole file or not at all; unless `whole`, the rest of it stays too."""
        rows = self.used if whole else self.known | self.used
        if self.path is None or rows == self.known:
            return
        text = json.dumps({"samples": {key: asdict(facts) for key, facts in rows.items()}})
        write_text(self.path, text)


def read_facts(row: Mapping[str, Any]) -> SampleFacts:
    """Facts as JSON gives them back."""
    values = tuple((tuple(raw) if isinstance(raw, list) else raw, count) for raw, count in row["values"])
    return SampleFacts(**{**row, "shape": tuple(row["shape"]), "values": values})


def source_stamp(settings: Mapping[str, Any], bands: int, dataset: RawDataset) -> str:
    """What the facts of a source's samples depend on beside their files: settings, bands, lists, class names."""
    listed = [stat for value in settings.values() if isinstance(value, str) and (stat := file_stamp(Path(value)))]
    colored = any(isinstance(raw, tuple) for raw, _ in dataset.class_table.targets)
    stamp = [VERSION, dict(settings), bands, listed, dataset.source.class_names, dataset.task, colored]
    return json.dumps(stamp, sort_keys=True, default=str)


def facts_key(stamp: str, dataset: RawDataset, index: int) -> str | None:
    """The key of a sample; None for one that has no files of its own, which is read every time."""
    stamps = [file_stamp(path) for path in dataset.files(index)]
    if not stamps or None in stamps:
        return None
    return hashlib.blake2b(json.dumps([stamp, dataset.name(index), stamps]).encode(), digest_size=16).hexdigest()


def file_stamp(path: Path) -> tuple[str, int, int] | None:
    """Path, size and time of change of a file; None where there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return (os.path.abspath(path), stat.st_size, stat.st_mtime_ns) if path.is_file() else None


__all__ = ["FactsFile", "SampleFacts", "facts_key", "facts_of", "source_stamp"]
