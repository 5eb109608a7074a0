"""The splits of a recipe: untransformed samples for evaluation, transformed samples for training.

Shapes: C channels, H W pixels, K classes or keypoints.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import Dataset

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.nodata import NodataSetting, fill_missing, find_nodata
from hf_vit_seg.data.labels.class_entries import ClassSettings
from hf_vit_seg.data.labels.class_table import ClassTable, ClassTableError, UnknownValueError
from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS, apply_classes, name_classes
from hf_vit_seg.data.labels.unicode_names import normalize_name
from hf_vit_seg.data.sources.source_registry import Source, SourceError, open_source
from hf_vit_seg.data.transforms.pipeline import Pipeline, TransformContext

from .samples import Labels, Person, RawSample, RawSegments, Segments
from .stream import Draw, seed_draw

Split = Literal["train", "validation", "test"]
# Errors of classification data, by `data.multi_label`.
LABEL_COUNTS = {
    True: "data.multi_label requires lists of labels: set the separator of a list file, or a label_column with lists",
    False: "the source has lists of labels: set data.multi_label to true",
}


class DataSettings(ClassSettings, Protocol):
    """The data settings of a recipe."""

    @property
    def train(self) -> Mapping[str, Any]: ...
    @property
    def validation_share(self) -> float | None: ...
    @property
    def channels(self) -> int: ...
    @property
    def cache(self) -> bool: ...
    @property
    def nodata(self) -> NodataSetting: ...
    @property
    def multi_label(self) -> bool: ...


class RunSettings(Protocol):
    """The settings of a recipe that affect the data."""

    @property
    def task(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> Any: ...
    @property
    def processor(self) -> Mapping[str, Any]: ...
    @property
    def data(self) -> Any: ...


def open_split(recipe: RunSettings, split: Split) -> "RawDataset | None":
    """Open a split of a recipe's data; None if the recipe does not define it.

    With `validation_share` instead of a validation source, the validation split is taken from the training source.
    Raises RecordError, SourceError or ClassTableError.
    """
    data: DataSettings = recipe.data
    shared = split != "test" and getattr(data, "validation", None) is None and data.validation_share is not None
    settings = data.train if shared else getattr(data, split)
    if settings is None:
        return None
    location = "data.train" if shared else f"data.{split}"
    source = open_source(settings, recipe.task, data.channels, location)
    table = build_class_table(recipe, source if settings == data.train else None)
    indices = None
    if shared:
        cached, cut = split_indices(source, data.validation_share or 0, recipe.seed)
        indices = cached if split == "train" else cut
    if recipe.task == "classification" and getattr(source, "multi_label", False) != data.multi_label:
        raise SourceError(f"{location}: {LABEL_COUNTS[data.multi_label]}")
    try:
        return RawDataset(source, table, recipe.task, indices, data.cache, data.nodata, data.multi_label)
    except ClassTableError as error:
        raise ClassTableError(f"{location}: {error}") from None


def build_class_table(recipe: RunSettings, source: Source | None = None) -> ClassTable:
    """Return the class table of a recipe (for pose, of the keypoints). `source` is the training source, opened if
    needed.
    """
    if source is None and (recipe.data.classes is None or recipe.task in SEGMENT_TASKS):
        source = open_source(recipe.data.train, recipe.task, recipe.data.channels, "data.train")
    names, things = (source.class_names, getattr(source, "things", None)) if source else (None, None)
    table = ClassTable.from_recipe(recipe.data, names, recipe.task, things)
    if recipe.task == "segmentation" and len(table.names) == 1:
        raise ClassTableError(
            f"found one class, '{table.names[0]}', expected at least two: add a class for the other pixels, as in "
            f"classes: [background, {table.names[0]}]; with model.single_output: true the model has one output, "
            f"'{table.names[0]}'"
        )
    return table


def split_indices(source: Source, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the samples at random into training and held-out indices; groups stay together.

    `share` of the groups is held out, at least one and not all.
    """
    groups = [source.group(index) for index in range(len(source))]
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise SourceError(f"data.validation_share requires at least 2 images, found {len(names)}: set data.validation")
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = {names[index] for index in order[:count]}
    parts: tuple[list[int], list[int]] = ([], [])
    for index, group in enumerate(groups):
        parts[group in cut].append(index)
    return parts


