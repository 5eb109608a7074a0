"""The report of a dataset check: class frequencies, unknown values, faults, images shared by splits.

Shapes: K classes or keypoints.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.images.orientation import UPRIGHT
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.labels.raw_values import IGNORED_VALUE, Raw
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.transforms.sample_segments import MIN_AREA
from hf_vit_seg.models.image_processing_inputs import DARK

from .sample_facts import SampleFacts

SHOWN = 3  # unknown values in a message
WHITE = 255
FREQUENT = 0.01  # share of the pixels
UNITS = {
    "segmentation": "pixels",
    "classification": "images",
    "pose": "labeled keypoints",
    "instance": "objects",
    "panoptic": "segments",
}
DISALLOWED = {
    "segmentation": "values that belong to no class and are not in data.ignore",
    "classification": "labels that belong to no class (every image needs a class)",
    "instance": "objects of classes that are neither listed nor in data.ignore",
    "panoptic": "segments of classes that are neither listed nor in data.ignore",
}


# Facts of objects that are reported, with what they mean.
OBJECT_FAULTS = {
    "tiny": f"have fewer than {MIN_AREA} pixels, and are ignored in training",
    "split": "consist of several parts that do not touch",
    "hidden": "are completely covered by other objects, and left out",
}


@dataclass(frozen=True)
class Occurrence:
    """The frequency of a value or class (pixels, images or labeled keypoints), and the indices of its samples."""

    count: int = 0
    samples: tuple[int, ...] = ()
    top_sample: int = -1  # the sample with the highest count


def count_occurrences(rows: Sequence[tuple[int, int]]) -> Occurrence:
    """Sum up pairs of a sample's index and its count."""
    if not rows:
        return Occurrence()
    samples, counts = zip(*rows, strict=True)
    return Occurrence(sum(counts), samples, max(rows, key=lambda row: row[1])[0])


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """A split and the facts of its samples; `skipped` are those of unusable samples that are left out of both."""

    split: str
    dataset: RawDataset
    facts: Sequence[SampleFacts]
    skipped: Sequence[SampleFacts] = ()

    @property
    def table(self) -> ClassTable:
        """The split's class table."""
        return self.dataset.class_table

    @property
    def faults(self) -> list[str]:
        """One message for each unusable sample."""
        return [facts.fault for facts in self.facts if facts.fault is not None]

    @property
    def skipped_samples(self) -> list[dict[str, str]]:
        """Split, name and reason of each skipped sample."""
        return [{"split": self.split, "name": facts.name, "reason": str(facts.fault)} for facts in self.skipped]

    @cached_property
    def values(self) -> dict[Raw, Occurrence]:
        """Occurrences of each raw value, in order of the values."""
        counts: dict[Raw, list[tuple[int, int]]] = defaultdict(list)
        for index, facts in enumerate(self.facts):
            for raw, count in facts.values:
                counts[raw].append((index, count))
        return {raw: count_occurrences(rows) for raw, rows in sorted(counts.items(), key=lambda item: item[0])}

    @cached_property
    def targets(self) -> Mapping[Raw, int]:
        """Maps raw values to class indices or the ignore index; the identity for keypoints."""
        if self.dataset.task == "pose":
            return {index: index for index in range(len(self.table.names))}
        return dict(self.table.targets)

    @cached_property
    def classes(self) -> tuple[Occurrence, ...]:
        """Occurrences of each class, (K,)."""
        counts: list[Counter[int]] = [Counter() for _ in self.table.names]
        for index, facts in enumerate(self.facts):
            for raw, count in facts.values:
                if (target := self.targets.get(raw, -1)) in range(len(counts)):
                    counts[target][index] += count
        return tuple(count_occurrences(list(counts.items())) for counts in counts)

    def class_name(self, raw: Raw) -> str:
        """Return the class name of a raw value, `ignored` or `unknown`."""
        target = self.targets.get(raw)
        if target is None:
            return "unknown"
        return self.table.names[target] if target in range(len(self.table.names)) else "ignored"

    @property
    def ignored_count(self) -> int:
        """The number of ignored and unknown pixels."""
        class_targets = range(len(self.table.names))
        return sum(o.count for raw, o in self.values.items() if self.targets.get(raw, 0) not in class_targets)

    @cached_property
    def unknown(self) -> dict[Raw, Occurrence]:
        """Raw values that are neither mapped to a class nor ignored, the most frequent first."""
        unknown = [(raw, o) for raw, o in self.values.items() if raw not in self.targets]
        return dict(sorted(unknown, key=lambda item: -item[1].count))

    @cached_property
    def disallowed_values(self) -> list[Raw]:
        """Raw values that are errors: unknown values in masks unless ignored; any image label that is not a class.

        A mask may have ignored pixels, but an image with an ignored label could not be trained on.
        """
        if self.dataset.task == "classification" and not self.dataset.multi_label:
            return [raw for raw in self.values if self.targets.get(raw, -1) not in range(len(self.table.names))]
        return list(self.unknown) if self.table.unknown_values == "error" else []

    @cached_property
    def empty(self) -> tuple[int, ...]:
        """Indices of samples in which all values are ignored."""
        filled = {index for occurrence in self.classes for index in occurrence.samples}
        return tuple(i for i, facts in enumerate(self.facts) if facts.fault is None and i not in filled)

    @property
    def kinds(self) -> Counter[str]:
        """Number of samples by channels and dtype."""
        return Counter(facts.kind for facts in self.facts if facts.fault is None)

    @property
    def sizes(self) -> Counter[tuple[int, ...]]:
        """Number of samples by size (height, width)."""
        return Counter(facts.shape[1:] for facts in self.facts if facts.fault is None)

    @cached_property
    def digests(self) -> dict[str, tuple[str, ...]]:
        """Names of samples by the digest of their image."""
        names: dict[str, list[str]] = defaultdict(list)
        for facts in self.facts:
            if facts.fault is None:
                names[facts.digest].append(facts.name)
        return {digest: tuple(group) for digest, group in names.items()}

    @cached_property
    def notes(self) -> dict[str, list[int]]:
        """Indices of the samples that have a source's warning."""
        indices: dict[str, list[int]] = defaultdict(list)
        for index, facts in enumerate(self.facts):
            for note in facts.notes:
                indices[note].append(index)
        return indices

    def object_total(self, name: str) -> int:
        """Return the sum of a fact of objects over the samples."""
        return sum(getattr(facts.objects, name) for facts in self.facts if facts.objects is not None)

    def samples_with(self, name: str) -> list[int]:
        """Return the indices of the samples with a fact about objects, sorted by its frequency."""
        counts = {i: getattr(facts.objects, name) for i, facts in enumerate(self.facts) if facts.objects is not None}
        return sorted((i for i, count in counts.items() if count), key=lambda i: -counts[i])

    def object_warnings(self) -> Iterator[str]:
        """Yield warnings for objects that are tiny, split, covered or overlapping."""
        total = self.object_total("count")
        for name, text in OBJECT_FAULTS.items():
            if samples := self.samples_with(name):
                count = f"{self.object_total(name)} of {total} objects"
                yield f"{self.split}: {count} {text}: {self.locations(samples)}"
        if samples := self.samples_with("overlaps"):
            yield (
                f"{self.split}: annotations overlap in {self.object_total('overlaps')} pixels of {len(samples)} "
                f"samples; a pixel belongs to the smallest object: {self.locations(samples)}"
            )

    def query_warning(self, queries: int) -> str | None:
        """Return a message if images have more objects than the model has queries."""
        counts = [facts.objects.count for facts in self.facts if facts.objects is not None]
        above = [index for index in self.samples_with("count") if self.facts[index].objects.count > queries]  # pyright: ignore[reportOptionalMemberAccess]
        if not above:
            return None
        return (
            f"{self.split}: {len(above)} of {len(counts)} samples have more objects than the model has queries "
            f"({queries}), at most {max(counts)}; a query finds one object, so set model.fields.num_queries to more "
            f"than that, or train on smaller crops: {self.locations(above)}"
        )

    @cached_property
    def rotated_samples(self) -> tuple[int, ...]:
        """Indices of the samples whose image has an orientation other than upright."""
        return tuple(i for i, facts in enumerate(self.facts) if facts.orientations and facts.orientations[0] != UPRIGHT)

    def orientation_warnings(self) -> Iterator[str]:
        """Yield warnings for images whose orientation may differ from that of their mask or annotations."""
        if self.dataset.task == "classification":
            return
        differing = [i for i, facts in enumerate(self.facts) if len(set(facts.orientations)) > 1]
        if differing:
            yield (
                f"{self.split}: {len(differing)} images have another orientation tag than their mask, and both are "
                f"turned upright: see in the contact sheet whether they fit: {self.locations(differing)}"
            )
        if single := [i for i in self.rotated_samples if len(self.facts[i].orientations) == 1]:
            yield (
                f"{self.split}: {len(single)} images have an orientation tag and are turned upright; their annotations "
                f"must be for the upright image: {format_list(self.facts[i].name for i in single)}"
            )

    def locations(self, samples: Sequence[int]) -> str:
        """Format the files of some samples' targets."""
        return format_list(self.dataset.location(index) for index in samples)

    def format_value(self, raw: Raw) -> str:
        """Format a raw value with its count and samples."""
        occurrence = self.values[raw]
        return f"{raw} ({self.format_count(occurrence.count)} in {self.locations(occurrence.samples)})"

    def format_count(self, count: int) -> str:
        """Format a count with its unit, such as `12 pixels`."""
        unit = UNITS[self.dataset.task]
        return f"{count} {unit.removesuffix('s') if count == 1 else unit}"

    @cached_property
    def absent(self) -> tuple[int, ...]:
        """Indices of the classes that do not occur."""
        return tuple(index for index, found in enumerate(self.classes) if not found.count)

    @cached_property
    def ignored(self) -> dict[Raw, Occurrence]:
        """Raw values of masks that are mapped to the ignore index by the recipe, the most frequent first."""
        class_targets = range(len(self.table.names))
        ignored = {raw: o for raw, o in self.values.items() if raw != IGNORED_VALUE and raw in self.targets}
        rows = [(raw, o) for raw, o in ignored.items() if self.targets[raw] not in class_targets]
        return dict(sorted(rows, key=lambda item: -item[1].count))

    @cached_property
    def is_black_and_white(self) -> bool:
        """Whether masks have only the values 0 and 255, 255 is ignored, and the second class is absent."""
        found = set(self.values) == {0, WHITE} and WHITE in self.ignored
        return found and len(self.classes) == 2 and self.absent == (1,)

    def ignored_class_message(self, absent: int) -> str | None:
        """Return a warning if an ignored value is frequent: it may be that of the absent class with this index."""
        total = sum(found.count for found in self.values.values())
        frequent = [(raw, o) for raw, o in self.ignored.items() if o.count >= FREQUENT * total]
        if not frequent:
            return None
        raw, found = frequent[0]
        name = self.table.names[absent]
        shown = list(raw) if isinstance(raw, tuple) else raw
        return (
            f"{self.split}: the class '{name}' does not occur, but {found.count / total:.0%} of the pixels have the "
            f"value {raw}, which is ignored: if it is this class, write {{name: {name}, values: [{shown}]}} in "
            "data.classes (and remove it from data.ignore)"
        )

    def problems(self) -> Iterator[str]:
        """Yield an error message for each fault that prevents training."""
        yield from self.faults
        if self.disallowed_values:
            yield (
                f"{self.split}: found {DISALLOWED[self.dataset.task]}: "
                f"{format_list(map(self.format_value, self.disallowed_values), SHOWN)}; classes have "
                f"{self.table.describe_values()}"
            )
        if not self.facts:
            yield f"{self.split}: found no samples"
        elif not self.faults and len(self.empty) == len(self.facts):
            noun = (
                "no sample has an object"
                if self.dataset.task == "instance"
                else "all values of all samples are ignored"
            )
            yield f"{self.split}: {noun}"

    def warnings(self) -> Iterator[str]:
        """Yield warnings for data that are probably wrong but do not prevent training."""
        if self.skipped:
            total = len(self.skipped) + len(self.facts)
            reasons = format_list((str(facts.fault) for facts in self.skipped), SHOWN)
            yield f"{self.split}: {len(self.skipped)} of {total} samples are skipped: {reasons}"
        if absent := [self.table.names[index] for index in self.absent]:
            missing = f"{len(absent)} of {len(self.classes)} classes do not occur in {len(self.facts)} samples"
            yield f"{self.split}: {missing}: {format_list(absent, 5)}"
        if self.unknown and not self.disallowed_values:
            amount = self.format_count(sum(found.count for found in self.unknown.values()))
            yield f"{self.split}: unknown values that are ignored: {format_list(self.unknown, 5)} ({amount})"
        if self.empty and len(self.empty) < len(self.facts) and not self.dataset.multi_label:
            noun = "an object" if self.dataset.task == "instance" else "a label of any class"
            yield f"{self.split}: samples without {noun}: {self.locations(self.empty)}"
        yield from self.orientation_warnings()
        yield from self.object_warnings()
        for note, samples in self.notes.items():
            yield f"{self.split}: {len(samples)} samples with {note}: {format_list(map(self.dataset.name, samples))}"
        repeated = [names for names in self.digests.values() if len(names) > 1]
        if repeated and self.dataset.task != "pose":  # people share their image
            yield f"{self.split}: images that occur more than once: {format_list(' = '.join(n[:2]) for n in repeated)}"


