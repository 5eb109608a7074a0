"""The splits of a recipe: raw samples with their classes for measuring, transformed ones for training.

Shapes: C bands, H W pixels, K classes or keypoints.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import Dataset

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.class_entries import ClassSettings
from hf_vit_seg.data.labels.class_table import ClassTable, ClassTableError, UnknownValueError
from hf_vit_seg.data.sources.registry import Source, SourceError, open_source
from hf_vit_seg.data.transforms.pipeline import Pipeline

from .samples import Person, RawSample
from .stream import Draw, seeded

Split = Literal["train", "validation", "test"]


class DataSettings(ClassSettings, Protocol):
    """What a recipe says of its data."""

    @property
    def train(self) -> Mapping[str, Any]: ...
    @property
    def validation_share(self) -> float | None: ...
    @property
    def channels(self) -> int: ...
    @property
    def cache(self) -> bool: ...


class RunSettings(Protocol):
    """What a recipe says that data depend on."""

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
    """A split of a recipe's data, or None where the recipe has none of that name.

    Where there is a `validation_share` in place of a validation source, it is cut from the training source.
    RecordError, SourceError or ClassTableError in one sentence.
    """
    data: DataSettings = recipe.data
    shared = split != "test" and getattr(data, "validation", None) is None and data.validation_share is not None
    settings = data.train if shared else getattr(data, split)
    if settings is None:
        return None
    place = "data.train" if shared else f"data.{split}"
    source = open_source(settings, recipe.task, data.channels, place)
    table = class_table_of(recipe, source if settings == data.train else None)
    indices = None
    if shared:
        kept, cut = shares(source, data.validation_share or 0, recipe.seed)
        indices = kept if split == "train" else cut
    try:
        return RawDataset(source, table, recipe.task, indices, data.cache)
    except ClassTableError as error:
        raise ClassTableError(f"{place}: {error}") from None


def class_table_of(recipe: RunSettings, source: Source | None = None) -> ClassTable:
    """The classes of a recipe, which for pose are the keypoints; `source` is that of training, opened where need be."""
    if recipe.data.classes is None and source is None:
        source = open_source(recipe.data.train, recipe.task, recipe.data.channels, "data.train")
    table = ClassTable.from_recipe(recipe.data, source.class_names if source else None)
    if recipe.task == "segmentation" and len(table.names) == 1:
        raise ClassTableError(
            f"'{table.names[0]}' is the only class, and there is nothing to tell it from: name what the other pixels "
            f"are before it, as in classes: [background, {table.names[0]}]; with model.single_output: true only "
            f"'{table.names[0]}' is an output of the model"
        )
    return table


def shares(source: Source, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices that stay, and those that are cut off: `share` of the groups, by the seed, at least one on each side."""
    groups = [source.group(index) for index in range(len(source))]
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise SourceError(f"data.validation_share cannot be cut from {len(names)} image: give a validation source")
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = {names[place] for place in order[:count]}
    parts: tuple[list[int], list[int]] = ([], [])
    for index, group in enumerate(groups):
        parts[group in cut].append(index)
    return parts


