"""What a look at all samples has found: class frequencies, unknown values, faults, images in two splits.

Shapes: K classes or keypoints.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.labels.raw_values import Raw
from hf_vit_seg.data.wording import listed

from .sample_facts import SampleFacts

SHOWN = 3  # unknown values in a sentence
UNITS = {"segmentation": "pixels", "classification": "images", "pose": "labelled keypoints"}
REFUSED = {
    "segmentation": "values that are no class's and not in data.ignore",
    "classification": "labels that are no class's, and every image needs one",
}


@dataclass(frozen=True)
class Occurrence:
    """How often something occurs (pixels; images; labelled keypoints), and in which samples (by index)."""

    count: int = 0
    samples: tuple[int, ...] = ()
    most: int = -1  # the sample with most of it


def occurrence(rows: Sequence[tuple[int, int]]) -> Occurrence:
    """Of samples by index, and how often each has it."""
    if not rows:
        return Occurrence()
    samples, counts = zip(*rows, strict=True)
    return Occurrence(sum(counts), samples, max(rows, key=lambda row: row[1])[0])


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """A split, and what is known of each of its samples."""

    split: str
    dataset: RawDataset
    facts: Sequence[SampleFacts]

    @property
    def table(self) -> ClassTable:
        """The split's classes by raw value."""
        return self.dataset.class_table

    @property
    def faults(self) -> list[str]:
        """Samples that cannot be used, a sentence for each."""
        return [facts.fault for facts in self.facts if facts.fault is not None]

    @cached_property
    def values(self) -> dict[Raw, Occurrence]:
        """Every raw value that occurs, in order."""
        found: dict[Raw, list[tuple[int, int]]] = defaultdict(list)
        for index, facts in enumerate(self.facts):
            for raw, count in facts.values:
                found[raw].append((index, count))
        return {raw: occurrence(rows) for raw, rows in sorted(found.items(), key=lambda item: item[0])}

    @cached_property
    def targets(self) -> Mapping[Raw, int]:
        """The class of each raw value, or the ignore index; keypoints are their own."""
        if self.dataset.task == "pose":
            return {index: index for index in range(len(self.table.names))}
        return dict(self.table.targets)

    @cached_property
    def classes(self) -> tuple[Occurrence, ...]:
        """(K,) occurrences of the classes."""
        gathered: list[Counter[int]] = [Counter() for _ in self.table.names]
        for index, facts in enumerate(self.facts):
            for raw, count in facts.values:
                if (target := self.targets.get(raw, -1)) in range(len(gathered)):
                    gathered[target][index] += count
        return tuple(occurrence(list(counts.items())) for counts in gathered)

    def meaning(self, raw: Raw) -> str:
        """A raw value's class, in words."""
        target = self.targets.get(raw)
        known = target in range(len(self.table.names))
        return self.table.names[target] if target is not None and known else "unknown" if target is None else "ignored"

    @property
    def ignored(self) -> int:
        """Pixels that do not count."""
        known = range(len(self.table.names))
        return sum(o.count for raw, o in self.values.items() if self.targets.get(raw, 0) not in known)

    @cached_property
    def unknown(self) -> dict[Raw, Occurrence]:
        """Raw values that are neither a class's nor ignored, the most frequent first."""
        strange = [(raw, o) for raw, o in self.values.items() if raw not in self.targets]
        return dict(sorted(strange, key=lambda item: -item[1].count))

    @cached_property
    def refused(self) -> list[Raw]:
        """Raw values that must not occur: unknown ones that the recipe does not ignore; labels of images without class.

        Of a mask some pixels may be ignored; of an image that is ignored nothing is left.
        """
        if self.dataset.task == "classification":
            return [raw for raw in self.values if self.targets.get(raw, -1) not in range(len(self.table.names))]
        return list(self.unknown) if self.table.unknown_values == "error" else []

    @cached_property
    def empty(self) -> tuple[int, ...]:
        """Samples in which nothing counts."""
        filled = {index for occurrence in self.classes for index in occurrence.samples}
        return tuple(i for i, facts in enumerate(self.facts) if facts.fault is None and i not in filled)

    @property
    def kinds(self) -> Counter[str]:
        """Samples by number of bands and type of their numbers."""
        return Counter(facts.kind for facts in self.facts if facts.fault is None)

    @property
    def sizes(self) -> Counter[tuple[int, ...]]:
        """Samples by size (height, width)."""
        return Counter(facts.shape[1:] for facts in self.facts if facts.fault is None)

    @cached_property
    def digests(self) -> dict[str, tuple[str, ...]]:
        """Names of samples by what their image shows."""
        names: dict[str, list[str]] = defaultdict(list)
        for facts in self.facts:
            if facts.fault is None:
                names[facts.digest].append(facts.name)
        return {digest: tuple(group) for digest, group in names.items()}

    def where(self, samples: Sequence[int]) -> str:
        """Some samples' targets, for messages."""
        return listed(self.dataset.where(index) for index in samples)

    def told(self, raw: Raw) -> str:
        """How often a raw value occurs, and where."""
        found = self.values[raw]
        return f"{raw} ({self.amount(found.count)} in {self.where(found.samples)})"

    def amount(self, count: int) -> str:
        """A count with its unit, such as 12 pixels."""
        unit = UNITS[self.dataset.task]
        return f"{count} {unit.removesuffix('s') if count == 1 else unit}"

    def problems(self) -> Iterator[str]:
        """What keeps the split from being used."""
        yield from self.faults
        if self.refused:
            yield (
                f"{self.split}: there are {REFUSED[self.dataset.task]}: "
                f"{listed((self.told(raw) for raw in self.refused), SHOWN)}; classes have {self.table.known_values()}"
            )
        if not self.facts:
            yield f"{self.split}: there are no samples"
        elif not self.faults and len(self.empty) == len(self.facts):
            yield f"{self.split}: nothing counts in any sample: all values are ignored"

    def warnings(self) -> Iterator[str]:
        """What may be meant, but seldom is."""
        absent = [name for name, o in zip(self.table.names, self.classes, strict=True) if not o.count]
        if absent:
            few = f"{len(absent)} of {len(self.classes)} classes occur in none of {len(self.facts)} samples"
            yield f"{self.split}: {few}: {listed(absent, 5)}"
        if self.unknown and not self.refused:
            amount = self.amount(sum(found.count for found in self.unknown.values()))
            yield f"{self.split}: unknown values that are ignored: {listed(self.unknown, 5)} ({amount})"
        if self.empty and len(self.empty) < len(self.facts):
            yield f"{self.split}: samples in which nothing counts: {self.where(self.empty)}"
        repeated = [names for names in self.digests.values() if len(names) > 1]
        if repeated and self.dataset.task != "pose":  # people share their image
            yield f"{self.split}: images that occur more than once: {listed(' = '.join(n[:2]) for n in repeated)}"