@dataclass(frozen=True, eq=False)
class CheckReport:
    """Facts of all checked splits.

    `normalized` is true if the recipe defines the normalization, `scaled` also if its model does.

    `queries` is the number of objects that the model can find in an image; None if it is not limited or unknown.
    """

    task: str
    splits: Mapping[Any, SplitFacts]
    scaled: bool = False
    normalized: bool = False
    queries: int | None = None

    @property
    def kinds(self) -> list[tuple[str, list[str]]]:
        """Names of the images of all splits by channels and dtype, the most frequent first."""
        names: dict[str, list[str]] = defaultdict(list)
        for part in self.splits.values():
            for facts in part.facts:
                if facts.fault is None:
                    names[facts.kind].append(facts.name)
        return sorted(names.items(), key=lambda item: -len(item[1]))

    @property
    def problems(self) -> list[str]:
        """Messages on data that cannot be trained on."""
        problems = [problem for part in self.splits.values() for problem in part.problems()]
        if len({facts.scale for part in self.splits.values() for facts in part.facts if facts.fault is None}) > 1:
            (usual, most), *rest = self.kinds
            others = format_list((f"{len(names)} of {kind} ({format_list(names)})" for kind, names in rest), 5)
            problems.append(f"images must have equal channels and depth, found {len(most)} of {usual}, {others}")
        if (problem := self.dark_problem()) is not None:
            problems.append(problem)
        problems += [message for problem, message in self.ignored_classes if problem]
        return problems

    @cached_property
    def ignored_classes(self) -> list[tuple[bool, str]]:
        """Messages on classes that occur in no split while an ignored value is frequent; true for problems."""
        parts = list(self.splits.values())
        absent = set.intersection(*(set(part.absent) for part in parts)) if parts else set()
        if self.task != "segmentation" or not absent:
            return []
        found = [(part.is_black_and_white, part.ignored_class_message(min(absent))) for part in parts]
        return [(problem, message) for problem, message in found if message is not None]

    def dark_problem(self) -> str | None:
        """Return a message if RGB images of 16 bits use only the darkest values, as those of 12 bits do."""
        deep = {f.name: f.brightest for part in self.splits.values() for f in part.facts if f.brightest is not None}
        brightest = max(deep.values(), default=DARK)
        if self.normalized or brightest >= DARK:
            return None
        return (
            f"{len(deep)} images of 16 bits have values up to {brightest} of 65535, so that they would be almost black "
            f"as RGB ({format_list(deep)}): set processor: {{image_mean: computed, image_std: computed}}, set "
            "data.channels: 1 for gray images, or scale the images to the whole range"
        )

    @property
    def warnings(self) -> list[str]:
        """Messages on data that are probably wrong, but can be trained on."""
        warnings = [warning for part in self.splits.values() for warning in part.warnings()]
        warnings += [message for problem, message in self.ignored_classes if not problem]
        warnings += self.query_warnings(self.queries)
        if not self.scaled and any(facts.dtype == "float32" for part in self.splits.values() for facts in part.facts):
            warnings.append(
                "images have more than 8 bits, but the processor of a new model expects 0 .. 255: set "
                "processor: {image_mean: computed, image_std: computed}, or set rescale_factor and means"
            )
        names = list(self.splits)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                if pairs := self.shared_images(first, second):
                    warnings.append(
                        f"{first} and {second} share images: {format_list(' = '.join(pair) for pair in pairs)}"
                    )
        return warnings

    def query_warnings(self, queries: int | None) -> list[str]:
        """Return warnings for splits whose images have more objects than the model has queries."""
        if queries is None:
            return []
        return [text for part in self.splits.values() if (text := part.query_warning(queries)) is not None]

    def shared_images(self, first: str, second: str) -> list[tuple[str, str]]:
        """Return pairs of names of the same image in two splits."""
        ours, theirs = self.splits[first].digests, self.splits[second].digests
        return [(names[0], theirs[digest][0]) for digest, names in ours.items() if digest in theirs]

    def class_counts(self, split: str = "train") -> list[int]:
        """Number of pixels (images, labeled keypoints) of each class (K,), for the class weights of losses."""
        return [occurrence.count for occurrence in self.splits[split].classes]


__all__ = ["UNITS", "CheckReport", "Occurrence", "SplitFacts"]
