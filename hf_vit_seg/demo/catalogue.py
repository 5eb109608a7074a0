"""The models of a demo: found out by their configs, loaded when they are asked for, and called."""

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import AutoConfig

from hf_vit_seg.errors import error_sentence
from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.dense.image_preparation import PreparedImage
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.loading import AUTO_CLASSES, ModelError
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.inference.runtimes import is_program
from hf_vit_seg.inference.segmentation import Segmentation
from hf_vit_seg.inference.segmenter import Segmenter

from . import ENVIRONMENT, NUCLEI
from .accelerator import on_gpu
from .reading import TimeLimitError
from .uploads import told

# Of the images in examples/nuclei, those that are installed with the package.
EXAMPLES = ("709e094e39629a9c", "43cf6b2ec0b0745a", "0c2550a23b8a0f29", "c1afe66cd139f996", "3477024fd843e460")
KEPT = 3  # models that stay in memory
LOADERS: Mapping[str, Callable[[str], Any]] = {
    "segmentation": Segmenter.from_pretrained,
    "classification": Classifier.from_pretrained,
    "pose": PoseEstimator.from_pretrained,
}
# Of ZeroGPU, for any call and for a million pixels that a model sees: more than large models take.
SECONDS, SECONDS_PER_MILLION = 10, 1
SECONDS_COMPUTING = 120  # for one image
SECONDS_WAITING = 300  # for the images of others


@dataclass(frozen=True)
class Entry:
    """A model: where it is, its name in parts, from the general to the particular, and its task."""

    place: str
    name: tuple[str, ...]
    task: str


class Catalogue:
    """The models that a demo offers. ModelError when none can be used; `failures` has a sentence for each that cannot.

    The last three that were used stay in memory, or all of them with `keep_all`, which loads them at once.
    """

    def __init__(self, names: Sequence[str], keep_all: bool = False):
        self.failures: list[str] = []
        self.keep_all = keep_all
        found: dict[tuple[str, ...], Entry] = {}
        for name in names:
            try:
                entry = entry_of(name)
                found[entry.name] = entry
            except ModelError as error:
                self.failures.append(str(error))
        self.entries = dict(zip(titles_of(list(found)), found.values(), strict=True))
        self.kept = lru_cache(None if keep_all else KEPT)(self.loaded)
        self.loading, self.computing = Lock(), Lock()
        self.lent = on_gpu(self.called, seconds)
        if keep_all:
            self.load_all()
        if not self.entries:
            raise ModelError("; ".join(self.failures) or "no model is given")

    def load_all(self) -> None:
        """Load every model, and go on without those that cannot be."""
        for title in list(self.entries):
            try:
                self.load(title)
            except ModelError as error:
                self.failures.append(str(error))
                del self.entries[title]

    def load(self, title: str) -> Any:
        """A model, ready to be called. ModelError when it cannot be loaded after all."""
        if self.keep_all:  # loaded at the start; the processes of ZeroGPU have no use for a lock of this one
            return self.kept(title)
        with self.loading:
            return self.kept(title)

    def call(self, title: str, *inputs: Any, pixels: int = 0) -> Any:
        """`called`, on a GPU of ZeroGPU where there is one, for one visitor at a time.

        TimeLimitError when others keep the model busy for too long.
        """
        if not self.computing.acquire(timeout=SECONDS_WAITING):
            raise TimeLimitError("the server is busy with other images: try again later")
        try:
            return self.lent(title, *inputs, pixels=pixels)
        finally:
            self.computing.release()

    def titles(self, task: str) -> list[str]:
        """What the models of a task are called."""
        return [title for title, entry in self.entries.items() if entry.task == task]

    def loaded(self, title: str) -> Any:
        """Load a model. The cached variant is `load`."""
        entry = self.entries[title]
        try:
            return LOADERS[entry.task](entry.place)
        except ModelError as error:
            raise ModelError(str(error).replace(entry.place, title)) from error

    def called(self, title: str, *inputs: Any, pixels: int = 0) -> Any:
        """What a model finds in its inputs; a segmentation model has a protocol and a prepared image.

        `pixels` is how many it sees where that depends on them.
        """
        with told():
            model = self.load(title)
            return segmented(model, *inputs) if isinstance(model, Segmenter) else model(*inputs)


def segmented(segmenter: Segmenter, protocol: Protocol, prepared: PreparedImage) -> Segmentation:
    """Segment a prepared image by a protocol. TimeLimitError, before the next window, when it takes too long."""
    segmenter = segmenter.with_protocol(protocol)
    logits, end = segmenter.logits, time.monotonic() + SECONDS_COMPUTING

    def in_time(pixel_values: torch.Tensor) -> torch.Tensor:
        if time.monotonic() > end:
            raise TimeLimitError(f"the model takes longer than {SECONDS_COMPUTING} s: give a smaller image")
        return logits(pixel_values)

    segmenter.logits = in_time
    return segmenter.segment(prepared)


def seconds(title: str, *inputs: Any, pixels: int = 0) -> int:
    """How long a GPU of ZeroGPU is asked for, for the same arguments as `Catalogue.called`."""
    return SECONDS + math.ceil(pixels / 1e6 * SECONDS_PER_MILLION)


def entry_of(name: str) -> Entry:
    """A model by its name. ModelError when there is none, or its task is not among those of a demo."""
    if name == NUCLEI:
        return Entry(str(files("hf_vit_seg.nuclei") / "model"), (NUCLEI,), "segmentation")
    return Entry(name, parts_of(name), "segmentation" if is_program(name) else task_of(name))


def parts_of(name: str) -> tuple[str, ...]:
    """A Hub id or the path of a file or directory, in parts.

    In a Space its id stands for the folder that it runs in, which is called `app` in all of them.
    """
    path, here, space = Path(name), Path.cwd(), os.environ.get("SPACE_ID")
    if not path.exists():
        return tuple(name.split("/"))
    path = path.resolve()
    if space and path.is_relative_to(here):
        return (*space.split("/"), *path.relative_to(here).parts)
    return path.parts[1:]


def titles_of(names: Sequence[tuple[str, ...]]) -> list[str]:
    """What models are called: the last two parts of their names, and more where others end alike."""

    def alone(name: tuple[str, ...], length: int) -> bool:
        return sum(other[-length:] == name[-length:] for other in names) == 1

    lengths = [next((n for n in range(2, len(name)) if alone(name, n)), len(name)) for name in names]
    return ["/".join(name[-length:]) for name, length in zip(names, lengths, strict=True)]


def task_of(name: str) -> str:
    """The task of a model, by the class that its config names."""
    try:
        saved = AutoConfig.from_pretrained(name).architectures or []
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name} cannot be loaded: {error_sentence(error, short=True)}") from error
    for task, auto_class in AUTO_CLASSES.items():
        if any(auto_class.removeprefix("AutoModel") in architecture for architecture in saved):
            return task
    found = ", ".join(saved) or "a model without a head"
    raise ModelError(f"{name} is {found}: the demo shows models for {', '.join(AUTO_CLASSES)}")


def default_models() -> list[str]:
    """Those that the environment names, and the built-in one."""
    return [*filter(None, re.split(r"[,\s]+", os.environ.get(ENVIRONMENT, ""))), NUCLEI]


def example_images() -> list[str]:
    """Paths of images for the built-in model."""
    folder = files("hf_vit_seg.nuclei") / "data" / "test" / "images"
    return [str(folder / f"{name}.webp") for name in EXAMPLES]


__all__ = ["Catalogue", "default_models", "example_images"]