class RawDataset:
    """Samples of a source (or of its `indices`) with targets mapped by the class table, without transforms.

    With `cache`, decoded samples are kept in memory. Forked loader processes share the samples cached before the fork
    (see `preload`); each adds later samples to its own copy.
    """

    def __init__(
        self,
        source: Source,
        class_table: ClassTable,
        task: str = "segmentation",
        indices: Sequence[int] | None = None,
        cache: bool = False,
        nodata: NodataSetting = "file",
        multi_label: bool = False,
    ):
        """Raises ClassTableError if the source has classes that are not in the table."""
        self.source, self.class_table, self.task = source, class_table, task
        self.indices = range(len(source)) if indices is None else indices
        self.cached: dict[int, RawSample] | None = {} if cache else None
        self.nodata: NodataSetting = nodata
        self.multi_label = multi_label
        self.context: TransformContext | None = None  # has the values of pixels without data
        if task == "pose":
            check_keypoints(class_table.names, source.class_names)
        else:
            self.class_table = class_table.match_source(source.class_names)

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, count: int) -> "RawDataset":
        """Return a dataset of at most `count` samples, evenly spaced."""
        if count >= len(self):
            return self
        return self.select([index * len(self) // count for index in range(count)])

    def select(self, indices: Sequence[int]) -> "RawDataset":
        """Return a dataset of these samples, in this order."""
        return self.with_indices([self.indices[index] for index in indices])

    def with_indices(self, indices: Sequence[int]) -> "RawDataset":
        """Return the samples with these indices of the source, in this order."""
        cached = self.cached is not None
        dataset = RawDataset(self.source, self.class_table, self.task, indices, cached, self.nodata, self.multi_label)
        dataset.context = self.context
        return dataset

    def use_context(self, context: TransformContext) -> None:
        """Set the properties of the image processor, whose mean replaces pixels without data (0 before)."""
        if self.cached and context != self.context:
            self.cached = {}
        self.context = context

    def name(self, index: int) -> str:
        """Return the name of a sample, without reading it."""
        return self.source.name(self.indices[index])

    def files(self, index: int) -> tuple[Path | str, ...]:
        """Return the files of a sample, the image first: paths, or addresses as strings.

        Empty if the sample is not stored in separate files.
        """
        return self.source.files(self.indices[index])

    def group(self, index: int) -> str | int:
        """Return the group of a sample; a group is never divided between splits."""
        return self.source.group(self.indices[index])

    def raw(self, index: int) -> RawSample:
        """Read a sample with its raw target, bypassing the cache. Raises ImageFileError for unusable samples."""
        sample = self.source.read(self.indices[index])
        if not sample.encoded:
            sample = replace(sample, encoded=tuple(file for file in self.files(index) if isinstance(file, Path)))
        sample = self._mark_missing(sample)
        check_sample(sample, self.location(index))
        if isinstance(sample.target, RawSegments):
            return replace(sample, target=name_classes(sample.target, self.class_table))
        return sample

    def read(self, index: int) -> RawSample:
        """Read a sample with its target mapped to classes: a mask (H, W) int64, a class index, a person, or segments.

        The tensors are copies and may be modified. Raises ImageFileError or UnknownValueError with the file's name.
        """
        if self.cached is None:
            return self._read_uncached(index)
        if index not in self.cached:
            self.cached[index] = pack_sample(self._read_uncached(index), self.class_table.ignore_index)
        return unpack_sample(self.cached[index])

    def _read_uncached(self, index: int) -> RawSample:
        try:
            sample = replace(self.raw(index), encoded=())
            if isinstance(sample.target, RawSegments):
                segments = apply_classes(sample.target, self.class_table, self.task, sample.unlabeled)
                return replace(sample, target=segments)
            if isinstance(sample.target, torch.Tensor):
                return replace(sample, target=self._classes(sample.target, sample.unlabeled))
            if isinstance(sample.target, int):
                return replace(sample, target=self.class_table.class_index(sample.target))
            if isinstance(sample.target, Labels):
                return replace(sample, target=Labels(self.class_table.class_indices(sample.target.indices)))
            return sample
        except UnknownValueError as error:
            raise UnknownValueError(f"{self.location(index)}: {error}", error.counts) from None
        except ClassTableError as error:
            raise ClassTableError(f"{self.location(index)}: {error}") from None

    def _classes(self, raw: torch.Tensor, unlabeled: torch.Tensor | None) -> torch.Tensor:
        """Map a raw mask to classes; unlabeled pixels are ignored, with any value."""
        if unlabeled is None:
            return self.class_table.apply(raw)
        known = torch.tensor(self.class_table.targets[0][0], dtype=raw.dtype)
        if known.ndim:
            known = known[:, None, None]
        return self.class_table.apply(raw.where(~unlabeled, known)).masked_fill_(
            unlabeled, self.class_table.ignore_index
        )

    def _mark_missing(self, sample: RawSample) -> RawSample:
        """Fill pixels of the image without data, and mark these and labels without data."""
        files = sample.encoded
        nodata = find_nodata(self.nodata, files[0] if files else None)
        context = self.context
        fill = (0.0,) if context is None else context.stored_mean(sample.image)
        image, missing = fill_missing(sample.image, nodata, lambda: fill)
        target, unlabeled = sample.target, missing
        if isinstance(target, torch.Tensor) and target.ndim == 2 and self.nodata == "file" and len(files) > 1:
            value = find_nodata("file", files[-1])
            if value is not None and value not in dict(self.class_table.targets) and (target == value).any():
                matches = target == value
                unlabeled = matches if unlabeled is None or unlabeled.shape != matches.shape else unlabeled | matches
        return replace(sample, image=image, missing=missing, unlabeled=unlabeled)

    def location(self, index: int) -> str:
        """Return the file that holds a sample's target, or the sample's name."""
        files = self.files(index)
        return str(files[-1]) if files else self.name(index)

    def preload(self, threads: int = 4) -> None:
        """Fill the cache. Without a cache this does nothing."""
        if self.cached is not None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(self.read, range(len(self))):
                    pass

    def __getstate__(self) -> dict[str, Any]:
        """Drop the cached samples: a spawned loader process fills its own cache."""
        return {**self.__dict__, "cached": None if self.cached is None else {}}


class TrainingDataset(Dataset[dict[str, Any]]):
    """Transformed samples for the `Collator`, indexed by draws of the stream, which determine the random numbers."""

    def __init__(self, raw: RawDataset, pipeline: Pipeline, seed: int):
        self.raw, self.pipeline, self.seed = raw, pipeline, seed

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return `image` (C, H, W), uint8 or float32, the transformed `target`, `name` and `draw`."""
        sample = self.raw.read(draw.index)
        with seed_draw(draw, self.seed):
            image, target = self.pipeline(sample.image, sample.target, self.raw.class_table.stuff)
        return {"image": image, "target": target, "name": sample.name, "draw": draw}


def check_sample(sample: RawSample, where: str) -> None:
    """Raise ImageFileError for pixels that are not finite and for a mask whose size differs from its image."""
    if sample.image.is_floating_point() and not (finite := torch.isfinite(sample.image)).all():
        raise ImageFileError(
            f"{sample.name}: {int((~finite).sum())} pixels of the image are not finite: replace missing values"
        )
    target = sample.target.ids if isinstance(sample.target, RawSegments) else sample.target
    if not isinstance(target, torch.Tensor):
        return
    image, mask = sample.image.shape[-2:], target.shape[-2:]
    if image != mask:
        turned = " (one is rotated, perhaps by its EXIF orientation)" if image == mask[::-1] else ""
        raise ImageFileError(
            f"{where}: the mask has {mask[0]}x{mask[1]} pixels (height x width), its image {sample.name} has "
            f"{image[0]}x{image[1]}{turned}: use a mask of the image's size"
        )


def check_keypoints(names: Sequence[str], source_names: Sequence[str] | None) -> None:
    """Raise ClassTableError if the names or the order of the keypoints differ from those of the source."""
    if source_names is not None and tuple(names) != tuple(map(normalize_name, source_names)):
        raise ClassTableError(
            f"the source has the keypoints {', '.join(source_names)}, but data.classes has {', '.join(names)}: remove "
            "data.classes, or list the keypoints in the order of the source"
        )


def pack_sample(sample: RawSample, ignore_index: int) -> RawSample:
    """Convert a sample's mask to the smallest dtype that holds its classes or segments."""
    if isinstance(sample.target, Segments) and len(sample.target.classes) < 2**15:
        return replace(sample, target=replace(sample.target, ids=sample.target.ids.to(torch.int16)))
    if not isinstance(sample.target, torch.Tensor):
        return sample
    return replace(sample, target=sample.target.to(torch.uint8 if ignore_index <= 255 else torch.int32))


def unpack_sample(sample: RawSample) -> RawSample:
    """Copy a cached sample, with its mask as int64."""
    target = sample.target
    if isinstance(target, torch.Tensor):
        target = target.to(torch.int64)
    elif isinstance(target, Segments):
        target = replace(target, ids=target.ids.to(torch.int32, copy=True))
    elif isinstance(target, Person):
        target = replace(target, keypoints=target.keypoints.clone())
    return replace(sample, image=sample.image.clone(), target=target)


__all__ = ["RawDataset", "Split", "TrainingDataset", "build_class_table", "open_split"]