@dataclass(frozen=True, eq=False)
class CheckReport:
    """All splits that were looked at; `scaled` says that the recipe or its model tells how numbers are normalized."""

    task: str
    splits: Mapping[Any, SplitFacts]
    scaled: bool = False

    @property
    def kinds(self) -> list[tuple[str, list[str]]]:
        """Names of the images of all splits by number of bands and type of their numbers, the most frequent first."""
        names: dict[str, list[str]] = defaultdict(list)
        for part in self.splits.values():
            for facts in part.facts:
                if facts.fault is None:
                    names[facts.kind].append(facts.name)
        return sorted(names.items(), key=lambda item: -len(item[1]))

    @property
    def problems(self) -> list[str]:
        """What keeps the data from being used, a sentence for each."""
        found = [problem for part in self.splits.values() for problem in part.problems()]
        if len(self.kinds) > 1:
            (usual, most), *rest = self.kinds
            others = listed((f"{len(names)} of {kind} ({listed(names)})" for kind, names in rest), 5)
            found.append(
                f"images differ in depth, so that no normalization fits them all: {len(most)} of {usual}, {others}"
            )
        return found

    @property
    def warnings(self) -> list[str]:
        """What may be meant, but seldom is, a sentence for each."""
        found = [warning for part in self.splits.values() for warning in part.warnings()]
        if not self.scaled and any(facts.dtype == "float32" for part in self.splits.values() for facts in part.facts):
            found.append(
                "images have more than 8 bits, and a new model's processor takes them for 0 .. 255: set "
                "processor: {image_mean: computed, image_std: computed}, or rescale_factor and means of your own"
            )
        names = list(self.splits)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                if pairs := self.shared(first, second):
                    found.append(f"{first} and {second} share images: {listed(' = '.join(pair) for pair in pairs)}")
        return found

    def shared(self, first: str, second: str) -> list[tuple[str, str]]:
        """Pairs of names of the same image in two splits."""
        ours, theirs = self.splits[first].digests, self.splits[second].digests
        return [(names[0], theirs[digest][0]) for digest, names in ours.items() if digest in theirs]

    def class_counts(self, split: str = "train") -> list[int]:
        """Pixels (images, labelled keypoints) of each class (K,), from which losses take their class weights."""
        return [occurrence.count for occurrence in self.splits[split].classes]


__all__ = ["UNITS", "CheckReport", "Occurrence", "SplitFacts"]
