"""Facts of a sample (shape, dtype, values, faults) and a file that caches them.

The cache is keyed by path, size and modification time of a sample's files, so that a resumed run does not read every
file again.

Shapes: C channels, H W pixels, K keypoints.
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
from hf_vit_seg.data.images.files import read_orientation
from hf_vit_seg.data.labels.raw_values import ClassTableError, Raw
from hf_vit_seg.data.labels.segment_classes import count_segments
from hf_vit_seg.data.samples import Labels, Person, RawSample, RawSegments
from hf_vit_seg.data.storage.addresses import ConnectionLost
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.text_files import ANNOTATION_BYTES, read_json

from .object_facts import ObjectFacts, read_object_facts

VERSION = 6  # version of the cache's format


@dataclass(frozen=True)
class SampleFacts:
    """The shape, dtype and target values of a sample, or the `fault` that makes it unusable.

    `values` are pairs of a raw value and its count: pixels of a mask, 1 for the class of an image, 1 for each labeled
    keypoint of a person, segments of a raw class. `digest` is the hash of the image's pixels. `notes` are warnings of
    the source. `orientations` are those of the image file and of the mask file, if there are any; 1 is upright.
    `brightest` is the largest value of an RGB image of 16 bits. `objects` are facts of the segments.
    """

    name: str
    fault: str | None = None
    shape: tuple[int, ...] = ()
    dtype: str = ""
    values: tuple[tuple[Raw, int], ...] = ()
    digest: str = ""
    notes: tuple[str, ...] = ()
    orientations: tuple[int, ...] = ()
    brightest: int | None = None
    objects: ObjectFacts | None = None

    @property
    def kind(self) -> str:
        """Channels and dtype of the image, such as `3 x uint8`."""
        return f"{self.shape[0]} x {self.dtype}"

    @property
    def scale(self) -> tuple[int, bool]:
        """Channels of the image, and whether its values have a white, as those of RGB of 8 and 16 bits have."""
        return self.shape[0], self.dtype in ("uint8", "uint16")


def read_sample_facts(dataset: RawDataset, index: int) -> SampleFacts:
    """Read a sample and collect its facts; exceptions become its `fault`.

    Raises ConnectionLost, which `data.on_error: skip` must not count as a broken sample.
    """
    name = dataset.name(index)
    try:
        sample = dataset.raw(index)
        orientations = tuple(read_orientation(file) for file in sample.encoded if file is not None)
    except ConnectionLost:
        raise
    except (HfVitSegError, OSError) as error:  # sources of plugins may not name the sample
        return SampleFacts(name, fault=locate_error(error, name, name, dataset.location(index)))
    try:
        values, objects = raw_counts(dataset, sample), None
        if isinstance(sample.target, RawSegments):
            objects = read_object_facts(sample.target, dataset.class_table, dataset.task)
    except ClassTableError as error:
        return SampleFacts(name, fault=locate_error(error, dataset.location(index), name))
    shape = tuple(sample.image.shape)
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)
    digest.update(sample.image.numpy().tobytes())
    return SampleFacts(
        name=name,
        shape=shape,
        dtype=str(sample.image.dtype).removeprefix("torch."),
        values=tuple(values.items()),
        digest=digest.hexdigest(),
        notes=sample.notes,
        orientations=orientations,
        objects=objects,
        brightest=int(sample.image.numpy().max()) if sample.image.dtype == torch.uint16 else None,
    )


def locate_error(error: Exception, where: str, *names: str) -> str:
    """Return the message of an error, prefixed by `where` unless it contains `where` or one of `names`."""
    reason = error_sentence(error)
    return reason if any(name in reason for name in (where, *names)) else f"{where}: {reason}"


def raw_counts(dataset: RawDataset, sample: RawSample) -> Mapping[Raw, int]:
    """Count the raw values of a sample's target. Raises ClassTableError for a mask of the wrong kind."""
    target = sample.target
    if isinstance(target, torch.Tensor):
        if sample.unlabeled is not None:
            target = target[..., ~sample.unlabeled].unsqueeze(-1)
        return dataset.class_table.histogram(target)
    if isinstance(target, RawSegments):
        return count_segments(target, dataset.class_table, dataset.task)
    if isinstance(target, Person):
        return dict.fromkeys(torch.nonzero(target.keypoints[:, 2] > 0).flatten().tolist(), 1)
    if isinstance(target, Labels):
        return dict.fromkeys(target.indices, 1)
    return {target: 1} if isinstance(target, int) else {}