class RawDataset:
    """Samples of a source (or of some `indices` of it) as the class table sees them, without transforms.

    With `cache` decoded samples are kept in memory. Loader processes that are forked share what is kept by then (see
    `preload`), and each keeps its own beyond that.
    """

    def __init__(
        self,
        source: Source,
        class_table: ClassTable,
        task: str = "segmentation",
        indices: Sequence[int] | None = None,
        cache: bool = False,
    ):
        """ClassTableError when the source names classes that the table does not have."""
        self.source, self.class_table, self.task = source, class_table, task
        self.indices = range(len(source)) if indices is None else indices
        self.kept: dict[int, RawSample] | None = {} if cache else None
        if task == "pose":
            check_keypoints(class_table.names, source.class_names)
        else:
            self.class_table = class_table.matched(source.class_names)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.indices)

    def part(self, count: int) -> "RawDataset":
        """Some samples, evenly from first to last; all where there are no more."""
        if count >= len(self):
            return self
        chosen = [self.indices[place * len(self) // count] for place in range(count)]
        return RawDataset(self.source, self.class_table, self.task, chosen)

    def name(self, index: int) -> str:
        """What a sample is called, without reading it."""
        return self.source.name(self.indices[index])

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample, the image first; empty when it has none of its own."""
        return self.source.files(self.indices[index])

    def group(self, index: int) -> str | int:
        """What a sample must not be torn apart from when data are split."""
        return self.source.group(self.indices[index])

    def raw(self, index: int) -> RawSample:
        """A sample with the raw target of its source, read anew. ImageFileError when it cannot be used."""
        sample = self.source.read(self.indices[index])
        check_sample(sample, self.where(index))
        return sample

    def read(self, index: int) -> RawSample:
        """A sample with its classes: a mask (H, W) int64 with the table's ignore index, a class index, or a person.

        Tensors may be written to. ImageFileError or UnknownValueError, with the file's name, when it cannot be used.
        """
        if self.kept is None:
            return self.classified(index)
        if index not in self.kept:
            self.kept[index] = packed(self.classified(index), self.class_table.ignore_index)
        return unpacked(self.kept[index])

    def classified(self, index: int) -> RawSample:
        """A sample with its classes, read anew."""
        sample = self.raw(index)
        try:
            if isinstance(sample.target, torch.Tensor):
                return replace(sample, target=self.class_table.apply(sample.target))
            if isinstance(sample.target, int):
                return replace(sample, target=self.class_table.class_of(sample.target))
            return sample
        except UnknownValueError as error:
            raise UnknownValueError(f"{self.where(index)}: {error}", error.counts) from None
        except ClassTableError as error:
            raise ClassTableError(f"{self.where(index)}: {error}") from None

    def where(self, index: int) -> str:
        """Where people find a sample's target."""
        files = self.files(index)
        return str(files[-1]) if files else self.name(index)

    def preload(self, threads: int = 4) -> None:
        """Fill the cache, if there is one."""
        if self.kept is not None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(self.read, range(len(self))):
                    pass

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept: a loader process that is sent the dataset fills a cache of its own."""
        return {**self.__dict__, "kept": None if self.kept is None else {}}


class TrainingDataset(Dataset[dict[str, Any]]):
    """Samples as the `Collator` takes them, by draws of the stream: random numbers are those of the draw."""

    def __init__(self, raw: RawDataset, pipeline: Pipeline, seed: int):
        """`seed` is the run's."""
        self.raw, self.pipeline, self.seed = raw, pipeline, seed

    def __len__(self) -> int:
        """Count the samples of an epoch."""
        return len(self.raw)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """`image` (C, H, W), uint8 or float32, `target` as the transforms leave it, `name`, and the `draw` itself."""
        sample = self.raw.read(draw.index)
        with seeded(draw, self.seed):
            image, target = self.pipeline(sample.image, sample.target)
        return {"image": image, "target": target, "name": sample.name, "draw": draw}


def check_sample(sample: RawSample, where: str) -> None:
    """Refuse pixels that are not finite, and a mask of another size than its image."""
    if sample.image.is_floating_point() and not (finite := torch.isfinite(sample.image)).all():
        raise ImageFileError(
            f"{sample.name}: {int((~finite).sum())} pixels of the image are not finite: write missing ones as a number"
        )
    if not isinstance(sample.target, torch.Tensor):
        return
    image, mask = sample.image.shape[-2:], sample.target.shape[-2:]
    if image != mask:
        turned = " (one is turned: perhaps a photo's EXIF orientation)" if image == mask[::-1] else ""
        raise ImageFileError(
            f"{where}: the mask has {mask[0]}x{mask[1]} pixels (height x width) and its image {sample.name} "
            f"{image[0]}x{image[1]}{turned}: masks have the size of their images"
        )


def check_keypoints(names: Sequence[str], source_names: Sequence[str] | None) -> None:
    """Refuse keypoints of other names or in another order than the source's."""
    if source_names is not None and tuple(names) != tuple(source_names):
        raise ClassTableError(
            f"the source has the keypoints {', '.join(source_names)}, but the classes are {', '.join(names)}: leave "
            "out data.classes, or name the keypoints in the source's order"
        )


def packed(sample: RawSample, ignore_index: int) -> RawSample:
    """A sample as it is kept: a mask in as few bytes as its classes need."""
    if not isinstance(sample.target, torch.Tensor):
        return sample
    return replace(sample, target=sample.target.to(torch.uint8 if ignore_index <= 255 else torch.int32))


def unpacked(sample: RawSample) -> RawSample:
    """A copy of a sample that is kept."""
    target = sample.target
    if isinstance(target, torch.Tensor):
        target = target.to(torch.int64)
    elif isinstance(target, Person):
        target = replace(target, keypoints=target.keypoints.clone())
    return replace(sample, image=sample.image.clone(), target=target)


__all__ = ["RawDataset", "Split", "TrainingDataset", "class_table_of", "open_split"]