class FactsFile:
    """A cache of sample facts in a JSON file; `path` None disables it. An unreadable file is treated as empty.

    Faults are never cached: they can disappear without a change of the file (permissions, memory, a missing codec, a
    network drive).
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[str, SampleFacts] = {}
        self.used: dict[str, SampleFacts] = {}
        if path is not None and path.is_file():
            try:
                content = read_json(path, ANNOTATION_BYTES)
                self.known = {key: facts_from_json(row) for key, row in content["samples"].items() if not row["fault"]}
            except (ValueError, KeyError, TypeError, AttributeError):  # another version, or truncated
                self.known = {}

    def get(self, key: str | None) -> SampleFacts | None:
        """Return the cached facts of a key, or None."""
        facts = self.known.get(key or "")
        if facts is not None and key is not None:
            self.used[key] = facts
        return facts

    def add(self, key: str | None, facts: SampleFacts) -> None:
        """Cache facts, unless `key` is None or the sample is unusable."""
        if key is not None and facts.fault is None:
            self.used[key] = facts

    def write(self, whole: bool = True) -> None:
        """Write the facts that were used in this run, atomically; unless `whole`, unused ones are kept too."""
        rows = self.used if whole else self.known | self.used
        if self.path is None or rows == self.known:
            return
        text = json.dumps({"samples": {key: asdict(facts) for key, facts in rows.items()}})
        write_text(self.path, text)


def facts_from_json(row: Mapping[str, Any]) -> SampleFacts:
    """Restore the tuples of facts that were stored as JSON."""
    rest = {name: tuple(row[name]) for name in ("shape", "notes", "orientations")}
    values = tuple((tuple(raw) if isinstance(raw, list) else raw, count) for raw, count in row["values"])
    objects = None if row["objects"] is None else ObjectFacts(**row["objects"])
    return SampleFacts(**{**row, "values": values, "objects": objects, **rest})


def source_stamp(settings: Mapping[str, Any], channels: int, dataset: RawDataset) -> str:
    """Return everything that facts depend on except a sample's files: settings, channels, list files, class names."""
    texts = [text for value in settings.values() for text in (value if isinstance(value, list | tuple) else [value])]
    list_files = [stat for text in texts if isinstance(text, str) and (stat := file_stamp(Path(text)))]
    colored = any(isinstance(raw, tuple) for raw, _ in dataset.class_table.targets)
    stamp = [VERSION, dict(settings), channels, list_files, dataset.source.class_names, dataset.task, colored]
    stamp.append(dataset.nodata)
    return json.dumps(stamp, sort_keys=True, default=str)


def facts_key(stamp: str, dataset: RawDataset, index: int) -> str | None:
    """Return the cache key of a sample; None for a sample without separate local files, which is never cached."""
    stamps = [file_stamp(file) if isinstance(file, Path) else None for file in dataset.files(index)]
    if not stamps or None in stamps:
        return None
    return hashlib.blake2b(json.dumps([stamp, dataset.name(index), stamps]).encode(), digest_size=16).hexdigest()


def file_stamp(path: Path) -> tuple[str, int, int] | None:
    """Return the path, size and modification time of a file; None if it does not exist."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return (os.path.abspath(path), stat.st_size, stat.st_mtime_ns) if path.is_file() else None


__all__ = ["FactsFile", "SampleFacts", "facts_key", "read_sample_facts", "source_stamp"]
